"""Sandboxes: an image with limits, network and environment; its set-up runs once and is kept as a tree."""

from dataclasses import dataclass

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.rules.action import ActionKind, Attempt, make_action, put_description
from mrp.rules.conclude import byproducts_of, failure_reason, outcome_of
from mrp.rules.operator import contract_env
from mrp.rules.rule import ImageValue, NoAction, OneAction, Rule, RuleContext, SandboxValue
from mrp.specs.errors import InfraError
from mrp.specs.ir import SandboxTask
from mrp.specs.results import Outcome, Ref, Result
from mrp.specs.work import WORK, Box, Completed, Mount, Process


def sandbox_rule(task: SandboxTask, context: RuleContext) -> Rule:
    """Resolves a sandbox to a Box; with `setup`, an action makes the tree that each working folder starts from."""
    _refuse_later(task)
    box = Box(
        image=context.value(task.image, ImageValue).image,
        network=task.network,
        limits=task.limits,
        allow=task.allow,
        env=task.env,
        secrets=task.secrets,
    )
    description = put_description(context.store, box_json(box))
    if not task.setup:
        return NoAction(SandboxValue(task, box, description, reproducible=context.reproducible(task)))
    return SetupRule(task, box, description, context)


def _refuse_later(task: SandboxTask) -> None:
    """Raise InfraError for what no backend of this version can give, before anything runs in such a sandbox."""
    if task.volumes:
        raise InfraError(f"{task.label} has volumes, which this version cannot mount; remove them", retryable=False)


def box_json(box: Box) -> Json:
    """All of a box that can change a result, as a part of preimages."""
    limits = box.limits
    return {
        "image": box.image,
        "network": box.network if isinstance(box.network, str) else list(box.network),
        "limits": {
            "cpus": limits.cpus,
            "memory": limits.memory,
            "wall": limits.wall,
            "pids": limits.pids,
            "disk": limits.disk,
            "gpus": None if limits.gpus is None else list(limits.gpus),
        },
        "allow": None if box.allow is None else list(box.allow),
        "env": dict(box.env),
        "secrets": list(box.secrets),
    }


@dataclass(frozen=True)
class RunSetup:
    """Work: the set-up commands, one after the other, in an empty working folder, which is what is kept."""

    process: Process

    def conclude(self, completed: Completed, store: Store) -> Attempt:
        outcome = outcome_of(completed)
        byproducts = byproducts_of(completed)
        if outcome is not Outcome.OK:
            return Attempt(Result(outcome, completed.limit), failure_reason(completed, store, byproducts))
        return Attempt(Result(outcome, outputs={"work": Ref("tree", completed.outputs[WORK])}), byproducts)


class SetupRule(OneAction):
    def __init__(self, task: SandboxTask, box: Box, description: Digest, context: RuleContext) -> None:
        self._task, self._box, self._description = task, box, description
        argv = _one_argv(task.setup)
        process = Process(
            box=box,
            argv=argv,
            role="setup",
            mounts=(Mount(WORK, context.store.put_tree({}), writable=True),),
            outputs=(WORK,),
            env=contract_env(),
            timeout=task.limits.wall,
        )
        preimage = {"box": description, "run": [list(step) for step in task.setup]}
        self._reproducible = context.reproducible(task)
        work = RunSetup(process)
        super().__init__(make_action(ActionKind.SETUP, task.label, "", preimage, work, reproducible=self._reproducible))

    def value(self) -> SandboxValue:
        tree = self.result().outputs["work"].digest
        return SandboxValue(self._task, self._box, self._description, tree, reproducible=self._reproducible)


def _one_argv(steps: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Several commands as one shell line that stops at the first failure; a single one needs no shell."""
    if len(steps) == 1:
        return steps[0]
    from shlex import join

    return ("sh", "-ec", "\n".join(join(step) for step in steps))

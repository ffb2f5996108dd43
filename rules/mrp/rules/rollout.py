"""Rollouts: a trial for each record and sample, and a grade for each trial."""

import dataclasses
import fnmatch
import posixpath
from collections.abc import Iterator, Mapping

from blake3 import blake3

from mrp.cache.canonical import Json, canonical_bytes, canonical_digest
from mrp.cache.digest import Digest
from mrp.cache.store import Entry
from mrp.rules.action import Action, ActionKind, make_action, put_description
from mrp.rules.interpolate import Template, TemplateError, parse_template
from mrp.rules.operator import contract_env, contract_mounts, operator_process, operator_sdk
from mrp.rules.records import PublicFields, Record, read_index
from mrp.rules.rule import (
    DatasetValue,
    OperatorValue,
    RuleContext,
    SandboxValue,
    Settled,
    TrialsValue,
)
from mrp.rules.trial import RunGrade, RunTrial
from mrp.specs.errors import BuildFailed, InfraError, UsageError
from mrp.specs.ir import MapTask
from mrp.specs.labels import encode_text
from mrp.specs.results import Outcome, Ref, Result
from mrp.specs.work import OUT, SOLUTION, WORK, Mount, Process

LANGUAGE_VERSION = 1

_NOT_RUN = (Outcome.CANCELLED, Outcome.BUDGET)


class RolloutRule:
    """Trials first, each followed by its grade; the value is one row a trial, in order of id and sample."""

    def __init__(self, task: MapTask, context: RuleContext) -> None:
        if task.model is not None:
            raise InfraError(
                f"{task.label} has a model, and this version has no model gateway yet; remove `model`", retryable=False
            )
        self._task, self._context, self._store = task, context, context.store
        self._dataset = context.value(task.over, DatasetValue)
        if self._dataset.own_images:
            raise InfraError(
                f"{task.label} runs over {task.over}, whose harbor records bring images of their own, which this"
                " version cannot build; declare them as `format: dir` to run them in a sandbox of yours",
                retryable=False,
            )
        self._agent = context.value(task.agent, OperatorValue)
        self._sandbox = context.value(task.sandbox, SandboxValue)
        self._templates = {name: parse_template(text) for name, text in task.env.items()}
        self._timeout = min(task.timeout or self._sandbox.box.limits.wall, self._sandbox.box.limits.wall)
        self._report = task.grade.result if task.grade is not None else None
        self._base = self._trial_base()
        self._grade_base = self._grader_base()
        self._rows: dict[tuple[str, int], bytes] = {}
        self._waiting: dict[str, tuple[Record, int, Result]] = {}
        self._trials: dict[str, tuple[Record, int]] = {}
        self._trajectories: dict[tuple[str, int], Digest] = {}
        self._scored = 0
        self._problem = ""
        self._inputs_reproducible = self._reproducible = context.reproducible(task)
        self._partial = False

    def start(self) -> Iterator[Action]:
        for record in self._selected():
            for sample in self._samples(record):
                item = _item(record.id, sample)
                self._trials[item] = (record, sample)
                yield self._trial(record, sample, item)

    def settled(self, settled: Settled) -> Iterator[Action]:
        item = settled.action.item
        if settled.action.kind is ActionKind.TRIAL:
            record, sample = self._trials.pop(item)
            if settled.trajectory is not None:
                self._trajectories[record.id, sample] = settled.trajectory
            if settled.result is None:
                self._row(record, sample, settled, None, None)
            elif self._task.grade is None or self._report is not None:
                self._row(record, sample, settled, settled.result, settled.result.values or None)
            else:
                self._waiting[item] = (record, sample, settled.result)
                yield self._grade(record, item, settled.result)
            return
        record, sample, trial = self._waiting.pop(item)
        self._row(record, sample, settled, trial, settled.result.values if settled.result is not None else None)

    def value(self) -> TrialsValue:
        trials = self._store.put_bytes(b"".join(self._rows[key] for key in sorted(self._rows)))
        return TrialsValue(
            trials,
            len(self._rows),
            self._scored,
            {"trials.jsonl": Ref("blob", trials)},
            self._reproducible,
            self._partial,
            self._problem,
            self._trajectories,
        )

    def _selected(self) -> Iterator[Record]:
        chosen = self._context.selection
        wanted = chosen.items.get(self._task.label)
        ids = None if wanted is None else {item.partition("#")[0] for item in wanted}
        unseen = set(ids or ())
        taken = 0
        for record in read_index(self._dataset.index, self._store):
            skip = (
                (ids is not None and encode_text(record.id) not in ids)
                or (chosen.globs and not any(fnmatch.fnmatchcase(record.id, glob) for glob in chosen.globs))
                or (chosen.limit is not None and taken >= chosen.limit)
            )
            unseen.discard(encode_text(record.id))
            if skip:
                self._partial = True
                continue
            taken += 1
            yield record
        if unseen:
            raise UsageError(f"there is no {self._task.label}[{min(unseen)}]: {self._task.over} has no such record")

    def _samples(self, record: Record) -> Iterator[int]:
        wanted = self._context.selection.items.get(self._task.label)
        for sample in range(self._task.samples):
            encoded = encode_text(record.id)
            if wanted is None or encoded in wanted or f"{encoded}#{sample}" in wanted:
                yield sample
            else:
                self._partial = True

    def _trial(self, record: Record, sample: int, item: str) -> Action:
        task, agent = self._task, self._agent
        view = self._view(record)
        seed = trial_seed(view, sample, task.seed)
        trial = trial_id(view, agent.digest, task.params, sample, task.epoch)
        below = [tree for tree in (self._sandbox.setup, record.starter) if tree is not None]
        mounts = [
            *contract_mounts(self._store, view["task"], self._store.merge_trees(below) if len(below) > 1 else below[0])
        ]
        if "solution" in view:
            mounts.append(Mount(SOLUTION, view["solution"]))
        env = {
            **contract_env(record.id, task.params),
            "MRP_SAMPLE": str(sample),
            "MRP_SEED": str(seed),
            "MRP_TRIAL": trial,
            **self._rendered(record, sample, seed, trial),
        }
        outputs, result = [WORK, OUT], (OUT, "result.json")
        if agent.task.io is not None:
            given, left = (posixpath.split(path) for path in agent.task.io)
            self._lay_over(mounts, given[0], self._input_file(record, sample, seed, given[1]))
            self._lay_over(mounts, left[0], self._store.put_tree({}))
            outputs.append(left[0])
            result = left
        try:
            process = operator_process(
                agent,
                self._sandbox.box,
                operator_sdk(agent, self._context),
                mounts=tuple(mounts),
                outputs=tuple(dict.fromkeys(outputs)),
                env=env,
                timeout=self._timeout,
            )
        except BuildFailed as error:
            raise BuildFailed(f"{task.label}[{item}]: {error}") from None
        return make_action(
            ActionKind.TRIAL,
            task.label,
            item,
            {"base": self._base, "record": record.id, **view, "sample": sample},
            RunTrial(process, self._report, result),
            retries=task.retries,
            usd=task.cost.usd,
            tokens=task.cost.tokens,
            reproducible=self._inputs_reproducible,
        )

    def _grade(self, record: Record, item: str, trial: Result) -> Action:
        grade = self._task.grade
        assert grade is not None
        sandbox = self._grade_sandbox()
        work = trial.outputs["work"].digest
        mounts = contract_mounts(self._store, record.grader, work)
        env = contract_env(record.id)
        timeout = min(grade.timeout or sandbox.box.limits.wall, sandbox.box.limits.wall)
        if grade.operator is not None:
            operator = self._context.value(grade.operator, OperatorValue)
            sdk = operator_sdk(operator, self._context)
            process = dataclasses.replace(
                operator_process(operator, sandbox.box, sdk, mounts=mounts, outputs=(OUT,), env=env, timeout=timeout),
                role="grader",
            )
        else:
            assert grade.command is not None
            process = Process(
                box=sandbox.box,
                argv=grade.command,
                role="grader",
                mounts=mounts,
                outputs=(OUT,),
                env=env,
                timeout=timeout,
            )
        preimage = {"base": self._grade_base, "record": record.id, "task": record.grader, "work": work}
        return make_action(
            ActionKind.GRADE,
            self._task.label,
            item,
            preimage,
            RunGrade(process),
            retries=self._task.retries,
            reproducible=self._inputs_reproducible and trial.reproducible,
        )

    def _trial_base(self) -> Digest:
        """All that is the same for each trial of this rollout, stored once."""
        task = self._task
        return put_description(
            self._store,
            {
                "agent": self._agent.digest,
                "box": self._sandbox.description,
                "setup": self._sandbox.setup,
                "params": task.params,
                "env": dict(task.env),
                "seed": task.seed,
                "epoch": task.epoch,
                "timeout": self._timeout,
                "limits": {"calls": task.calls, "tokens": task.tokens, "usd": task.usd},
                "report": self._report,
                "language": LANGUAGE_VERSION,
            },
        )

    def _grader_base(self) -> Digest | None:
        grade = self._task.grade
        if grade is None or grade.result is not None:
            return None
        sandbox = self._grade_sandbox()
        grader: Json
        if grade.operator is not None:
            grader = {"operator": self._context.value(grade.operator, OperatorValue).digest}
        else:
            grader = {"command": list(grade.command or ())}
        timeout = min(grade.timeout or sandbox.box.limits.wall, sandbox.box.limits.wall)
        return put_description(self._store, {**grader, "box": sandbox.description, "timeout": timeout})

    def _grade_sandbox(self) -> SandboxValue:
        assert self._task.grade is not None
        return self._context.value(self._task.grade.sandbox or self._task.sandbox, SandboxValue)

    def _view(self, record: Record) -> dict[str, Digest]:
        """The agent's view of a record, as the trees that it finds."""
        if self._agent.task.sees == "solution":
            return {"task": record.solver, "starter": record.starter, "solution": record.solution}
        return {"task": record.task, "starter": record.starter}

    def _rendered(self, record: Record, sample: int, seed: int, trial: str) -> dict[str, str]:
        if not self._templates:
            return {}
        scope: dict[str, Json] = {
            "params": self._task.params,
            "matrix": self._task.matrix,
            "seed": seed,
            "sample": sample,
            "trial": trial,
        }
        if any(_reads_record(template) for template in self._templates.values()):
            scope["record"] = {"id": record.id, **record.public}
        try:
            return {name: template.render(scope) for name, template in self._templates.items()}
        except TemplateError as error:
            raise BuildFailed(f"{self._task.label}[{record.id}]: env: {error}") from None

    def _lay_over(self, mounts: list[Mount], path: str, tree: Digest) -> None:
        """Add a writable mount; where there is one already, put the tree over what stands there."""
        for place, mount in enumerate(mounts):
            if mount.path == path:
                merged = self._store.merge_trees([mount.tree, tree])
                mounts[place] = dataclasses.replace(mount, tree=merged)
                return
        mounts.append(Mount(path, tree, writable=True))

    def _input_file(self, record: Record, sample: int, seed: int, name: str) -> Digest:
        """The folder of the one file that an agent with `files` reads."""
        view = PublicFields(record.solver, self._store) if self._agent.task.sees == "solution" else record.public
        content = {
            "record": {"id": record.id, **view},
            "params": self._task.params,
            "seed": seed,
            "sample": sample,
            "model": None,
        }
        return self._store.put_tree({name: Entry("f", self._store.put_bytes(canonical_bytes(content)))})

    def _row(
        self,
        record: Record,
        sample: int,
        last: Settled,
        trial: Result | None,
        rewards: Mapping[str, Json] | None,
    ) -> None:
        """Note a trial whose `last` action ended: itself, or its grade."""
        outcome = trial.outcome if trial is not None else last.outcome
        if outcome in _NOT_RUN:
            self._partial = True
            return
        if last.result is not None:
            self._scored += 1
        elif not self._problem:
            self._problem = f"{last.action.kind.value} of {_item(record.id, sample)}: {last.reason}"
        for result in (trial, last.result):
            self._reproducible = self._reproducible and (result is None or result.reproducible)
        row = {
            "id": record.id,
            "sample": sample,
            "target": self._task.label.partition("@")[0],
            "agent": self._task.agent,
            "model": self._task.model,
            "matrix": dict(self._task.matrix),
            "params": dict(self._task.params),
            "outcome": outcome.value,
            "limit": trial.limit if trial is not None else None,
            "sees": self._agent.task.sees,
            "graded": None if self._task.grade is None else "self" if self._report is not None else "grader",
            "rewards": dict(rewards) if rewards else None,
            "tree": trial.outputs["work"].digest if trial is not None else None,
        }
        self._rows[record.id, sample] = canonical_bytes(row) + b"\n"


def trial_seed(view: Mapping[str, Digest], sample: int, seed: int) -> int:
    """63 bits from the language version, the agent's view of the record, the sample and the rollout's seed."""
    text = canonical_bytes({"language": LANGUAGE_VERSION, "view": dict(view), "sample": sample, "seed": seed})
    return int.from_bytes(blake3(text).digest()[:8], "big") >> 1


def trial_id(view: Mapping[str, Digest], agent: Digest, params: Mapping[str, Json], sample: int, epoch: int) -> str:
    """A stable id of 16 hex digits: the hash of agent's view, agent, params, sample and epoch."""
    parts = {"view": dict(view), "agent": agent, "params": dict(params), "sample": sample, "epoch": epoch}
    return canonical_digest(parts)[:16]


def _item(record_id: str, sample: int) -> str:
    encoded = encode_text(record_id)
    return encoded if sample == 0 else f"{encoded}#{sample}"


def _reads_record(template: Template) -> bool:
    return any(name.split(".")[0] == "record" for name in template.names())

"""Rollouts: a trial for each record and sample, and a grade for each trial."""

import dataclasses
import fnmatch
import posixpath
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

from blake3 import blake3

from mrp.cache.canonical import Json, Shape, canonical_bytes, canonical_digest, canonical_text, number_text, quoted
from mrp.cache.digest import Digest, digest_bytes
from mrp.cache.store import Entry
from mrp.rules.action import Action, ActionKind, ActionShape, put_description
from mrp.rules.calling import ModelUse
from mrp.rules.interpolate import Template, TemplateError, parse_template
from mrp.rules.kept import KeptTrials, can_keep
from mrp.rules.model import model_use
from mrp.rules.operator import contract_env, contract_mounts, operator_process, operator_sdk
from mrp.rules.records import PublicFields, Record, read_index, read_line
from mrp.rules.rule import (
    DatasetValue,
    ModelValue,
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

_ROW = ("id", "limit", "outcome", "rewards", "sample", "tree")
"""The members in which the rows of a rollout's trials differ."""

_BETWEEN = "\0"
"""Between the members of a row in memory; no JSON text has it."""


class _Trial(NamedTuple):
    """A trial that was started: its place among all in order of id and sample, which is the order of the index."""

    place: int
    record: Record
    sample: int
    item: str


class RolloutRule:
    """Trials first, each followed by its grade; the value is one row a trial, in order of id and sample.

    What is known of a trial that ended is the part of its row in which it differs: there may be 100,000 of them.
    """

    def __init__(self, task: MapTask, context: RuleContext) -> None:
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
        self._model = self._model_use()
        self._templates = {name: parse_template(text) for name, text in task.env.items()}
        self._reads_record = any(_reads_record(template) for template in self._templates.values())
        self._timeout = min(task.timeout or self._sandbox.box.limits.wall, self._sandbox.box.limits.wall)
        self._env = contract_env(None, task.params)
        self._trial_ids = trial_ids(self._agent.digest, task.params, task.epoch)
        self._report = task.grade.result if task.grade is not None else None
        self._trial_shape = self._shape_of_trials()
        self._grade_shape = self._shape_of_grades()
        self._row_shape = self._shape_of_rows()
        self._started: dict[str, _Trial] = {}
        self._waiting: dict[str, tuple[_Trial, Result]] = {}
        self._rows: list[bytes] = []
        self._trajectories: dict[tuple[str, int], Digest] = {}
        self._count = self._scored = 0
        self._problem = ""
        self._inputs_reproducible = self._reproducible = context.reproducible(task)
        self._partial = False
        self._shape = self._trials_shape()
        before = context.before.get(task.label)
        keeps = before is not None and self._reproducible and can_keep(before, self._shape)
        self._kept = KeptTrials(before, task.samples, self._store) if before is not None and keeps else None

    def start(self) -> Iterator[Action]:
        for record, encoded in self._selected() if self._kept is None else self._changed(self._kept):
            for sample in self._samples(encoded):
                item = encoded if sample == 0 else f"{encoded}#{sample}"
                trial = self._started[item] = _Trial(len(self._rows), record, sample, item)
                self._rows.append(b"")
                yield self._trial(trial)

    def settled(self, settled: Settled) -> Iterator[Action]:
        item = settled.action.item
        if settled.action.kind is ActionKind.TRIAL:
            trial = self._started.pop(item)
            if settled.trajectory is not None:
                self._trajectories[trial.record.id, trial.sample] = settled.trajectory
            if settled.result is None:
                self._row(trial, settled, None, None)
            elif self._grade_shape is None:
                self._row(trial, settled, settled.result, settled.result.values or None)
            else:
                self._waiting[item] = (trial, settled.result)
                yield self._grade(self._grade_shape, trial, settled.result)
            return
        trial, result = self._waiting.pop(item)
        self._row(trial, settled, result, settled.result.values if settled.result is not None else None)

    def value(self) -> TrialsValue:
        text = bytearray()
        for row in self._rows:
            if row.startswith(b"{"):
                text += row
            elif row:
                members = dict(zip(_ROW, row.decode().split(_BETWEEN), strict=True))
                text += f"{self._row_shape.text(members)}\n".encode()
        trials = self._store.put_bytes(text)
        return TrialsValue(
            trials,
            self._count,
            self._scored,
            {"trials.jsonl": Ref("blob", trials)},
            self._reproducible,
            self._partial,
            self._problem,
            self._trajectories,
            self._dataset.index,
            self._shape,
            self._kept.dropped() if self._kept is not None else None,
        )

    def _changed(self, kept: KeptTrials) -> Iterator[tuple[Record, str]]:
        """The records that the build before did not have, in order of id; the rows of the others are taken over."""
        empty = self._store.put_tree({})
        with self._store.open_blob(self._dataset.index) as lines:
            for line in lines:
                rows = kept.rows(line)
                if rows is None:
                    record = read_line(line, empty, self._store)
                    yield record, encode_text(record.id)
                else:
                    self._rows += rows
                    self._count += len(rows)
                    self._scored += len(rows)

    def _selected(self) -> Iterator[tuple[Record, str]]:
        """The records that were asked for with their ids encoded, in order of id."""
        chosen = self._context.selection
        wanted = chosen.items.get(self._task.label)
        ids = None if wanted is None else {item.partition("#")[0] for item in wanted}
        unseen = set(ids or ())
        taken = 0
        for record in read_index(self._dataset.index, self._store):
            encoded = encode_text(record.id)
            skip = (
                (ids is not None and encoded not in ids)
                or (chosen.globs and not any(fnmatch.fnmatchcase(record.id, glob) for glob in chosen.globs))
                or (chosen.limit is not None and taken >= chosen.limit)
            )
            unseen.discard(encoded)
            if skip:
                self._partial = True
                continue
            taken += 1
            yield record, encoded
        if unseen:
            raise UsageError(f"there is no {self._task.label}[{min(unseen)}]: {self._task.over} has no such record")

    def _samples(self, encoded: str) -> Iterator[int]:
        wanted = self._context.selection.items.get(self._task.label)
        for sample in range(self._task.samples):
            if wanted is None or encoded in wanted or f"{encoded}#{sample}" in wanted:
                yield sample
            else:
                self._partial = True

    def _trial(self, trial: _Trial) -> Action:
        record, sample = trial.record, trial.sample
        members = {"record": quoted(record.id), "sample": str(sample)}
        for name, tree in self._view(record).items():
            members[name] = f'"{tree}"'
        work = RunTrial(partial(self._trial_process, trial), self._report, self._result_file(), self._model)
        return self._trial_shape.action(trial.item, members, work, reproducible=self._inputs_reproducible)

    def _trial_process(self, trial: _Trial) -> Process:
        task, agent, record, sample = self._task, self._agent, trial.record, trial.sample
        view = self._view(record)
        seen = canonical_text(view)
        seed = trial_seed(seen, sample, task.seed)
        identity = trial_id(self._trial_ids, seen, sample)
        below = [tree for tree in (self._sandbox.setup, record.starter) if tree is not None]
        mounts = [
            *contract_mounts(self._store, view["task"], self._store.merge_trees(below) if len(below) > 1 else below[0])
        ]
        if "solution" in view:
            mounts.append(Mount(SOLUTION, view["solution"]))
        env = {
            **self._env,
            "MRP_RECORD_ID": record.id,
            "MRP_SAMPLE": str(sample),
            "MRP_SEED": str(seed),
            "MRP_TRIAL": identity,
            **self._rendered(record, sample, seed, identity),
        }
        outputs = [WORK, OUT]
        if agent.task.io is not None:
            given, left = (posixpath.split(path) for path in agent.task.io)
            self._lay_over(mounts, given[0], self._input_file(record, sample, seed, given[1]))
            self._lay_over(mounts, left[0], self._store.put_tree({}))
            outputs.append(left[0])
        try:
            return operator_process(
                agent,
                self._sandbox.box,
                operator_sdk(agent, self._context),
                mounts=tuple(mounts),
                outputs=tuple(dict.fromkeys(outputs)),
                env=env,
                timeout=self._timeout,
                model=self._model,
            )
        except BuildFailed as error:
            raise BuildFailed(f"{task.label}[{trial.item}]: {error}") from None

    def _result_file(self) -> tuple[str, str]:
        """(folder, name) of the file in which the agent leaves its own account."""
        io = self._agent.task.io
        return (OUT, "result.json") if io is None else posixpath.split(io[1])

    def _grade(self, shape: ActionShape, trial: _Trial, result: Result) -> Action:
        record, work = trial.record, result.outputs["work"].digest
        members = {"record": quoted(record.id), "task": f'"{record.grader}"', "work": f'"{work}"'}
        good = self._inputs_reproducible and result.reproducible
        return shape.action(
            trial.item, members, RunGrade(partial(self._grade_process, record, work)), reproducible=good
        )

    def _grade_process(self, record: Record, work: Digest) -> Process:
        grade = self._task.grade
        assert grade is not None
        sandbox = self._grade_sandbox()
        mounts = contract_mounts(self._store, record.grader, work)
        env = contract_env(record.id)
        timeout = min(grade.timeout or sandbox.box.limits.wall, sandbox.box.limits.wall)
        if grade.operator is not None:
            operator = self._context.value(grade.operator, OperatorValue)
            return operator_process(
                operator,
                sandbox.box,
                operator_sdk(operator, self._context),
                mounts=mounts,
                outputs=(OUT,),
                env=env,
                timeout=timeout,
                role="grader",
            )
        assert grade.command is not None
        return Process(
            box=sandbox.box,
            argv=grade.command,
            role="grader",
            mounts=mounts,
            outputs=(OUT,),
            env=env,
            timeout=timeout,
        )

    def _model_use(self) -> ModelUse | None:
        task = self._task
        if task.model is None:
            return None
        model = self._context.value(task.model, ModelValue)
        return model_use(model, task.params, self._context, calls=task.calls, tokens=task.tokens, usd=task.usd)

    def _shape_of_trials(self) -> ActionShape:
        """All that is the same for each trial of this rollout, stored once."""
        task = self._task
        model = {"model": self._model.description} if self._model is not None else {}
        base = put_description(
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
                **model,
            },
        )
        views = ("task", "starter", "solution") if self._agent.task.sees == "solution" else ("task", "starter")
        cost = task.cost
        return ActionShape(
            ActionKind.TRIAL,
            task.label,
            {"base": base},
            "record",
            "sample",
            *views,
            retries=task.retries,
            usd=cost.usd,
            tokens=cost.tokens,
        )

    def _shape_of_grades(self) -> ActionShape | None:
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
        base = put_description(self._store, {**grader, "box": sandbox.description, "timeout": timeout})
        label, retries = self._task.label, self._task.retries
        return ActionShape(ActionKind.GRADE, label, {"base": base}, "record", "task", "work", retries=retries)

    def _trials_shape(self) -> str:
        """One digest of all that is the same for the trials, their grades and their rows."""
        task, grade = self._task, self._grade_shape
        same = [self._trial_shape.constant, grade.constant if grade is not None else None]
        return canonical_digest([*same, self._row_shape.text(dict.fromkeys(_ROW, "null")), task.samples])

    def _shape_of_rows(self) -> Shape:
        task = self._task
        constant = {
            "target": task.label.partition("@")[0],
            "agent": task.agent,
            "model": task.model,
            "matrix": dict(task.matrix),
            "params": dict(task.params),
            "sees": self._agent.task.sees,
            "graded": None if task.grade is None else "self" if self._report is not None else "grader",
        }
        return Shape(constant, *_ROW)

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
        if self._reads_record:
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
            "model": self._model.name if self._model is not None else None,
        }
        return self._store.put_tree({name: Entry("f", self._store.put_bytes(canonical_bytes(content)))})

    def _row(self, trial: _Trial, last: Settled, result: Result | None, rewards: Mapping[str, Json] | None) -> None:
        """Note a trial whose `last` action ended: itself, or its grade."""
        outcome = result.outcome if result is not None else last.outcome
        if outcome in _NOT_RUN:
            self._partial = True
            return
        self._count += 1
        if last.result is not None:
            self._scored += 1
        elif not self._problem:
            self._problem = f"{last.action.kind.value} of {trial.item}: {last.reason}"
        for made in (result, last.result):
            self._reproducible = self._reproducible and (made is None or made.reproducible)
        members = (
            quoted(trial.record.id),
            canonical_text(result.limit if result is not None else None),
            f'"{outcome.value}"',
            canonical_text(rewards) if rewards else "null",
            str(trial.sample),
            f'"{result.outputs["work"].digest}"' if result is not None else "null",
        )
        self._rows[trial.place] = _BETWEEN.join(members).encode()


_SEED = Shape({"language": LANGUAGE_VERSION}, "view", "sample", "seed")


def trial_seed(view: str, sample: int, seed: int) -> int:
    """63 bits from the language version, the canonical text of the agent's view, the sample and the rollout's seed."""
    text = _SEED.text({"view": view, "sample": str(sample), "seed": number_text(seed)})
    return int.from_bytes(blake3(text.encode()).digest()[:8], "big") >> 1


def trial_ids(agent: Digest, params: Mapping[str, Json], epoch: int) -> Shape:
    """What the ids of all trials of an agent, params and epoch have in common."""
    return Shape({"agent": agent, "params": params, "epoch": epoch}, "view", "sample")


def trial_id(shape: Shape, view: str, sample: int) -> str:
    """A stable id of 16 hex digits: the hash of agent's view, agent, params, sample and epoch."""
    return digest_bytes(shape.text({"view": view, "sample": str(sample)}).encode())[:16]


def _reads_record(template: Template) -> bool:
    return any(name.split(".")[0] == "record" for name in template.names())

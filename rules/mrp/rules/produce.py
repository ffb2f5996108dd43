"""Produce: hand a result to a sink, once, if its gate allows it."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.rules.action import Action, ActionKind, Attempt, make_action
from mrp.rules.conclude import byproducts_of, failure_reason, file_digest, outcome_of
from mrp.rules.operator import contract_env, contract_mounts, operator_process, operator_sdk
from mrp.rules.rule import (
    DocumentValue,
    OperatorValue,
    ProducedValue,
    RuleContext,
    SandboxValue,
    Settled,
    TrialsValue,
    needed,
)
from mrp.specs.errors import BuildFailed
from mrp.specs.ir import Files, ProduceTask, SinkSpec
from mrp.specs.results import Outcome, Ref, Result
from mrp.specs.work import OUT, Completed, Process

if TYPE_CHECKING:
    from mrp.rules.rows import Rows


@dataclass(frozen=True)
class Publish:
    """Work: make the sink hold `content`: rows, a tree, or the JSON lines that a producer wrote.

    `kind` is rows, tree or writes; for rows, `content` names them.
    """

    label: str
    sink: SinkSpec
    kind: str
    content: "Rows | Ref"


@dataclass(frozen=True)
class RunProducer:
    """Work: a user's producer, which says what to write and writes nothing itself."""

    process: Process

    def conclude(self, completed: Completed, store: Store) -> Attempt:
        outcome, byproducts = outcome_of(completed), byproducts_of(completed)
        out = completed.outputs.get(OUT)
        writes = file_digest(store, out, "writes.jsonl") if out is not None else None
        if outcome is not Outcome.OK:
            return Attempt(Result(outcome, completed.limit), failure_reason(completed, store, byproducts))
        if writes is None:
            return Attempt(Result(Outcome.FAILED), dataclasses.replace(byproducts, reason="left no /out/writes.jsonl"))
        return Attempt(Result(outcome, outputs={"writes.jsonl": Ref("blob", writes)}), byproducts)


class ProduceRule:
    """A false gate holds it, which is no failure; partial results are refused."""

    def __init__(self, task: ProduceTask, context: RuleContext) -> None:
        self._task, self._context = task, context
        if getattr(context.values[task.of], "partial", False):
            raise BuildFailed(f"{task.label} would publish partial results; build without --items and --limit")
        self._held = not self._gate_is_open()
        self._published: Settled | None = None

    def start(self) -> Iterator[Action]:
        if self._held:
            return
        task, context = self._task, self._context
        if task.sink.schema is not None:
            context.import_sources(Files(sources=(task.sink.schema,)))
        from mrp.rules.rows import artifact_tree, input_rows, trajectory_rows

        trajectories = trajectory_rows(task.of, context) if task.rows == "trajectory" else None
        if task.producer is not None:
            yield self._producer_action(task.producer, artifact_tree(task.of, context, trajectories))
        elif task.sink.type == "files":
            yield self._publish("tree", Ref("tree", artifact_tree(task.of, context, trajectories)))
        else:
            yield self._publish("rows", trajectories or input_rows(task.of, context))

    def settled(self, settled: Settled) -> Iterator[Action]:
        if settled.action.item == "producer" and settled.result is not None and settled.outcome is Outcome.OK:
            yield self._publish("writes", settled.result.outputs["writes.jsonl"])
        else:
            self._published = settled

    def value(self) -> ProducedValue:
        if self._held:
            return ProducedValue("held", {})
        assert self._published is not None, "value() before the action settled"
        result = needed(self._published, f"{self._task.label} was not published")
        return ProducedValue("written", result.outputs, self._context.reproducible(self._task))

    def _gate_is_open(self) -> bool:
        if self._task.gate is None:
            return True
        from mrp.specs.expressions import parse_expression

        return parse_expression(self._task.gate).evaluate(self._fields()) is True

    def _fields(self) -> Json:
        subject = self._context.values[self._task.of]
        if isinstance(subject, DocumentValue):
            return subject.document
        if isinstance(subject, TrialsValue):
            return {"count": subject.count, "scored": subject.scored}
        return {}

    def _publish(self, kind: str, content: "Rows | Ref") -> Action:
        task = self._task
        work = Publish(task.label, task.sink, kind, content)
        schema = task.sink.schema.digest if task.sink.schema is not None else None
        sink = {"type": task.sink.type, "path": task.sink.path, "mode": task.sink.mode, "schema": schema}
        preimage = {"sink": sink, "content": content.to_json(), "rows": task.rows}
        good = self._context.reproducible(task)
        return make_action(ActionKind.PRODUCE, task.label, "", preimage, work, reproducible=good)

    def _producer_action(self, label: str, subject: Digest) -> Action:
        context = self._context
        operator = context.value(label, OperatorValue)
        sandbox = context.value(self._task.sandbox, SandboxValue)
        process = operator_process(
            operator,
            sandbox.box,
            operator_sdk(operator, context),
            mounts=contract_mounts(context.store, subject, sandbox.setup),
            outputs=(OUT,),
            env=contract_env(),
            timeout=sandbox.box.limits.wall,
        )
        preimage = {
            "producer": operator.digest,
            "box": sandbox.description,
            "setup": sandbox.setup,
            "subject": subject,
        }
        good = context.reproducible(self._task)
        work = RunProducer(process)
        return make_action(ActionKind.PRODUCE, self._task.label, "producer", preimage, work, reproducible=good)


def published_rows(work: Publish, store: Store) -> Iterator[Json]:
    """The rows that a Publish of kind rows hands to its sink: a document's own `rows`, else the document."""
    from mrp.rules.rows import Rows, read_rows

    assert isinstance(work.content, Rows)
    for row in read_rows((work.content,), store):
        if work.content.kind == "document" and isinstance(row.get("rows"), list):
            yield from row["rows"]
        else:
            yield row


def producer_writes(work: Publish, store: Store) -> Iterator[Json]:
    """What a producer gives to its sink: the files for a files sink, else rows.

    A line of its writes.jsonl that is no file is a row, and the lines of the files are rows.
    """
    from mrp.rules.writes import is_write, read_lines, written_files

    assert isinstance(work.content, Ref)
    for line in read_lines(work.content.digest, store, work.label):
        if work.sink.type == "files" or not is_write(line):
            yield line
            continue
        for path, data in written_files([line], work.label).items():
            yield from read_lines(store.put_bytes(data), store, f"{work.label} in {path}")

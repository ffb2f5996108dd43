"""Produce: hand a result to a sink, once, if its gate allows it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from mrp.cache.canonical import Json
from mrp.cache.store import Store
from mrp.rules.action import Action, ActionKind, Attempt, make_action
from mrp.rules.conclude import byproducts_of, failure_reason, file_digest, outcome_of
from mrp.rules.operator import contract_env, contract_mounts, operator_process, operator_sdk, subject_tree
from mrp.rules.reduction import Rows, input_rows
from mrp.rules.rule import (
    DocumentValue,
    FilesValue,
    OperatorValue,
    ProducedValue,
    RuleContext,
    SandboxValue,
    Settled,
    TrialsValue,
    needed,
)
from mrp.specs.errors import BuildFailed
from mrp.specs.expressions import parse_expression
from mrp.specs.ir import ProduceTask, SinkSpec
from mrp.specs.results import Outcome, Ref, Result
from mrp.specs.work import OUT, Completed, Process


@dataclass(frozen=True)
class Publish:
    """Work: make the sink hold `content`: rows, a tree, or the JSON lines that a producer wrote.

    `kind` is rows, tree or writes; for rows, `content` names the inputs; `wanted` is results or trajectory.
    """

    label: str
    sink: SinkSpec
    kind: str
    content: tuple[Rows, ...] | Ref
    wanted: str


@dataclass(frozen=True)
class RunProducer:
    """Work: a user's producer, which says what to write and writes nothing itself."""

    process: Process

    def conclude(self, completed: Completed, store: Store) -> Attempt:
        outcome, byproducts = outcome_of(completed), byproducts_of(completed)
        out = completed.outputs.get(OUT)
        writes = file_digest(store, out, "writes.jsonl") if out is not None else None
        if outcome is not Outcome.OK or writes is None:
            if outcome is Outcome.OK:
                outcome = Outcome.FAILED
            return Attempt(Result(outcome, completed.limit), failure_reason(completed, store, byproducts))
        return Attempt(Result(outcome, outputs={"writes.jsonl": Ref("blob", writes)}), byproducts)


class ProduceRule:
    """A false gate holds it, which is no failure; partial results are refused."""

    def __init__(self, task: ProduceTask, context: RuleContext) -> None:
        self._task, self._context = task, context
        self._subject = context.values[task.of]
        if getattr(self._subject, "partial", False):
            raise BuildFailed(f"{task.label} would publish partial results; build without --items and --limit")
        self._held = not self._gate_is_open()
        self._published: Settled | None = None

    def start(self) -> Iterator[Action]:
        if self._held:
            return
        if self._task.producer is not None:
            yield self._producer_action(self._task.producer)
        elif isinstance(self._subject, FilesValue):
            yield self._publish("tree", Ref("tree", self._subject.tree))
        else:
            yield self._publish("rows", (input_rows(self._task.of, self._context),))

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
        return ProducedValue(str(result.values.get("status", "written")), result.outputs)

    def _gate_is_open(self) -> bool:
        if self._task.gate is None:
            return True
        return parse_expression(self._task.gate).evaluate(self._fields()) is True

    def _fields(self) -> Json:
        subject = self._subject
        if isinstance(subject, DocumentValue):
            return subject.document
        if isinstance(subject, TrialsValue):
            return {"count": subject.count, "scored": subject.scored}
        return {}

    def _publish(self, kind: str, content: tuple[Rows, ...] | Ref) -> Action:
        task = self._task
        work = Publish(task.label, task.sink, kind, content, task.rows)
        named = content.to_json() if isinstance(content, Ref) else [[rows.kind, rows.digest] for rows in content]
        schema = task.sink.schema.digest if task.sink.schema is not None else None
        sink = {"type": task.sink.type, "path": task.sink.path, "mode": task.sink.mode, "schema": schema}
        return make_action(
            ActionKind.PRODUCE, task.label, "", {"sink": sink, "content": named, "rows": task.rows}, work
        )

    def _producer_action(self, label: str) -> Action:
        context = self._context
        operator = context.value(label, OperatorValue)
        sandbox = context.value(self._task.sandbox, SandboxValue)
        subject = subject_tree(self._subject, context.store)
        process = operator_process(
            operator,
            sandbox.box,
            operator_sdk(operator, context),
            mounts=contract_mounts(context.store, subject),
            outputs=(OUT,),
            env=contract_env(),
            timeout=sandbox.box.limits.wall,
        )
        preimage = {"producer": operator.digest, "box": sandbox.description, "subject": subject}
        return make_action(ActionKind.PRODUCE, self._task.label, "producer", preimage, RunProducer(process))


def published_rows(work: Publish, store: Store) -> Iterator[Json]:
    """The rows that a Publish of kind rows hands to its sink: a document's own `rows`, else the document."""
    from mrp.rules.reduction import read_rows

    assert isinstance(work.content, tuple)
    for row in read_rows(work.content, store):
        if work.content[0].kind == "document" and isinstance(row, dict) and isinstance(row.get("rows"), list):
            yield from row["rows"]
        else:
            yield row


def producer_writes(work: Publish, store: Store) -> Iterator[Json]:
    """The lines of a producer's writes.jsonl."""
    assert isinstance(work.content, Ref)
    for line in store.get_bytes(work.content.digest).splitlines():
        yield json.loads(line, parse_float=Decimal)

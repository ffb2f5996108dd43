"""Reductions: many trials, records or documents become one result.json."""

import dataclasses
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from mrp.cache.canonical import Json, canonical_bytes, canonical_text
from mrp.cache.store import Store
from mrp.rules.action import Action, ActionKind, Attempt, make_action
from mrp.rules.calling import ModelUse
from mrp.rules.conclude import byproducts_of, failure_reason, file_digest, outcome_of, read_document, reproducible
from mrp.rules.operator import contract_env, contract_mounts, operator_process, operator_sdk
from mrp.rules.rule import DocumentValue, OneAction, OperatorValue, RuleContext, SandboxValue, TrialsValue
from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.ir import ReduceTask
from mrp.specs.results import Byproducts, Outcome, Ref, Result
from mrp.specs.work import ENGINE, OUT, Completed, Process

if TYPE_CHECKING:
    from mrp.rules.rows import Rows


class ExpectationFailed(BuildFailed):
    """A false `expect`: the build fails, and `value` is kept and published all the same."""

    def __init__(self, message: str, value: DocumentValue) -> None:
        self.value = value
        super().__init__(message)


@dataclass(frozen=True)
class RunBuiltinReducer:
    """Work: a built-in reducer over rows in canonical order."""

    reducer: str
    inputs: "tuple[Rows, ...]"
    params: dict[str, Json]
    group_by: tuple[str, ...]
    select: str | None

    def perform(self, store: Store) -> Attempt:
        from mrp.rules.reducers import render_markdown, run_reducer
        from mrp.rules.rows import read_rows

        try:
            rows = read_rows(self.inputs, store, self.select)
            document = run_reducer(self.reducer, rows, params=self.params, group_by=self.group_by)
        except ValueError as error:
            return Attempt(Result(Outcome.FAILED), Byproducts(reason=str(error), isolation=ENGINE))
        outputs = {
            "result.json": Ref("blob", store.put_bytes(canonical_bytes(document) + b"\n")),
            "result.md": Ref("blob", store.put_bytes(render_markdown(document).encode())),
        }
        return Attempt(Result(Outcome.OK, outputs=outputs), Byproducts(isolation=ENGINE))


@dataclass(frozen=True)
class RunReducer:
    """Work: a reducer or evaluator of the user's, which writes /out/result.json. `model` is the one it may call."""

    process: Process
    model: ModelUse | None = None

    def conclude(self, completed: Completed, store: Store) -> Attempt:
        outcome, byproducts = outcome_of(completed), byproducts_of(completed)
        out = completed.outputs.get(OUT)
        if outcome is not Outcome.OK or out is None:
            return Attempt(Result(outcome, completed.limit), failure_reason(completed, store, byproducts))
        document, problem = read_document(store, out, "result.json")
        if document is None:
            reason = problem or "left no /out/result.json"
            return Attempt(Result(Outcome.FAILED), dataclasses.replace(byproducts, reason=reason))
        outputs = {"result.json": Ref("blob", store.put_bytes(canonical_bytes(document) + b"\n"))}
        page = file_digest(store, out, "result.md")
        outputs["result.md"] = Ref("blob", page or store.put_bytes(_page(document).encode()))
        return Attempt(Result(outcome, outputs=outputs, reproducible=reproducible(completed)), byproducts)


class ReductionRule(OneAction):
    """`expect` and `min_success` judge what comes out, so changing them runs nothing again."""

    def __init__(self, task: ReduceTask, context: RuleContext) -> None:
        from mrp.rules.rows import input_rows

        self._task, self._store = task, context.store
        values = [context.values[label] for label in task.of]
        self._trials = [value for value in values if isinstance(value, TrialsValue)]
        self._reproducible = context.reproducible(task)
        self._partial = any(getattr(value, "partial", False) for value in values)
        self._refuse_unfinished()
        inputs = tuple(input_rows(label, context) for label in task.of)
        super().__init__(self._make(inputs, context))

    def value(self) -> DocumentValue:
        from mrp.specs.expressions import parse_expression

        result = self.result()
        document = json.loads(self._store.get_bytes(result.outputs["result.json"].digest), parse_float=Decimal)
        value = DocumentValue(document, result.outputs, self._reproducible and result.reproducible, self._partial)
        if self._task.expect is not None and parse_expression(self._task.expect).evaluate(document) is not True:
            raise ExpectationFailed(f"{self._task.label} does not meet its expect: {self._task.expect}", value)
        return value

    def _refuse_unfinished(self) -> None:
        count = sum(value.count for value in self._trials)
        scored = sum(value.scored for value in self._trials)
        if count and Decimal(scored) / count < self._task.min_success:
            problem = next((value.problem for value in self._trials if value.problem), "")
            because = f" ({problem})" if problem else ""
            raise InfraError(
                f"{self._task.label} needs an outcome for {self._task.min_success:.0%} of its trials, but"
                f" {count - scored} of {count} ended without one{because}; build again to run those,"
                " or lower min_success"
            )

    def _make(self, inputs: "tuple[Rows, ...]", context: RuleContext) -> Action:
        from mrp.rules.reducers import REDUCERS
        from mrp.rules.rows import trials_tree

        task = self._task
        preimage: dict[str, Json] = {
            "inputs": [rows.to_json() for rows in inputs],
            "params": task.params,
            "group_by": list(task.group_by),
            "select": task.select,
        }
        if task.reducer.startswith("builtin:"):
            name = task.reducer.removeprefix("builtin:")
            preimage["reducer"] = {"builtin": name, "version": REDUCERS[name].version}
            work: object = RunBuiltinReducer(name, inputs, dict(task.params), task.group_by, task.select)
        else:
            operator = context.value(task.reducer, OperatorValue)
            sandbox = context.value(task.sandbox, SandboxValue)
            preimage |= {"reducer": operator.digest, "box": sandbox.description, "setup": sandbox.setup}
            trials = trials_tree(inputs, task.select, context.store)
            work = RunReducer(
                operator_process(
                    operator,
                    sandbox.box,
                    operator_sdk(operator, context),
                    mounts=contract_mounts(context.store, trials, sandbox.setup),
                    outputs=(OUT,),
                    env={**contract_env(params=task.params), "MRP_GROUP_BY": canonical_text(list(task.group_by))},
                    timeout=sandbox.box.limits.wall,
                )
            )
        return make_action(ActionKind.REDUCTION, task.label, "", preimage, work, reproducible=self._reproducible)


def _page(document: dict[str, Json]) -> str:
    """The result.md of a document that may only look like one of ours."""
    from mrp.rules.reducers import render_markdown
    from mrp.rules.tables import render_json

    try:
        return render_markdown(document)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return render_json(document)

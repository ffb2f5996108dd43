"""Params: what a target passes to an operator must fit the schema that the operator declares."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mrp.cache.canonical import Json
from mrp.compiler.declare import Unit
from mrp.compiler.problems import Problems
from mrp.compiler.references import Location
from mrp.specs import ir


def check_params(
    root: Path, unit: Unit, task: ir.Task, find: Callable[[str], ir.Task | None], problems: Problems
) -> None:
    """Reports what is wrong with the params of `task`, the task of `unit`; `find` gives operators by label."""
    for location, label, params in _passed(task):
        operator = find(label)
        if not isinstance(operator, ir.OperatorTask) or operator.schema is None:
            continue
        from mrp.rules.formats import BadData
        from mrp.rules.record_schema import RecordSchema

        path = operator.schema.path
        try:
            faults = list(RecordSchema((root / path).read_bytes()).faults(params))
        except (BadData, OSError) as error:
            problems.add(unit.span(*location), f"the schema {path} of {label}: {error}")
            continue
        for fault in faults:
            problems.add(unit.span(*location), f"the params of {unit.label} do not fit {label}: {fault}", f"see {path}")


def _passed(task: ir.Task) -> Iterator[tuple[Location, str, Json]]:
    """(field, operator, params) of each operator that `task` passes params to."""
    match task:
        case ir.MapTask():
            yield ("params",), task.agent, dict(task.params)
        case ir.ReduceTask():
            yield ("params",), task.reducer, dict(task.params)
        case ir.EvaluateTask():
            yield ("params",), task.evaluator, dict(task.params)
        case ir.SessionTask():
            yield ("params",), task.agent, task.spec["params"]
        case ir.DatasetTask(generate=ir.GenerateSpec(operator=str(operator)) as generate):
            yield ("generate", "params"), operator, dict(generate.params)

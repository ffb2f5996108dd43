"""operators.lock: an operator that is listed there must be, byte for byte, the one that was approved."""

from collections.abc import Iterable, Mapping

from mrp.compiler.load import RawTarget
from mrp.compiler.lower import operator_digest
from mrp.compiler.problems import Problems
from mrp.compiler.references import OPERATORS
from mrp.compiler.workspace import Workspace
from mrp.specs.ir import OperatorTask, Task
from mrp.specs.suggest import did_you_mean
from mrp.specs.yaml import key_span_at, span_at


def check_lock(workspace: Workspace, targets: Mapping[str, RawTarget], problems: Problems) -> None:
    """Reports pins of operators that do not exist."""
    if workspace.lock is None or workspace.lock_node is None:
        return
    operators = {label for label, target in targets.items() if target.kind in OPERATORS}
    for label in workspace.lock.operators:
        if label not in operators:
            span = key_span_at(workspace.lock_node, ("operators", label)) or workspace.lock_node.span
            hint = did_you_mean(label, operators) or "delete the entry"
            problems.add(span, f"operators.lock pins {label}, which is no operator", hint)


def check_pins(workspace: Workspace, tasks: Iterable[Task], problems: Problems) -> None:
    """Refuses operators that are not what operators.lock pins."""
    if workspace.lock is None or workspace.lock_node is None:
        return
    for task in tasks:
        pin = workspace.lock.operators.get(task.label)
        if pin is None or not isinstance(task, OperatorTask):
            continue
        place = ("operators", task.label)
        if pin.version != task.version:
            message = f"{task.label} has version {task.version}, but {pin.version} is pinned"
            problems.refuse(span_at(workspace.lock_node, (*place, "version")), message, "review it, and pin it again")
        elif pin.digest != operator_digest(task):
            message = f"{task.label} is not the operator that is pinned: its digest is {operator_digest(task)}"
            problems.refuse(span_at(workspace.lock_node, (*place, "digest")), message, "review it, and pin it again")

"""operators.lock: an operator that is listed there must be, byte for byte, the one that was approved."""

from collections.abc import Iterable, Iterator, Mapping

from mrp.compiler.load import RawTarget
from mrp.compiler.lower import operator_digest
from mrp.compiler.problems import Problems
from mrp.compiler.references import OPERATORS
from mrp.compiler.workspace import Workspace
from mrp.specs.documents import Pin
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


def check_versions(workspace: Workspace, tasks: Iterable[Task], problems: Problems) -> None:
    """Refuses operators of another version than operators.lock pins; no file needs to be read for that."""
    for task, pin in _pinned(workspace, tasks):
        if pin.version != task.version:
            message = f"{task.label} has version {task.version}, but {pin.version} is pinned"
            _refuse(workspace, (task.label, "version"), message, problems)


def check_pins(workspace: Workspace, tasks: Iterable[Task], problems: Problems) -> None:
    """Refuses operators whose bytes are not those that operators.lock pins."""
    for task, pin in _pinned(workspace, tasks):
        if pin.digest != operator_digest(task):
            message = f"{task.label} is not the operator that is pinned: its digest is {operator_digest(task)}"
            _refuse(workspace, (task.label, "digest"), message, problems)


def _pinned(workspace: Workspace, tasks: Iterable[Task]) -> Iterator[tuple[OperatorTask, Pin]]:
    pins = workspace.lock.operators if workspace.lock is not None else {}
    return ((task, pins[task.label]) for task in tasks if isinstance(task, OperatorTask) and task.label in pins)


def _refuse(workspace: Workspace, place: tuple[str, str], message: str, problems: Problems) -> None:
    assert workspace.lock_node is not None
    span = span_at(workspace.lock_node, ("operators", *place))
    problems.refuse(span, message, "review it, and pin it again")

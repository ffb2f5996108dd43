"""The tasks of a plan: which wait, which are open and make actions, and what each came to."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from mrp.cache.errors import CacheError
from mrp.rules.action import Action
from mrp.rules.reduction import ExpectationFailed
from mrp.rules.registry import make_rule
from mrp.rules.rule import DatasetValue, NoAction, ProducedValue, Rule, RuleContext, Settled, Value
from mrp.runtime.events import Event, TaskFinished, TaskStarted
from mrp.specs.errors import MrpError
from mrp.specs.ir import MapTask, Plan, Task, dependencies


class TaskState(Enum):
    """WAITING -> OPEN -> DONE or FAILED, or WAITING -> SKIPPED when a dependency did not come to a value."""

    WAITING = "waiting"
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(slots=True)
class _Open:
    task: Task
    rule: Rule
    more: Iterator[Action]
    outstanding: int = 0
    exhausted: bool = False


class Tasks:
    """Opens each task whose dependencies have values, takes actions of it, tells its rule how they ended.

    `known` are values that need no action, because they were read before; those of labels outside of the plan stand
    for what its tasks depend on. `on_failure` hears of each task that failed. `limit` is told how many items of a
    rollout may run at once.
    """

    def __init__(
        self,
        plan: Plan,
        known: Mapping[str, Value],
        context: Callable[[Mapping[str, Value]], RuleContext],
        emit: Callable[[Event], None],
        limit: Callable[[str, int | None], None],
        on_failure: Callable[[str, MrpError | CacheError], None],
    ) -> None:
        self.states = {task.label: TaskState.WAITING for task in plan.tasks}
        self.values: dict[str, Value] = {label: value for label, value in known.items() if label not in self.states}
        self._known, self._emit, self._limit, self._on_failure = known, emit, limit, on_failure
        self._context = context(self.values)
        self._tasks = {task.label: task for task in plan.tasks}
        self._needs: dict[str, int] = {}
        self._dependents: dict[str, list[str]] = {}
        for task in plan.tasks:
            needs = {label for label in dependencies(task) if label in self.states}
            self._needs[task.label] = len(needs)
            for need in needs:
                self._dependents.setdefault(need, []).append(task.label)
        self._ready = deque(task for task in plan.tasks if not self._needs[task.label])
        self._open: dict[str, _Open] = {}
        self._making: deque[_Open] = deque()
        self._stopped = False

    @property
    def has_more(self) -> bool:
        """Whether actions may be taken."""
        return bool(self._ready or self._making)

    def is_open(self, label: str) -> bool:
        """Whether the task may still come to a value."""
        return label in self._open

    def take(self, most: int) -> list[Action]:
        """Up to `most` new actions. Ready tasks give one each, so that all begin, and then those that are open more.

        A queue, not a recursion: a chain of tasks may be of any length.
        """
        taken: list[Action] = []
        while len(taken) < most:
            if self._ready:
                opened = self._open_task(self._ready.popleft())
                if opened is not None:
                    self._pull(opened, 1, taken)
            elif self._making:
                open_ = self._making.popleft()
                if not open_.exhausted:
                    self._pull(open_, most - len(taken), taken)
            else:
                break
        return taken

    def settle(self, settled: Settled) -> list[Action]:
        """Tell the rule how an action ended; gives the actions that it makes of it."""
        open_ = self._open.get(settled.action.label)
        if open_ is None:
            return []
        open_.outstanding -= 1
        try:
            more = list(open_.rule.settled(settled))
        except (MrpError, CacheError) as error:
            self.fail(settled.action.label, error)
            return []
        open_.outstanding += len(more)
        if not more:
            self._close_if_over(open_)
        return more

    def fail(self, label: str, error: MrpError | CacheError) -> None:
        """A task fails, and what needs its value is skipped."""
        opened = self._open.pop(label, None)
        if opened is not None:
            opened.exhausted = True
        self._move(label, TaskState.FAILED)
        self._emit(TaskFinished(label, "failed", str(error)))
        self._skip_dependents(label)
        self._on_failure(label, error)

    def stop(self) -> None:
        """Open nothing and make nothing more. Tasks that are open end without a value once nothing is outstanding."""
        self._stopped = True
        self._ready.clear()
        self._making.clear()
        for open_ in list(self._open.values()):
            open_.exhausted = True
            self._close_if_over(open_)

    def _open_task(self, task: Task) -> _Open | None:
        self._move(task.label, TaskState.OPEN)
        try:
            known = self._known.get(task.label)
            rule = NoAction(known) if known is not None else make_rule(task, self._context)
        except (MrpError, CacheError) as error:
            self.fail(task.label, error)
            return None
        items = None
        if isinstance(task, MapTask):
            items = self._context.value(task.over, DatasetValue).count * task.samples
            self._limit(task.label, task.max_parallel)
        self._emit(TaskStarted(task.label, items))
        opened = self._open[task.label] = _Open(task, rule, iter(rule.start()))
        return opened

    def _pull(self, open_: _Open, most: int, taken: list[Action]) -> None:
        """Take up to `most` new actions of a task; close it when there is none left and none is outstanding."""
        try:
            for _ in range(most):
                action = next(open_.more, None)
                if action is None:
                    open_.exhausted = True
                    break
                open_.outstanding += 1
                taken.append(action)
        except (MrpError, CacheError) as error:
            open_.exhausted = True
            if open_.task.label in self._open:
                self.fail(open_.task.label, error)
        if open_.exhausted:
            self._close_if_over(open_)
        elif not self._stopped:
            self._making.append(open_)

    def _close_if_over(self, open_: _Open) -> None:
        label = open_.task.label
        if not open_.exhausted or open_.outstanding or self.states[label] is not TaskState.OPEN:
            return
        del self._open[label]
        if self._stopped:
            self._move(label, TaskState.SKIPPED)
            self._emit(TaskFinished(label, "stopped"))
            return
        try:
            value = open_.rule.value()
        except ExpectationFailed as error:
            self.values[label] = error.value
            self.fail(label, error)
            return
        except (MrpError, CacheError) as error:
            self.fail(label, error)
            return
        self.values[label] = value
        self._move(label, TaskState.DONE)
        status = "held" if isinstance(value, ProducedValue) and value.status == "held" else "ok"
        self._emit(TaskFinished(label, status))
        for dependent in self._dependents.get(label, ()):
            self._needs[dependent] -= 1
            if not self._needs[dependent] and self.states[dependent] is TaskState.WAITING:
                self._ready.append(self._tasks[dependent])

    def _skip_dependents(self, label: str) -> None:
        without_value = [label]
        while without_value:
            missing = without_value.pop()
            for dependent in self._dependents.get(missing, ()):
                if self.states[dependent] is TaskState.WAITING:
                    self._move(dependent, TaskState.SKIPPED)
                    self._emit(TaskFinished(dependent, "skipped", f"{missing} has no result"))
                    without_value.append(dependent)

    def _move(self, label: str, state: TaskState) -> None:
        self.states[label] = state

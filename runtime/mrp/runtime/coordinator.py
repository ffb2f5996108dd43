"""The coordinator: one thread that opens tasks, decides, dispatches, commits and settles.

It is the only writer of the action cache and of the run's state. An action is finished when its entry is durable; all
that finished since the last turn is committed in one transaction.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import Enum

from mrp.cache.digest import ActionKey, Digest
from mrp.cache.errors import CacheError, MissingBlob
from mrp.cache.inflight import InFlight
from mrp.cache.store import ActionEntry, Store
from mrp.rules.action import Action, ActionKind
from mrp.rules.produce import Publish
from mrp.rules.reduction import ExpectationFailed
from mrp.rules.registry import make_rule
from mrp.rules.rule import DatasetValue, NoAction, ProducedValue, Rule, RuleContext, Settled, Value, settled_by
from mrp.runtime.decide import Decision, Demand, Hit, decide
from mrp.runtime.engine.local import LocalEngine
from mrp.runtime.events import (
    Draining,
    Event,
    ItemFinished,
    ItemStarted,
    TaskFinished,
    TaskStarted,
)
from mrp.runtime.execute import Executed
from mrp.runtime.interrupt import Interrupt
from mrp.runtime.money import Money
from mrp.runtime.runs import DigestLine
from mrp.runtime.schedule import Schedule
from mrp.specs.errors import InfraError, MrpError
from mrp.specs.ir import MapTask, Plan, Task, dependencies
from mrp.specs.results import Outcome, Result

_BATCH = 512
_WINDOW = 1024
"""Actions that wait decided; beyond it no further items are made, so that memory stays flat."""
_ELSEWHERE_POLL = 0.05


class TaskState(Enum):
    """WAITING -> OPEN -> DONE or FAILED, or WAITING -> SKIPPED when a dependency did not come to a value."""

    WAITING = "waiting"
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass
class _Open:
    task: Task
    rule: Rule
    more: Iterator[Action]
    outstanding: int = 0
    exhausted: bool = False


@dataclass(frozen=True)
class Failure:
    """Why a target has no value; `exit_code` as the error's type says."""

    label: str
    reason: str
    exit_code: int


@dataclass
class Account:
    """What a run did: digest lines with whether each was executed, failures by label, money spent."""

    lines: dict[tuple[str, str, str], tuple[DigestLine, bool]] = field(default_factory=dict)
    executed: set[tuple[str, str, str]] = field(default_factory=set)
    cached: set[tuple[str, str, str]] = field(default_factory=set)
    failed: set[tuple[str, str, str]] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    usd: Decimal = Decimal(0)
    estimate_usd: Decimal = Decimal(0)
    tokens: int = 0
    over_budget: str = ""
    failed_fast: str = ""

    def begin_pass(self) -> None:
        """Forget how the pass before failed; what it executed and spent stays."""
        self.failures.clear()
        self.failed.clear()
        self.over_budget = self.failed_fast = ""


@dataclass(frozen=True)
class Settings:
    """How to run: demands on cache hits by label, whether to stop at the first failure, provenance of new entries.

    `prepare` is called before an action is submitted, and makes ready what actions need.
    """

    demand: Callable[[str], Demand]
    fail_fast: bool
    provenance: Mapping[str, str]
    prepare: Callable[[], None]
    deadline: float | None = None


class Coordinator:
    """Runs one plan to its end. `values` and `account` are what it leaves; `damaged` asks for another pass.

    `known` are the values of tasks that need not be opened, because they were read before.
    """

    def __init__(
        self,
        plan: Plan,
        known: Mapping[str, Value],
        context: Callable[[Mapping[str, Value]], RuleContext],
        store: Store,
        inflight: InFlight,
        engine: LocalEngine,
        slots: int,
        money: Money,
        settings: Settings,
        interrupt: Interrupt,
        emit: Callable[[Event], None],
        account: Account,
    ) -> None:
        self.values: dict[str, Value] = {}
        self.states = {task.label: TaskState.WAITING for task in plan.tasks}
        self.account = account
        self.damaged = False
        self._known = known
        self._tasks = {task.label: task for task in plan.tasks}
        self._needs = {task.label: set(dependencies(task)) for task in plan.tasks}
        self._dependents: dict[str, list[str]] = {}
        for label, needs in self._needs.items():
            for need in needs:
                self._dependents.setdefault(need, []).append(label)
        self._context = context(self.values)
        self._store, self._inflight, self._engine = store, inflight, engine
        self._schedule: Schedule[Action] = Schedule(slots)
        self._money, self._settings, self._interrupt, self._emit = money, settings, interrupt, emit
        self._ready = deque(task for task in plan.tasks if not self._needs[task.label])
        self._open: dict[str, _Open] = {}
        self._fresh: deque[Action] = deque()
        self._followers: dict[ActionKey, list[Action]] = {}
        self._elsewhere: list[Action] = []
        self._reasons: dict[ActionKey, str] = {}
        self._doubted: set[ActionKey] = set()
        self._stopped: Outcome | None = None
        self._announced = 0

    def run(self) -> None:
        """Until nothing is left to do, or the build was stopped."""
        while True:
            self._check_stop()
            self._consider_all()
            self._submit()
            if not self._schedule.running and not self._elsewhere:
                if self._ready or self._fresh or any(not open_.exhausted for open_ in self._open.values()):
                    continue
                if not self._schedule.queued:
                    break
            self._absorb(self._engine.wait(self._patience()))
            self._ask_elsewhere()

    # -- tasks ---------------------------------------------------------------------------------------------------

    def _open_ready(self) -> None:
        """Open what has all it needs. A queue, not a recursion: a chain of tasks may be of any length."""
        while self._ready and self._stopped is None:
            self._open_task(self._ready.popleft())

    def _open_task(self, task: Task) -> None:
        self._move(task.label, TaskState.OPEN)
        try:
            known = self._known.get(task.label)
            rule = NoAction(known) if known is not None else make_rule(task, self._context)
        except (MrpError, CacheError) as error:
            self._fail(task.label, error)
            return
        items = None
        if isinstance(task, MapTask):
            items = self._context.value(task.over, DatasetValue).count * task.samples
            self._schedule.limit(task.label, task.max_parallel)
        self._emit(TaskStarted(task.label, items))
        self._open[task.label] = _Open(task, rule, iter(rule.start()))
        self._pull(self._open[task.label], 1)

    def _pull(self, open_: _Open, most: int) -> None:
        """Take up to `most` new actions of a task; close it when there is none left and none is outstanding."""
        try:
            for _ in range(most):
                action = next(open_.more, None)
                if action is None:
                    open_.exhausted = True
                    break
                open_.outstanding += 1
                self._fresh.append(action)
        except (MrpError, CacheError) as error:
            open_.exhausted = True
            self._fail(open_.task.label, error)
        self._close_if_over(open_)

    def _close_if_over(self, open_: _Open) -> None:
        label = open_.task.label
        if not open_.exhausted or open_.outstanding or self.states[label] is not TaskState.OPEN:
            return
        del self._open[label]
        if self._stopped is not None:
            self._move(label, TaskState.SKIPPED)
            self._emit(TaskFinished(label, "stopped"))
            return
        try:
            value = open_.rule.value()
        except ExpectationFailed as error:
            self.values[label] = error.value
            self._fail(label, error)
            return
        except (MrpError, CacheError) as error:
            self._fail(label, error)
            return
        self.values[label] = value
        self._move(label, TaskState.DONE)
        status = "held" if isinstance(value, ProducedValue) and value.status == "held" else "ok"
        self._emit(TaskFinished(label, status))
        for dependent in self._dependents.get(label, ()):
            self._needs[dependent].discard(label)
            if not self._needs[dependent] and self.states[dependent] is TaskState.WAITING:
                self._ready.append(self._tasks[dependent])

    def _fail(self, label: str, error: MrpError | CacheError) -> None:
        if isinstance(error, MissingBlob):
            self.damaged = True
        exit_code = error.exit_code if isinstance(error, MrpError) else 4
        self._open.pop(label, None)
        self._move(label, TaskState.FAILED)
        self.account.failures[label] = Failure(label, str(error), exit_code)
        self._emit(TaskFinished(label, "failed", str(error)))
        self._skip_dependents(label)
        self._stop_if_fail_fast(f"{label} failed: {error}")

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

    # -- deciding ------------------------------------------------------------------------------------------------

    def _consider_all(self) -> None:
        """Decide on new actions while few enough wait; with capped money on all, so that the estimate is whole."""
        while self._stopped is None and (self._money.is_capped or self._schedule.queued < _WINDOW):
            self._open_ready()
            if len(self._fresh) < _BATCH:
                for open_ in list(self._open.values()):
                    if not open_.exhausted:
                        self._pull(open_, _BATCH - len(self._fresh))
                    if len(self._fresh) >= _BATCH:
                        break
            if not self._fresh:
                if self._ready:
                    continue
                break
            self._consider([self._fresh.popleft() for _ in range(min(_BATCH, len(self._fresh)))])
        refusal = self._money.estimate_refusal()
        if refusal and self._stopped is None:
            self.account.over_budget = refusal
            self._stop(Outcome.BUDGET)

    def _consider(self, actions: list[Action]) -> None:
        """Settle hits, queue misses that no other process is running."""
        locked = []
        for action, decision in self._decided(actions):
            if self._stopped is not None:
                self._settle(Settled(action, self._stopped, None, "the build was stopped"))
            elif isinstance(decision, Hit):
                self._settle_hit(action, decision.entry)
            elif action.key in self._followers:
                self._followers[action.key].append(action)
            elif not self._inflight.try_acquire(action.key):
                self._elsewhere.append(action)
            else:
                self._followers[action.key] = []
                locked.append(action)
        # Between the question and the lock, another process may have finished what it held.
        for action, decision in self._decided(locked):
            if self._stopped is not None:
                self._give_up(action, self._stopped)
            elif isinstance(decision, Hit):
                self._inflight.release(action.key)
                for answered in (action, *self._followers.pop(action.key)):
                    self._settle_hit(answered, decision.entry)
            else:
                self._money.estimate(action.label, action.usd, action.tokens)
                self.account.estimate_usd += action.usd
                self._schedule.add(action.label, action, urgent=action.kind is ActionKind.GRADE)
                self._reasons[action.key] = decision.reason

    def _decided(self, actions: list[Action]) -> list[tuple[Action, Decision]]:
        """What the cache says to each, in one question. An entry that does not do is to be replaced."""
        entries = self._store.lookup([action.key for action in actions if not isinstance(action.work, Publish)])
        refs = {key: _refs(entry) for key, entry in entries.items()}
        missing = self._store.missing_deep([ref for needed in refs.values() for ref in needed]) if refs else set()
        decided = []
        for action in actions:
            entry = entries.get(action.key)
            whole = entry is not None and self._is_whole(refs[action.key], missing)
            decision = decide(entry, whole=whole, demand=self._demand(action))
            if entry is not None and not isinstance(decision, Hit):
                self._doubted.add(action.key)
            decided.append((action, decision))
        return decided

    def _is_whole(self, refs: list[tuple[str, Digest]], missing: set[Digest]) -> bool:
        return not missing or not self._store.missing_deep(refs)

    def _demand(self, action: Action) -> Demand:
        demand = self._settings.demand(action.label)
        if demand.rebuild and action.identity in self.account.executed:
            return Demand(demand.isolation, False, demand.retry_limits)
        return demand

    # -- running -------------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        while self._stopped is None:
            action = self._schedule.next()
            if action is None:
                return
            refusal = self._money.refusal(action.label, action.usd, action.tokens)
            if refusal is not None:
                self.account.over_budget = refusal
                self._schedule.end(action.label)
                self._give_up(action, Outcome.BUDGET)
                self._stop(Outcome.BUDGET)
                return
            self._money.reserve(action.label, action.usd, action.tokens)
            reason = self._reasons.pop(action.key, "")
            self._emit(ItemStarted(action.label, action.item, action.kind.value, reason, action.key))
            self._settings.prepare()
            self._engine.submit(action)

    def _absorb(self, finished: list[Executed]) -> None:
        entries = [entry for executed in finished if (entry := self._entry(executed)) is not None]
        doubted = [entry.key for entry in entries if entry.key in self._doubted]
        self._store.forget(doubted)
        self._doubted.difference_update(doubted)
        winners = self._store.commit(entries) if entries else {}
        for executed in finished:
            action = executed.action
            self._schedule.end(action.label)
            usage = executed.usage
            self._money.settle(action.label, (action.usd, action.tokens), (usage.usd, usage.tokens))
            self.account.usd += usage.usd
            self.account.tokens += usage.tokens
            self._inflight.release(action.key)
            self._settle_executed(executed, winners.get(action.key))

    def _entry(self, executed: Executed) -> ActionEntry | None:
        attempt, action = executed.attempt, executed.action
        if attempt is None or not _is_cacheable(action, attempt.result):
            return None
        failures = [{"attempt": n, "reason": reason} for n, reason in enumerate(executed.failures, 1)]
        result = attempt.result
        return ActionEntry(
            key=action.key,
            kind=action.kind.value,
            preimage=action.preimage,
            result=result.to_json(),
            byproducts=[*failures, attempt.byproducts.to_json()],
            blobs=tuple(ref.digest for ref in result.outputs.values() if ref.kind == "blob"),
            trees=tuple(ref.digest for ref in result.outputs.values() if ref.kind == "tree"),
            extra=tuple(attempt.byproducts.blobs()),
            isolation=attempt.byproducts.isolation,
            provenance=dict(self._settings.provenance),
            created=time.time(),
        )

    def _ask_elsewhere(self) -> None:
        """Actions that another process was running: its result is ours, or the lock is free and we run them."""
        if self._elsewhere and self._stopped is None:
            waiting, self._elsewhere = self._elsewhere, []
            self._consider(waiting)

    # -- settling ------------------------------------------------------------------------------------------------

    def _settle_hit(self, action: Action, entry: ActionEntry) -> None:
        settled = settled_by(action, entry)
        self._note(action, settled.result, executed=False)
        self._emit(ItemFinished(*action.identity, settled.outcome.value, True, key=action.key))
        self._settle(settled)

    def _settle_executed(self, executed: Executed, winner: ActionEntry | None) -> None:
        """`winner` is the entry of another process that finished the same action first: its result stands."""
        action = executed.action
        settled = settled_by(action, winner) if winner is not None else _settled(executed)
        result = settled.result
        unchanged = _found_in_place(executed)
        if executed.outcome not in (Outcome.CANCELLED, Outcome.BUDGET):
            self._note(action, result, executed=not unchanged)
        if _fails_build(action, executed):
            self.account.failed.add(action.identity)
        self._emit(
            ItemFinished(
                action.label,
                action.item,
                action.kind.value,
                executed.outcome.value,
                unchanged,
                executed.reason,
                executed.usage.usd,
                executed.usage.wall_s,
                action.key,
            )
        )
        if executed.outcome is not Outcome.OK:
            self._stop_if_fail_fast(f"{action.label}[{action.item}] {executed.outcome.value}: {executed.reason}")
        followers = self._followers.pop(action.key, ())
        if executed.damaged:
            self._damage([action.label, *(follower.label for follower in followers)], executed.reason)
            return
        self._settle(settled)
        for follower in followers:
            if result is not None and _is_cacheable(action, result):
                self._note(follower, result, executed=False)
                self._emit(ItemFinished(*follower.identity, settled.outcome.value, True, key=follower.key))
            self._settle(replace(settled, action=follower))

    def _settle(self, settled: Settled) -> None:
        open_ = self._open.get(settled.action.label)
        if open_ is None:
            return
        open_.outstanding -= 1
        try:
            for action in open_.rule.settled(settled):
                open_.outstanding += 1
                if self._stopped is None:
                    self._fresh.append(action)
                else:
                    self._settle(Settled(action, self._stopped, None, "the build was stopped"))
        except (MrpError, CacheError) as error:
            self._fail(settled.action.label, error)
            return
        self._close_if_over(open_)

    def _damage(self, labels: list[str], reason: str) -> None:
        """Let targets whose stored inputs are damaged fail in this pass, so that nothing is made of what is left."""
        self.damaged = True
        for label in labels:
            if label in self._open:
                self._fail(label, InfraError(reason))

    def _note(self, action: Action, result: Result | None, *, executed: bool) -> None:
        identity = action.identity
        if identity not in self.account.executed:
            (self.account.executed if executed else self.account.cached).add(identity)
            if executed:
                self.account.cached.discard(identity)
        if result is None:
            return
        label, item, kind = identity
        good = result.reproducible and action.reproducible
        line = DigestLine(label, item, kind, action.key, result.digest(), result.outcome.value, good)
        self.account.lines[identity] = (line, identity in self.account.executed)

    # -- stopping ------------------------------------------------------------------------------------------------

    def _check_stop(self) -> None:
        if self._interrupt.level > self._announced:
            self._announced = self._interrupt.level
            self._emit(Draining(self._schedule.running, kill=self._interrupt.level > 1))
            self._stop(Outcome.CANCELLED)
        deadline = self._settings.deadline
        if deadline is not None and self._stopped is None and time.monotonic() > deadline:
            self.account.over_budget = "the wall time of the budget is used up"
            self._stop(Outcome.BUDGET)
            self._interrupt.request()
            self._interrupt.request()

    def _stop_if_fail_fast(self, reason: str) -> None:
        if self._settings.fail_fast and self._stopped is None:
            self.account.failed_fast = reason
            self._stop(Outcome.CANCELLED)

    def _stop(self, outcome: Outcome) -> None:
        """Start nothing more; what runs is finished (or killed by the second request)."""
        if self._stopped is not None:
            return
        self._stopped = outcome
        self._ready.clear()
        dropped = self._schedule.drop_queued()
        waiting = [*self._fresh, *self._elsewhere]
        self._fresh.clear()
        self._elsewhere.clear()
        for action in dropped:
            self._give_up(action, outcome)
        for action in waiting:
            self._settle(Settled(action, outcome, None, "the build was stopped"))
        for open_ in list(self._open.values()):
            open_.exhausted = True
            self._close_if_over(open_)

    def _give_up(self, action: Action, outcome: Outcome) -> None:
        self._inflight.release(action.key)
        for stopped in (action, *self._followers.pop(action.key, ())):
            self._settle(Settled(stopped, outcome, None, "the build was stopped"))

    def _patience(self) -> float | None:
        if self._elsewhere:
            return _ELSEWHERE_POLL
        if self._settings.deadline is not None:
            return max(0.0, self._settings.deadline - time.monotonic()) + 0.01
        return None


_SCORED = (ActionKind.TRIAL, ActionKind.GRADE)


def _found_in_place(executed: Executed) -> bool:
    """Whether a publication found the content in its sink, so that it did nothing."""
    attempt = executed.attempt
    is_publication = isinstance(executed.action.work, Publish)
    return is_publication and attempt is not None and attempt.byproducts.metrics.get("status") == "unchanged"


def _settled(executed: Executed) -> Settled:
    if executed.attempt is None:
        return Settled(executed.action, executed.outcome, None, executed.reason)
    result, trajectory = executed.attempt.result, executed.attempt.byproducts.trajectory
    return Settled(executed.action, result.outcome, result, executed.reason, trajectory)


def _refs(entry: ActionEntry) -> list[tuple[str, Digest]]:
    return [*(("blob", digest) for digest in entry.blobs), *(("tree", digest) for digest in entry.trees)]


def _is_cacheable(action: Action, result: Result) -> bool:
    """Trials and grades keep failures and limits, which are results; anything else is kept only when it is ok.

    A publication is never answered from the cache: the sink itself is asked.
    """
    if isinstance(action.work, Publish):
        return False
    return result.outcome.is_result if action.kind in _SCORED else result.outcome is Outcome.OK


def _fails_build(action: Action, executed: Executed) -> bool:
    if executed.outcome in (Outcome.CANCELLED, Outcome.BUDGET):
        return False
    return executed.attempt is None if action.kind in _SCORED else executed.outcome is not Outcome.OK

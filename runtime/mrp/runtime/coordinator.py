"""The coordinator: one thread that decides, dispatches, commits and settles.

It is the only writer of the action cache and of the run's state. An action is finished when its entry is durable. What
ended is committed in one transaction with all that ended shortly before or after it, for as long as the slots have
other work: nothing that could run waits for a commit.
"""

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from decimal import Decimal

from mrp.cache.digest import ActionKey
from mrp.cache.errors import CacheError, MissingBlob
from mrp.cache.inflight import InFlight
from mrp.cache.store import ActionEntry, Store
from mrp.rules.action import Action, ActionKind
from mrp.rules.produce import Publish
from mrp.rules.rule import RuleContext, Settled, Value, settled_by
from mrp.runtime import trace
from mrp.runtime.account import Account, Failure
from mrp.runtime.decide import Decision, Demand, Hit, Run, decide
from mrp.runtime.engine.local import LocalEngine
from mrp.runtime.events import Draining, Event, ItemFinished, ItemStarted, Waiting
from mrp.runtime.execute import Executed, process_of
from mrp.runtime.interrupt import Interrupt
from mrp.runtime.money import Money
from mrp.runtime.schedule import Schedule
from mrp.runtime.settling import entry_of, fails_build, found_in_place, is_cacheable, settled_so, was_stopped
from mrp.runtime.tasks import Tasks
from mrp.specs.errors import InfraError, MrpError
from mrp.specs.ir import Plan
from mrp.specs.results import Outcome

__all__ = ["Account", "Coordinator", "Failure", "Settings"]

_BATCH = 512
_WINDOW = 1024
"""Actions that wait decided; beyond it no further items are made, so that memory stays flat."""
_LOW = 256
"""Actions that wait decided, below which further items are made: many at once, since they are asked for together."""
_GROUP = 256
_GROUP_SECONDS = 0.02
"""What ended is committed together, up to so many actions and so long after the first, while the slots are busy."""
_GARBAGE = 100_000
"""So many more objects, and the interpreter looks for cycles among them."""

_ELSEWHERE_POLL = 0.05
_STOPPED = "the build was stopped"


@dataclass(frozen=True)
class Settings:
    """How to run: demands on cache hits by label, whether to stop at the first failure, provenance of new entries.

    `prepare` is called before an action with a process is submitted: it makes ready what processes need, and gives how
    many may run at once.
    """

    demand: Callable[[str], Demand]
    fail_fast: bool
    provenance: Mapping[str, str]
    prepare: Callable[[], int]
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
        self.account = account
        self.damaged = False
        self._store, self._inflight, self._engine = store, inflight, engine
        self._schedule: Schedule[Action] = Schedule(slots)
        self._slots = slots
        self._money, self._settings, self._interrupt, self._emit = money, settings, interrupt, emit
        self._tasks = Tasks(plan, known, context, emit, self._schedule.limit, self._task_failed)
        self.values, self.states = self._tasks.values, self._tasks.states
        self._demands: dict[str, Demand] = {}
        self._fresh: deque[Action] = deque()
        self._followers: dict[ActionKey, list[Action]] = {}
        self._elsewhere: list[Action] = []
        self._reasons: dict[ActionKey, str] = {}
        self._doubted: set[ActionKey] = set()
        self._together: dict[ActionKey, list[int]] = {}
        self._ended: list[Executed] = []
        self._commit_at = 0.0
        self._stopped: Outcome | None = None
        self._announced = 0

    def run(self) -> None:
        """Until nothing is left to do, or the build was stopped."""
        try:
            with _seldom_collected():
                while self._turn():
                    pass
        except BaseException:
            # What finished is not lost by what went wrong elsewhere.
            with suppress(CacheError):
                self._store.commit(self._entries(self._ended))
            raise

    def _turn(self) -> bool:
        """One round of deciding, starting, committing and waiting; False when nothing is left."""
        self._check_stop()
        with trace.span("decide"):
            self._consider_all()
        with trace.span("submit"):
            self._submit()
        trace.count(queued=self._schedule.queued)
        if self._ended and self._is_commit_due():
            self._commit()
            return True
        if not self._schedule.running and not self._elsewhere:
            return self._tasks.has_more or bool(self._fresh or self._schedule.queued)
        self._emit(Waiting())
        with trace.span("wait"):
            finished = self._engine.wait(self._patience())
        self._take(finished)
        self._ask_elsewhere()
        return True

    # -- deciding ------------------------------------------------------------------------------------------------

    def _consider_all(self) -> None:
        """Decide on new actions while few wait; with capped money on all, so that the estimate is whole."""
        more = self._money.is_capped or self._schedule.queued < _LOW
        while self._stopped is None:
            if more and len(self._fresh) < _BATCH:
                self._fresh.extend(self._tasks.take(_BATCH - len(self._fresh)))
            if not self._fresh:
                if more and self._tasks.has_more:
                    continue
                break
            self._consider([self._fresh.popleft() for _ in range(min(_BATCH, len(self._fresh)))])
            more = self._money.is_capped or self._schedule.queued < _WINDOW
        refusal = self._money.estimate_refusal()
        if refusal and self._stopped is None:
            self.account.over_budget = refusal
            self._stop(Outcome.BUDGET)
        self._settle_stopped(self._fresh)

    def _consider(self, actions: list[Action]) -> None:
        """Settle hits, queue misses that no other process is running."""
        version = self._store.version()
        locked = []
        for action, decision in self._decided(actions):
            if self._stopped is not None:
                self._settle(Settled(action, self._stopped, None, _STOPPED))
            elif isinstance(decision, Hit):
                self._settle_hit(action, decision.entry)
            elif action.key in self._followers:
                self._followers[action.key].append(action)
            elif not self._inflight.try_acquire(action.key):
                self._elsewhere.append(action)
            else:
                self._followers[action.key] = []
                locked.append((action, decision))
        # Between the question and the lock, another process may have finished what it held.
        asked_again: Sequence[tuple[Action, Decision]] = locked
        if locked and self._store.version() != version:
            asked_again = self._decided([action for action, _ in locked])
        for action, decision in asked_again:
            if self._stopped is not None:
                self._give_up(action, self._stopped)
            elif isinstance(decision, Hit):
                self._inflight.release(action.key)
                for answered in (action, *self._followers.pop(action.key, ())):
                    self._settle_hit(answered, decision.entry)
            else:
                self._queue(action, decision)

    def _queue(self, action: Action, decision: Run) -> None:
        undeclared = action.model is not None and not action.usd
        self._money.estimate(action.label, action.usd, action.tokens, undeclared=undeclared)
        self.account.estimate_usd += action.usd
        self._schedule.add(action.label, action, urgent=action.kind is ActionKind.GRADE)
        self._reasons[action.key] = decision.reason

    def _decided(self, actions: list[Action]) -> list[tuple[Action, Decision]]:
        """What the cache says to each, in one question. An entry that does not do is to be replaced."""
        entries = self._store.lookup([action.key for action in actions if not isinstance(action.work, Publish)])
        missing = self._store.missing_deep([ref for entry in entries.values() for ref in entry.refs()])
        decided = []
        for action in actions:
            entry = entries.get(action.key)
            whole = entry is not None and (not missing or not self._store.missing_deep(entry.refs()))
            decision = decide(entry, whole=whole, demand=self._demand(action))
            if entry is not None and not isinstance(decision, Hit):
                self._doubted.add(action.key)
            decided.append((action, decision))
        return decided

    def _demand(self, action: Action) -> Demand:
        demand = self._demands.get(action.label)
        if demand is None:
            demand = self._demands[action.label] = self._settings.demand(action.label)
        if demand.rebuild and self.account.lines.was_executed(action.identity):
            return Demand(demand.isolation, False, demand.retry_limits)
        return demand

    # -- running -------------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        while self._stopped is None:
            action = self._schedule.next()
            if action is None:
                return
            refusal = self._money.refusal(action.label, *_declared(action))
            if refusal is not None:
                self.account.over_budget = refusal
                self._free(action)
                self._give_up(action, Outcome.BUDGET)
                self._stop(Outcome.BUDGET)
                return
            actions = [each for each in (action, *self._short_ones_like(action)) if self._is_ready(each)]
            for each in actions:
                self._money.reserve(each.label, *_declared(each))
                reason = self._reasons.pop(each.key, "")
                self._emit(ItemStarted(each.label, each.item, each.kind.value, reason, each.key))
            if actions:
                if process_of(actions[0].work) is not None:
                    self._resize(self._settings.prepare())
                self._engine.submit_many(actions, spread=not self._schedule.is_limited(action.label))

    def _resize(self, slots: int) -> None:
        """What there is room for is known when the first action is to be submitted."""
        if slots != self._slots:
            self._slots = slots
            self._schedule.resize(slots)
            self._engine.resize(slots)

    def _short_ones_like(self, action: Action) -> list[Action]:
        """Actions that are handed over with this one, to run after it in its slot, since all of them are short."""
        most = self._engine.batch_size(action) - 1
        if most < 1 or action.usd or action.tokens:
            return []
        found = self._schedule.along(action.label, most, lambda other: other.kind is action.kind)
        if found:
            together = [len(found) + 1]
            self._together.update((each.key, together) for each in (action, *found))
        return found

    def _free(self, action: Action) -> None:
        """Give back the slot of an action that ended, once all have ended that share it."""
        together = self._together.pop(action.key, None)
        if together is not None:
            together[0] -= 1
        if together is None or not together[0]:
            self._schedule.end(action.label)
        else:
            self._schedule.end_along()

    def _is_ready(self, action: Action) -> bool:
        """Make the work of an action, which is not made before it must run; else its target fails."""
        try:
            action.make_ready()
        except (MrpError, CacheError) as error:
            self._free(action)
            self._inflight.release(action.key)
            self._fail([action, *self._followers.pop(action.key, ())], error)
            return False
        return True

    def _take(self, finished: list[Executed]) -> None:
        """Free the slots of actions that ended, and let these wait for the commit.

        Where no more than so many items may run at once, their end is when they are settled.
        """
        if finished and not self._ended:
            self._commit_at = time.monotonic() + _GROUP_SECONDS
        for executed in finished:
            action, usage = executed.action, executed.usage
            # What calls of a model cost was settled with each of them.
            spent = (usage.usd, usage.tokens) if action.model is None else (Decimal(0), 0)
            self._money.settle(action.label, _declared(action), spent)
            self.account.usd += usage.usd
            self.account.tokens += usage.tokens
            if not self._schedule.is_limited(action.label):
                self._free(action)
            else:
                self._commit_at = 0.0
        self._ended += finished
        if any(self._must_settle_at_once(executed) for executed in finished):
            self._commit()

    def _must_settle_at_once(self, executed: Executed) -> bool:
        """Whether nothing more may start before this is settled."""
        return executed.damaged or (self._settings.fail_fast and executed.outcome is not Outcome.OK)

    def _is_commit_due(self) -> bool:
        """At once when a slot is free, since what it waits for may be what waits for the commit."""
        return (
            self._stopped is not None
            or not self._schedule.is_full
            or len(self._ended) >= _GROUP
            or time.monotonic() >= self._commit_at
        )

    def _commit(self) -> None:
        """Make all that ended durable in one transaction, then settle it."""
        with trace.span("commit"):
            entries = self._entries(self._ended)
            doubted = [entry.key for entry in entries if entry.key in self._doubted]
            self._store.forget(doubted)
            self._doubted.difference_update(doubted)
            winners = self._store.commit(entries) if entries else {}
        ended, self._ended = self._ended, []
        with trace.span("settle"):
            for executed in ended:
                action = executed.action
                if self._schedule.is_limited(action.label):
                    self._free(action)
                self._inflight.release(action.key)
                self._settle_executed(executed, winners.get(action.key))

    def _entries(self, ended: list[Executed]) -> list[ActionEntry]:
        now = time.time()
        entries = (entry_of(executed, self._settings.provenance, now) for executed in ended)
        return [entry for entry in entries if entry is not None]

    def _ask_elsewhere(self) -> None:
        """Actions that another process was running: its result is ours, or the lock is free and we run them."""
        if self._elsewhere and self._stopped is None:
            waiting, self._elsewhere = self._elsewhere, []
            self._consider(waiting)

    # -- settling ------------------------------------------------------------------------------------------------

    def _settle_hit(self, action: Action, entry: ActionEntry) -> None:
        settled = settled_by(action, entry)
        self.account.lines.note(action, settled.result, executed=False)
        self._emit(ItemFinished(*action.identity, settled.outcome.value, True, key=action.key))
        self._settle(settled)

    def _settle_executed(self, executed: Executed, winner: ActionEntry | None) -> None:
        """`winner` is the entry of another process that finished the same action first: its result stands."""
        action, usage = executed.action, executed.usage
        settled = settled_by(action, winner) if winner is not None else settled_so(executed)
        result = settled.result
        unchanged = found_in_place(executed)
        if not was_stopped(executed):
            self.account.lines.note(action, result, executed=not unchanged)
        if fails_build(executed):
            self.account.failed.add(action.identity)
        outcome, reason = executed.outcome.value, executed.reason
        self._emit(ItemFinished(*action.identity, outcome, unchanged, reason, usage.usd, usage.wall_s, action.key))
        if executed.outcome is Outcome.BUDGET and self._stopped is None:
            self.account.over_budget = reason
            self._stop(Outcome.BUDGET)
        if executed.outcome is not Outcome.OK:
            self._stop_if_fail_fast(f"{action.label}[{action.item}] {outcome}: {reason}")
        followers = self._followers.pop(action.key, ())
        if executed.damaged:
            # Nothing is made of what is left of their inputs; another pass makes them anew.
            self.damaged = True
            self._fail([action, *followers], InfraError(reason))
            return
        self._settle(settled)
        for follower in followers:
            if result is not None and is_cacheable(action, result):
                self.account.lines.note(follower, result, executed=False)
                self._emit(ItemFinished(*follower.identity, settled.outcome.value, True, key=follower.key))
            self._settle(replace(settled, action=follower))

    def _settle(self, settled: Settled) -> None:
        """Tell the rule; what it makes of it is fresh, or stopped as well."""
        self._fresh.extend(self._tasks.settle(settled))
        if self._stopped is not None:
            self._settle_stopped(self._fresh)

    def _fail(self, actions: list[Action], error: MrpError | CacheError) -> None:
        for action in actions:
            if self._tasks.is_open(action.label):
                self._tasks.fail(action.label, error)

    def _task_failed(self, label: str, error: MrpError | CacheError) -> None:
        if isinstance(error, MissingBlob):
            self.damaged = True
        exit_code = error.exit_code if isinstance(error, MrpError) else 4
        self.account.failures[label] = Failure(label, str(error), exit_code)
        self._stop_if_fail_fast(f"{label} failed: {error}")

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
        self._tasks.stop()
        for action in self._schedule.drop_queued():
            self._give_up(action, outcome)
        waiting, self._elsewhere = deque(self._elsewhere), []
        self._settle_stopped(waiting)
        self._settle_stopped(self._fresh)

    def _settle_stopped(self, actions: deque[Action]) -> None:
        """Tell rules of actions that will not run; they may make more of it, which will not run either."""
        while actions and self._stopped is not None:
            actions.extend(self._tasks.settle(Settled(actions.popleft(), self._stopped, None, _STOPPED)))

    def _give_up(self, action: Action, outcome: Outcome) -> None:
        self._inflight.release(action.key)
        for stopped in (action, *self._followers.pop(action.key, ())):
            self._settle(Settled(stopped, outcome, None, _STOPPED))

    def _patience(self) -> float | None:
        waits = []
        if self._elsewhere:
            waits.append(_ELSEWHERE_POLL)
        if self._ended:
            waits.append(max(0.0, self._commit_at - time.monotonic()))
        if self._settings.deadline is not None:
            waits.append(max(0.0, self._settings.deadline - time.monotonic()) + 0.01)
        return min(waits, default=None)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Actions leave no cycles: to look for these among all that a build holds would take a tenth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(_GARBAGE)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _declared(action: Action) -> tuple[Decimal, int]:
    """What is reserved for an action: its declared estimate, unless its calls are reserved for one by one."""
    return (action.usd, action.tokens) if action.model is None else (Decimal(0), 0)

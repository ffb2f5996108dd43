"""What runs next: a pure queue with lanes, slots and one set of states. It starts nothing and knows no time."""

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Generic, TypeVar

_T = TypeVar("_T")


class State(IntEnum):
    """A ticket goes QUEUED -> RUNNING -> ENDED, or QUEUED -> ENDED when it is dropped."""

    QUEUED = 0
    RUNNING = 1
    ENDED = 2


class Schedule(Generic[_T]):
    """Tickets in lanes (one a target); at most `slots` run at once, and in a lane at most its own limit.

    Urgent tickets go first: they finish what has begun, so that work is complete as early as can be.
    """

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"at least one slot is needed, not {slots}")
        self._slots = slots
        self._urgent: deque[tuple[str, _T]] = deque()
        self._lanes: dict[str, deque[_T]] = {}
        self._limits: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._states = [0 for _ in State]
        self._along = 0

    @property
    def queued(self) -> int:
        return self._states[State.QUEUED]

    @property
    def running(self) -> int:
        return self._states[State.RUNNING]

    @property
    def is_full(self) -> bool:
        """Whether every slot is taken."""
        return self.running - self._along >= self._slots

    def resize(self, slots: int) -> None:
        """From now on at most `slots` run at once; nothing does yet, but for what `next` just gave."""
        self._slots = slots

    def limit(self, lane: str, most: int | None) -> None:
        """At most `most` of this lane at once; None for no limit of its own."""
        if most is not None:
            self._limits[lane] = most

    def is_limited(self, lane: str) -> bool:
        """Whether a lane may have fewer tickets running than there are slots."""
        return self._limits.get(lane, self._slots) < self._slots

    def add(self, lane: str, ticket: _T, *, urgent: bool = False) -> None:
        """Queue a ticket."""
        if urgent:
            self._urgent.append((lane, ticket))
        else:
            self._lanes.setdefault(lane, deque()).append(ticket)
        self._states[State.QUEUED] += 1

    def next(self) -> _T | None:
        """The ticket to start now, which then counts as running; None when no slot or no ticket is free."""
        if self.is_full:
            return None
        for _ in range(len(self._urgent)):
            lane, ticket = self._urgent.popleft()
            if self._has_room(lane):
                return self._start(lane, ticket)
            self._urgent.append((lane, ticket))
        for lane, tickets in self._lanes.items():
            if self._has_room(lane):
                ticket = tickets.popleft()
                # Only lanes with tickets are kept: a build may have as many lanes as it has targets.
                if not tickets:
                    del self._lanes[lane]
                return self._start(lane, ticket)
        return None

    def along(self, lane: str, most: int, fits: Callable[[_T], bool]) -> list[_T]:
        """Tickets of `lane` that are next and fit, to run in the slot that `next` gave, one after the other.

        There are at most `most`, and never so many that other slots would have nothing to do. They count as running,
        but take no slot: each but the last to end of all that share the slot ends by `end_along`.
        """
        most = min(most, self.queued // self._slots)
        found: list[_T] = []
        while len(found) < most and self._urgent and self._urgent[0][0] == lane and fits(self._urgent[0][1]):
            found.append(self._urgent.popleft()[1])
        tickets = self._lanes.get(lane, deque())
        while len(found) < most and tickets and fits(tickets[0]):
            found.append(tickets.popleft())
        if not tickets:
            self._lanes.pop(lane, None)
        for _ in found:
            self._move(State.QUEUED, State.RUNNING)
        self._along += len(found)
        return found

    def end_along(self) -> None:
        """A ticket ended whose slot goes on with others."""
        self._along -= 1
        self._move(State.RUNNING, State.ENDED)

    def end(self, lane: str) -> None:
        """A running ticket of `lane` ended."""
        self._running[lane] -= 1
        if not self._running[lane]:
            del self._running[lane]
        self._move(State.RUNNING, State.ENDED)

    def drop_queued(self) -> list[_T]:
        """Give up all that has not begun; returns it in order."""
        dropped = [ticket for _, ticket in self._urgent]
        for tickets in self._lanes.values():
            dropped.extend(tickets)
        self._lanes.clear()
        self._urgent.clear()
        for _ in dropped:
            self._move(State.QUEUED, State.ENDED)
        return dropped

    def _has_room(self, lane: str) -> bool:
        return self._running.get(lane, 0) < self._limits.get(lane, self._slots)

    def _start(self, lane: str, ticket: _T) -> _T:
        self._running[lane] = self._running.get(lane, 0) + 1
        self._move(State.QUEUED, State.RUNNING)
        return ticket

    def _move(self, old: State, new: State) -> None:
        self._states[old] -= 1
        self._states[new] += 1

"""What runs next: a pure queue with lanes, slots and one set of states. It starts nothing and knows no time."""

from collections import deque
from enum import Enum
from typing import Generic, TypeVar

_T = TypeVar("_T")


class State(Enum):
    """A ticket goes QUEUED -> RUNNING -> ENDED, or QUEUED -> ENDED when it is dropped."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


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
        self._states: dict[State, int] = dict.fromkeys(State, 0)

    @property
    def queued(self) -> int:
        return self._states[State.QUEUED]

    @property
    def running(self) -> int:
        return self._states[State.RUNNING]

    def limit(self, lane: str, most: int | None) -> None:
        """At most `most` of this lane at once; None for no limit of its own."""
        if most is not None:
            self._limits[lane] = most

    def add(self, lane: str, ticket: _T, *, urgent: bool = False) -> None:
        """Queue a ticket."""
        if urgent:
            self._urgent.append((lane, ticket))
        else:
            self._lanes.setdefault(lane, deque()).append(ticket)
        self._states[State.QUEUED] += 1

    def next(self) -> _T | None:
        """The ticket to start now, which then counts as running; None when no slot or no ticket is free."""
        if self.running >= self._slots:
            return None
        for _ in range(len(self._urgent)):
            lane, ticket = self._urgent.popleft()
            if self._has_room(lane):
                return self._start(lane, ticket)
            self._urgent.append((lane, ticket))
        for lane, tickets in self._lanes.items():
            if tickets and self._has_room(lane):
                return self._start(lane, tickets.popleft())
        return None

    def end(self, lane: str) -> None:
        """A running ticket of `lane` ended."""
        self._running[lane] -= 1
        self._move(State.RUNNING, State.ENDED)

    def drop_queued(self) -> list[_T]:
        """Give up all that has not begun; returns it in order."""
        dropped = [ticket for _, ticket in self._urgent]
        for tickets in self._lanes.values():
            dropped.extend(tickets)
            tickets.clear()
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

"""A trace of one build: when mrp itself did what, apart from the actions that it ran.

It is in the JSON object form of the trace event format, which ui.perfetto.dev and chrome://tracing open; the format is
described in "Trace Event Format" (https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU).
Process 1 is mrp: a track for the coordinator and for each other thread that has spans, and the counters. Process 2 are
the actions: a track for each slot, and a slice for each executed action, as long as its own work took. Actions may be
handed over several at a time, so a slice begins when its action was handed over or when the one before it in its slot
was done. Times are whole microseconds since the trace began. Nothing of the machine is in it, and no text that a
process wrote.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from mrp.runtime.events import AttemptFailed, Event, ItemFinished, ItemStarted, RunFinished, RunStarted, Warned
from mrp.runtime.state import explained

ENGINE, ACTIONS = 1, 2
"""The processes of a trace."""

WAITING = frozenset({"wait"})
"""Spans in which mrp does nothing because actions run."""

_ROOT = "build"


class Span(Protocol):
    """What `span` gives: a context manager that never swallows an exception."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None, /
    ) -> None: ...


def span(name: str) -> Span:
    """The time of a `with` block as a slice called `name`, nested in the one that it stands in; free when off."""
    trace = _trace
    return _NOTHING if trace is None else _Open(trace, name)


def count(**values: int) -> None:
    """How large some things are from now on, such as `queued=12`."""
    if _trace is not None:
        for name, value in values.items():
            _trace.counter(name, value)


@contextmanager
def tracing(path: Path | None, listener: Callable[[Event], None]) -> Iterator[Callable[[Event], None]]:
    """Trace what happens meanwhile into `path`, in one block at a time. None: do nothing.

    Gives the listener of events to build with, which hands them on to `listener`. Raises InfraError when the file
    cannot be begun; one that cannot be finished is only warned of.
    """
    global _trace
    if path is None:
        yield listener
        return
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    trace = Trace(file)

    def hear(event: Event) -> None:
        trace.event(event)
        listener(event)

    _trace = trace
    try:
        with span(_ROOT):
            yield hear
    finally:
        _trace = None
        problem = trace.close()
        if problem:
            listener(Warned(f"the trace {path} is not whole: {problem}"))


class Trace:
    """One trace being written. Events come in the order of their ends, as the format allows; memory stays flat."""

    def __init__(self, file: TextIO, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._file, self._clock = file, clock
        self._zero = clock()
        self._lock = threading.Lock()
        self._problem = ""
        self._separator = ""
        self._tracks: dict[int, int] = {}
        self._stacks: dict[int, list[_Open]] = {}
        self._running: dict[tuple[str, str, str], tuple[_Slot, int]] = {}
        self._slots: list[_Slot] = []
        self._jobs = 1
        self._engine: Counter[str] = Counter()
        self._actions = 0
        self._facts: dict[str, Any] = {}
        self._write('{"displayTimeUnit":"ms","traceEvents":[\n')
        self._name(ENGINE, None, "mrp")
        self._name(ACTIONS, None, "actions")
        self._track()

    def event(self, event: Event) -> None:
        """Take note of an event that happened now, on any thread."""
        now = self.now()
        with self._lock:
            if isinstance(event, ItemStarted):
                self._start((event.label, event.item, event.kind), now)
            elif isinstance(event, ItemFinished):
                started = self._running.pop((event.label, event.item, event.kind), None)
                if started is not None:
                    self._end(event, *started, now)
            elif isinstance(event, AttemptFailed) and (event.label, event.item, event.kind) in self._running:
                slot, _ = self._running[event.label, event.item, event.kind]
                mark = {"ph": "i", "s": "t", "name": f"attempt {event.attempt} failed", "ts": now}
                self._put(mark | {"pid": ACTIONS, "tid": slot.track})
            elif isinstance(event, RunStarted):
                self._jobs = event.jobs
                self._facts |= {"run": event.run_id, "jobs": event.jobs, "requested": list(event.requested)}
            elif isinstance(event, RunFinished):
                self._facts |= {"status": event.status, "executed": event.executed, "cached": event.cached}

    def counter(self, name: str, value: int) -> None:
        """A counter's value from now on."""
        now = self.now()
        with self._lock:
            self._put({"ph": "C", "name": name, "ts": now, "pid": ENGINE, "args": {name: value}})

    def now(self) -> int:
        """Microseconds since the trace began."""
        return (self._clock() - self._zero) // 1000

    def begin(self, opened: "_Open") -> None:
        with self._lock:
            self._stacks[self._track()].append(opened)

    def end(self, opened: "_Open") -> None:
        """Write the slice of a span; the time of those inside of it is theirs alone."""
        now = self.now()
        with self._lock:
            track = self._track()
            stack = self._stacks[track]
            stack.pop()
            whole = now - opened.started
            self._engine[opened.name] += whole - opened.inside
            if stack:
                stack[-1].inside += whole
            self._slice(opened.name, "engine", opened.started, now, ENGINE, track, {})

    def close(self) -> str:
        """End the file; returns why it is not whole, or ""."""
        now = self.now()
        with self._lock:
            for (label, item, kind), (slot, started) in self._running.items():
                started = max(started, slot.free_at)
                slot.free_at = now
                arguments = {"kind": kind, "outcome": "unfinished"}
                self._slice(_named(label, item), "action", started, now, ACTIONS, slot.track, arguments)
            waiting = sum(spent for name, spent in self._engine.items() if name in WAITING)
            totals = {
                "engine_us": sum(self._engine.values()) - waiting,
                "waiting_us": waiting,
                "actions_us": self._actions,
                "engine_us_by_span": {name: self._engine[name] for name in sorted(self._engine) if name not in WAITING},
            }
            self._write(f'\n],"otherData":{_text(self._facts | totals)}}}\n')
            try:
                self._file.close()
            except OSError as error:
                self._problem = self._problem or error.strerror or str(error)
            return self._problem

    def _start(self, identity: tuple[str, str, str], now: int) -> None:
        if all(slot.waiting for slot in self._slots) and len(self._slots) < self._jobs:
            slot = _Slot(len(self._slots) + 1)
            self._slots.append(slot)
            self._name(ACTIONS, slot.track, f"slot {slot.track}")
        slot = min(self._slots, key=lambda slot: slot.waiting)
        slot.waiting += 1
        self._running[identity] = slot, now
        self._count_running(now)

    def _end(self, event: ItemFinished, slot: "_Slot", started: int, now: int) -> None:
        slot.waiting -= 1
        start = max(started, slot.free_at)
        end = slot.free_at = max(start, min(now, start + int(event.wall_s * 1_000_000)))
        # What was found in its sink counts as cached, although its slot was taken for looking.
        category = "looked up" if event.cached else "action"
        arguments = {"kind": event.kind, "outcome": event.outcome, "key": event.key}
        self._slice(_named(event.label, event.item), category, start, end, ACTIONS, slot.track, arguments)
        self._actions += end - start
        self._count_running(now)

    def _count_running(self, now: int) -> None:
        self._put({"ph": "C", "name": "running", "ts": now, "pid": ENGINE, "args": {"running": len(self._running)}})

    def _slice(
        self, name: str, category: str, start: int, end: int, process: int, track: int, arguments: dict[str, Any]
    ) -> None:
        place = {"pid": process, "tid": track, "args": arguments}
        self._put({"ph": "X", "name": name, "cat": category, "ts": start, "dur": end - start, **place})

    def _track(self) -> int:
        """The track of this thread; the first one to ask is the coordinator."""
        thread = threading.get_ident()
        if thread not in self._tracks:
            track = self._tracks[thread] = len(self._tracks) + 1
            self._stacks[track] = []
            self._name(ENGINE, track, "coordinator" if track == 1 else f"thread {track}")
        return self._tracks[thread]

    def _name(self, process: int, track: int | None, name: str) -> None:
        what = "process_name" if track is None else "thread_name"
        place = {"pid": process} if track is None else {"pid": process, "tid": track}
        self._put({"ph": "M", "name": what, **place, "args": {"name": name}})

    def _put(self, event: dict[str, Any]) -> None:
        self._write(self._separator + _text(event))
        self._separator = ",\n"

    def _write(self, text: str) -> None:
        if not self._problem:
            try:
                self._file.write(text)
            except OSError as error:
                self._problem = error.strerror or str(error)


class _Slot:
    """A track of actions: how many are in it or wait for it, and when the last that ended was done."""

    def __init__(self, track: int) -> None:
        self.track = track
        self.waiting = self.free_at = 0


class _Open:
    """A span under way; `inside` is the time of the spans in it."""

    __slots__ = ("_trace", "inside", "name", "started")

    def __init__(self, trace: Trace, name: str) -> None:
        self._trace, self.name = trace, name
        self.started = self.inside = 0

    def __enter__(self) -> None:
        self._trace.begin(self)
        self.started = self._trace.now()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._trace.end(self)


class _Nothing:
    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        return None


_NOTHING = _Nothing()
_trace: Trace | None = None
"""One build at a time can be traced in a process: what is far from its options has spans as well."""


def _named(label: str, item: str) -> str:
    return f"{label}[{item}]" if item else label


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))

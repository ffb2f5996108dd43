"""Progress of a run on stderr: one live block on a terminal, few plain lines elsewhere.

The counts are kept here in a plain `Tally`; rich is imported only on a terminal, once something has run for a while.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING

from mrp.cli.screen import Screen
from mrp.runtime.events import (
    AttemptFailed,
    Draining,
    Event,
    ItemFinished,
    ItemStarted,
    RunStarted,
    TaskFinished,
    TaskStarted,
    Warned,
)

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

LIVE_AFTER = 0.3
"""Seconds of work before the live block appears."""

PLAIN_EVERY = 5.0
"""Least seconds between two plain progress lines."""

_SHOWN_ITEMS = 8
_MIN_FOR_ETA = 3


@dataclass
class Counts:
    """What happened so far to one target."""

    executed: int = 0
    cached: int = 0
    failed: int = 0


@dataclass
class Tally:
    """All that progress shows. Times are seconds of a monotonic clock."""

    started: float
    expected: int = 0
    finished: int = 0
    executed_items: int = 0
    total: Counts = field(default_factory=Counts)
    targets: dict[str, Counts] = field(default_factory=dict)
    running: dict[tuple[str, str, str], float] = field(default_factory=dict)
    usd: Decimal = Decimal(0)

    def add(self, event: Event, now: float) -> None:
        """Count one event that came at `now`."""
        if isinstance(event, ItemStarted):
            self.running[event.label, event.item, event.kind] = now
        elif isinstance(event, ItemFinished):
            self.running.pop((event.label, event.item, event.kind), None)
            if event.usd and not event.cached:
                self.usd += event.usd
            if event.label not in self.targets:
                self.targets[event.label] = Counts()
            for counts in (self.total, self.targets[event.label]):
                if event.cached:
                    counts.cached += 1
                else:
                    counts.executed += 1
                if event.outcome != "ok":
                    counts.failed += 1
            if event.kind == "trial":
                self.finished += 1
                self.executed_items += not event.cached
        elif isinstance(event, TaskStarted):
            self.expected += event.items or 0

    def eta(self, now: float) -> float | None:
        """Seconds until the known trials are done, from the rate of those executed so far; None when unknown."""
        left = self.expected - self.finished
        if left <= 0 or self.executed_items < _MIN_FOR_ETA:
            return None
        return left * (now - self.started) / self.executed_items

    def line(self, now: float) -> str:
        """The counts in one line."""
        parts = []
        if self.expected:
            parts.append(f"{self.finished}/{self.expected} trials")
        parts += [f"{self.total.executed} executed", f"{self.total.cached} cached"]
        if self.total.failed:
            parts.append(f"{self.total.failed} not ok")
        if self.running:
            parts.append(f"{len(self.running)} running")
        if self.usd:
            parts.append(f"${self.usd.normalize():f}")
        parts.append(duration(now - self.started))
        eta = self.eta(now)
        if eta is not None:
            parts.append(f"ETA {duration(eta)}")
        return ", ".join(parts)


class Progress:
    """Give it to a build as `on_event`; use it as a context manager, so that the live block goes away."""

    def __init__(self, screen: Screen, clock: Callable[[], float] = time.monotonic) -> None:
        self._screen, self._clock = screen, clock
        self._is_live = screen.live
        self._tally = Tally(clock())
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._timer: threading.Timer | None = None
        self._last_line = clock()
        self._closed = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            timer, live, self._timer, self._live = self._timer, self._live, None, None
        if timer is not None:
            timer.cancel()
        if live is not None:
            live.stop()

    def __call__(self, event: Event) -> None:
        """Take one event, from any thread."""
        with self._lock:
            now = self._clock()
            self._tally.add(event, now)
            self._say(event, now)
            if self._timer is None and isinstance(event, ItemStarted) and self._wants_live():
                self._timer = threading.Timer(LIVE_AFTER, self._go_live)
                self._timer.daemon = True
                self._timer.start()

    def _wants_live(self) -> bool:
        return self._is_live and not self._screen.quiet and not self._closed

    def _say(self, event: Event, now: float) -> None:
        verbose, quiet = self._screen.verbose, self._screen.quiet
        # The first two are nearly all that there are.
        if isinstance(event, ItemStarted):
            return
        if isinstance(event, ItemFinished):
            if verbose:
                self._print(_item_line(event))
            elif not (quiet or self._is_live or event.cached) and now - self._last_line >= PLAIN_EVERY:
                self._last_line = now
                self._print(self._tally.line(now))
        elif isinstance(event, Warned):
            self._print(f"warning: {event.text}")
        elif isinstance(event, Draining):
            self._print(_draining(event))
        elif isinstance(event, AttemptFailed) and not quiet:
            self._print(f"{where(event.label, event.item)} ({event.kind}) attempt {event.attempt}: {event.reason}")
        elif isinstance(event, TaskFinished):
            self._task_line(event)
        elif isinstance(event, RunStarted) and verbose:
            self._print(f"run {event.run_id}, {event.jobs} jobs")

    def _task_line(self, event: TaskFinished) -> None:
        if event.status == "failed":
            self._print(failure_line(event.label, event.reason))
            return
        counts = self._tally.targets.get(event.label)
        if self._screen.quiet or counts is None or not (counts.executed or self._screen.verbose):
            return
        if counts.executed + counts.cached == 1 and not (counts.failed or self._screen.verbose):
            return
        words = [f"{counts.executed} executed", f"{counts.cached} cached"]
        if counts.failed:
            words.append(f"{counts.failed} not ok")
        status = "done" if event.status == "ok" else event.status
        self._print(f"{event.label} {status}: {', '.join(words)}{f' ({event.reason})' if event.reason else ''}")

    def _print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._screen.error(text)

    def _go_live(self) -> None:
        """On the timer's thread: a build that was quick never gets here."""
        from rich.console import Console
        from rich.live import Live

        live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True, get_renderable=self._render)
        with self._lock:
            if self._closed:
                return
            self._live = live
        live.start()
        with self._lock:
            stop = self._closed
        if stop:
            live.stop()

    def _render(self) -> "Group":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        with self._lock:
            now, tally = self._clock(), self._tally
            running = sorted(tally.running.items(), key=lambda item: item[1])
            rows = [
                Text(f"  {duration(now - start):>6}  {where(label, item)} {kind}", no_wrap=True, overflow="ellipsis")
                for (label, item, kind), start in running[:_SHOWN_ITEMS]
            ]
            if len(running) > _SHOWN_ITEMS:
                rows.append(Text(f"          and {len(running) - _SHOWN_ITEMS} more"))
            total = tally.expected or None
            bar = ProgressBar(total=total, completed=tally.finished, width=40, pulse=total is None)
            return Group(*rows, bar, Text(tally.line(now), no_wrap=True, overflow="ellipsis"))


def where(label: str, item: str) -> str:
    """`//jobs:solve[task-17]`, or the label alone."""
    return f"{label}[{item}]" if item else label


def failure_line(label: str, reason: str) -> str:
    """One line on a target that failed; most reasons name it themselves."""
    if not reason:
        return f"{label} failed"
    return reason if reason.startswith(f"{label} ") else f"{label} failed: {reason}"


def duration(seconds: float) -> str:
    """`4.2s`, `1m05s`, `2h03m`."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"


def _draining(event: Draining) -> str:
    if event.kill:
        return f"killing {event.running} running item{_s(event.running)}"
    return f"finishing {event.running} running item{_s(event.running)}; press Ctrl-C again to kill"


def _item_line(event: ItemFinished) -> str:
    how = "cached" if event.cached else duration(float(event.wall_s))
    reason = f": {event.reason}" if event.reason and event.outcome != "ok" else ""
    return f"{where(event.label, event.item)} {event.kind} {event.outcome} ({how}){reason}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"

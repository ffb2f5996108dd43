"""What happens in a run, as values: the runtime emits them, the log keeps them, the command line shows them."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias, get_args

from mrp.cache.canonical import Json, canonical_text, number_text, quoted
from mrp.runtime.state import explained
from mrp.specs.errors import InfraError

_MOST_HELD = 1000
"""Lines that the log holds back before it writes them in any case."""


@dataclass(frozen=True)
class RunStarted:
    run_id: str
    requested: tuple[str, ...]
    jobs: int


@dataclass(frozen=True)
class TaskStarted:
    """A target's inputs are known. `items` is the number of trials that it will have, None when it has no items."""

    label: str
    items: int | None = None


@dataclass(frozen=True)
class TaskFinished:
    """status: ok, failed, held, skipped or partial."""

    label: str
    status: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ItemStarted:
    label: str
    item: str
    kind: str
    reason: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class ItemFinished:
    """An action came to an end. `cached` ones were not executed."""

    label: str
    item: str
    kind: str
    outcome: str
    cached: bool
    reason: str = ""
    usd: Decimal = Decimal(0)
    wall_s: Decimal = Decimal(0)
    key: str = ""


@dataclass(frozen=True)
class AttemptFailed:
    """An infrastructure failure; the action is tried again while it has retries."""

    label: str
    item: str
    kind: str
    attempt: int
    reason: str


@dataclass(frozen=True)
class Warned:
    text: str


@dataclass(frozen=True)
class Draining:
    """The build was asked to stop: `running` actions are finished, or killed when `kill`."""

    running: int
    kill: bool


@dataclass(frozen=True)
class Waiting:
    """Nothing more happens until an action ends: a log writes what it holds. It is neither logged nor handed on."""


@dataclass(frozen=True)
class RunFinished:
    run_id: str
    status: str
    executed: int
    cached: int
    failed: int


Event: TypeAlias = (
    RunStarted
    | TaskStarted
    | TaskFinished
    | ItemStarted
    | ItemFinished
    | AttemptFailed
    | Warned
    | Draining
    | Waiting
    | RunFinished
)


def event_json(event: Event) -> Json:
    """`event` as it stands in events.jsonl, without the time."""
    plain: dict[str, Any] = {"type": type(event).__name__}
    for item in fields(event):
        value = getattr(event, item.name)
        plain[item.name] = list(value) if isinstance(value, tuple) else value
    return plain


def event_line(event: Event, at: str) -> str:
    """A line of events.jsonl: the event in canonical JSON with `at`, seconds since the epoch as decimal text."""
    if type(event) is ItemStarted:
        return (
            f'{{"at":{at},"item":{quoted(event.item)},"key":{quoted(event.key)},"kind":{quoted(event.kind)}'
            f',"label":{quoted(event.label)},"reason":{quoted(event.reason)},"type":"ItemStarted"}}'
        )
    if type(event) is ItemFinished:
        return (
            f'{{"at":{at},"cached":{"true" if event.cached else "false"},"item":{quoted(event.item)}'
            f',"key":{quoted(event.key)},"kind":{quoted(event.kind)},"label":{quoted(event.label)}'
            f',"outcome":{quoted(event.outcome)},"reason":{quoted(event.reason)},"type":"ItemFinished"'
            f',"usd":{number_text(event.usd)},"wall_s":{number_text(event.wall_s)}}}'
        )
    return canonical_text({**event_json(event), "at": Decimal(at)})


_HELD = frozenset((ItemStarted, ItemFinished, TaskStarted, TaskFinished))


class EventLog:
    """Appends events to a file, one JSON line each with the time, and hands them to a listener.

    Cached items are handed on but not logged: digests.jsonl names them all. Starts and ends of items and tasks are held
    until the coordinator waits, or something else happens, and are then written at once. What cannot be written is an
    InfraError: a build that cannot say what it does must not go on.
    """

    def __init__(self, path: Path, listener: Callable[[Event], None] = lambda _: None) -> None:
        self.path, self.listener = path, listener
        with explained(path):
            self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._held: list[str] = []

    def emit(self, event: Event) -> None:
        """Log and hand on one event. Raises InfraError."""
        if isinstance(event, Waiting):
            if self._held:
                with self._lock:
                    self._write()
            return
        is_held = type(event) in _HELD
        if not (isinstance(event, ItemFinished) and event.cached):
            line = event_line(event, f"{time.time():.3f}".rstrip("0").rstrip("."))
            with self._lock:
                self._held.append(line)
                if not is_held or len(self._held) >= _MOST_HELD:
                    self._write()
        self.listener(event)

    def close(self) -> None:
        # What could not be written was said when it was emitted.
        with suppress(OSError, InfraError), self._lock:
            self._write()
        with suppress(OSError):
            self._file.close()

    def _write(self) -> None:
        with explained(self.path):
            self._file.write("".join([f"{line}\n" for line in self._held]))
            self._held.clear()
            self._file.flush()


def read_events(path: Path) -> list[dict[str, Json]]:
    """The events of a log, [] when it cannot be read.

    Lines that are no events, such as a last one cut off by a crash, are left out.
    """
    found: list[dict[str, Json]] = []
    try:
        data = path.read_bytes()
    except OSError:
        return found
    for line in data.splitlines():
        try:
            event = json.loads(line, parse_float=Decimal)
        except ValueError:
            continue
        if isinstance(event, dict) and _NEEDED.get(str(event.get("type")), _UNKNOWN) <= event.keys():
            found.append(event)
    return found


_UNKNOWN = frozenset({""})
_NEEDED = {
    kind.__name__: frozenset({"at"} | {item.name for item in fields(kind) if item.default is MISSING})
    for kind in get_args(Event)
}
"""What a line of each type must have to be one of ours."""

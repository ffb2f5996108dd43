"""What happens in a run, as values: the runtime emits them, the log keeps them, the command line shows them."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias, get_args

from mrp.cache.canonical import Json, canonical_text
from mrp.runtime.state import explained


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


@dataclass(frozen=True)
class ItemStarted:
    label: str
    item: str
    kind: str
    reason: str = ""
    key: str = ""


@dataclass(frozen=True)
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
    | RunFinished
)


def event_json(event: Event) -> Json:
    """`event` as it stands in events.jsonl, without the time."""
    plain: dict[str, Any] = {"type": type(event).__name__}
    for item in fields(event):
        value = getattr(event, item.name)
        plain[item.name] = list(value) if isinstance(value, tuple) else value
    return plain


@dataclass
class EventLog:
    """Appends events to a file, one JSON line each with the time, and hands them to a listener.

    Cached items are handed on but not logged: digests.jsonl names them all. What cannot be written is an InfraError:
    a build that cannot say what it does must not go on.
    """

    path: Path
    listener: Callable[[Event], None] = field(default=lambda _: None)

    def __post_init__(self) -> None:
        with explained(self.path):
            self._file = self.path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        """Log and hand on one event. Raises InfraError."""
        if not (isinstance(event, ItemFinished) and event.cached):
            line = canonical_text({"at": Decimal(str(round(time.time(), 3))), **event_json(event)})
            with self._lock, explained(self.path):
                self._file.write(line + "\n")
                self._file.flush()
        self.listener(event)

    def close(self) -> None:
        # What could not be written was said when it was emitted.
        with suppress(OSError):
            self._file.close()


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

"""The contract of models: whatever answers the calls of the OpenAI API that the gateway lets through."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from mrp.cache.canonical import Json, canonical_text, quoted


class Held:
    """How long a trial waited for what is not its own doing: a model that starts, is busy, or takes no more for now.

    Entered around each such wait, from any thread; waits at the same time count once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside, self._since, self._total = 0, 0.0, 0.0

    @property
    def seconds(self) -> float:
        """All waits so far, one that still goes on included."""
        with self._lock:
            return self._total + (time.monotonic() - self._since if self._inside else 0.0)

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = time.monotonic()
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._total += time.monotonic() - self._since


@dataclass(frozen=True)
class Call:
    """One request: `path` is chat/completions or completions; `body` with the sampling and the model's name filled in.

    `body["stream"]` asks for an answer in chunks. timeout: seconds for the whole answer. number: how many other calls
    the trial made before; occurrence: how many of these were the same. held: is entered while the call only waits.
    over: is set when the trial has ended, and a call that still waits need not be made.
    """

    path: str
    body: Mapping[str, Json]
    timeout: float = 600
    number: int = 0
    occurrence: int = 0
    held: Held = field(default_factory=Held, compare=False, repr=False)
    over: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)


def request_bytes(body: Mapping[str, Json]) -> bytes:
    """A body as it is sent, kept and keyed: its own members in canonical order, what is in them in the order it came.

    Models are shown tools and schemas as they are written, and answer in that order. Raises as canonical_bytes does.
    """
    return f"{{{','.join(f'{quoted(name)}:{_as_written(body[name])}' for name in sorted(body))}}}".encode()


def _as_written(value: Json) -> str:
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{quoted(name)}:{_as_written(item)}' for name, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_written, value))}]"
    return canonical_text(value)


@dataclass(frozen=True)
class Answer:
    """A whole answer: `body` for plain calls; for streams `chunks`, the data of each server-sent event but `[DONE]`.

    input_tokens and output_tokens as the model counted them. facts: of the engine that answered (version, dtype,
    device, batch invariance, replica), as JSON.
    """

    body: Json = None
    chunks: tuple[Json, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    facts: Mapping[str, Json] = field(default_factory=dict)


class Refused(Exception):
    """The model took the call for wrong (a status of 400, 413, 415, 422 or the like): the caller's own fault.

    It is given to the agent as it came and never recorded. A refusal of the key, the address or the model's name is
    nothing that an agent could have done better, and is an InfraError.
    """

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(f"the model refused the call with {status}")
        self.status, self.body = status, body


class Busy(Exception):
    """The model cannot answer now: a refusal by rate limit, an error of the server, a cut stream, no connection.

    Again may help, after `after` seconds where the model said so. It is never the agent's failure.
    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Model(Protocol):
    """Answers calls, many at a time, from any thread. It tries each call once; trying again is the gateway's work."""

    def answer(self, call: Call) -> Answer:
        """The whole answer. Raises Refused or Busy, and InfraError for what trying again will not mend."""

    def close(self) -> None:
        """Stop what it started. Idempotent."""

"""The contract of models: whatever answers the calls of the OpenAI API that the gateway lets through."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mrp.cache.canonical import Json


@dataclass(frozen=True)
class Call:
    """One request: `path` is chat/completions, completions or another below /v1; `body` with the sampling filled in.

    `body["stream"]` asks for an answer in chunks. timeout: seconds for the whole answer.
    """

    path: str
    body: Mapping[str, Json]
    timeout: float = 600


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
    """The model took the call for wrong (a status of 4xx but 408, 409, 425 and 429): the caller's own fault.

    It is given to the agent as it came and never recorded.
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
        """The whole answer. Raises Refused or Busy."""

    def list(self) -> Json:
        """What GET /v1/models says."""

    def close(self) -> None:
        """Stop what it started. Idempotent."""

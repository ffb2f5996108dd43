"""A session: what one trial asks of its model, held to the trial's limits and to the budget, from the record first.

What becomes of the trial is decided here: a model that could not answer ends it as an infrastructure failure, a limit
as `limit`, a budget as `budget`, whatever the agent made of the error that it was told.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal

from mrp.cache.canonical import Json
from mrp.cache.digest import ActionKey, Digest, digest_bytes
from mrp.cache.errors import CacheError
from mrp.rules.action import Action, Attempt
from mrp.rules.calling import ModelUse
from mrp.runtime.models.calls import CallKey, Record, call_key, kept_request
from mrp.runtime.models.limits import Lane, Stopped
from mrp.runtime.models.protocol import Answer, Busy, Call, Held, Refused
from mrp.runtime.money import Money, OverBudget
from mrp.runtime.sandbox.protocol import Cancelled, Endpoint
from mrp.specs.errors import InfraError
from mrp.specs.results import Outcome

_UNSTATED_OUTPUT = 4096
"""Tokens that are reserved for an answer whose length the request does not limit."""

_MOST_STATED = Decimal(10**12)
"""More than any request means; its digits could fill the memory."""

_BYTES_A_TOKEN = 4
"""About so many bytes of text are a token, where only a guess is needed."""

_HELD_SECONDS = 1.0
"""A trial that was held up for longer, by its model, is not to be judged by the time that it took."""

_TRANSPORT = 64
"""Tokens that a chat template may add, beyond what the request's own JSON takes."""


class Declined(Exception):
    """The gateway does not let a call through; `status` and `code` are what the agent is told."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Spent:
    """Money and tokens that calls came to."""

    usd: Decimal = Decimal(0)
    tokens: int = 0

    def add(self, usd: Decimal, tokens: int) -> None:
        self.usd += usd
        self.tokens += tokens


class Session:
    """One trial's calls, from any thread. `endpoint` is where its sandbox sends them.

    `charge` is told what each answer of the model itself cost, for the trial's own account.
    """

    def __init__(
        self,
        action: Action,
        use: ModelUse,
        lane: Lane,
        record: Record,
        money: Money,
        endpoint: Endpoint,
        charge: Callable[[ActionKey, Decimal, int], None],
    ) -> None:
        self.endpoint, self.name = endpoint, use.name
        self._action, self._use, self._lane, self._record = action, use, lane, record
        self._money, self._charge = money, charge
        self._lock = threading.Lock()
        self._taken: dict[Digest, set[int]] = {}
        self._begun = 0
        self._served: list[ActionKey] = []
        self._total, self._held, self._over = Spent(), Held(), threading.Event()
        self._declined: Declined | None = None
        self._ends_as: InfraError | OverBudget | Cancelled | str | None = None

    # -- the agent's side ----------------------------------------------------------------------------------------

    def answer(self, path: str, body: Mapping[str, Json]) -> Answer:
        """The answer to a request. Raises Declined, and Refused as the model does."""
        try:
            request = kept_request(path, {**self._use.sampling, **body})
        except (UnicodeEncodeError, TypeError, ValueError, RecursionError) as error:
            raise Declined(400, "invalid_request", f"the request has no canonical form: {error}") from None
        same = digest_bytes(request)
        number, occurrence = self._begin(same)
        try:
            call = call_key(self._action.key, self._use.description, request, occurrence)
            answer = self._record.find(call)
            if answer is None:
                answer = self._ask(call, path, body, number, occurrence)
        except BaseException as error:
            self._give_back(same, occurrence)
            if isinstance(error, Refused) or not isinstance(error, Exception):
                raise
            # Whatever else went wrong is nothing that the agent could have done better.
            raise self._fail(error) from error
        self._count(call, answer)
        return answer

    def _begin(self, same: Digest) -> tuple[int, int]:
        """(calls before this one, equal calls before it); Declined when no further call may be made."""
        with self._lock:
            if self._declined is None:
                self._check_limits(further=True)
            if self._declined is not None:
                raise self._declined
            taken = self._taken.setdefault(same, set())
            occurrence = next(number for number in range(len(taken) + 1) if number not in taken)
            taken.add(occurrence)
            self._begun += 1
            return self._begun - 1, occurrence

    def _give_back(self, same: Digest, occurrence: int) -> None:
        """A call that came to no answer is none."""
        with self._lock:
            self._taken[same].discard(occurrence)
            self._begun -= 1

    def _ask(self, key: CallKey, path: str, said: Mapping[str, Json], number: int, occurrence: int) -> Answer:
        if not self._record.upstream:
            raise InfraError(
                f"the record has no answer to call {number + 1} of the trial, and a replay asks no model; the cache"
                " lost it, and a new build records it again, or the model refused the call, which is never recorded",
                retryable=False,
            )
        body = {**self._use.sampling, **said, "model": self._use.name}
        if self._use.seeded and body.get("seed") is None:
            body["seed"] = int(key.key[:8], 16) >> 1
        call = Call(path, body, number=number, occurrence=occurrence, held=self._held, over=self._over)
        with self._lane.alone(key.key, call):
            return self._record.find(key) or self._paid_for(key, call)

    def _paid_for(self, key: CallKey, call: Call) -> Answer:
        """What the model itself answers, once the budget allows it."""
        expected_input, expected_output = _expected(key, call.body)
        # No text has more tokens than bytes, but for what a chat template adds.
        most_input = len(key.request) + _TRANSPORT
        most = (self._use.price(most_input, expected_output), most_input + expected_output)
        with self._held:
            refusal = self._money.reserve_call(self._action.label, *most)
        if refusal is not None:
            raise OverBudget(refusal)
        usd, tokens = Decimal(0), 0
        started = time.monotonic()
        try:
            answer = self._lane.ask(call, expected_input + expected_output)
            usd = self._use.price(answer.input_tokens, answer.output_tokens)
            tokens = answer.input_tokens + answer.output_tokens
        except Busy as busy:
            raise InfraError(f"{self._use.label} could not answer: {busy}") from busy
        finally:
            self._money.settle(self._action.label, most, (usd, tokens))
            self._charge(self._action.key, usd, tokens)
        if self._record.proof is not None:
            self._record.proof.note(self._use.label, key.key, answer)
        return self._record.keep(key, answer, usd, Decimal(f"{time.monotonic() - started:.3f}"))

    def _count(self, call: CallKey, answer: Answer) -> None:
        usd = self._use.price(answer.input_tokens, answer.output_tokens)
        with self._lock:
            self._served.append(call.key)
            self._total.add(usd, answer.input_tokens + answer.output_tokens)
            if self._declined is None:
                self._check_limits(further=False)
            if self._declined is not None:
                raise self._declined

    # -- limits --------------------------------------------------------------------------------------------------

    def _check_limits(self, *, further: bool) -> None:
        """Close the session when a limit is passed, or reached and a `further` call is asked for."""
        used: dict[str, tuple[Decimal | int, Decimal | int | None]] = {
            "calls": (self._begun, self._use.calls),
            "tokens": (self._total.tokens, self._use.tokens),
            "usd": (self._total.usd, self._use.usd),
        }
        for name, (count, most) in used.items():
            if most is not None and (count > most or (further and count == most)):
                self._ends_as = name
                self._declined = Declined(403, "limit", f"the trial's limit of {most} {name} is used up")
                return

    def _fail(self, error: Exception) -> Declined:
        """Close the session; gives what the agent is told."""
        with self._lock:
            if self._declined is None:
                if isinstance(error, OverBudget):
                    self._ends_as = error
                    self._declined = Declined(403, "budget", str(error))
                else:
                    self._ends_as = _ending(error)
                    self._declined = Declined(503, "model_unavailable", str(error) or "the build was stopped")
            return self._declined

    # -- the trial's side ----------------------------------------------------------------------------------------

    def end(self) -> None:
        """The trial is over: what it asked, and was not sent yet, is not sent any more."""
        self._over.set()

    def conclude(self, attempt: Attempt) -> Attempt:
        """What the trial came to, with its calls. Raises InfraError, OverBudget or Cancelled when that is its end."""
        with self._lock:
            if isinstance(self._ends_as, Exception):
                raise self._ends_as
            result, byproducts = attempt.result, attempt.byproducts
            if result.limit == "wall" and self._held.seconds > _HELD_SECONDS:
                raise InfraError(
                    f"the trial's time ran out after it had waited {self._held.seconds:.0f} s until {self._use.label}"
                    " took its calls; allow more time, or set `calls` in `limits` if the agent may ask without end"
                )
            if self._ends_as is not None:
                result = replace(result, outcome=Outcome.LIMIT, limit=self._ends_as)
                byproducts = replace(byproducts, reason=str(self._declined))
            usage = replace(byproducts.usage, usd=self._total.usd, tokens=self._total.tokens)
            return Attempt(result, replace(byproducts, usage=usage, calls=tuple(self._served)))


def _ending(error: Exception) -> InfraError | Cancelled:
    if isinstance(error, InfraError):
        return error
    if isinstance(error, Stopped):
        return Cancelled()
    return InfraError(str(error) if isinstance(error, CacheError) else f"{type(error).__name__}: {error}")


def _expected(key: CallKey, body: Mapping[str, Json]) -> tuple[int, int]:
    """About how many tokens a request has, and the most that its answers may have."""
    # Which of them a server heeds is its own affair.
    most = max(_stated(body, "max_completion_tokens"), _stated(body, "max_tokens")) or _UNSTATED_OUTPUT
    most *= max(1, _stated(body, "n"), _stated(body, "best_of"))
    prompts = body.get("prompt")
    if isinstance(prompts, list) and prompts and isinstance(prompts[0], str | list):
        most *= len(prompts)
    return len(key.request) // _BYTES_A_TOKEN + 1, most


def _stated(body: Mapping[str, Json], name: str) -> int:
    """A whole number, as a number or in words, as servers take it; 0 for what is none."""
    value = body.get(name)
    with suppress(ArithmeticError):
        if isinstance(value, int | Decimal | str):
            return int(min(max(Decimal(value), Decimal(0)), _MOST_STATED))
    return 0


def error_json(declined: Declined | Refused) -> Json:
    """An error as OpenAI's API words it."""
    if isinstance(declined, Refused):
        return declined.body
    kind = "invalid_request_error" if declined.status < 500 else "server_error"
    return {"error": {"message": f"mrp: {declined}", "type": kind, "param": None, "code": declined.code}}

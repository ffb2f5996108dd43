"""A lane: the calls that one model is asked, so many at once and so many tokens a minute, again while it is busy."""

import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

from mrp.runtime.models.protocol import Answer, Busy, Call

TRIES = 6
"""How often one call is tried, before the trial ends as an infrastructure failure."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_MOST_PATIENCE = 600.0
"""Seconds beyond which what a model asks to wait counts as its being gone."""

_LEAST_OF_WAIT = 10
"""A model that asks for less than this part of what would be waited anyhow is not believed."""

_MINUTE = 60.0


class _Answers(Protocol):
    def answer(self, call: Call) -> Answer: ...


class Stopped(Exception):
    """The build was stopped while a call waited."""


class Lane:
    """Every call of one model goes through its lane, from any thread. `open_model` is called once, at the first one.

    concurrency: calls at once; tokens_per_minute: see TokenRate; None for no limit.
    """

    def __init__(
        self,
        open_model: Callable[[], _Answers],
        stopped: threading.Event,
        concurrency: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        self._open_model, self._stopped = open_model, stopped
        self._slots = threading.Semaphore(concurrency) if concurrency is not None else None
        self._rate = TokenRate(tokens_per_minute) if tokens_per_minute is not None else None
        self._lock = threading.Lock()
        self._opened: _Answers | None = None
        self._not_before = 0.0

    def ask(self, call: Call, expected_tokens: int) -> Answer:
        """The answer, of the first try that gives one.

        Raises Busy when no try did, Refused and InfraError as the model does, Stopped when the build was stopped.
        """
        with call.held:
            model = self._model()
        tries = 0
        while True:
            tries += 1
            with call.held:
                self._rest(self._not_before - time.monotonic())
            try:
                return self._once(model, call, expected_tokens)
            except Busy as busy:
                after = busy.after
                if tries >= TRIES or (after is not None and after > _MOST_PATIENCE):
                    raise
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (tries - 1))
            if after is not None:
                # What one call was told holds for all of them. Where it is 0, six tries must not be over at once.
                self._not_before = max(self._not_before, time.monotonic() + max(after, wait / _LEAST_OF_WAIT))
            else:
                with call.held:
                    self._rest(random.uniform(wait / 2, wait))

    def _once(self, model: _Answers, call: Call, expected_tokens: int) -> Answer:
        if self._slots is not None:
            with call.held:
                while not self._slots.acquire(timeout=0.2):
                    self._check()
        try:
            if self._rate is not None:
                while (wait := self._rate.take(expected_tokens, time.monotonic())) > 0:
                    with call.held:
                        self._rest(wait)
            self._check()
            answer = model.answer(call)
            if self._rate is not None:
                self._rate.give_back(expected_tokens - answer.input_tokens - answer.output_tokens)
            return answer
        finally:
            if self._slots is not None:
                self._slots.release()

    def _model(self) -> _Answers:
        with self._lock:
            self._check()
            if self._opened is None:
                self._opened = self._open_model()
            return self._opened

    def _rest(self, seconds: float) -> None:
        if seconds > 0:
            self._stopped.wait(seconds)
        self._check()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stopped


class TokenRate:
    """So many tokens a minute: a bucket that holds a minute's worth and fills evenly. It knows no clock.

    A call that is expected to need more than a minute's worth goes when the bucket is full.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = float(per_minute)
        self._left = float(per_minute)
        self._at: float | None = None
        self._lock = threading.Lock()

    def take(self, tokens: int, now: float) -> float:
        """0 when a call of so many tokens may go now, and is charged; else the seconds after which to ask again."""
        with self._lock:
            filled = 0.0 if self._at is None else (now - self._at) * self._per_minute / _MINUTE
            self._left, self._at = min(self._per_minute, self._left + filled), now
            needed = min(float(tokens), self._per_minute)
            if self._left >= needed:
                self._left -= tokens
                return 0.0
            return (needed - self._left) * _MINUTE / self._per_minute

    def give_back(self, tokens: int) -> None:
        """A call needed so many tokens fewer than it was charged, or more where negative."""
        with self._lock:
            self._left += tokens

"""A lane: the calls that one model is asked, so many at once and so many tokens a minute, again while it is busy."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mrp.cache.digest import ActionKey
from mrp.runtime.models.protocol import Answer, Busy, Call, Model

TRIES = 6
"""How often one call is tried, before the trial ends as an infrastructure failure."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_MOST_PATIENCE = 600.0
"""Seconds beyond which what a model asks to wait counts as its being gone."""

_LEAST_OF_WAIT = 10
"""A model that asks for less than this part of what would be waited anyhow is not believed."""

_LOOK_SECONDS = 0.2
"""Between two looks of a call that waits at whether anybody still waits for it."""

_MINUTE = 60.0


class Stopped(Exception):
    """The build was stopped, or the trial ended, while a call waited."""


class Lane:
    """Every call of one model goes through its lane, from any thread. `open_model` is called once, at the first one.

    concurrency: calls at once; tokens_per_minute: see TokenRate; None for no limit.
    """

    def __init__(
        self,
        open_model: Callable[[], Model],
        stopped: threading.Event,
        concurrency: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        self._open_model, self._stopped = open_model, stopped
        self._slots = threading.Semaphore(concurrency) if concurrency is not None else None
        self._rate = TokenRate(tokens_per_minute) if tokens_per_minute is not None else None
        self._lock = threading.Lock()
        self._under_way: set[ActionKey] = set()
        self._one_less = threading.Condition()
        self._opened: Model | None = None
        self._not_before = 0.0

    @contextmanager
    def alone(self, key: ActionKey, call: Call) -> Iterator[None]:
        """Hold a call while the same one is under way, left by an attempt of its trial that failed. Raises Stopped."""
        with call.held, self._one_less:
            while key in self._under_way:
                self._one_less.wait(_LOOK_SECONDS)
                self._check(call)
            self._under_way.add(key)
        try:
            yield
        finally:
            with self._one_less:
                self._under_way.discard(key)
                self._one_less.notify_all()

    def ask(self, call: Call, expected_tokens: int) -> Answer:
        """The answer, of the first try that gives one.

        Raises Busy when no try did, Refused and InfraError as the model does, Stopped when nobody waits any more.
        """
        with call.held:
            self._check(call)
            model = self._model()
        tries = 0
        while True:
            tries += 1
            with call.held:
                self._rest(call, self._not_before - time.monotonic())
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
                    self._rest(call, random.uniform(wait / 2, wait))

    def _once(self, model: Model, call: Call, expected_tokens: int) -> Answer:
        if self._slots is not None:
            with call.held:
                while not self._slots.acquire(timeout=_LOOK_SECONDS):
                    self._check(call)
        try:
            self._check(call)
            return self._at_rate(model, call, expected_tokens)
        finally:
            if self._slots is not None:
                self._slots.release()

    def _at_rate(self, model: Model, call: Call, expected_tokens: int) -> Answer:
        if self._rate is None:
            return model.answer(call)
        while (wait := self._rate.take(expected_tokens, time.monotonic())) > 0:
            with call.held:
                self._rest(call, wait)
        needed = 0
        try:
            answer = model.answer(call)
            needed = answer.input_tokens + answer.output_tokens
            return answer
        finally:
            self._rate.settle(expected_tokens, needed)

    def _model(self) -> Model:
        with self._lock:
            if self._opened is None:
                self._opened = self._open_model()
            return self._opened

    def _rest(self, call: Call, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._check(call)
        while (left := until - time.monotonic()) > 0:
            self._stopped.wait(min(left, _LOOK_SECONDS))
            self._check(call)

    def _check(self, call: Call) -> None:
        if self._stopped.is_set() or call.over.is_set():
            raise Stopped


class TokenRate:
    """So many tokens a minute: a bucket that holds a minute's worth and fills evenly. It knows no clock.

    A call that is expected to need more than a minute's worth goes when the bucket is full, and empties it: what an
    agent asks for must not keep others from being answered.
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
                self._left -= needed
                return 0.0
            return (needed - self._left) * _MINUTE / self._per_minute

    def settle(self, expected: int, needed: int) -> None:
        """A call that was charged for what was expected ended, and needed so many tokens."""
        with self._lock:
            self._left += min(float(expected), self._per_minute) - needed

"""The local engine: actions on threads of this process, which wait while sandboxed processes work."""

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from mrp.rules.action import Action
from mrp.runtime.execute import Executed, may_share

BATCH_SECONDS = 0.03
"""About so long a batch is to last: long beside the cost of handing it over, short beside what a person notices."""

ELSEWHERE_SECONDS = 0.3
"""The same where handing over takes milliseconds, on an engine whose processes run in other processes."""

_LEAST_SECONDS = 0.0003
"""What an item takes at least with all that is done about it."""

ExecuteMany = Callable[[Sequence[Action], Callable[[Executed], None], Callable[[Sequence[Action]], None] | None], None]


class LocalEngine:
    """At most `slots` actions at once. Results come back through one queue, which `wait` empties.

    `execute_many` executes a batch in order: it gives each result as soon as it is there, and may hand what it has not
    begun to its last argument, for another thread.
    """

    def __init__(
        self,
        slots: int,
        execute: Callable[[Action], Executed],
        execute_many: ExecuteMany | None = None,
        batch_seconds: float = BATCH_SECONDS,
    ) -> None:
        self._execute, self._execute_many, self._batch_seconds = execute, execute_many, batch_seconds
        self._submitted: queue.SimpleQueue[tuple[Sequence[Action], bool] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Executed | BaseException | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._slots = slots
        self._threads: list[threading.Thread] = []
        self._seconds: dict[tuple[str, str], float] = {}

    def resize(self, slots: int) -> None:
        """At most `slots` actions at once; before any is submitted."""
        self._slots = slots

    def submit(self, action: Action) -> None:
        """Start `action` as soon as a thread is free. Threads are made as they are first needed."""
        self.submit_many([action], spread=False)

    def submit_many(self, actions: Sequence[Action], *, spread: bool) -> None:
        """Start actions, one after the other, as soon as a thread is free; with `spread` threads may share them."""
        if len(self._threads) < self._slots:
            thread = threading.Thread(target=self._work, name=f"mrp-worker-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._submitted.put((actions, spread))

    def batch_size(self, action: Action) -> int:
        """How many actions of the same kind and target should be submitted together, by how long they took so far."""
        if self._execute_many is None:
            return 1
        seconds = self._seconds.get((action.label, action.kind))
        return 1 if seconds is None else max(1, int(self._batch_seconds / seconds))

    def wait(self, timeout: float | None) -> list[Executed]:
        """All that has finished; blocks for the first one at most `timeout` seconds (None: until there is one).

        Raises what `execute` raised, once all that finished before has been given.
        """
        finished: list[Executed] = []
        with suppress(queue.Empty):
            item = None if self._failure is not None else self._finished.get(timeout=timeout)
            while self._failure is None:
                if isinstance(item, BaseException):
                    self._failure = item
                elif item is not None:
                    finished.append(item)
                item = self._finished.get_nowait()
        if self._failure is not None and not finished:
            raise self._failure
        return finished

    def wake(self) -> None:
        """Make a `wait` under way return."""
        self._finished.put(None)

    def close(self) -> None:
        """Let the threads end after what they do now."""
        for _ in self._threads:
            self._submitted.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (submitted := self._submitted.get()) is not None:
            actions, spread = submitted
            try:
                if self._execute_many is None:
                    for action in actions:
                        self._finished.put(self._execute(action))
                else:
                    self._run_batch(self._execute_many, actions, spread)
            except BaseException as error:
                # A thread that only ended would leave `wait` waiting for ever.
                self._finished.put(error)

    def _run_batch(self, execute_many: ExecuteMany, actions: Sequence[Action], spread: bool) -> None:
        took: list[float] = []

        def finished(executed: Executed) -> None:
            took.append(float(executed.usage.wall_s))
            self._finished.put(executed)

        execute_many(actions, finished, (lambda rest: self._submitted.put((rest, True))) if spread else None)
        if took and may_share(actions[0]):
            kind, seconds = (actions[0].label, actions[0].kind), max(sum(took) / len(took), _LEAST_SECONDS)
            self._seconds[kind] = (seconds + self._seconds.get(kind, seconds)) / 2

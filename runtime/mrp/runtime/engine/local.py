"""The local engine: actions on threads of this process, which wait while sandboxed processes work."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from mrp.rules.action import Action
from mrp.runtime.execute import Executed


class LocalEngine:
    """At most `slots` actions at once. Results come back through one queue, which `wait` empties."""

    def __init__(self, slots: int, execute: Callable[[Action], Executed]) -> None:
        self._execute = execute
        self._submitted: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Executed | BaseException | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._slots = slots
        self._threads: list[threading.Thread] = []

    def submit(self, action: Action) -> None:
        """Start `action` as soon as a thread is free. Threads are made as they are first needed."""
        if len(self._threads) < self._slots:
            thread = threading.Thread(target=self._work, name=f"mrp-worker-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._submitted.put(action)

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
        while (action := self._submitted.get()) is not None:
            try:
                self._finished.put(self._execute(action))
            except BaseException as error:
                # A thread that only ended would leave `wait` waiting for ever.
                self._finished.put(error)

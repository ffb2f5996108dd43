"""Stopping a build: the first request drains it, the second kills what runs."""

from collections.abc import Callable


class Interrupt:
    """`level` is 0, 1 (drain) or 2 (kill). `request` may be called from a signal handler."""

    def __init__(self) -> None:
        self.level = 0
        self._listeners: list[Callable[[int], None]] = []

    def request(self) -> None:
        """Ask once more."""
        self.level = min(2, self.level + 1)
        for listener in self._listeners:
            listener(self.level)

    def listen(self, listener: Callable[[int], None]) -> None:
        """Call `listener` with the new level at each request."""
        self._listeners.append(listener)

"""Pure operators: a few sandboxes for each operator and box, taken by one item at a time."""

import itertools
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from mrp.runtime.sandbox.cgroups import Group
from mrp.runtime.sandbox.scratch import remove_folder
from mrp.runtime.sandbox.warm import Slot

MAX_ITEMS = 200
"""A sandbox is made anew after so many items: what they leave in memory must not count against later ones."""

MAX_IDLE = 32
"""So many sandboxes wait for items; of more, those go that have waited longest."""


@dataclass
class Pooled:
    """A slot with all that it holds: the folder its items are laid out in, its control group, its materials."""

    slot: Slot
    folder: Path
    group: Group | None
    stack: ExitStack
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def close(self) -> None:
        self.slot.close()
        if self.group is not None:
            self.group.remove()
        remove_folder(self.folder)
        self.stack.close()


class SlotPool:
    """Slots by the key of what is the same for all of their items. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[object, Pooled]] = []
        self._closed = False

    def take(self, key: object, make: Callable[[], Pooled]) -> Pooled:
        """A slot that nobody uses, made by `make` when there is none."""
        with self._lock:
            for index in reversed(range(len(self._idle))):
                if self._idle[index][0] == key:
                    return self._idle.pop(index)[1]
        return make()

    def give_back(self, key: object, pooled: Pooled) -> None:
        """Let others have the slot, unless it is used up."""
        closing = [pooled]
        with self._lock:
            if not pooled.slot.dead and pooled.slot.served < MAX_ITEMS and not self._closed:
                self._idle.append((key, pooled))
                closing = [old for _, old in self._idle[:-MAX_IDLE]]
                self._idle = self._idle[-MAX_IDLE:]
        for each in closing:
            each.close()

    def close(self) -> None:
        """End all that are idle, and each other one as it is given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, pooled in idle:
            pooled.close()

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
        self._idle: dict[object, list[Pooled]] = {}
        self._closed = False

    def take(self, key: object, make: Callable[[], Pooled]) -> Pooled:
        """A slot that nobody uses, made by `make` when there is none."""
        with self._lock:
            idle = self._idle.get(key)
            if idle:
                return idle.pop()
        return make()

    def give_back(self, key: object, pooled: Pooled) -> None:
        """Let others have the slot, unless it is used up."""
        if not pooled.slot.dead and pooled.slot.served < MAX_ITEMS:
            with self._lock:
                if not self._closed:
                    self._idle.setdefault(key, []).append(pooled)
                    return
        pooled.close()

    def close(self) -> None:
        """End all that are idle, and each other one as it is given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for pooled in itertools.chain.from_iterable(idle.values()):
            pooled.close()

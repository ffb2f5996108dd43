"""Pure operators: a few sandboxes for each operator and box, taken by one batch of items at a time."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mrp.runtime.sandbox.cgroups import Counters, Events, Group
from mrp.runtime.sandbox.layout import check_mount
from mrp.runtime.sandbox.scratch import remove_folder
from mrp.runtime.sandbox.slot import FOLDERS
from mrp.runtime.sandbox.steps import Step
from mrp.runtime.sandbox.supervise import Watch
from mrp.runtime.sandbox.warm import Slot
from mrp.specs.work import Mount, Process

MAX_ITEMS = 5000
"""A sandbox is made anew after so many items: what they leave must not count against later ones."""

_MEMORY_SHARE = 8
"""It is made anew as well when items grew its memory by more than such a part of what each may have."""

MAX_IDLE = 32
"""So many sandboxes wait for items; of more, those go that have waited longest."""

IN_MEMORY = 32 * 2**20
"""Items that leave more bytes than this in folders in memory are run again with folders on disk."""

_SLACK = 64 * 2**20


class Point(NamedTuple):
    """A folder of a slot: where items find it, where it lies on this machine, and whether they may write to it."""

    path: str
    folder: Path
    writable: bool


class Plan(NamedTuple):
    """How a slot's folders are made: `steps` for its root, and (name, writable, kept) of each for its process 1."""

    steps: list[Step]
    folders: list[tuple[str, bool, bool]]


def plan_folders(process: Process, mounts: Sequence[Mount], root: Path, place: Path, *, in_memory: bool) -> Plan:
    """Plan a folder for each mount: in `place`, or in memory; `root` is the folder that the sandbox's root is made in.

    In memory they are made more cheaply, and count as memory; their size is bounded by the disk limit.
    """
    execute = process.box.allow is None
    steps, folders = [], []
    if in_memory:
        size = 2 * process.box.limits.disk + _SLACK
        steps.append(Step("tmpfs", FOLDERS, size=size, execute=execute))
    else:
        steps.append(Step("bind", FOLDERS, str(place), writable=True, execute=execute))
    for number, mount in enumerate(mounts):
        check_mount(mount.path)
        name = f"{'w' if mount.writable else 'r'}{number}"
        folders.append((name, mount.writable, mount.path in process.outputs))
        if in_memory:
            steps.append(Step("dir", f"{FOLDERS}/{name}"))
        else:
            (place / name).mkdir(parents=True)
        source = f"{root}{FOLDERS}" if in_memory else str(place)
        steps.append(Step("bind", mount.path, f"{source}/{name}", writable=mount.writable, execute=execute))
    return Plan(steps, folders)


def make_points(slot: Slot, plan: Plan, mounts: Sequence[Mount]) -> tuple[Point, ...]:
    """A new slot's folders as this machine reaches them, wherever they lie. Raises InfraError when it did not start."""
    descriptors = slot.introduce(plan.folders)
    slot.held += descriptors
    # With our process id, so that programs that we start find them too.
    ours = Path(f"/proc/{os.getpid()}/fd")
    places = zip(mounts, descriptors, strict=True)
    return tuple(Point(mount.path, ours / str(folder), mount.writable) for mount, folder in places)


class MemoryWatch(Watch):
    """A watch on folders in memory, which take no space of this machine's disk."""

    def check_disk(self) -> None:
        """There is nothing to check."""


@dataclass
class Pooled:
    """A slot with all that it holds: its folders below `folder`, its control group, its materials.

    `points` are its folders, sorted by path; `in_memory` tells where they lie. `memory` is the limit of each item in
    bytes.
    """

    slot: Slot
    folder: Path
    points: tuple[Point, ...]
    group: Group | None
    stack: ExitStack
    memory: int
    watch: Watch
    isolation: str
    in_memory: bool
    used_up: bool = False
    _first_memory: int | None = None
    _counters: Counters | None = None

    def note_memory(self, used: int) -> None:
        """The most bytes that the process had until now, after another item."""
        if self._first_memory is None:
            self._first_memory = used
        self.used_up = self.used_up or used - self._first_memory > self.memory // _MEMORY_SHARE

    def events(self) -> Events:
        """How often its limits were hit until now."""
        if self.group is None:
            return Events()
        if self._counters is None:
            self._counters = self.group.counters()
        return self._counters.events()

    def is_usable(self) -> bool:
        return not self.slot.dead and not self.used_up and self.slot.served < MAX_ITEMS

    def close(self) -> None:
        self.slot.close()
        if self._counters is not None:
            self._counters.close()
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
            if pooled.is_usable() and not self._closed:
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

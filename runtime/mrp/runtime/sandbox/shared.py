"""Sharing: which processes may run in one slot, one after the other, and taking them through slots in batches."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.runtime.sandbox.batch import Batch, Item
from mrp.runtime.sandbox.layout import CODE, ImageView, environment, is_nested
from mrp.runtime.sandbox.pure import Pooled, SlotPool
from mrp.runtime.sandbox.supervise import Wake
from mrp.runtime.sandbox.trees_inline import InlineTrees
from mrp.specs.errors import InfraError
from mrp.specs.work import OUT, WORK, Completed, Mount, Process

_MOST_DEAD = 40
"""So many slots may turn out to be dead before an item is begun; more than wait for items can be."""

_FIXED = frozenset(("MRP_ENTRY", "MRP_ROLE", "PWD"))
"""Variables whose values are not those of a process's own environment."""

Made = Callable[[Process, ImageView, Sequence[Mount], bool], Pooled]
Finished = Callable[[int, "Completed | InfraError | OSError"], None]


class Shareable(NamedTuple):
    """A process that may share a slot with others of the same `key`; `mounts` are its folders, sorted by path.

    `env` is its whole environment.
    """

    process: Process
    view: ImageView
    mounts: tuple[Mount, ...]
    env: Mapping[str, str]
    key: tuple[object, ...]


def alike(process: Process, other: Shareable) -> Shareable | None:
    """The process as one that shares with `other`, from which it differs in trees and in values of variables alone.

    None when it may differ in more, which has to be looked at: this is for what is asked of each of many.
    """
    before = other.process
    names = tuple(process.env)
    if (
        process.box is not before.box
        or (process.entry, process.role, process.cwd) != (before.entry, before.role, before.cwd)
        or (process.pure, process.model, process.outputs) != (before.pure, before.model, before.outputs)
        or names != tuple(before.env)
        or not _may_differ(names)
        or len(process.mounts) != len(before.mounts)
    ):
        return None
    own: dict[str, Mount] = {}
    for mount, known in zip(process.mounts, before.mounts, strict=True):
        if mount is not known and mount != known:
            if mount.path != known.path or mount.writable != known.writable or mount.path in CODE:
                return None
            own[mount.path] = mount
    mounts = tuple([own.get(mount.path, mount) for mount in other.mounts])
    return Shareable(process, other.view, mounts, {**other.env, **process.env}, other.key)


@lru_cache(256)
def _may_differ(names: tuple[str, ...]) -> bool:
    """Whether the values of these variables are a process's own, and say nothing of how its interpreter starts."""
    return _FIXED.isdisjoint(names) and not any(name.startswith("PYTHON") for name in names)


def shareable(process: Process, view: ImageView, empty: Digest) -> Shareable | None:
    """The process as one that shares, None when it must be alone; `empty` is the digest of the empty tree.

    Raises InfraError for an environment that no process can be given.
    """
    if not process.pure or process.entry is None or process.box.secrets or isinstance(process.box.network, tuple):
        return None
    own: dict[str, Mount] = {}
    code = []
    for mount in process.mounts:
        if mount.path in CODE:
            code.append((mount.path, mount.tree))
        else:
            own[mount.path] = mount
    for path in (WORK, OUT, "/tmp", *process.outputs):
        if path not in own:
            own[path] = Mount(path, empty, writable=True)
    paths = tuple(sorted(own))
    if _are_nested(paths):
        return None
    mounts = tuple(own[path] for path in paths)
    box = process.box
    places = tuple((mount.path, mount.writable) for mount in mounts)
    key = (box.image, box.network, box.limits, box.allow, tuple(code), places, process.outputs, view.python)
    return Shareable(process, view, mounts, environment(process, view, {}), key)


@lru_cache(256)
def _are_nested(paths: tuple[str, ...]) -> bool:
    return is_nested(paths)


class SharedSlots:
    """The slots of one backend. Safe from any thread.

    `make` makes a slot for a process with its folders in memory or not, and may raise InfraError.
    """

    def __init__(self, store: Store, make: Made) -> None:
        self._store, self._make = store, make
        self._pool = SlotPool()
        self._trees = InlineTrees(store)
        self._on_disk: set[tuple[object, ...]] = set()

    def run(
        self,
        items: Sequence[Shareable],
        wake: Wake,
        finished: Finished,
        returned: Callable[[int], None] | None = None,
    ) -> None:
        """Run items in order; `finished` gets the number of each with what came of it. Raises Cancelled.

        When one takes long, those behind it may be given to `returned`, as the number of the first.
        """
        number, dead = 0, 0
        while number < len(items):
            batch, error = self._batch(items, number, wake, finished, returned)
            number += batch.settled if batch is not None else 0
            if batch is not None and batch.needs_disk:
                self._on_disk.add(items[number].key)
                continue
            if batch is not None and batch.given_back:
                if error is not None:
                    finished(number, error)
                return
            dead = dead + 1 if batch is not None and not batch.settled else 0
            if error is None and dead > _MOST_DEAD:
                error = InfraError("the processes for pure operators end before they begin")
            if error is not None:
                finished(number, error)
                number, dead = number + 1, 0

    def run_one(self, item: Shareable, wake: Wake) -> Completed:
        """Run one item. Raises InfraError, OSError and Cancelled."""
        came: list[Completed | InfraError | OSError] = []
        self.run([item], wake, lambda _, result: came.append(result))
        if isinstance(came[0], Completed):
            return came[0]
        raise came[0]

    def close(self) -> None:
        """End all slots."""
        self._pool.close()

    def _batch(
        self,
        items: Sequence[Shareable],
        first: int,
        wake: Wake,
        finished: Finished,
        returned: Callable[[int], None] | None,
    ) -> tuple[Batch | None, InfraError | OSError | None]:
        """Run items from `first` as far as one slot takes them; gives also the error of the one that it did not."""
        process, view, mounts, _, key = items[first]
        last = next((number for number in range(first, len(items)) if items[number].key != key), len(items))
        loaded = self._trees.load(mount.tree for item in items[first:last] for mount in item.mounts)
        inline = [all(loaded[mount.tree] is not None for mount in item.mounts) for item in items[first:last]]
        if not inline[0]:
            last = first + 1
        elif not all(inline):
            last = first + inline.index(False)
        in_memory = inline[0] and key not in self._on_disk
        batch = None
        try:
            pooled = self._pool.take((key, in_memory), lambda: self._make(process, view, mounts, in_memory))
        except (InfraError, OSError) as error:
            return None, error
        try:
            batch = Batch(
                pooled,
                [_as_item(item) for item in items[first:last]],
                loaded,
                self._trees,
                self._store,
                wake,
                lambda number, completed: finished(first + number, completed),
                None if returned is None else lambda number: returned(first + number),
            )
            batch.run()
            return batch, None
        except (InfraError, OSError) as error:
            pooled.slot.dead = True
            return batch, error
        except BaseException:
            pooled.slot.dead = True
            raise
        finally:
            self._pool.give_back((key, in_memory), pooled)


def _as_item(item: Shareable) -> Item:
    trees = tuple(mount.tree for mount in item.mounts)
    return Item(item.process, item.env, item.process.cwd, trees)

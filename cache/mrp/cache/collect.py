"""Garbage collection: which entries go, and then what no remaining entry needs.

Safe beside builds in other processes: what was put or used a short while ago stays, and an entry that comes while gc
is at work keeps what it needs.
"""

import fcntl
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mrp.cache.actions import ActionEntry
from mrp.cache.canonical import Json
from mrp.cache.digest import ActionKey, Digest
from mrp.cache.errors import CacheError, TreeError, explained
from mrp.cache.inventory import action_entries, blob_files, listed
from mrp.cache.store import Store
from mrp.cache.trees import closure, decode_node

GRACE_SECONDS = 24 * 3600
"""What was put or used within this time is never dropped: a build that still runs may count on it."""

_PAGE = 500
_MAX_DESCRIPTION = 2**20


@dataclass(frozen=True)
class GcReport:
    """What gc dropped, and how many bytes of blobs remain."""

    actions: int
    blobs: int
    bytes: int
    remaining_bytes: int

    def to_json(self) -> Json:
        """The report as one JSON document."""
        return dict(self.__dict__)


def gc(
    store: Store,
    *,
    keep: Iterable[tuple[str, Digest]] = (),
    max_age_s: float | None = None,
    max_bytes: int | None = None,
    grace_s: float = GRACE_SECONDS,
) -> GcReport:
    """Drop entries that are too old or, the longest unused first, too many; then all that no remaining entry needs.

    keep: ("blob" | "tree", digest) that stay in any case. max_age_s: entries unused for longer are dropped. max_bytes:
    of blobs that may remain. grace_s: what was put or used within this time stays; builds that run meanwhile rely on
    it. Raises CacheError when another gc is at work.
    """
    now = time.time()
    cutoff = now - grace_s
    with _only_one(store):
        store.commit([])
        marks = _Marks(store, _sizes(store))
        marks.add_refs(keep)
        dropped = _choose(store, marks, now, cutoff, max_age_s, max_bytes)
        names = _drop_rows(store, marks, dropped, cutoff)
        gone = set(names)
        gone.update(_drop_files(store, marks, cutoff))
        with explained(store.root):
            for folder in (store.layout.tmp, store.layout.quarantine):
                _drop_leftovers(folder, cutoff)
        store.index.compact()
    freed = marks.size(gone)
    return GcReport(
        actions=len(dropped), blobs=len(gone), bytes=freed, remaining_bytes=sum(marks.sizes.values()) - freed
    )


@dataclass
class _Marks:
    """What must stay, and the bytes that it takes."""

    store: Store
    sizes: dict[Digest, int]
    kept: set[Digest] = field(default_factory=set)
    whole_trees: set[Digest] = field(default_factory=set)
    described: dict[Digest, list[tuple[str, Digest]]] = field(default_factory=dict)
    kept_bytes: int = 0
    last_id: int = 0

    def needed(self, refs: Iterable[tuple[str, Digest]]) -> tuple[set[Digest], set[Digest]]:
        """Of what these references need, what is not marked yet: (tree objects, blobs)."""
        refs = list(refs)
        roots = {digest for kind, digest in refs if kind == "tree" and digest not in self.whole_trees}
        # A tree object that is kept as a blob, too, has its sub-trees only marked when it was met as a tree.
        objects, held, _ = closure(roots, self.store.get_many, skip=self.whole_trees)
        held |= {digest for kind, digest in refs if kind != "tree"}
        return objects, held - self.kept

    def add(self, objects: set[Digest], blobs: set[Digest]) -> None:
        """Mark tree objects, whose sub-trees are all among them or marked, and blobs."""
        new = (objects | blobs) - self.kept
        self.kept_bytes += self.size(new)
        self.kept |= new
        self.whole_trees |= objects

    def size(self, digests: set[Digest]) -> int:
        """The bytes that these take."""
        return sum(self.sizes.get(digest, 0) for digest in digests)

    def add_refs(self, refs: Iterable[tuple[str, Digest]]) -> None:
        """Mark what these references need."""
        self.add(*self.needed(refs))

    def refs_of(self, entry: ActionEntry) -> list[tuple[str, Digest]]:
        """What an entry needs: its outputs, its logs, and what its preimage names, which explains and replays it."""
        preimage = self.store.preimage(entry.key) or b""
        return [*entry.refs(), *(("blob", digest) for digest in entry.extra), *self._named(preimage)]

    def _named(self, text: bytes) -> Iterator[tuple[str, Digest]]:
        """Stored things whose digests stand in `text`, and in the descriptions that these are."""
        for name in dict.fromkeys(re.findall(rb"[0-9a-f]{64}", text)):
            digest = Digest(name.decode())
            if digest in self.sizes:
                if digest not in self.described:
                    self.described[digest] = list(self._described(digest))
                yield from self.described[digest]

    def _described(self, digest: Digest) -> Iterator[tuple[str, Digest]]:
        small = self.sizes[digest] <= _MAX_DESCRIPTION
        data = self.store.get_many([digest]).get(digest, b"") if small else b""
        try:
            decode_node(data, digest)
        except TreeError:
            yield "blob", digest
            if data.startswith(b"{"):
                yield from self._named(data)
        else:
            yield "tree", digest


def _choose(
    store: Store, marks: _Marks, now: float, cutoff: float, max_age_s: float | None, max_bytes: int | None
) -> dict[ActionKey, int]:
    """Mark what the entries need that stay; the others, each with the time of last use that was seen."""
    rows = store.index.read("SELECT id, used, key FROM actions ORDER BY used DESC, id DESC")
    marks.last_id = max((row[0] for row in rows), default=0)
    oldest = now - max_age_s if max_age_s is not None else 0
    dropped: dict[ActionKey, int] = {}
    full = False
    held: set[ActionKey] = set()
    for start in range(0, len(rows), _PAGE):
        page = rows[start : start + _PAGE]
        entries = store.actions.lookup([ActionKey(Digest(name.hex())) for _, _, name in page], mark=False)
        for _, used, name in page:
            key = ActionKey(Digest(name.hex()))
            entry = entries.get(key)
            if entry is None:
                continue
            objects, blobs = marks.needed(marks.refs_of(entry))
            size = marks.size((objects | blobs) - marks.kept)
            full = full or (max_bytes is not None and marks.kept_bytes + size > max_bytes)
            if used < cutoff and (full or used < oldest):
                dropped[key] = used
            else:
                marks.add(objects, blobs)
                held.update(map(ActionKey, entry.extra))
    # Entries that another one names are parts of it: a trial's calls stay for as long as the trial does.
    parts = store.actions.lookup([key for key in dropped if key in held], mark=False)
    for key, entry in parts.items():
        marks.add_refs(marks.refs_of(entry))
        del dropped[key]
    return dropped


def _drop_rows(store: Store, marks: _Marks, dropped: dict[ActionKey, int], cutoff: float) -> set[Digest]:
    """Delete entries and small blobs in one transaction, once no entry has come that is not marked."""

    def work(connection: sqlite3.Connection) -> set[Digest] | None:
        ((last_id,),) = connection.execute("SELECT coalesce(max(id), 0) FROM actions").fetchall()
        if last_id > marks.last_id:
            return None
        used_again = [
            key
            for key, used in dropped.items()
            if connection.execute(
                "SELECT 1 FROM actions WHERE key = ? AND used > ?", (bytes.fromhex(key), used)
            ).fetchall()
        ]
        if used_again:
            # Its blobs are not marked: leave everything, and choose again next time.
            for key in used_again:
                del dropped[key]
            return None
        connection.executemany("DELETE FROM actions WHERE key = ?", [(bytes.fromhex(key),) for key in dropped])
        old = connection.execute("SELECT id, digest FROM blobs WHERE touched < ?", (cutoff,)).fetchall()
        orphans = [(number, Digest(name.hex())) for number, name in old if Digest(name.hex()) not in marks.kept]
        connection.executemany("DELETE FROM blobs WHERE id = ?", [(number,) for number, _ in orphans])
        return {digest for _, digest in orphans}

    while True:
        spared = set(dropped)
        names = store.index.transact(work)
        if names is not None:
            return names
        for entry in store.actions.lookup(list(spared - set(dropped)), mark=False).values():
            marks.add_refs(marks.refs_of(entry))
        for entry, number in action_entries(store, after=marks.last_id):
            marks.add_refs(marks.refs_of(entry))
            marks.last_id = number


def _drop_files(store: Store, marks: _Marks, cutoff: float) -> list[Digest]:
    touched = {Digest(name.hex()): time_ for name, time_ in store.index.read("SELECT digest, touched FROM files")}
    dropped: list[Digest] = []
    with explained(store.root):
        for digest, path in blob_files(store):
            if digest in marks.kept:
                continue
            last = max(touched.get(digest, 0), path.stat().st_mtime)
            if last < cutoff:
                path.unlink(missing_ok=True)
                dropped.append(digest)
    gone = [(bytes.fromhex(digest),) for digest in dropped]
    gone += [(bytes.fromhex(digest),) for digest in touched if not Path(store.layout.blob(digest)).exists()]
    store.index.transact(lambda connection: connection.executemany("DELETE FROM files WHERE digest = ?", gone))
    return dropped


def _drop_leftovers(folder: Path, cutoff: float) -> None:
    for path in listed(folder):
        # The ctime is when it was put there: a rename changes no mtime.
        if path.lstat().st_ctime < cutoff:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def _only_one(store: Store) -> Iterator[None]:
    with explained(store.root):
        descriptor = os.open(store.root / "gc", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CacheError(f"Another gc is at work on the cache {store.root}; wait until it is done.") from error
        yield
    finally:
        os.close(descriptor)


def _sizes(store: Store) -> dict[Digest, int]:
    sizes = {Digest(name.hex()): size for name, size in store.index.read("SELECT digest, length(data) FROM blobs")}
    for digest, path in blob_files(store):
        with suppress(FileNotFoundError):
            sizes[digest] = path.stat().st_size
    return sizes

"""Looking after a cache: what it holds, whether all of it is whole, and dropping what nobody needs."""

import fcntl
import os
import re
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mrp.cache.actions import ActionEntry
from mrp.cache.canonical import Json
from mrp.cache.digest import ActionKey, Digest
from mrp.cache.errors import CacheError, explained
from mrp.cache.layout import FORMAT_VERSION
from mrp.cache.store import Store
from mrp.cache.trees import closure

GRACE_SECONDS = 24 * 3600
"""What was put or used within this time is never dropped: a build that still runs may count on it."""

_PAGE = 500
_DIGEST_NAME = re.compile(r"[0-9a-f]{64}\Z")


def stats(store: Store) -> dict[str, Json]:
    """Counts and bytes of what the cache holds, as one JSON document."""
    ((small, small_bytes),) = store.index.read("SELECT count(*), coalesce(sum(length(data)), 0) FROM blobs")
    kinds = Counter(dict(store.index.read("SELECT kind, count(*) FROM actions GROUP BY kind")))
    files = [path.stat().st_size for _, path in _blob_files(store)]
    layout = store.layout
    index_bytes = sum(_bytes_below(path) for path in layout.root.glob("index.sqlite*"))
    return {
        "folder": str(store.root),
        "format": FORMAT_VERSION,
        "actions": {"count": kinds.total(), "kinds": dict(sorted(kinds.items()))},
        "blobs": {
            "small": {"count": small, "bytes": small_bytes},
            "large": {"count": len(files), "bytes": sum(files)},
        },
        "index_bytes": index_bytes,
        "memo_bytes": _bytes_below(layout.memo),
        "quarantine": {"count": sum(1 for _ in _listed(layout.quarantine)), "bytes": _bytes_below(layout.quarantine)},
        "temporary_bytes": _bytes_below(layout.tmp),
        "bytes": index_bytes + sum(files),
    }


@dataclass(frozen=True)
class VerifyReport:
    """What reading everything found. What was damaged is in quarantine/ now, and is built anew when it is needed.

    blobs, bytes, actions: what was read and is whole. damaged_blobs: did not have their digest. damaged_actions:
    dropped. incomplete: entries that lack a blob; their next look-up is a miss. strangers: files in blobs/ that are no
    blobs. index_damaged: the whole index had to be put aside.
    """

    blobs: int
    bytes: int
    actions: int
    damaged_blobs: tuple[Digest, ...]
    damaged_actions: int
    incomplete: tuple[ActionKey, ...]
    strangers: tuple[str, ...]
    index_damaged: bool

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not (
            self.damaged_blobs or self.damaged_actions or self.incomplete or self.strangers or self.index_damaged
        )

    def to_json(self) -> Json:
        """The report as one JSON document."""
        return {**self.__dict__, "ok": self.ok}


def verify(store: Store) -> VerifyReport:
    """Read and hash everything, put aside what is damaged, and report it."""
    store.commit([])
    index_damaged = store.index.put_aside_if_damaged()
    damaged: list[Digest] = []
    strangers: list[str] = []
    blobs = size = 0
    for digest, data in _small_blobs(store):
        if store.blobs.check_row(digest, data):
            blobs, size = blobs + 1, size + len(data)
        else:
            damaged.append(digest)
    for name, path in _blob_files(store, strangers):
        length = path.stat().st_size
        if store.blobs.files.verify(name):
            blobs, size = blobs + 1, size + length
        else:
            damaged.append(name)
    rows_before = _count_actions(store)
    whole = 0
    incomplete: list[ActionKey] = []
    for entry, _ in _entries(store):
        whole += 1
        if store.missing_deep(entry.refs()):
            incomplete.append(entry.key)
    store.commit([])
    return VerifyReport(
        blobs=blobs,
        bytes=size,
        actions=whole,
        damaged_blobs=tuple(sorted(damaged)),
        damaged_actions=rows_before - whole,
        incomplete=tuple(sorted(incomplete)),
        strangers=tuple(sorted(strangers)),
        index_damaged=index_damaged,
    )


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
        blobs, freed = len(names), sum(marks.sizes.get(name, 0) for name in names)
        for digest in _drop_files(store, marks, cutoff):
            blobs, freed = blobs + (digest not in names), freed + marks.sizes.get(digest, 0) * (digest not in names)
        with explained(store.root):
            for folder in (store.layout.tmp, store.layout.quarantine):
                _drop_leftovers(folder, cutoff)
        store.index.compact()
    return GcReport(actions=len(dropped), blobs=blobs, bytes=freed, remaining_bytes=sum(marks.sizes.values()) - freed)


@dataclass
class _Marks:
    """What must stay, and the bytes that it takes."""

    store: Store
    sizes: dict[Digest, int]
    kept: set[Digest] = field(default_factory=set)
    bytes: int = 0
    last_id: int = 0

    def needed(self, refs: Iterable[tuple[str, Digest]]) -> set[Digest]:
        """What these references need and is not marked yet."""
        refs = list(refs)
        roots = {digest for kind, digest in refs if kind == "tree" and digest not in self.kept}
        objects, held, _ = closure(roots, self.store.get_many, skip=self.kept)
        return (objects | held | {digest for kind, digest in refs if kind != "tree"}) - self.kept

    def add(self, digests: set[Digest]) -> None:
        self.kept |= digests
        self.bytes += sum(self.sizes.get(digest, 0) for digest in digests)

    def add_refs(self, refs: Iterable[tuple[str, Digest]]) -> None:
        self.add(self.needed(refs))


def _all_refs(entry: ActionEntry) -> list[tuple[str, Digest]]:
    return [*entry.refs(), *(("blob", digest) for digest in entry.extra)]


def _choose(
    store: Store, marks: _Marks, now: float, cutoff: float, max_age_s: float | None, max_bytes: int | None
) -> dict[ActionKey, int]:
    """Mark what the entries need that stay; the others, each with the time of last use that was seen."""
    rows = store.index.read("SELECT id, used, key FROM actions ORDER BY used DESC, id DESC")
    marks.last_id = max((row[0] for row in rows), default=0)
    oldest = now - max_age_s if max_age_s is not None else 0
    dropped: dict[ActionKey, int] = {}
    full = False
    for start in range(0, len(rows), _PAGE):
        page = rows[start : start + _PAGE]
        entries = store.actions.lookup([ActionKey(Digest(name.hex())) for _, _, name in page], mark=False)
        for _, used, name in page:
            key = ActionKey(Digest(name.hex()))
            entry = entries.get(key)
            if entry is None:
                continue
            needed = marks.needed(_all_refs(entry))
            size = sum(marks.sizes.get(digest, 0) for digest in needed)
            full = full or (max_bytes is not None and marks.bytes + size > max_bytes)
            if used < cutoff and (full or used < oldest):
                dropped[key] = used
            else:
                marks.add(needed)
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
            marks.add_refs(_all_refs(entry))
        for entry, number in _entries(store, after=marks.last_id):
            marks.add_refs(_all_refs(entry))
            marks.last_id = number


def _drop_files(store: Store, marks: _Marks, cutoff: float) -> list[Digest]:
    touched = {Digest(name.hex()): time_ for name, time_ in store.index.read("SELECT digest, touched FROM files")}
    dropped: list[Digest] = []
    with explained(store.root):
        for digest, path in _blob_files(store):
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
    for path in _listed(folder):
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
    for digest, path in _blob_files(store):
        with suppress(FileNotFoundError):
            sizes[digest] = path.stat().st_size
    return sizes


def _small_blobs(store: Store) -> Iterator[tuple[Digest, bytes]]:
    last = 0
    while rows := store.index.read(
        "SELECT id, digest, data FROM blobs WHERE id > ? ORDER BY id LIMIT ?", (last, _PAGE)
    ):
        for _, name, data in rows:
            yield Digest(name.hex()), data
        last = rows[-1][0]


def _entries(store: Store, after: int = 0) -> Iterator[tuple[ActionEntry, int]]:
    """All whole entries with the number of their row; damaged rows are dropped."""
    last = after
    while rows := store.index.read("SELECT id, key FROM actions WHERE id > ? ORDER BY id LIMIT ?", (last, _PAGE)):
        numbers = {ActionKey(Digest(name.hex())): number for number, name in rows}
        for key, entry in store.actions.lookup(list(numbers), mark=False).items():
            yield entry, numbers[key]
        last = rows[-1][0]


def _count_actions(store: Store) -> int:
    ((count,),) = store.index.read("SELECT count(*) FROM actions")
    return int(count)


def _blob_files(store: Store, strangers: list[str] | None = None) -> Iterator[tuple[Digest, Path]]:
    """The files of large blobs; with a list for `strangers`, what is none is put aside and named there."""
    for folder in _listed(store.layout.blobs):
        inside = _listed(folder) if folder.is_dir() and not folder.is_symlink() else [folder]
        for path in inside:
            named = path.name.startswith(folder.name) and _DIGEST_NAME.match(path.name)
            if named and path.is_file() and not path.is_symlink():
                yield Digest(path.name), path
            elif strangers is not None:
                strangers.append(str(path.relative_to(store.root)))
                store.layout.put_aside(path)


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return


def _bytes_below(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_bytes_below(inside) for inside in _listed(path))
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0

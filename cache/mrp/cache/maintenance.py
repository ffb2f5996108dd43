"""Looking after a cache: what it holds, and whether all of it is whole. What to drop is in mrp.cache.collect."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mrp.cache.canonical import Json
from mrp.cache.collect import GcReport, gc
from mrp.cache.digest import ActionKey, Digest
from mrp.cache.inventory import action_entries, blob_files, listed, small_blobs
from mrp.cache.layout import FORMAT_VERSION
from mrp.cache.store import Store

__all__ = ["GcReport", "VerifyReport", "gc", "stats", "verify"]


def stats(store: Store) -> dict[str, Json]:
    """Counts and bytes of what the cache holds, as one JSON document."""
    ((small, small_bytes),) = store.index.read("SELECT count(*), coalesce(sum(length(data)), 0) FROM blobs")
    kinds: Counter[str] = Counter(dict(store.index.read("SELECT kind, count(*) FROM actions GROUP BY kind")))
    files = [path.stat().st_size for _, path in blob_files(store)]
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
        "quarantine": {"count": sum(1 for _ in listed(layout.quarantine)), "bytes": _bytes_below(layout.quarantine)},
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
    for digest, data in small_blobs(store):
        if store.blobs.check_row(digest, data):
            blobs, size = blobs + 1, size + len(data)
        else:
            damaged.append(digest)
    for name, path in blob_files(store, strangers):
        length = path.stat().st_size
        if store.blobs.files.verify(name):
            blobs, size = blobs + 1, size + length
        else:
            damaged.append(name)
    rows_before = _count_actions(store)
    whole = 0
    incomplete: list[ActionKey] = []
    for entry, _ in action_entries(store):
        if store.preimage(entry.key) is None:
            store.forget([entry.key])
            continue
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


def _count_actions(store: Store) -> int:
    ((count,),) = store.index.read("SELECT count(*) FROM actions")
    return int(count)


def _bytes_below(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_bytes_below(inside) for inside in listed(path))
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0

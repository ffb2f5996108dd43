"""The store: what the other rooms see of the cache. Blobs, trees and action entries in one folder.

Everything put is visible to this process at once and durable when the next commit returns; blobs reach the disk
before the entries that name them. Many threads may use a Store, and many processes one folder. It must not be used
across a fork.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mrp.cache import trees
from mrp.cache.actions import ActionEntry, Actions, Rows, delete_rows, encode_rows, insert_rows, mark_used
from mrp.cache.blobs import Blobs
from mrp.cache.canonical import Json
from mrp.cache.checkout import Checkout
from mrp.cache.digest import ActionKey, Digest
from mrp.cache.errors import CacheError, ChangedWhileRead, MissingBlob, TreeError, TreeTooLarge
from mrp.cache.folders import FolderReader
from mrp.cache.index import Index
from mrp.cache.layout import Layout
from mrp.cache.trees import Entry

__all__ = [
    "ActionEntry",
    "CacheError",
    "ChangedWhileRead",
    "Entry",
    "Json",
    "MissingBlob",
    "Store",
    "TreeError",
    "TreeTooLarge",
]


def _ignore(message: str) -> None:
    """Warnings go nowhere unless the caller asks for them."""


class Store:
    """One cache folder, open."""

    def __init__(self, layout: Layout, index: Index) -> None:
        self.layout = layout
        self.index = index
        self.blobs = Blobs(layout, index)
        self.actions = Actions(index)

    @classmethod
    def open(cls, root: Path, *, on_warning: Callable[[str], None] = _ignore) -> "Store":
        """Open the cache in `root`, making it when it is not there.

        Raises CacheError for a newer format, a folder that is something else, and one that cannot be written to.
        on_warning gets one sentence when a damaged index had to be put aside.
        """
        layout = Layout(Path(root).absolute())
        known = layout.prepare()
        index = Index(layout, on_warning, format_known=known)
        if not known:
            layout.write_format()
        return cls(layout, index)

    @property
    def root(self) -> Path:
        """The cache's folder."""
        return self.layout.root

    def close(self) -> None:
        """Write what waits, and close. Idempotent."""
        try:
            used = self.actions.take_stale_use()
            if used or self.blobs.has_waiting():
                now = int(time.time())
                self.blobs.commit(lambda connection: mark_used(connection, used, now))
        finally:
            self.index.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def put_bytes(self, data: bytes | bytearray) -> Digest:
        """Keep `data`. Raises CacheError."""
        return self.blobs.put_bytes(data)

    def put_file(self, path: Path | str, *, digest: Digest | None = None) -> Digest:
        """Keep a copy of a file, symlinks followed; with its `digest` known it is only read when that is missing.

        Raises ChangedWhileRead when it changes meanwhile or no longer has that digest; OSError when it cannot be read.
        """
        return self.blobs.put_file(path, digest=digest)

    def get_bytes(self, digest: Digest) -> bytes:
        """The bytes, verified. Raises MissingBlob."""
        return self.blobs.get_bytes(digest)

    def get_many(self, digests: Iterable[Digest]) -> dict[Digest, bytes]:
        """The verified bytes of those that are there, asked together: right for many small blobs."""
        wanted = set(digests)
        found = self.blobs.get_small(wanted)
        for digest in wanted - found.keys():
            try:
                found[digest] = self.blobs.get_bytes(digest)
            except MissingBlob:
                continue
        return found

    def open_blob(self, digest: Digest) -> BinaryIO:
        """A stream of the bytes; the caller closes it. Raises MissingBlob."""
        return self.blobs.open_blob(digest)

    def blob_path(self, digest: Digest) -> Path:
        """A read-only file in the store that holds the bytes. Raises MissingBlob."""
        return self.blobs.blob_path(digest)

    def size(self, digest: Digest) -> int:
        """The number of bytes. Raises MissingBlob."""
        return self.blobs.size(digest)

    def missing(self, digests: Iterable[Digest]) -> set[Digest]:
        """Those that are not there, by look-up and stat; hashed only where the stat changed."""
        return self.blobs.missing(digests)

    def missing_deep(self, refs: Iterable[tuple[str, Digest]]) -> set[Digest]:
        """What is missing of ("blob" | "tree", digest) and of all that the trees hold. A broken tree is missing."""
        blobs: set[Digest] = set()
        roots: set[Digest] = set()
        for kind, digest in refs:
            (roots if kind == "tree" else blobs).add(digest)
        _, held, missing = trees.closure(roots, self.get_many)
        return missing | self.blobs.missing(blobs | held)

    def put_tree(self, entries: Mapping[str, Entry]) -> Digest:
        """Keep the tree with these paths, whose files are put separately. Raises TreeError for what no folder is."""
        return trees.put_flat(entries, self.put_bytes)

    def put_folder(
        self,
        path: Path,
        *,
        max_bytes: int | None = None,
        max_files: int | None = None,
        skipped: list[str] | None = None,
    ) -> Digest:
        """Keep a folder: files, executable bits, symlinks as such, empty folders.

        Pipes, sockets and devices are left out; their paths are appended to `skipped`. max_files counts all entries.
        Raises TreeTooLarge, TreeError for names that are not UTF-8, ChangedWhileRead, and OSError.
        """
        reader = FolderReader(self.put_bytes, self.blobs.put_descriptor, max_bytes, max_files)
        digest = reader.read(path)
        if skipped is not None:
            skipped += sorted(reader.skipped)
        return digest

    def read_tree(self, digest: Digest) -> dict[str, Entry]:
        """The tree's flat view, sorted by path; empty folders are d. Raises MissingBlob and TreeError."""
        return trees.read_flat(digest, self.get_bytes)

    def merge_trees(self, digests: Sequence[Digest]) -> Digest:
        """The tree with the names of all, later ones winning; folders are merged. Raises MissingBlob and TreeError."""
        return trees.merge(digests, self.get_bytes, self.put_bytes)

    def subtree(self, digest: Digest, path: str) -> Entry | None:
        """What the tree has at `path`: a file, a symlink, or a folder as kind t with its tree's digest."""
        return trees.find(digest, path, self.get_bytes)

    def checkout(self, tree: Digest, folder: Path, *, writable: bool) -> int:
        """Lay the tree out: fixed mtimes, modes 0644 and 0755, or 0444 and 0555 when not writable; always copies.

        Gives the sum of what it holds, see mrp.cache.folders.ENTRY_BYTES. Raises MissingBlob, TreeError, and CacheError
        when a name is taken. See mrp.cache.checkout.remove_checkout.
        """
        checkout = Checkout(self.blobs, self.get_bytes, writable=writable)
        checkout.run(tree, folder)
        return checkout.counted

    def lookup(self, keys: Sequence[ActionKey]) -> dict[ActionKey, ActionEntry]:
        """The entries that are known, in one question; damaged ones are dropped. Their `preimage` is b""."""
        return self.actions.lookup(keys)

    def version(self) -> tuple[int, int]:
        """While it stays the same, nobody has committed anything, and `lookup` gives what it gave before."""
        return self.index.version()

    def preimage(self, key: ActionKey) -> bytes | None:
        """The bytes that were hashed to make the key; None when they are not known."""
        return self.actions.preimage(key)

    def commit(self, entries: Sequence[ActionEntry]) -> dict[ActionKey, ActionEntry]:
        """Make all that was put, and then these entries, durable in one transaction.

        The first writer wins: a key that has an entry, all of whose blobs are there, keeps it. Those entries are given
        back, for the caller to use in place of its own. An entry that lost a blob is replaced.
        """
        rows = encode_rows(entries)
        used = self.actions.take_stale_use()
        now = int(time.time())

        def write(connection: sqlite3.Connection) -> list[ActionKey]:
            mark_used(connection, used, now)
            return insert_rows(connection, rows)

        taken = self.blobs.commit(write)
        return self._winners(rows, taken) if taken else {}

    def _winners(self, rows: Rows, taken: list[ActionKey]) -> dict[ActionKey, ActionEntry]:
        """The entries that keep the keys that were taken; those that lost a blob or are damaged are replaced."""
        present = self.actions.lookup(taken, mark=False)
        winners = {key: entry for key, entry in present.items() if not self.missing_deep(entry.refs())}
        spoilt = [entry for key, entry in present.items() if key not in winners]
        lost = {bytes.fromhex(key) for key in taken if key not in winners}
        if not lost:
            return winners

        def replace(connection: sqlite3.Connection) -> list[ActionKey]:
            delete_rows(connection, spoilt)
            return insert_rows(connection, [row for row in rows if row[0] in lost])

        # Another process may have been faster in the meantime.
        return winners | self.actions.lookup(self.index.transact(replace), mark=False)

    def forget(self, keys: Iterable[ActionKey]) -> None:
        """Drop entries, so that their actions run again."""
        self.actions.forget(keys)

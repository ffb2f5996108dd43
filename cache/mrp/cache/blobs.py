"""Blobs: bytes under their digest, small ones in the index and large ones as files (see mrp.cache.blobfiles).

A put is visible to this process at once and durable after the next commit, which writes the small blobs of many
puts in one transaction. Small blobs are hashed on every read.
"""

import io
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mrp.cache.blobfiles import BlobFiles, write_all, write_records
from mrp.cache.digest import Digest, digest_bytes
from mrp.cache.errors import ChangedWhileRead, MissingBlob
from mrp.cache.hashing import THREADED, hash_descriptor, read_all, stamp_of
from mrp.cache.index import Index
from mrp.cache.layout import Layout

T = TypeVar("T")

INLINE_LIMIT = 16 * 1024
"""Blobs of up to this many bytes live in the index."""

MAX_PENDING_BYTES = 32 * 1024 * 1024
MAX_PENDING_BLOBS = 20_000
"""More small blobs than this are written without waiting for a commit."""

TOUCH_SECONDS = 3600
"""A blob that is put again is marked as in use at most this often."""


@dataclass
class _Batch:
    """What waits for the next transaction: small blobs with the sum of their sizes, and blobs that were put again."""

    small: dict[Digest, bytes] = field(default_factory=dict)
    size: int = 0
    touched: set[Digest] = field(default_factory=set)


class Blobs:
    """The blobs of one store. Safe to use from many threads."""

    def __init__(self, layout: Layout, index: Index) -> None:
        self.files = BlobFiles(layout, index)
        self._layout = layout
        self._index = index
        self._lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._waiting = _Batch()
        self._writing = _Batch()

    def put_bytes(self, data: bytes | bytearray) -> Digest:
        """Keep `data`; it can be read at once and is durable after the next commit."""
        digest = digest_bytes(data)
        if len(data) <= INLINE_LIMIT:
            self._put_small(digest, bytes(data))
        elif self.files.is_whole(digest):
            self._touch(digest)
        else:
            self.files.write(digest, data)
        return digest

    def put_file(self, path: str | os.PathLike[str], *, digest: Digest | None = None) -> Digest:
        """Keep a copy of the file's bytes, symlinks followed. A `digest` known to the caller saves reading it again.

        Raises ChangedWhileRead when the file changes meanwhile or does not have the given digest.
        """
        if digest is not None and not self.missing([digest]):
            self._touch(digest)
            return digest
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if digest is not None and os.fstat(descriptor).st_size >= THREADED:
                self._copy_in(digest, descriptor, os.fspath(path))
                return digest
            found = self.put_descriptor(descriptor, os.fspath(path))
        finally:
            os.close(descriptor)
        if digest is not None and found != digest:
            raise ChangedWhileRead(os.fspath(path))
        return found

    def put_descriptor(self, descriptor: int, name: str) -> Digest:
        """Keep what an open plain file holds; `name` is for messages. Raises ChangedWhileRead."""
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(21, "not a plain file", name)
        before = stamp_of(status)
        if before.size < THREADED:
            data = read_all(descriptor, before.size)
            if len(data) != before.size or stamp_of(os.fstat(descriptor)) != before:
                raise ChangedWhileRead(name)
            return self.put_bytes(data)
        digest = hash_descriptor(descriptor, before.size)
        if self.files.is_whole(digest):
            self._touch(digest)
            if stamp_of(os.fstat(descriptor)) != before:
                raise ChangedWhileRead(name)
        else:
            self._copy_in(digest, descriptor, name)
        return digest

    def _copy_in(self, digest: Digest, descriptor: int, name: str) -> None:
        before = stamp_of(os.fstat(descriptor))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IsADirectoryError(21, "not a plain file", name)
        self.files.copy_in(digest, descriptor, name)
        if stamp_of(os.fstat(descriptor)) != before:
            raise ChangedWhileRead(name)

    def get_bytes(self, digest: Digest) -> bytes:
        """The bytes with this digest; raises MissingBlob."""
        data = self._unwritten(digest)
        if data is not None:
            return data
        rows = self._index.read("SELECT data FROM blobs WHERE digest = ?", (bytes.fromhex(digest),))
        if rows and self.check_row(digest, rows[0][0]):
            return bytes(rows[0][0])
        return self.files.read(digest)

    def get_small(self, digests: Iterable[Digest]) -> dict[Digest, bytes]:
        """The bytes of those blobs that are in the index or wait for it; large and missing ones are left out."""
        asked = set(digests)
        found = self._unwritten_among(asked)
        wanted = [bytes.fromhex(digest) for digest in asked if digest not in found]
        for name, data in self._index.read_in("SELECT digest, data FROM blobs WHERE digest IN ({})", wanted):
            digest = Digest(name.hex())
            if self.check_row(digest, data):
                found[digest] = data
        return found

    def open_blob(self, digest: Digest) -> BinaryIO:
        """A stream of the bytes with this digest; raises MissingBlob. The caller closes it."""
        data = self.get_small([digest]).get(digest)
        if data is not None:
            return io.BytesIO(data)
        if not self.files.is_whole(digest):
            raise MissingBlob(digest)
        try:
            return Path(self._layout.blob(digest)).open("rb")
        except OSError as error:
            raise MissingBlob(digest) from error

    def blob_path(self, digest: Digest) -> Path:
        """A read-only plain file in the store with that content, made when the blob is a small one."""
        if not self.files.is_whole(digest):
            data = self.get_small([digest]).get(digest)
            if data is None:
                raise MissingBlob(digest)
            self.files.write(digest, data)
        return Path(self._layout.blob(digest))

    def copy_out(self, digest: Digest, descriptor: int, small: bytes | None = None) -> None:
        """Write the bytes to an open empty file; `small` are they, where the caller has them. Raises MissingBlob."""
        if small is None:
            self.files.copy_out(digest, descriptor)
        else:
            write_all(descriptor, small)

    def size(self, digest: Digest) -> int:
        """The number of bytes; raises MissingBlob."""
        data = self._unwritten(digest)
        if data is not None:
            return len(data)
        rows = self._index.read("SELECT length(data) FROM blobs WHERE digest = ?", (bytes.fromhex(digest),))
        if rows:
            return int(rows[0][0])
        if not self.files.is_whole(digest):
            raise MissingBlob(digest)
        return Path(self._layout.blob(digest)).stat().st_size

    def missing(self, digests: Iterable[Digest]) -> set[Digest]:
        """Those that are not there. Small ones are looked up, large ones compared by stat, hashed when it changed."""
        wanted = set(digests)
        wanted -= self._unwritten_among(wanted).keys()
        names = [bytes.fromhex(digest) for digest in wanted]
        for (name,) in self._index.read_in("SELECT digest FROM blobs WHERE digest IN ({})", names):
            wanted.discard(Digest(name.hex()))
        self.files.load_records(wanted)
        return {digest for digest in wanted if not self.files.is_whole(digest)}

    def check_row(self, digest: Digest, data: Any) -> bool:
        """Whether what the index holds under a digest hashes to it; if not, the row is moved to quarantine/."""
        if type(data) is bytes and digest_bytes(data) == digest:
            return True
        name = bytes.fromhex(digest)
        with suppress(OSError, TypeError):
            (self._layout.quarantine / f"{digest}.{time.time_ns()}-{os.getpid()}").write_bytes(data)
        self._index.transact(lambda connection: connection.execute("DELETE FROM blobs WHERE digest = ?", (name,)))
        self._index.suspect()
        return False

    def commit(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write all that waits, then let `work` write more, in one transaction; durable when this returns.

        Files reach the disk before the transaction that names them. Raises CacheError; then nothing is forgotten and
        the next commit tries again.
        """
        with self._commit_lock:
            files = self.files.take()
            with self._lock:
                batch = self._writing = self._waiting
                self._waiting = _Batch()
            now = int(time.time())

            def write(connection: sqlite3.Connection) -> T:
                _write_batch(connection, batch, now)
                write_records(connection, files, now)
                return work(connection)

            try:
                self.files.sync(files)
                result = self._index.transact(write)
            except BaseException:
                self.files.put_back(files)
                self._put_back(batch)
                raise
            with self._lock:
                self._writing = _Batch()
            return result

    def has_waiting(self) -> bool:
        """Whether a commit would write anything."""
        return bool(self._waiting.small or self._waiting.touched or self.files.has_waiting())

    def take_small(self) -> dict[Digest, bytes]:
        """The small blobs that wait for a commit; this store forgets them, and another one is to keep them."""
        with self._lock:
            waiting, self._waiting = self._waiting, _Batch(touched=self._waiting.touched)
        return waiting.small

    def _put_small(self, digest: Digest, data: bytes) -> None:
        with self._lock:
            waiting = self._waiting
            if digest not in waiting.small:
                waiting.small[digest] = data
                waiting.size += len(data)
            full = waiting.size > MAX_PENDING_BYTES or len(waiting.small) > MAX_PENDING_BLOBS
        if full:
            self.commit(lambda connection: None)

    def _put_back(self, batch: _Batch) -> None:
        with self._lock:
            batch.small.update(self._waiting.small)
            batch.touched |= self._waiting.touched
            batch.size = sum(map(len, batch.small.values()))
            self._waiting, self._writing = batch, _Batch()

    def _touch(self, digest: Digest) -> None:
        with self._lock:
            self._waiting.touched.add(digest)

    def _unwritten(self, digest: Digest) -> bytes | None:
        with self._lock:
            data = self._waiting.small.get(digest)
            return data if data is not None else self._writing.small.get(digest)

    def _unwritten_among(self, digests: Iterable[Digest]) -> dict[Digest, bytes]:
        with self._lock:
            waiting, writing = self._waiting.small, self._writing.small
            if not waiting and not writing:
                return {}
            found = {digest: waiting.get(digest, writing.get(digest)) for digest in digests}
        return {digest: data for digest, data in found.items() if data is not None}


def _write_batch(connection: sqlite3.Connection, batch: _Batch, now: int) -> None:
    # Data that is there already is compared, since it may be damaged, and nobody may have read it yet.
    connection.executemany(
        "INSERT INTO blobs (digest, touched, data) VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE "
        "SET touched = excluded.touched, data = excluded.data "
        f"WHERE touched < excluded.touched - {TOUCH_SECONDS} OR data <> excluded.data",
        ((bytes.fromhex(digest), now, data) for digest, data in batch.small.items()),
    )
    if not batch.touched:
        return
    touched = [(now, bytes.fromhex(digest), now - TOUCH_SECONDS) for digest in batch.touched]
    for table in ("blobs", "files"):
        connection.executemany(f"UPDATE {table} SET touched = ? WHERE digest = ? AND touched < ?", touched)

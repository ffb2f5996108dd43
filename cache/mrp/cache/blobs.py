"""Blobs: bytes under their digest, small ones in the index and large ones as read-only files.

A put is visible to this process at once and durable after the next commit, which writes the small blobs of many
puts in one transaction. Small blobs are hashed on every read. A large one is trusted while its file's stat equals
the stat at which it was last hashed, and hashed again otherwise and whenever it is copied out; what does not hash
to its name is moved to quarantine/ and counts as missing.
"""

import fcntl
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
from typing import Any, BinaryIO, NamedTuple, TypeVar

from blake3 import blake3

from mrp.cache.digest import Digest, digest_bytes
from mrp.cache.errors import ChangedWhileRead, MissingBlob, explained
from mrp.cache.hashing import THREADED, hash_descriptor, hash_mapped, read_all, stamp_of
from mrp.cache.index import Index
from mrp.cache.layout import Layout, remove_file, sync_folder

T = TypeVar("T")

INLINE_LIMIT = 16 * 1024
"""Blobs of up to this many bytes live in the index."""

MAX_PENDING_BYTES = 32 * 1024 * 1024
MAX_PENDING_BLOBS = 20_000
"""More small blobs than this are written without waiting for a commit."""

TOUCH_SECONDS = 3600
"""A blob that is put again is marked as in use at most this often."""

COPY_CHUNK = 4 * 1024 * 1024

_FICLONE = 0x40049409


class FileRecord(NamedTuple):
    """The stat of a blob's file when its bytes were known to be right, and when that was."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    verified_ns: int

    def is_trusted(self) -> bool:
        """False when the file could have been changed once more within the same tick of its file system's clock."""
        # Whole seconds mean a file system that keeps no fractions.
        margin = 2_000_000_000 if self.ctime_ns % 1_000_000_000 == 0 else 20_000_000
        return self.verified_ns >= self.ctime_ns + margin


@dataclass
class _Batch:
    """What waits for the next transaction."""

    small: dict[Digest, bytes] = field(default_factory=dict)
    size: int = 0
    touched: set[Digest] = field(default_factory=set)
    unsynced: set[Digest] = field(default_factory=set)
    records: dict[Digest, FileRecord] = field(default_factory=dict)


class Blobs:
    """The blobs of one store. Safe to use from many threads."""

    def __init__(self, layout: Layout, index: Index) -> None:
        self._layout = layout
        self._index = index
        self._lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._waiting = _Batch()
        self._writing = _Batch()
        self._records: dict[Digest, FileRecord] = {}

    def put_bytes(self, data: bytes) -> Digest:
        """Keep `data`; it can be read at once and is durable after the next commit."""
        digest = digest_bytes(data)
        if len(data) <= INLINE_LIMIT:
            self._put_small(digest, bytes(data))
        elif not self._reuse(digest):
            self._write_large(digest, data)
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
        if stamp_of(os.fstat(descriptor)) != before:
            raise ChangedWhileRead(name)
        if not self._reuse(digest):
            self._copy_large(digest, descriptor, name)
        return digest

    def get_bytes(self, digest: Digest) -> bytes:
        """The bytes with this digest; raises MissingBlob."""
        data = self._unwritten(digest)
        if data is not None:
            return data
        rows = self._index.read("SELECT data FROM blobs WHERE digest = ?", (bytes.fromhex(digest),))
        if rows:
            return self._checked_row(digest, rows[0][0])
        return self._read_large(digest)

    def get_small(self, digests: Iterable[Digest]) -> dict[Digest, bytes]:
        """The bytes of those blobs that are in the index or wait for it; large and missing ones are left out."""
        found: dict[Digest, bytes] = {}
        wanted: list[bytes] = []
        for digest in set(digests):
            data = self._unwritten(digest)
            if data is None:
                wanted.append(bytes.fromhex(digest))
            else:
                found[digest] = data
        for name, data in self._index.read_in("SELECT digest, data FROM blobs WHERE digest IN ({})", wanted):
            digest = Digest(name.hex())
            with suppress(MissingBlob):
                found[digest] = self._checked_row(digest, data)
        return found

    def open_blob(self, digest: Digest) -> BinaryIO:
        """A stream of the bytes with this digest; raises MissingBlob. The caller closes it."""
        data = self.get_small([digest]).get(digest)
        if data is not None:
            return io.BytesIO(data)
        if not self._is_whole(digest):
            raise MissingBlob(digest)
        try:
            return Path(self._layout.blob(digest)).open("rb")
        except OSError as error:
            raise MissingBlob(digest) from error

    def blob_path(self, digest: Digest) -> Path:
        """A read-only plain file in the store with that content, made when the blob is a small one."""
        if not self._is_whole(digest):
            data = self.get_small([digest]).get(digest)
            if data is None:
                raise MissingBlob(digest)
            self._write_large(digest, data)
        return Path(self._layout.blob(digest))

    def size(self, digest: Digest) -> int:
        """The number of bytes; raises MissingBlob."""
        data = self._unwritten(digest)
        if data is not None:
            return len(data)
        rows = self._index.read("SELECT length(data) FROM blobs WHERE digest = ?", (bytes.fromhex(digest),))
        if rows:
            return int(rows[0][0])
        try:
            return os.lstat(self._layout.blob(digest)).st_size
        except OSError as error:
            raise MissingBlob(digest) from error

    def missing(self, digests: Iterable[Digest]) -> set[Digest]:
        """Those that are not there. Small ones are looked up, large ones compared by stat, hashed when it changed."""
        wanted = {digest for digest in digests if self._unwritten(digest) is None}
        if not wanted:
            return wanted
        names = [bytes.fromhex(digest) for digest in wanted]
        for (name,) in self._index.read_in("SELECT digest FROM blobs WHERE digest IN ({})", names):
            wanted.discard(Digest(name.hex()))
        self._load_records(wanted)
        return {digest for digest in wanted if not self._is_whole(digest)}

    def copy_out(self, digest: Digest, descriptor: int) -> None:
        """Write a large blob to an open empty file, hashing what is copied; raises MissingBlob."""
        try:
            source = os.open(self._layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise MissingBlob(digest) from error
        try:
            if self._is_whole(digest) and _reflink(source, descriptor):
                return
            hasher = blake3(max_threads=blake3.AUTO)
            view = memoryview(bytearray(COPY_CHUNK))
            while count := _read_into(source, view, digest):
                hasher.update(view[:count])
                _write_all(descriptor, view[:count])
        finally:
            os.close(source)
        if hasher.hexdigest() != digest:
            self.discard(digest)
            raise MissingBlob(digest)

    def discard(self, digest: Digest) -> None:
        """Move the file of a damaged blob to quarantine/, so that it counts as missing."""
        with self._lock:
            self._records.pop(digest, None)
            self._waiting.records.pop(digest, None)
            self._waiting.unsynced.discard(digest)
        with suppress(OSError):
            self._layout.put_aside(Path(self._layout.blob(digest)))

    def commit(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write all that waits, then let `work` write more, in one transaction; durable when this returns.

        Files reach the disk before the transaction that names them. Raises CacheError; then nothing is forgotten and
        the next commit tries again.
        """
        with self._commit_lock:
            with self._lock:
                batch = self._writing = self._waiting
                self._waiting = _Batch()
            try:
                self._sync(batch.unsynced)
                now = int(time.time())

                def write(connection: sqlite3.Connection) -> T:
                    _write_batch(connection, batch, now)
                    return work(connection)

                result = self._index.transact(write)
            except BaseException:
                self._put_back(batch)
                raise
            with self._lock:
                self._writing = _Batch()
            return result

    def has_waiting(self) -> bool:
        """Whether a commit would write anything."""
        waiting = self._waiting
        return bool(waiting.small or waiting.touched or waiting.unsynced or waiting.records)

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
            later = self._waiting
            batch.small.update(later.small)
            batch.touched |= later.touched
            batch.records.update(later.records)
            batch.unsynced |= later.unsynced
            batch.size = sum(map(len, batch.small.values()))
            self._waiting = batch
            self._writing = _Batch()

    def _unwritten(self, digest: Digest) -> bytes | None:
        with self._lock:
            data = self._waiting.small.get(digest)
            return data if data is not None else self._writing.small.get(digest)

    def _checked_row(self, digest: Digest, data: Any) -> bytes:
        if type(data) is bytes and digest_bytes(data) == digest:
            return data
        name = bytes.fromhex(digest)
        self._index.transact(lambda connection: connection.execute("DELETE FROM blobs WHERE digest = ?", (name,)))
        kept = self._layout.quarantine / f"{digest}.{time.time_ns()}-{os.getpid()}"
        with suppress(OSError, TypeError):
            kept.write_bytes(data)
        return self._read_large(digest)

    def _read_large(self, digest: Digest) -> bytes:
        path = self._layout.blob(digest)
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise MissingBlob(digest) from error
        if digest_bytes(data) != digest:
            self.discard(digest)
            raise MissingBlob(digest)
        return data

    def _reuse(self, digest: Digest) -> bool:
        """Whether the file of a large blob is there and whole; if so, it is marked as in use for gc."""
        if not self._is_whole(digest):
            return False
        self._touch(digest)
        return True

    def _touch(self, digest: Digest) -> None:
        with self._lock:
            self._waiting.touched.add(digest)

    def _is_whole(self, digest: Digest) -> bool:
        path = self._layout.blob(digest)
        try:
            status = os.lstat(path)
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode):
            return False
        record = self._records.get(digest)
        if record is None:
            self._load_records([digest])
            record = self._records.get(digest)
        if record is not None and record.is_trusted() and record[:4] == _identity(status):
            return True
        return self._verify_file(digest, path)

    def _verify_file(self, digest: Digest, path: str) -> bool:
        """Hash a file of ours and remember its stat, or put it aside."""
        try:
            before = _identity(os.lstat(path))
            verified = time.time_ns()
            right = hash_mapped(path) == digest and _identity(os.lstat(path)) == before
        except OSError:
            return False
        if not right:
            self.discard(digest)
            return False
        self._remember(digest, FileRecord(*before, verified_ns=verified))
        return True

    def _load_records(self, digests: Iterable[Digest]) -> None:
        names = [bytes.fromhex(digest) for digest in digests if digest not in self._records]
        rows = self._index.read_in(
            "SELECT digest, size, mtime_ns, ctime_ns, inode, verified_ns FROM files WHERE digest IN ({})", names
        )
        for name, *numbers in rows:
            if all(type(number) is int for number in numbers):
                self._records.setdefault(Digest(name.hex()), FileRecord(*numbers))

    def _remember(self, digest: Digest, record: FileRecord, *, unsynced: bool = False) -> None:
        with self._lock:
            self._records[digest] = record
            self._waiting.records[digest] = record
            if unsynced:
                self._waiting.unsynced.add(digest)

    def _write_large(self, digest: Digest, data: bytes) -> None:
        with explained(self._layout.root):
            descriptor, temporary = self._layout.temporary()
            try:
                try:
                    _write_all(descriptor, memoryview(data))
                    os.fchmod(descriptor, 0o444)
                finally:
                    os.close(descriptor)
                self._keep(digest, temporary)
            except BaseException:
                remove_file(temporary)
                raise

    def _copy_large(self, digest: Digest, source: int, name: str) -> None:
        with explained(self._layout.root):
            descriptor, temporary = self._layout.temporary()
            try:
                try:
                    if not _reflink(source, descriptor):
                        _copy(source, descriptor)
                    os.fchmod(descriptor, 0o444)
                finally:
                    os.close(descriptor)
                if hash_mapped(temporary) != digest:
                    raise ChangedWhileRead(name)
                self._keep(digest, temporary)
            except BaseException:
                remove_file(temporary)
                raise

    def _keep(self, digest: Digest, temporary: str) -> None:
        path = self._layout.blob(digest)
        self._layout.place(temporary, path)
        self._remember(digest, FileRecord(*_identity(os.lstat(path)), verified_ns=time.time_ns()), unsynced=True)

    def _sync(self, digests: set[Digest]) -> None:
        with explained(self._layout.root):
            for digest in digests:
                # Gone means put aside or collected meanwhile: then it is missing, which a hit checks for.
                with suppress(FileNotFoundError):
                    _sync_file(self._layout.blob(digest))
            folders = {Path(self._layout.blob(digest)).parent for digest in digests}
            for folder in folders:
                with suppress(FileNotFoundError):
                    sync_folder(folder)
            if folders:
                sync_folder(self._layout.blobs)


def _write_batch(connection: sqlite3.Connection, batch: _Batch, now: int) -> None:
    connection.executemany(
        "INSERT INTO blobs (digest, touched, data) VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE "
        f"SET touched = excluded.touched WHERE touched < excluded.touched - {TOUCH_SECONDS}",
        ((bytes.fromhex(digest), now, data) for digest, data in batch.small.items()),
    )
    connection.executemany(
        "INSERT OR REPLACE INTO files (digest, touched, size, mtime_ns, ctime_ns, inode, verified_ns) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((bytes.fromhex(digest), now, *record) for digest, record in batch.records.items()),
    )
    touched = [(now, bytes.fromhex(digest), now - TOUCH_SECONDS) for digest in batch.touched]
    for table in ("blobs", "files"):
        connection.executemany(f"UPDATE {table} SET touched = ? WHERE digest = ? AND touched < ?", touched)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _reflink(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _copy(source: int, target: int) -> None:
    os.lseek(source, 0, os.SEEK_SET)
    while os.sendfile(target, source, None, 1 << 30):
        pass


def _read_into(source: int, view: memoryview, digest: Digest) -> int:
    try:
        return os.readv(source, [view])
    except OSError as error:
        raise MissingBlob(digest) from error


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_file(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

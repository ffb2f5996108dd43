"""Remembered digests of files: one that was not touched since it was hashed is not read again.

A digest is trusted only while size, mtime, ctime, inode and device all equal what they were when the file was
hashed, and only if the file system's clock had moved on by then: a file hashed within the tick in which it was last
written could be written once more without its stat telling. Anything else, a clock set back included, means reading
again. Forgetting is always safe, so a damaged memory is deleted.
"""

import os
import sqlite3
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from blake3 import blake3

from mrp.cache.digest import Digest
from mrp.cache.hashing import FileStamp, hash_stamped, stamp_of

PathLike = TypeVar("PathLike", str, Path)

_VERSION = 1
_STAMP = struct.Struct("<QqqQQq")
_CHECK_SIZE = 8
_DIGEST_SIZE = 32
_FLUSH_SIZE = 5000
_MAX_UNUSED = 100_000

# A damaged schema makes the sqlite3 module fail to decode SQLite's own message.
_FAILURES = (sqlite3.Error, UnicodeDecodeError)

_TICK_NS = 20_000_000
"""The kernel's clock moves on at least this often."""

_WHOLE_SECONDS_NS = 2_000_000_000
"""The coarsest clock of a file system that keeps no fractions of a second."""


class FileDigests:
    """The memory of one workspace, in a SQLite file. For one thread; many processes may share the file.

    `files_read` counts the files that had to be read.
    """

    def __init__(self, path: Path) -> None:
        self.files_read = 0
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._records: dict[str, bytes] | None = None
        self._used: set[str] = set()
        self._new: dict[str, bytes] = {}

    @classmethod
    def open(cls, path: Path) -> "FileDigests":
        """The memory in the file `path`, which is made with its folder when the first digest is kept.

        Never fails: a memory that cannot be read or written only means that files are read again.
        """
        return cls(path)

    def digest(self, path: Path | str) -> Digest:
        """The digest of a file, symlinks followed. Raises OSError and ChangedWhileRead."""
        return self._digest(os.fspath(path), [])

    def digest_many(self, paths: Iterable[PathLike]) -> dict[PathLike, Digest]:
        """The digests of many files, by the paths given. Raises as `digest` does, for the first that fails."""
        clock: list[int] = []
        return {path: self._digest(os.fspath(path), clock) for path in paths}

    def flush(self) -> None:
        """Write what is new; what cannot be written is forgotten."""
        new, self._new = self._new, {}
        if not new:
            return
        try:
            self._write(new)
        except _FAILURES as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                return
            self._start_anew()
            with suppress(*_FAILURES, OSError):
                self._write(new)
        except OSError:
            return

    def close(self) -> None:
        """Flush and close. Idempotent."""
        self.flush()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> "FileDigests":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _digest(self, path: str, clock: list[int]) -> Digest:
        """`clock` holds the file system's time once it is known for a batch: an older reading is the safer one."""
        if self._records is None:
            self._records = self._load()
        record = self._records.get(path)
        if record is not None:
            stamp = _STAMP.pack(*stamp_of(os.stat(path)), 0)[:-8]
            if record.startswith(stamp) and _is_intact(path, record) and _is_settled(record):
                self._used.add(path)
                return Digest(record[_STAMP.size : _STAMP.size + _DIGEST_SIZE].hex())
        if not clock:
            clock.append(self._now())
        now = clock[0]
        self.files_read += 1
        digest, after = hash_stamped(path)
        self._keep(path, after, now, digest)
        return digest

    def _keep(self, path: str, stamp: FileStamp, now: int, digest: Digest) -> None:
        assert self._records is not None
        try:
            body = _STAMP.pack(*stamp, now) + bytes.fromhex(digest)
        except struct.error:
            return
        record = body + _check(path, body)
        self._records[path] = self._new[path] = record
        self._used.add(path)
        if len(self._new) >= _FLUSH_SIZE:
            self.flush()

    def _now(self) -> int:
        """The time by the clock of the file system that holds the memory, which is the workspace's own.

        0, which lets nothing be trusted, when nothing can be written there.
        """
        probe = self._path.with_name(self._path.name + ".clock")
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.utime(descriptor)
                return os.fstat(descriptor).st_mtime_ns
            finally:
                os.close(descriptor)
        except OSError:
            return 0

    def _load(self) -> dict[str, bytes]:
        try:
            if not self._path.exists():
                return {}
            rows = self._connected().execute("SELECT path, record FROM files").fetchall()
        except (*_FAILURES, OSError):
            self._start_anew()
            return {}
        size = _STAMP.size + _DIGEST_SIZE + _CHECK_SIZE
        return {path: record for path, record in rows if type(record) is bytes and len(record) == size}

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
            self._connection = connection
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError("written by another mrp")
            connection.execute("PRAGMA journal_mode=WAL")
            # Losing the last writes to a power failure only means reading those files again.
            connection.execute("PRAGMA synchronous=NORMAL")
            if version == 0:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, record BLOB) WITHOUT ROWID"
                )
                connection.execute(f"PRAGMA user_version={_VERSION}")
        return self._connection

    def _write(self, new: dict[str, bytes]) -> None:
        connection = self._connected()
        unused = set(self._records or ()) - self._used
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO files (path, record) VALUES (?, ?)", list(new.items()))
            if len(unused) > _MAX_UNUSED:
                connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in unused])
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _start_anew(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
        for suffix in ("-wal", "-shm", ""):
            with suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink()


def _is_settled(record: bytes) -> bool:
    _, mtime, ctime, _, _, now = _STAMP.unpack_from(record)
    margin = _WHOLE_SECONDS_NS if ctime % 1_000_000_000 == 0 else _TICK_NS
    return bool(max(mtime, ctime) + margin < now)


def _check(path: str, body: bytes) -> bytes:
    return blake3(body + os.fsencode(path)).digest(length=_CHECK_SIZE)


def _is_intact(path: str, record: bytes) -> bool:
    return _check(path, record[:-_CHECK_SIZE]) == record[-_CHECK_SIZE:]

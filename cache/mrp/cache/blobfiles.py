"""Large blobs: one read-only file each, named by its digest.

A file is trusted while its stat equals the stat at which its bytes were last hashed, and hashed again otherwise and
whenever it is copied out. What does not hash to its name is moved to quarantine/ and counts as missing.
"""

import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from mrp.cache.digest import Digest
from mrp.cache.errors import ChangedWhileRead, MissingBlob, explained
from mrp.cache.hashing import hash_copied, hash_file, hash_mapped
from mrp.cache.index import Index
from mrp.cache.layout import Layout, remove_file, sync_folder

_COPY_CHUNK = 4 * 1024 * 1024
_TICK_NS = 20_000_000
_WHOLE_SECONDS_NS = 2_000_000_000
_FICLONE = 0x40049409


class FileRecord(NamedTuple):
    """The stat of a blob's file when its bytes were known to be right, and when that was."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    verified_ns: int

    def is_settled(self) -> bool:
        """False when the file could have been changed once more within the same tick of its file system's clock."""
        margin = _WHOLE_SECONDS_NS if self.ctime_ns % 1_000_000_000 == 0 else _TICK_NS
        return self.verified_ns >= self.ctime_ns + margin


@dataclass
class FileBatch:
    """What the next transaction writes of files: records, and files that must reach the disk before it."""

    records: dict[Digest, FileRecord] = field(default_factory=dict)
    unsynced: set[Digest] = field(default_factory=set)


class BlobFiles:
    """The files under blobs/ of one store. Safe to use from many threads.

    `files_hashed` counts the files that had to be read to trust them.
    """

    def __init__(self, layout: Layout, index: Index) -> None:
        self.files_hashed = 0
        self._layout = layout
        self._index = index
        self._lock = threading.Lock()
        self._records: dict[Digest, FileRecord] = {}
        self._waiting = FileBatch()

    def write(self, digest: Digest, data: bytes | bytearray) -> None:
        """Keep `data`, whose digest is given, as a file. Raises CacheError."""
        with explained(self._layout.root):
            descriptor, temporary = self._layout.temporary()
            try:
                try:
                    write_all(descriptor, data)
                    os.fchmod(descriptor, 0o444)
                finally:
                    os.close(descriptor)
                self._keep(digest, temporary)
            except BaseException:
                remove_file(temporary)
                raise

    def copy_in(self, digest: Digest, source: int, name: str) -> None:
        """Keep a copy or reflink of an open file. Raises ChangedWhileRead when the copy has another digest."""
        with explained(self._layout.root):
            descriptor, temporary = self._layout.temporary()
            try:
                try:
                    if _reflink(source, descriptor):
                        copied = hash_mapped(temporary)
                    else:
                        os.lseek(source, 0, os.SEEK_SET)
                        copied = hash_copied(source, descriptor)
                    os.fchmod(descriptor, 0o444)
                finally:
                    os.close(descriptor)
                if copied != digest:
                    raise ChangedWhileRead(name)
                self._keep(digest, temporary)
            except BaseException:
                remove_file(temporary)
                raise

    def copy_out(self, digest: Digest, descriptor: int) -> None:
        """Write the bytes to an open empty file, hashing what is copied. Raises MissingBlob."""
        try:
            source = os.open(self._layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise MissingBlob(digest) from error
        try:
            if self.is_whole(digest) and _reflink(source, descriptor):
                return
            hasher = blake3(max_threads=blake3.AUTO)
            view = memoryview(bytearray(_COPY_CHUNK))
            while count := _read_into(source, view, digest):
                hasher.update(view[:count])
                write_all(descriptor, view[:count])
        finally:
            os.close(source)
        if hasher.hexdigest() != digest:
            self.put_aside(digest)
            raise MissingBlob(digest)

    def read(self, digest: Digest) -> bytes:
        """The bytes, verified. Raises MissingBlob."""
        try:
            data = Path(self._layout.blob(digest)).read_bytes()
        except OSError as error:
            raise MissingBlob(digest) from error
        if blake3(data, max_threads=blake3.AUTO).hexdigest() != digest:
            self.put_aside(digest)
            raise MissingBlob(digest)
        return data

    def is_whole(self, digest: Digest) -> bool:
        """Whether the file is there with the right bytes: by stat, hashed when the stat is not the one on record."""
        path = self._layout.blob(digest)
        try:
            status = os.lstat(path)
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):
            return False
        if digest not in self._records:
            self.load_records([digest])
        record = self._records.get(digest)
        if record is not None and record.is_settled() and record[:4] == _identity(status):
            return True
        return self.verify(digest)

    def verify(self, digest: Digest) -> bool:
        """Hash the file and remember its stat, or put it aside when it has other bytes."""
        path = self._layout.blob(digest)
        try:
            before = _identity(os.lstat(path))
            verified = time.time_ns()
            self.files_hashed += 1
            right = hash_file(path) == digest and _identity(os.lstat(path)) == before
        except (OSError, ChangedWhileRead):
            return False
        if not right:
            self.put_aside(digest)
            return False
        self._remember(digest, FileRecord(*before, verified_ns=verified))
        return True

    def load_records(self, digests: Iterable[Digest]) -> None:
        """Read the records of many files in one question."""
        names = [bytes.fromhex(digest) for digest in digests if digest not in self._records]
        rows = self._index.read_in(
            "SELECT digest, size, mtime_ns, ctime_ns, inode, verified_ns FROM files WHERE digest IN ({})", names
        )
        for name, *numbers in rows:
            if all(type(number) is int for number in numbers):
                self._records.setdefault(Digest(name.hex()), FileRecord(*numbers))

    def put_aside(self, digest: Digest) -> None:
        """Move the file of a damaged blob to quarantine/, so that it counts as missing."""
        with self._lock:
            self._records.pop(digest, None)
            self._waiting.records.pop(digest, None)
            self._waiting.unsynced.discard(digest)
        with suppress(OSError):
            self._layout.put_aside(Path(self._layout.blob(digest)))

    def has_waiting(self) -> bool:
        """Whether a transaction would write anything."""
        return bool(self._waiting.records or self._waiting.unsynced)

    def take(self) -> FileBatch:
        """What waits for a transaction; the caller writes it, or puts it back."""
        with self._lock:
            batch, self._waiting = self._waiting, FileBatch()
        return batch

    def put_back(self, batch: FileBatch) -> None:
        """Let a batch that could not be written wait again."""
        with self._lock:
            batch.records.update(self._waiting.records)
            batch.unsynced |= self._waiting.unsynced
            self._waiting = batch

    def sync(self, batch: FileBatch) -> None:
        """Bring the files of a batch to the disk. Raises CacheError."""
        with explained(self._layout.root):
            paths = [Path(self._layout.blob(digest)) for digest in batch.unsynced]
            for path in paths:
                # Gone means put aside or collected meanwhile: then it is missing, which a hit checks for.
                with suppress(FileNotFoundError):
                    _sync_file(path)
            folders = {path.parent for path in paths}
            for folder in folders:
                with suppress(FileNotFoundError):
                    sync_folder(folder)
            if folders:
                sync_folder(self._layout.blobs)

    def _keep(self, digest: Digest, temporary: str) -> None:
        path = self._layout.blob(digest)
        self._layout.place(temporary, path)
        record = FileRecord(*_identity(os.lstat(path)), verified_ns=time.time_ns())
        self._remember(digest, record)
        with self._lock:
            self._waiting.unsynced.add(digest)

    def _remember(self, digest: Digest, record: FileRecord) -> None:
        with self._lock:
            self._records[digest] = record
            self._waiting.records[digest] = record


def write_records(connection: sqlite3.Connection, batch: FileBatch, now: int) -> None:
    """Write the records of files, which are on disk by now."""
    connection.executemany(
        "INSERT OR REPLACE INTO files (digest, touched, size, mtime_ns, ctime_ns, inode, verified_ns) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((bytes.fromhex(digest), now, *record) for digest, record in batch.records.items()),
    )


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data`, in as many calls as it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _reflink(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _read_into(source: int, view: memoryview, digest: Digest) -> int:
    try:
        return os.readv(source, [view])
    except OSError as error:
        raise MissingBlob(digest) from error


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

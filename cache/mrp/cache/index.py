"""The index: the SQLite file of the cache, its connections, and what happens when it is damaged.

One writer connection and one reader connection serve a process, each behind a lock; write-ahead logging lets readers
of all processes go on while one writes. A damaged index is moved to quarantine/ and a new empty one takes its place:
forgetting is safe, since what is not in the index is made anew.
"""

import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, TypeVar

from mrp.cache.errors import CacheError, disk_full, explained, not_writable
from mrp.cache.layout import FORMAT_VERSION, Layout, newer_format, sync_folder

T = TypeVar("T")

Rows = list[tuple[Any, ...]]

BUSY_SECONDS = 60.0
"""How long a writer waits for another process's transaction."""

MAX_PARAMETERS = 900
"""Question marks in one statement; longer lists are cut."""

_APPLICATION_ID = 0x6D727001

_SCHEMA = """
CREATE TABLE blobs (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, touched INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE files (
    digest BLOB PRIMARY KEY, touched INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, verified_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE actions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, created REAL NOT NULL, used INTEGER NOT NULL,
    kind TEXT NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL, preimage BLOB NOT NULL);
"""


class Index:
    """A process's connections to the index. Safe to use from many threads."""

    def __init__(self, layout: Layout, on_warning: Callable[[str], None], *, format_known: bool) -> None:
        """Open the index or make one; raises CacheError.

        format_known: the format file has our version, so that another one in the index is damage.
        """
        self._format_known = format_known
        self._layout = layout
        self._warn = on_warning
        # Always taken in this order when both are needed.
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._inode = 0
        self._suspected = False
        self._retry_damaged(self._open)

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """The rows of one SELECT. Takes no lock that another process could hold."""

        def attempt() -> Rows:
            with self._read_lock:
                try:
                    if self._reader is None:
                        self._reader = self._connect()
                    return self._reader.execute(sql, parameters).fetchall()
                except _FAILURES as error:
                    raise self._classified(error) from error

        return self._retry_damaged(attempt)

    def read_in(self, sql: str, values: Sequence[Any]) -> Rows:
        """The rows of a SELECT with `IN ({})`, asked in pieces, for any number of values."""
        rows: Rows = []
        for start in range(0, len(values), MAX_PARAMETERS):
            piece = values[start : start + MAX_PARAMETERS]
            rows += self.read(sql.format(",".join("?" * len(piece))), piece)
        return rows

    def version(self) -> tuple[int, int]:
        """Changes whenever any process, or this one, has changed the index."""
        ((version,),) = self.read("PRAGMA data_version")
        return self._inode, version

    def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one transaction, on disk when this returns.

        `work` must only use the connection that it is given, and is run again when the index turns out to be damaged
        or was replaced meanwhile by another process.
        """

        def attempt() -> T:
            with self._write_lock:
                if self._writer is None or not self._is_current():
                    self._reopen()
                assert self._writer is not None
                try:
                    return _in_transaction(self._writer, work)
                except _FAILURES as error:
                    raise self._classified(error) from error

        result = self._retry_damaged(attempt)
        while not self._is_current():
            result = self._retry_damaged(attempt)
        return result

    def put_aside_if_damaged(self) -> bool:
        """Check the structure of the whole file; whether it was damaged, and is now a new empty one."""
        inode = self._inode
        if self.read("PRAGMA integrity_check(1)") != [("ok",)]:
            self._put_aside(inode)
        return self._inode != inode

    def suspect(self) -> None:
        """Check the whole file because something in it was wrong; once, since that may take seconds."""
        if not self._suspected:
            self._suspected = True
            self.put_aside_if_damaged()

    def compact(self) -> None:
        """Give the pages of deleted rows back to the file system."""

        def attempt() -> None:
            with self._write_lock:
                if self._writer is None:
                    return
                try:
                    # This statement steps once for every page, which execute() would stop after the first.
                    self._writer.executescript("PRAGMA incremental_vacuum")
                    self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                except _FAILURES as error:
                    raise self._classified(error) from error

        self._retry_damaged(attempt)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        with self._write_lock, self._read_lock:
            self._close()

    def _retry_damaged(self, attempt: Callable[[], T]) -> T:
        for _ in range(3):
            try:
                return attempt()
            except _Damaged as damage:
                reason = str(damage)
                self._put_aside(damage.inode)
        raise CacheError(
            f"The index of the cache {self._layout.root} is damaged each time it is made anew ({reason}); check that "
            "disk, or set MRP_CACHE to another folder."
        )

    def _put_aside(self, damaged_inode: int) -> None:
        """Move the damaged index away, unless another thread or process has done so; reopen either way."""
        path = self._layout.index
        with self._write_lock, explained(self._layout.root):
            with self._layout.exclusive():
                try:
                    still_there = path.lstat().st_ino == damaged_inode
                except FileNotFoundError:
                    still_there = False
                if still_there:
                    # The log goes first: a new index must never find the log of an old one.
                    for suffix in ("-wal", "-shm", ""):
                        self._layout.put_aside(path.with_name(path.name + suffix))
            if still_there:
                self._warn(
                    f"The index of the cache {self._layout.root} was damaged; it is now in {self._layout.quarantine}, "
                    "and what it held is built anew."
                )
            with suppress(_Damaged):
                self._reopen()

    def _reopen(self) -> None:
        with self._read_lock:
            self._close()
        self._open()

    def _open(self) -> None:
        path = self._layout.index
        self._inode = 0
        try:
            with explained(self._layout.root):
                if self._needs_creation():
                    self._create()
                self._inode = path.stat().st_ino
            self._await_creation()
            writer = self._connect()
            try:
                (version,) = writer.execute("PRAGMA user_version").fetchone()
                if version > FORMAT_VERSION and not self._format_known:
                    raise newer_format(self._layout.root, version)
                if version != FORMAT_VERSION:
                    raise _Damaged(self._inode, f"it has version {version}")
            except BaseException:
                writer.close()
                raise
        except _FAILURES as error:
            raise self._classified(error) from error
        self._writer = writer

    def _await_creation(self) -> None:
        """Wait while another process may just be making the index: what it has no version of yet is not damaged."""
        with suppress(sqlite3.OperationalError), closing(self._connect()) as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0]:
                return
        with self._layout.exclusive():
            pass

    def _needs_creation(self) -> bool:
        path = self._layout.index
        for place in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(place.lstat().st_mode):
                    self._layout.put_aside(place)
        try:
            status = path.lstat()
        except FileNotFoundError:
            return True
        if not os.access(path, os.R_OK | os.W_OK):
            raise not_writable(self._layout.root, path)
        return status.st_size == 0

    def _create(self) -> None:
        path = self._layout.index
        with self._layout.exclusive():
            if not path.exists():
                for suffix in ("-wal", "-shm"):
                    self._layout.put_aside(path.with_name(path.name + suffix))
            with closing(self._connect("rwc")) as connection:
                _write_schema(connection)
            sync_folder(self._layout.root)

    def _connect(self, mode: str = "rw") -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._layout.index.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # FULL: a transaction is on disk, and not only consistent, when COMMIT returns.
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_autocheckpoint=4000")
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_current(self) -> bool:
        """Whether the file at the index's path is the one that the connections have open."""
        try:
            return self._layout.index.stat().st_ino == self._inode
        except OSError:
            return False

    def _close(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()
        self._reader = self._writer = None

    def _classified(self, error: Exception) -> Exception:
        """What a failure means: the index is damaged, or a CacheError with a next step."""
        root = self._layout.root
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        primary = code & 0xFF
        writable = os.access(self._layout.index, os.R_OK | os.W_OK) and os.access(root, os.W_OK)
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
            return error
        if primary in _DAMAGE or code == sqlite3.SQLITE_IOERR_SHORT_READ:
            return _Damaged(self._inode, str(error))
        if primary == sqlite3.SQLITE_CANTOPEN and not self._layout.index.exists():
            return _Damaged(self._inode, "it is gone")
        if primary == sqlite3.SQLITE_READONLY and writable:
            # The file may be written to, but its header says otherwise.
            return _Damaged(self._inode, str(error))
        if primary == sqlite3.SQLITE_FULL or _disk_is_full(root):
            return disk_full(root)
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return CacheError(
                f"Another process has held the index of the cache {root} for more than {BUSY_SECONDS:.0f} s; end it, "
                "or set MRP_CACHE to another folder."
            )
        if not writable:
            return not_writable(root, self._layout.index)
        return CacheError(
            f"The index of the cache {root} failed ({error}); check that disk, or set MRP_CACHE to another folder."
        )


# A damaged schema makes the sqlite3 module fail to decode SQLite's own message.
_FAILURES = (sqlite3.Error, UnicodeDecodeError)


class _Damaged(Exception):
    def __init__(self, inode: int, reason: str) -> None:
        self.inode = inode
        super().__init__(reason)


# SQLITE_ERROR is damage, because every statement of ours is right for the schema that we write.
_DAMAGE = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
    }
)


def _in_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    try:
        connection.execute("BEGIN IMMEDIATE")
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise
    return result


def _write_schema(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version:
        return
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise CacheError(
            "The cache lies on a file system where SQLite cannot share its log between processes (a network drive, "
            "perhaps); set MRP_CACHE to a local folder."
        )
    connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={FORMAT_VERSION}")
    connection.execute("COMMIT")


def _disk_is_full(root: os.PathLike[str]) -> bool:
    try:
        status = os.statvfs(root)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < 64 * 1024

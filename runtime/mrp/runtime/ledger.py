"""The ledger: for each identity (label, item, kind), the keys and results that it has had, newest last.

A run adds a row only where something changed, so a build with nothing to do writes nothing. Each row carries a
checksum; one that does not match it is not told to anyone.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from blake3 import blake3

from mrp.cache.canonical import canonical_bytes
from mrp.runtime.runs import DigestLine
from mrp.runtime.state import explained, locked, make_folder, put_aside
from mrp.specs.errors import InfraError

_T = TypeVar("_T")

_Line = tuple[DigestLine, bool]

_WAIT_SECONDS = 30

_LABELS, _LINES = 500, 5000
"""Labels, or lines, that are looked up together."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS history (
    sequence INTEGER PRIMARY KEY,
    label TEXT NOT NULL, item TEXT NOT NULL, kind TEXT NOT NULL,
    run TEXT NOT NULL, key TEXT NOT NULL, result TEXT NOT NULL, outcome TEXT NOT NULL, executed INTEGER NOT NULL,
    checksum BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_identity ON history (label, item, kind, sequence);
"""

_COLUMNS = "label, item, kind, run, key, result, outcome, executed"

# SQLITE_ERROR is damage, because every statement of ours is right for the schema that we write.
_DAMAGE = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
)


@dataclass(frozen=True)
class Past:
    """What an identity was in some run. `executed` tells whether that run made it or found it in the cache."""

    label: str
    item: str
    kind: str
    run: str
    key: str
    result: str
    outcome: str
    executed: bool


class Ledger:
    """One SQLite file per workspace; it may be deleted, which only forgets history, as damage to it does.

    Every method raises InfraError when the file cannot be used: a full disk, or another process that holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._mended(lambda database: None)

    def record(self, run: str, lines: Iterable[_Line]) -> int:
        """Add the (line, executed) pairs whose key or result differs from the newest row; returns how many.

        Where they can be gone through more than once, and are sorted, they need not all be in memory.
        """
        again = list(lines) if isinstance(lines, Iterator) else lines
        return self._mended(lambda database: _record(database, run, again))

    def history(self, label: str, item: str, kind: str) -> list[Past]:
        """All that an identity has been, oldest first."""
        return self._rows("label = ? AND item = ? AND kind = ?", (label, item, kind))

    def identities(self, label: str) -> list[tuple[str, str]]:
        """The (item, kind) pairs of a label that the ledger knows, sorted."""
        return sorted({(past.item, past.kind) for past in self._rows("label = ?", (label,))})

    def close(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _rows(self, where: str, values: tuple[str, ...]) -> list[Past]:
        sql = f"SELECT {_COLUMNS}, checksum FROM history WHERE {where} ORDER BY sequence"
        found = self._mended(lambda database: database.execute(sql, values).fetchall())
        return [Past(*(*row[:7], row[7] != 0)) for row in found if row[8] == _checksum(row[:8])]

    def _mended(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """What `work` gives, on a new ledger when the one that is there is damaged."""
        try:
            try:
                return work(self._connected())
            except _FAILURES as error:
                if not self._is_damage(error):
                    raise
            self._begin_anew()
            return work(self._connected())
        except _FAILURES as error:
            self.close()
            raise InfraError(
                f"cannot use {self._path}: {error}; make room and access, or move it away, then build again",
                retryable=False,
            ) from error

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            with explained(self._path):
                make_folder(self._path.parent)
            database = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
            self._database = database
            # SQLite does not wait for its turn to begin a log, so two that make the file at once would collide.
            with locked(self._path.with_name(f"{self._path.name}.lock")):
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                database.executescript(_SCHEMA)
        return self._database

    def _is_damage(self, error: Exception) -> bool:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        # A file that may be written to is called read-only when its header or its log are damaged.
        return code in _DAMAGE or (code == sqlite3.SQLITE_READONLY and os.access(self._path, os.W_OK))

    def _begin_anew(self) -> None:
        self.close()
        with explained(self._path):
            # The log goes first: a new ledger must never find the log of an old one.
            for suffix in ("-wal", "-shm", ""):
                put_aside(self._path.with_name(self._path.name + suffix))


# A damaged schema makes the sqlite3 module fail to decode SQLite's own message.
_FAILURES = (sqlite3.Error, UnicodeDecodeError)


def _record(database: sqlite3.Connection, run: str, lines: Iterable[_Line]) -> int:
    before = database.total_changes
    database.execute("BEGIN IMMEDIATE")
    try:
        for batch in _batches(lines):
            newest = _newest(database, {line.label for line, _ in batch})
            changed = (
                (line.label, line.item, line.kind, run, line.key, line.result, line.outcome, int(executed))
                for line, executed in batch
                if newest.get((line.label, line.item, line.kind)) != (line.key, line.result)
            )
            database.executemany(
                f"INSERT INTO history ({_COLUMNS}, checksum) VALUES (?,?,?,?,?,?,?,?,?)",
                ((*row, _checksum(row)) for row in changed),
            )
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            with suppress(sqlite3.Error):
                database.execute("ROLLBACK")
        raise
    return database.total_changes - before


def _batches(lines: Iterable[_Line]) -> Iterator[list[_Line]]:
    """The lines of many labels at a time, since each batch is one question; a label is in one batch where it can be."""
    batch: list[_Line] = []
    labels = 0
    for _, group in groupby(lines, key=lambda pair: pair[0].label):
        batch.extend(group)
        labels += 1
        if labels >= _LABELS or len(batch) >= _LINES:
            yield batch
            batch, labels = [], 0
    if batch:
        yield batch


def _newest(database: sqlite3.Connection, labels: set[str]) -> dict[tuple[str, str, str], tuple[str, str]]:
    places = ",".join("?" * len(labels))
    rows = database.execute(
        "SELECT label, item, kind, key, result FROM history WHERE sequence IN"
        f" (SELECT max(sequence) FROM history WHERE label IN ({places}) GROUP BY label, item, kind)",
        tuple(labels),
    )
    return {(label, item, kind): (key, result) for label, item, kind, key, result in rows}


def _checksum(row: tuple[Any, ...]) -> bytes | None:
    try:
        return blake3(canonical_bytes(list(row))).digest(length=8)
    except (TypeError, ValueError):
        return None

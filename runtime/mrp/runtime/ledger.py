"""The ledger: for each identity (label, item, kind), the keys and results that it has had, newest last.

A run adds a row only where something changed, so a build with nothing to do writes nothing.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mrp.runtime.runs import DigestLine

_SCHEMA = """
CREATE TABLE IF NOT EXISTS history (
    sequence INTEGER PRIMARY KEY,
    label TEXT NOT NULL, item TEXT NOT NULL, kind TEXT NOT NULL,
    run TEXT NOT NULL, key TEXT NOT NULL, result TEXT NOT NULL, outcome TEXT NOT NULL, executed INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_identity ON history (label, item, kind, sequence);
"""


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
    """One SQLite file per workspace; it may be deleted, which only forgets history."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except sqlite3.DatabaseError:
            self._database.close()
            path.unlink(missing_ok=True)
            self._database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._prepare()

    def record(self, run: str, lines: Iterable[tuple[DigestLine, bool]]) -> int:
        """Add the (line, executed) pairs whose key or result differs from the newest row; returns how many."""
        lines = list(lines)
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            newest = self._newest({line.label for line, _ in lines})
            rows = [
                (line.label, line.item, line.kind, run, line.key, line.result, line.outcome, int(executed))
                for line, executed in lines
                if newest.get((line.label, line.item, line.kind)) != (line.key, line.result)
            ]
            database.executemany(
                "INSERT INTO history (label, item, kind, run, key, result, outcome, executed) VALUES (?,?,?,?,?,?,?,?)",
                rows,
            )
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise
        return len(rows)

    def history(self, label: str, item: str, kind: str) -> list[Past]:
        """All that an identity has been, oldest first."""
        rows = self._database.execute(
            "SELECT label, item, kind, run, key, result, outcome, executed <> 0 FROM history"
            " WHERE label = ? AND item = ? AND kind = ? ORDER BY sequence",
            (label, item, kind),
        )
        return [Past(*row) for row in rows]

    def identities(self, label: str) -> list[tuple[str, str]]:
        """The (item, kind) pairs of a label that the ledger knows, sorted."""
        rows = self._database.execute(
            "SELECT DISTINCT item, kind FROM history WHERE label = ? ORDER BY item, kind", (label,)
        )
        return [(item, kind) for item, kind in rows]

    def close(self) -> None:
        self._database.close()

    def _newest(self, labels: set[str]) -> dict[tuple[str, str, str], tuple[str, str]]:
        newest: dict[tuple[str, str, str], tuple[str, str]] = {}
        for label in labels:
            rows = self._database.execute(
                "SELECT item, kind, key, result FROM history WHERE sequence IN"
                " (SELECT max(sequence) FROM history WHERE label = ? GROUP BY item, kind)",
                (label,),
            )
            for item, kind, key, result in rows:
                newest[label, item, kind] = (key, result)
        return newest

    def _prepare(self) -> None:
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.executescript(_SCHEMA)

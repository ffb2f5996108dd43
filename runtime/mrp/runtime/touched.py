"""What the ledger knows of whole targets: which runs changed them, and which of their actions a run changed.

A target may have 100,000 items, so they are counted where they are, and only a few are handed out.
"""

import sqlite3
from dataclasses import dataclass

from mrp.runtime.ledger import Ledger

Identity = tuple[str, str, str]

_SAME_ITEM = "label = ? AND (? IS NULL OR item = ?)"
_BEFORE = (
    "SELECT key FROM history AS older WHERE older.label = row.label AND older.item = row.item"
    " AND older.kind = row.kind AND older.sequence < row.sequence ORDER BY older.sequence DESC LIMIT 1"
)


@dataclass(frozen=True)
class Touched:
    """The actions whose key a run changed, in order: the first of them, and how many items they are of."""

    first: tuple[Identity, ...]
    actions: int
    items: int
    executed: bool


class TargetLedger(Ledger):
    """The ledger, asked for targets and their cells by `labels`; with `item` for that item of them alone."""

    def runs(self, labels: list[str], item: str | None = None) -> set[str]:
        """The runs that changed any of it."""

        def ask(database: sqlite3.Connection) -> set[str]:
            sql = f"SELECT DISTINCT run FROM history WHERE {_SAME_ITEM}"
            return {row[0] for label in labels for row in database.execute(sql, (label, item, item))}

        return self._mended(ask)

    def items(self, labels: list[str], item: str | None = None) -> int:
        """How many items are known of it; a target without items has one."""

        def ask(database: sqlite3.Connection) -> int:
            sql = f"SELECT count(DISTINCT item) FROM history WHERE {_SAME_ITEM}"
            return sum(database.execute(sql, (label, item, item)).fetchone()[0] for label in labels)

        return self._mended(ask)

    def touched(self, labels: list[str], run: str, most: int, item: str | None = None) -> Touched:
        """What of it `run` changed; at most `most` actions are named."""

        def ask(database: sqlite3.Connection) -> Touched:
            first: list[Identity] = []
            actions = items = 0
            executed = False
            last = None
            sql = (
                f"SELECT item, kind, executed FROM history AS row WHERE {_SAME_ITEM} AND run = ?"
                f" AND key IS NOT ({_BEFORE}) ORDER BY item, kind"
            )
            for label in labels:
                for name, kind, ran in database.execute(sql, (label, item, item, run)):
                    actions += 1
                    items += (label, name) != last
                    executed = executed or bool(ran)
                    last = (label, name)
                    if len(first) < most:
                        first.append((label, name, kind))
            return Touched(tuple(first), actions, items, executed)

        return self._mended(ask)

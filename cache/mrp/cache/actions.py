"""The action cache: what is known of an action under its key.

Each row carries a checksum over its content; a row that does not match it is deleted and counts as absent. The
preimage needs none, since its hash is the key.
"""

import sqlite3
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from mrp.cache.canonical import Json, canonical_text, parse_canonical, quoted
from mrp.cache.digest import ActionKey, Digest, digest_bytes
from mrp.cache.index import Index

USED_SECONDS = 24 * 3600
"""The time of an entry's last use is kept to this precision."""

_ROWS_AT_ONCE = 100
"""Rows of one statement: SQLite takes at least 999 values, and a row has 7."""


@dataclass(frozen=True, slots=True)
class ActionEntry:
    """What an action left. `blobs` and `trees` are what a hit needs; the loss of `extra` does not spoil one.

    `extra`: logs, and the keys of other entries that are parts of this one. Both stay for as long as it does.
    result: what later actions may depend on. byproducts: the attempts. Both may be Spelled in an entry that is only to
    be committed. preimage: the bytes whose hash is the key.
    isolation: the level that was achieved. created: seconds since the epoch.
    """

    key: ActionKey
    kind: str
    preimage: bytes
    result: Json
    byproducts: Json
    blobs: tuple[Digest, ...]
    trees: tuple[Digest, ...]
    extra: tuple[Digest, ...] = ()
    isolation: str = ""
    provenance: Json = None
    created: float = 0.0

    def refs(self) -> list[tuple[str, Digest]]:
        """What a hit needs, as missing_deep takes it."""
        return [("blob", digest) for digest in self.blobs] + [("tree", digest) for digest in self.trees]


class Actions:
    """The action entries of one store. Safe to use from many threads."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._stale_use: set[bytes] = set()

    def lookup(self, keys: Sequence[ActionKey], *, mark: bool = True) -> dict[ActionKey, ActionEntry]:
        """The entries that are there, without their preimages (b"": see `preimage`); `mark` counts that as a use."""
        found: dict[ActionKey, ActionEntry] = {}
        damaged: list[tuple[bytes]] = []
        oldest_use = int(time.time()) - USED_SECONDS
        names = [bytes.fromhex(key) for key in dict.fromkeys(keys)]
        sql = "SELECT key, created, used, kind, body, checksum FROM actions WHERE key IN ({})"
        for name, created, used, kind, body, checksum in self._index.read_in(sql, names):
            entry = _decode(name, created, kind, body, checksum)
            if entry is None:
                damaged.append((name,))
                continue
            found[entry.key] = entry
            if mark and (type(used) is not int or used < oldest_use):
                self._stale_use.add(name)
        if damaged:
            self._index.transact(lambda connection: _delete(connection, damaged))
            self._index.suspect()
        return found

    def preimage(self, key: ActionKey) -> bytes | None:
        """The bytes that were hashed to make the key; None when they are not there or are damaged."""
        rows = self._index.read("SELECT preimage FROM actions WHERE key = ?", (bytes.fromhex(key),))
        if not rows or type(rows[0][0]) is not bytes or digest_bytes(rows[0][0]) != Digest(key):
            return None
        return rows[0][0]

    def forget(self, keys: Iterable[ActionKey]) -> None:
        """Drop entries, so that their actions run again."""
        names = [(bytes.fromhex(key),) for key in keys]
        if names:
            self._index.transact(lambda connection: _delete(connection, names))

    def take_stale_use(self) -> set[bytes]:
        """The names of looked-up entries whose time of last use is due to be written."""
        names, self._stale_use = self._stale_use, set()
        return names


Rows = list[tuple[Any, ...]]


def encode_rows(entries: Sequence[ActionEntry]) -> Rows:
    """The rows of entries, for insert_rows. Raises ValueError when a key is not the hash of its preimage."""
    rows: Rows = []
    now = int(time.time())
    # Entries of one build share the very same provenance.
    said: Json = None
    provenance = canonical_text(said)
    for entry in entries:
        if digest_bytes(entry.preimage) != Digest(entry.key):
            raise ValueError(f"the key {entry.key} of a {entry.kind} is not the digest of its preimage")
        if entry.provenance is not said:
            said, provenance = entry.provenance, canonical_text(entry.provenance)
        # Canonical JSON, with the members in order.
        body = (
            f'{{"blobs":{_digests(entry.blobs)},"byproducts":{canonical_text(entry.byproducts)}'
            f',"extra":{_digests(entry.extra)},"isolation":{quoted(entry.isolation)},"provenance":{provenance}'
            f',"result":{canonical_text(entry.result)},"trees":{_digests(entry.trees)}}}'
        ).encode()
        name = bytes.fromhex(entry.key)
        created = float(entry.created)
        checksum = _checksum(name, created, entry.kind, body)
        rows.append((name, created, now, entry.kind, body, checksum, entry.preimage))
    return rows


def _digests(digests: tuple[Digest, ...]) -> str:
    return '["' + '","'.join(digests) + '"]' if digests else "[]"


def insert_rows(connection: sqlite3.Connection, rows: Rows) -> list[ActionKey]:
    """Write rows; the keys that had an entry already, which stays as it is, are given back.

    Only a damaged preimage of theirs is mended: there is one right one for a key.
    """
    if _insert_fresh(connection, rows):
        return []
    present: list[ActionKey] = []
    mend = "UPDATE actions SET preimage = ? WHERE key = ? AND preimage <> ?"
    sql = (
        "INSERT OR IGNORE INTO actions (key, created, used, kind, body, checksum, preimage) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)"
    )
    for row in rows:
        if connection.execute(sql, row).rowcount == 0:
            connection.execute(mend, (row[-1], row[0], row[-1]))
            present.append(ActionKey(Digest(row[0].hex())))
    return present


def _insert_fresh(connection: sqlite3.Connection, rows: Rows) -> bool:
    """Write rows many at a time; False, with nothing written, when one of their keys has an entry or occurs twice."""
    names = [row[0] for row in rows]
    if len(set(names)) < len(names):
        return False
    for start in range(0, len(names), _ROWS_AT_ONCE):
        some = names[start : start + _ROWS_AT_ONCE]
        marks = ",".join("?" * len(some))
        if connection.execute(f"SELECT 1 FROM actions WHERE key IN ({marks}) LIMIT 1", some).fetchone() is not None:
            return False
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        marks = ",".join(["(?, ?, ?, ?, ?, ?, ?)"] * len(part))
        sql = f"INSERT INTO actions (key, created, used, kind, body, checksum, preimage) VALUES {marks}"
        connection.execute(sql, [value for row in part for value in row])
    return True


def delete_rows(connection: sqlite3.Connection, entries: Iterable[ActionEntry]) -> None:
    """Delete these very entries; one that another process has put in the place of one of them stays."""
    names = [(bytes.fromhex(entry.key), entry.created) for entry in entries]
    connection.executemany("DELETE FROM actions WHERE key = ? AND created = ?", names)


def mark_used(connection: sqlite3.Connection, names: Iterable[bytes], now: int) -> None:
    """Write the time of last use of entries."""
    connection.executemany("UPDATE actions SET used = ? WHERE key = ?", [(now, name) for name in names])


def _delete(connection: sqlite3.Connection, names: list[tuple[bytes]]) -> None:
    connection.executemany("DELETE FROM actions WHERE key = ?", names)


def _checksum(name: bytes, created: float, kind: str, body: bytes) -> bytes:
    kind_bytes = kind.encode()
    return blake3(name + struct.pack("<dI", created, len(kind_bytes)) + kind_bytes + body).digest()


def _decode(name: Any, created: Any, kind: Any, body: Any, checksum: Any) -> ActionEntry | None:
    try:
        if _checksum(name, created, kind, body) != checksum:
            return None
        value = parse_canonical(body)
        return ActionEntry(
            key=ActionKey(Digest(name.hex())),
            kind=kind,
            preimage=b"",
            result=value["result"],
            byproducts=value["byproducts"],
            blobs=tuple(value["blobs"]),
            trees=tuple(value["trees"]),
            extra=tuple(value["extra"]),
            isolation=value["isolation"],
            provenance=value["provenance"],
            created=created,
        )
    except (TypeError, ValueError, KeyError, AttributeError, struct.error):
        return None

"""Sinks that are one file of rows, whatever its format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mrp.cache.canonical import Json, canonical_digest
from mrp.cache.digest import Digest, digest_bytes
from mrp.cache.hashing import hash_file
from mrp.runtime.sinks.durable import make_folders, replace_file
from mrp.runtime.sinks.protocol import Content, Staged
from mrp.specs.errors import BuildFailed
from mrp.specs.results import Ref

KEY = "_key"
"""The field that mode append adds to each row: what makes a repeated produce add nothing."""


class Codec(Protocol):
    """A file format. Methods raise ValueError when rows or bytes do not fit it."""

    def encode(self, rows: Sequence[Json]) -> bytes: ...

    def decode(self, data: bytes) -> list[Json]: ...

    def join(self, held: list[Json], added: list[Json]) -> list[Json]:
        """Rows that `decode` gave and new ones, as one list for `encode`."""


@dataclass(frozen=True)
class RowSink:
    """A file of rows. `label` is the produce target's: in mode append, its rows have keys of their own.

    `shown` is the path as the workspace writes it, for messages.
    """

    path: Path
    shown: str
    mode: str
    label: str
    codec: Codec

    def digest(self) -> Digest | None:
        if self.path.is_dir():
            raise BuildFailed(f"the sink's path {self.shown} is a folder; name a file")
        return hash_file(self.path) if self.path.exists() else None

    def stage(self, content: Content) -> Staged:
        if isinstance(content, Ref):
            raise BuildFailed(f"{self.label} gives files, and this sink takes rows; use a sink of type files")
        try:
            data = self._appended(content) if self.mode == "append" else self.codec.encode(content)
        except ValueError as error:
            raise BuildFailed(f"{self.label} cannot be written to {self.shown}: {error}") from None
        digest = digest_bytes(data)
        if self.mode == "create" and self.digest() not in (None, digest):
            raise BuildFailed(
                f"{self.shown} exists with other content, and the sink's mode is create;"
                " move it away or use mode replace"
            )
        return Staged(digest, lambda: self._write(data))

    def _appended(self, rows: list[Json]) -> bytes:
        data = self.path.read_bytes() if self.path.exists() else None
        held = self.codec.decode(data) if data is not None else []
        present = {row.get(KEY) for row in held if isinstance(row, Mapping)}
        added = [row for row in keyed_rows(rows, self.label) if row[KEY] not in present]
        if data is not None and not added:
            return data
        return self.codec.encode(self.codec.join(held, added))

    def _write(self, data: bytes) -> None:
        make_folders(self.path.parent)
        replace_file(self.path, data)


def keyed_rows(rows: Sequence[Json], label: str) -> list[dict[str, Json]]:
    """Rows with their idempotency keys: the digest of the label, the row, and how many equal ones came before.

    Raises ValueError for a row that is no object, or has a field of that name.
    """
    seen: dict[Digest, int] = {}
    keyed: list[dict[str, Json]] = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"mode append takes rows that are objects, not {type(row).__name__}")
        if KEY in row:
            raise ValueError(f"a row has the field {KEY}, which mode append uses itself; rename it")
        digest = canonical_digest(row)
        occurrence = seen.get(digest, 0)
        seen[digest] = occurrence + 1
        keyed.append({**row, KEY: canonical_digest({"label": label, "row": digest, "occurrence": occurrence})})
    return keyed

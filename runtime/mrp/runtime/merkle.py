"""Two stored descriptions compared down to what differs: fields, files of trees, rows of JSON lines, lines of text.

A description is JSON whose strings may be digests of further descriptions, trees or blobs in the store. Equal digests
are equal content, so only what differs is opened. Of long JSON lines only those are parsed that the other side lacks.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

from mrp.cache.canonical import Json, canonical_text
from mrp.cache.digest import Digest
from mrp.cache.errors import CacheError
from mrp.cache.store import Entry

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_MAX_OPENED = 64 * 2**20
_LONG = 2**20
_MAX_ROWS = 1000
_MAX_TEXT = 2**20
_MAX_DEPTH = 40
_MAX_SHOWN = 100


class Reading(Protocol):
    """The part of the store that comparing needs."""

    def get_bytes(self, digest: Digest) -> bytes: ...

    def size(self, digest: Digest) -> int: ...

    def open_blob(self, digest: Digest) -> BinaryIO: ...

    def read_tree(self, digest: Digest) -> dict[str, Entry]: ...


class Step(NamedTuple):
    """One step from a description to a part of it."""

    kind: Literal["key", "index", "file", "row"]
    name: str


@dataclass(frozen=True)
class Change:
    """One difference. `old` and `new` are short texts, None where that side has nothing there.

    `old_digest` and `new_digest` name the blobs when a file changed; `detail` is the first line that differs.
    """

    steps: tuple[Step, ...]
    old: str | None
    new: str | None
    old_digest: Digest | None = None
    new_digest: Digest | None = None
    detail: str = ""

    @property
    def path(self) -> str:
        """Where, as text: `base.agent.files/solver.py`, `task/record.json:prompt`, `inputs[0][1][HumanEval/3]`."""
        text = ""
        before: str | None = None
        for kind, name in self.steps:
            if kind == "file":
                text += f"/{name}"
            elif kind == "key":
                text += f"{':' if before == 'file' else '.' if text else ''}{name}"
            else:
                text += f"[{name}]"
            before = kind
        return text

    def to_json(self) -> Json:
        return {"path": self.path, "old": self.old, "new": self.new, "detail": self.detail}


def compare(old: Json, new: Json, store: Reading) -> list[Change]:
    """All differences between two descriptions, in the order of the description."""
    return list(_Comparison(store).values((), old, new))


def short(value: Json) -> str:
    """A value as one short line."""
    text = canonical_text(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


@dataclass(frozen=True)
class _Comparison:
    store: Reading

    def values(self, steps: tuple[Step, ...], old: Json, new: Json) -> Iterator[Change]:
        if old == new or len(steps) > _MAX_DEPTH:
            return
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from self._objects(steps, "key", old, new)
        elif isinstance(old, list) and isinstance(new, list) and _same_shape(old, new):
            for index, (left, right) in enumerate(zip(old, new, strict=True)):
                yield from self.values((*steps, Step("index", str(index))), left, right)
        elif _is_digest(old) and _is_digest(new):
            yield from self._digests(steps, Digest(old), Digest(new))
        else:
            yield Change(steps, short(old), short(new))

    def _objects(
        self, steps: tuple[Step, ...], kind: Literal["key", "row"], old: Mapping[str, Json], new: Mapping[str, Json]
    ) -> Iterator[Change]:
        for name in sorted(old.keys() | new.keys()):
            below = (*steps, Step(kind, name))
            if name not in new:
                yield Change(below, short(old[name]), None)
            elif name not in old:
                yield Change(below, None, short(new[name]))
            else:
                yield from self.values(below, old[name], new[name])

    def _digests(self, steps: tuple[Step, ...], old: Digest, new: Digest) -> Iterator[Change]:
        old_tree, new_tree = self._tree(old), self._tree(new)
        if old_tree is not None and new_tree is not None:
            yield from self._trees(steps, old_tree, new_tree)
        else:
            yield from self._blobs(steps, old, new)

    def _trees(self, steps: tuple[Step, ...], old: Mapping[str, Entry], new: Mapping[str, Entry]) -> Iterator[Change]:
        for path in sorted(old.keys() | new.keys()):
            left, right = old.get(path), new.get(path)
            if left == right:
                continue
            below = (*steps, Step("file", path))
            if left is None or right is None or left.digest is None or right.digest is None:
                yield Change(below, _entry(left), _entry(right), left and left.digest, right and right.digest)
            elif left.digest == right.digest:
                yield Change(below, _mode(left), _mode(right), left.digest, right.digest)
            else:
                yield from self._blobs(below, left.digest, right.digest)

    def _blobs(self, steps: tuple[Step, ...], old: Digest, new: Digest) -> Iterator[Change]:
        if self._are_long(old, new):
            apart = self._rows_apart(old, new)
            if apart is not None:
                yield from self._some_rows(steps, *apart)
                return
        left, right = self._bytes(old), self._bytes(new)
        if left is None or right is None:
            yield Change(steps, old[:12], new[:12], old, new, "its content is no longer in the cache")
            return
        old_value, new_value = _structured(left), _structured(right)
        if all(step.kind != "file" for step in steps):
            old_value, new_value = _alike(left, old_value, new_value), _alike(right, new_value, old_value)
        if isinstance(old_value, _Rows) and isinstance(new_value, _Rows):
            yield from self._objects(steps, "row", old_value.rows, new_value.rows)
        elif isinstance(old_value, dict | list) and type(old_value) is type(new_value):
            yield from self.values(steps, old_value, new_value)
        else:
            yield Change(steps, old[:12], new[:12], old, new, _first_difference(left, right))

    def _some_rows(
        self, steps: tuple[Step, ...], old: dict[str, Json], new: dict[str, Json], more: int
    ) -> Iterator[Change]:
        if more:
            # What only one side has may stand among those that were left out of the other.
            both = old.keys() & new.keys()
            more += len(old.keys() | new.keys()) - len(both)
            old, new = ({name: rows[name] for name in both} for rows in (old, new))
        yield from self._objects(steps, "row", old, new)
        if more:
            yield Change(steps, None, None, detail=f"{more} more rows differ")

    def _are_long(self, old: Digest, new: Digest) -> bool:
        try:
            return min(self.store.size(old), self.store.size(new)) > _LONG
        except CacheError:
            return False

    def _rows_apart(self, old: Digest, new: Digest) -> tuple[dict[str, Json], dict[str, Json], int] | None:
        """The rows of each side that the other has not, and how many were left out; None when they are no rows."""
        try:
            if not (self._begins_with_row(old) and self._begins_with_row(new)):
                return None
            left, left_more = self._rows_without(old, self._hashes(new))
            right, right_more = self._rows_without(new, self._hashes(old))
        except (CacheError, ValueError, ArithmeticError, RecursionError, KeyError, TypeError, AttributeError):
            return None
        return left, right, max(left_more, right_more)

    def _begins_with_row(self, digest: Digest) -> bool:
        with self.store.open_blob(digest) as lines:
            first = lines.readline(_MAX_TEXT)
        return first[:1] == b"{" and bool(_row_name(json.loads(first, parse_float=Decimal)))

    def _hashes(self, digest: Digest) -> set[int]:
        with self.store.open_blob(digest) as lines:
            return {hash(line) for line in lines}

    def _rows_without(self, digest: Digest, others: set[int]) -> tuple[dict[str, Json], int]:
        with self.store.open_blob(digest) as lines:
            apart = (line for line in lines if hash(line) not in others)
            rows = [json.loads(line, parse_float=Decimal) for line in islice(apart, _MAX_ROWS)]
            return {_row_name(row): row for row in rows}, sum(1 for _ in apart)

    def _tree(self, digest: Digest) -> dict[str, Entry] | None:
        try:
            return self.store.read_tree(digest)
        except (CacheError, ValueError):
            return None

    def _bytes(self, digest: Digest) -> bytes | None:
        try:
            return self.store.get_bytes(digest) if self.store.size(digest) <= _MAX_OPENED else None
        except CacheError:
            return None


@dataclass(frozen=True)
class _Rows:
    """JSON lines whose objects have an id, by id and sample."""

    rows: dict[str, Json]


def _structured(data: bytes) -> Any:
    """The JSON value or the JSON lines that `data` spells, else None."""
    if data[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(data, parse_float=Decimal)
    except (ValueError, ArithmeticError, RecursionError):
        pass
    rows: dict[str, Json] = {}
    try:
        for line in data.splitlines():
            row = json.loads(line, parse_float=Decimal)
            rows[_row_name(row)] = row
    except (ValueError, ArithmeticError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return _Rows(rows)


def _alike(data: bytes, value: Any, other: Any) -> Any:
    """No line and a single line are rows too, where the other side has rows."""
    if not data and isinstance(other, _Rows | dict):
        return _Rows({})
    if isinstance(value, dict) and "id" in value and data.count(b"\n") == 1:
        return _Rows({_row_name(value): value})
    return value


def _row_name(row: Any) -> str:
    """`id`, with `#sample` after it for samples after the first."""
    return f"{row['id']}#{row['sample']}" if row.get("sample") else str(row["id"])


def _same_shape(old: list[Json], new: list[Json]) -> bool:
    """Whether two lists are best compared place by place; lists of words are shown whole instead."""
    return len(old) == len(new) and any(isinstance(x, list | dict) or _is_digest(x) for x in (*old, *new))


def _is_digest(value: Json) -> bool:
    return isinstance(value, str) and _DIGEST.match(value) is not None


def _entry(entry: Entry | None) -> str | None:
    if entry is None:
        return None
    if entry.digest is None:
        return f"link to {entry.target}" if entry.target is not None else "folder"
    return entry.digest[:12]


def _mode(entry: Entry) -> str:
    return "executable" if entry.kind == "x" else "not executable"


def _first_difference(old: bytes, new: bytes) -> str:
    if max(len(old), len(new)) > _MAX_TEXT:
        return f"{len(old)} bytes -> {len(new)} bytes"
    try:
        left, right = old.decode().splitlines(), new.decode().splitlines()
    except UnicodeDecodeError:
        return f"{len(old)} bytes -> {len(new)} bytes"
    for number in range(max(len(left), len(right))):
        before = left[number] if number < len(left) else None
        after = right[number] if number < len(right) else None
        if before != after:
            return f"line {number + 1}: {_line(before)} -> {_line(after)}"
    return "only line ends differ"


def _line(text: str | None) -> str:
    if text is None:
        return "(end)"
    return short(text.strip())

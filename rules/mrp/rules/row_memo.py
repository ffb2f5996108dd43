"""What became of rows, by their bytes: a row that was read before is not parsed, checked and split again.

All that is remembered of a row follows from its own bytes and from the task's description, whose digest names the
file. What several rows decide together (equal ids, `dedupe`, names that no row has) is decided anew each time.
Forgetting is always safe.
"""

import json
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from mrp.cache.canonical import canonical_bytes, canonical_digest
from mrp.cache.digest import Digest, digest_bytes
from mrp.cache.frames import append_frame, read_frames, rewrite_frames
from mrp.cache.store import Store
from mrp.cache.trees import encode_node
from mrp.rules.record import Trees
from mrp.specs.ir import DatasetTask, task_json

ROW_VERSION = 1
"""Raise it when the same row of the same task would come out otherwise."""

FEWEST_ROWS = 100
"""Smaller datasets are read faster than remembered."""

MOST_FILES = 64
MOST_BYTES = 256 * 2**20
"""Of all memos of rows together; the ones written longest ago go first."""

EMPTY_TREE = digest_bytes(encode_node({}))
"""What most rows give for some view; the store must hold it before a record is used."""

_KIND = b"mrp-rows-1\n"
_DESCRIBED = ("format", "id", "schema", "where", "dedupe", "split", "take", "starter", "private", "solution")
_HEAD = struct.Struct("<16sBBHI5B16s")
_COUNTS = struct.Struct("<III")
_KEPT = 1
_HAS_TREES = 2
_EMPTY = 255
_DIGEST_SIZE = 32
_NO_VIEWS = [_EMPTY] * 5


class KnownRow(NamedTuple):
    """What a row came to. `shape` numbers its set of field names; `kept`: whether `where` holds.

    `dedupe` is a digest of the values that `dedupe` compares. `trees` are None when nobody
    asks for them; `objects` are the digests of all trees and blobs that they need.
    """

    identity: str
    shape: int
    kept: bool
    dedupe: bytes
    trees: Trees | None
    objects: tuple[Digest, ...]


def row_key(line: bytes) -> bytes:
    """The name of a row in the memo: a digest of its bytes."""
    return blake3(line).digest(length=16)


class RowMemo:
    """The rows of one dataset. `shapes` are the lists of field names that occur, by number."""

    def __init__(self, path: Path | None) -> None:
        """path: the file, or None to remember nothing."""
        self.shapes: list[tuple[str, ...]] = []
        self._path = path
        self._numbers: dict[tuple[str, ...], int] = {}
        self._stored: dict[bytes, bytes] = {}
        self._used: list[bytes] = []
        self._new: list[bytes] = []
        self._stored_shapes = self._stored_rows = 0
        self._whole = True
        if path is not None:
            self._load(path)

    def shape(self, names: Iterable[str]) -> int:
        """The number of a list of field names. Raises UnicodeEncodeError for what is no text."""
        key = tuple(names)
        number = self._numbers.get(key)
        if number is None:
            canonical_bytes(key)
            number = self._numbers[key] = len(self.shapes)
            self.shapes.append(key)
        return number

    def get(self, key: bytes) -> KnownRow | None:
        """What the row with this key came to, or None."""
        packed = self._stored.get(key)
        if packed is None:
            return None
        self._used.append(packed)
        _, flags, count, _, shape, *views, dedupe = _HEAD.unpack_from(packed)
        end = _HEAD.size + count * _DIGEST_SIZE
        text = packed[_HEAD.size : end].hex()
        objects = tuple([Digest(text[at : at + 64]) for at in range(0, len(text), 64)])
        task, starter, grader, solver, solution = [EMPTY_TREE if view == _EMPTY else objects[view] for view in views]
        identity = packed[end:].decode()
        trees = (task, starter, grader, solver, solution) if flags & _HAS_TREES else None
        return KnownRow(identity, shape, flags & _KEPT != 0, dedupe, trees, objects)

    def put(self, key: bytes, row: KnownRow) -> None:
        """Remember what a row came to; one that has too many files is not remembered."""
        if self._path is None or len(row.objects) >= _EMPTY:
            return
        flags = (_KEPT if row.kept else 0) | (_HAS_TREES if row.trees is not None else 0)
        numbers = {digest: number for number, digest in enumerate(row.objects)}
        views = [numbers.get(tree, _EMPTY) for tree in row.trees] if row.trees is not None else _NO_VIEWS
        identity = row.identity.encode()
        head = _HEAD.pack(key, flags, len(row.objects), len(identity), row.shape, *views, row.dedupe)
        self._new.append(b"".join([head, bytes.fromhex("".join(row.objects)), identity]))

    def has_new(self) -> bool:
        """Whether saving would write anything."""
        return bool(self._new) and len(self._used) + len(self._new) >= FEWEST_ROWS

    def save(self) -> None:
        """Write what is new; what cannot be written is forgotten."""
        if self._path is None or not self.has_new():
            return
        total = len(self._used) + len(self._new)
        self._stored.clear()
        with suppress(OSError):
            if not self._path.exists():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                _make_room(self._path.parent)
            if self._whole and self._stored_rows + len(self._new) <= 2 * total:
                append_frame(self._path, _KIND, _body(self._stored_shapes, self.shapes, self._new))
            else:
                # The rows of this time, and nothing else, in place of all.
                rewrite_frames(self._path, _KIND, [_body(0, self.shapes, [*self._used, *self._new])])

    def _load(self, path: Path) -> None:
        bodies, self._whole = read_frames(path, _KIND)
        for body in bodies:
            first, length, count = _COUNTS.unpack_from(body)
            if first != len(self.shapes):
                # Another process wrote at the same time, and numbered its shapes without knowing of these.
                self._whole = False
                continue
            at = _COUNTS.size + length
            for names in json.loads(body[_COUNTS.size : at]):
                self._numbers[tuple(names)] = len(self.shapes)
                self.shapes.append(tuple(names))
            self._stored_rows += count
            while at < len(body):
                _, _, objects, length, *_ = _HEAD.unpack_from(body, at)
                end = at + _HEAD.size + objects * _DIGEST_SIZE + length
                self._stored[body[at : at + 16]] = body[at:end]
                at = end
        self._stored_shapes = len(self.shapes)


def row_memo(task: DatasetTask, store: Store) -> RowMemo:
    """The memo of the rows of `task`, in the cache's folder for what may be forgotten."""
    described = {name: value for name, value in task_json(replace(task, files=None)).items() if name in _DESCRIBED}
    name = canonical_digest({"rows": ROW_VERSION, "task": described})
    return RowMemo(store.layout.memo / "rows" / name)


def _body(first: int, shapes: list[tuple[str, ...]], rows: list[bytes]) -> bytes:
    """How many shapes there are already, the length of the new ones, how many rows there are; shapes, rows."""
    text = canonical_bytes(shapes[first:])
    return b"".join([_COUNTS.pack(first, len(text), len(rows)), text, *rows])


def _make_room(folder: Path) -> None:
    """Drop the oldest memos beyond the limits."""
    found = []
    for path in folder.iterdir():
        with suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    size, count = sum(size for _, size, _ in found), len(found)
    for _, length, path in sorted(found):
        if count < MOST_FILES and size <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        size, count = size - length, count - 1

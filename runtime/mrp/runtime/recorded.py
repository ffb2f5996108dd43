"""The actions that a run recorded, read from its digests.jsonl without holding them all.

The file has one canonical line for each action, sorted by label, item and kind. So one of them is found by bisection,
those of a target stand together, and two runs are compared as bytes; a line is parsed only when somebody asks what it
says.
"""

import json
import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from mrp.cache.hashing import hash_descriptor
from mrp.runtime.runs import DamagedRun, DigestLine, read_record
from mrp.specs.errors import UsageError

FILE = "digests.jsonl"

_BLOCK = 2**18
_PROBE = 2**10

TEXT = rb'"([^"\\]*+)"'
"""A string of canonical JSON without escapes as a regular expression, its content as a group."""

_LINE = re.compile(
    rb'\{"item":%b,"key":%b,"kind":%b,"label":%b,"outcome":%b,"reproducible":\w+,"result":%b\}' % ((TEXT,) * 6)
)
_KIND_ORDER = (b"fetch", b"generate", b"command", b"image", b"setup", b"trial", b"grade")


class Place(NamedTuple):
    """Where an action stands in the order of the file: its label, item and kind in UTF-8, which sorts as text does."""

    label: bytes
    item: bytes = b""
    kind: bytes = b""

    @classmethod
    def of(cls, line: DigestLine) -> "Place":
        return cls(line.label.encode(), line.item.encode(), line.kind.encode())

    def after(self) -> "Place":
        """The first place behind all that has this label; with an item, behind all that has that too."""
        # No label and no item has a character that sorts before this one.
        return Place(self.label, self.item + b"\0") if self.item else Place(self.label + b"\0")


class Line(NamedTuple):
    """One line that was parsed as far as comparing and counting need."""

    place: Place
    key: bytes
    result: bytes
    outcome: bytes


class Recorded:
    """A digests.jsonl, open until `close`. `parsed` counts the lines that were parsed so far."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._descriptor).st_size
        self.parsed = 0

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def digest(self) -> str:
        """The digest of the whole file. To be asked once, at the beginning."""
        return hash_descriptor(self._descriptor, self._size)

    def __iter__(self) -> Iterator[DigestLine]:
        """All actions, in order."""
        return (self.parse(raw) for _, raw in self.raw())

    def find(self, label: str, item: str, kind: str) -> DigestLine | None:
        """One action, None when the run did not have it."""
        place = Place(label.encode(), item.encode(), kind.encode())
        offset = self._first(place)
        if offset < self._size:
            raw = self.at(offset)
            if self.line(raw).place == place:
                return self.parse(raw)
        return None

    def labels(self, target: str | None = None) -> list[str]:
        """The labels that the run had: a target, the cells of its matrix, or all of them."""
        found = []
        for low, high in _parts(target) if target is not None else ((None, None),):
            offset = 0 if low is None else self._first(low)
            end = self._size if high is None else self._first(high)
            while offset < end:
                label = self.line(self.at(offset)).place.label
                found.append(label.decode())
                offset = self._first(Place(label).after())
        return found

    def of(self, target: str, item: str | None = None) -> Iterator[DigestLine]:
        """The actions of a target and of all its cells, or of one item of them; trials before their grades."""
        return (self.parse(raw) for raw in self.raw_of(target, item))

    def raw_of(self, target: str, item: str | None = None) -> Iterator[bytes]:
        """What `of` gives, as the lines themselves."""
        lines = ((self.line(raw).place, raw) for raw in self.in_order(target, item))
        for _, group in groupby(lines, key=lambda pair: pair[0][:2]):
            yield from (raw for _, raw in sorted(group, key=lambda pair: _kind_rank(pair[0].kind)))

    def in_order(self, target: str, item: str | None = None) -> Iterator[bytes]:
        """The lines of `of` in the order of the file."""
        for low, high in self._ranges(target, item):
            for _, raw in self.raw(self._first(low), self._first(high)):
                yield raw

    def items_around(self, target: str, item: str) -> list[str]:
        """Items of a target and its cells whose names stand near `item` in the alphabet, each once."""
        found: dict[str, None] = {}
        for label in self.labels(target):
            begin, end = self._first(Place(label.encode())), self._first(Place(label.encode()).after())
            middle = self._first(Place(label.encode(), item.encode()))
            start = self._start_of_line(max(begin, middle - _BLOCK), begin)
            for _, raw in self.raw(start, min(end, middle + _BLOCK)):
                found[self.line(raw).place.item.decode()] = None
        return list(found)

    def raw(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """(offset, line) of the lines from one offset to another, both of which begin a line."""
        end = self._size if end is None else end
        rest = b""
        offset = position = start
        while position < end:
            block = os.pread(self._descriptor, min(_BLOCK, end - position), position)
            if not block:
                break
            position += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield offset, line
                offset += len(line) + 1

    def at(self, offset: int) -> bytes:
        """The line that begins at `offset`."""
        length = _PROBE
        while True:
            data = os.pread(self._descriptor, length, offset)
            line, newline, _ = data.partition(b"\n")
            if newline or len(data) < length:
                return line
            length *= 4

    def line(self, raw: bytes) -> Line:
        """What comparing needs of a line."""
        self.parsed += 1
        match = _LINE.fullmatch(raw)
        if match is None:
            found = json.loads(raw)
            place = Place(found["label"].encode(), found["item"].encode(), found["kind"].encode())
            return Line(place, *(found[name].encode() for name in ("key", "result", "outcome")))
        item, key, kind, label, outcome, result = match.groups()
        return Line(Place(label, item, kind), key, result, outcome)

    def parse(self, raw: bytes) -> DigestLine:
        """All that a line says."""
        self.parsed += 1
        return DigestLine(**json.loads(raw))

    def has(self, target: str, item: str | None = None) -> bool:
        """Whether the run had an action of a target, of one of its cells, or of that item of them."""
        return any(True for _ in self.in_order(target, item))

    def _ranges(self, target: str, item: str | None) -> Iterator[tuple[Place, Place]]:
        if item is None:
            yield from _parts(target)
            return
        for label in self.labels(target):
            place = Place(label.encode(), item.encode())
            # The item "" stands first, and behind it the first that has a name.
            yield place, place.after() if item else Place(label.encode(), b"\0")

    def _first(self, wanted: Place) -> int:
        """The offset of the first line that does not stand before `wanted`; the size of the file when none is left."""
        low, high = 0, self._size
        while low < high:
            start = self._start_of_line((low + high) // 2, low)
            raw = self.at(start)
            if self.line(raw).place < wanted:
                low = start + len(raw) + 1
            else:
                high = start
        return low

    def _start_of_line(self, offset: int, low: int) -> int:
        """Where the line begins that has the byte at `offset`; not before `low`, which begins one."""
        while offset > low:
            begin = max(low, offset - _PROBE)
            found = os.pread(self._descriptor, offset - begin, begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            offset = begin
        return low


def recorded_actions(folder: Path) -> Recorded:
    """The actions of a run, once the file is known to be what the run wrote.

    Raises UsageError when the run was cut off before, and DamagedRun.
    """
    try:
        recorded = Recorded(folder / FILE)
    except FileNotFoundError:
        raise UsageError(f"run {folder.name} was cut off before it wrote its digests; choose another") from None
    except OSError:
        raise _damaged(folder) from None
    try:
        if recorded.digest() != read_record(folder)["digests"]:
            raise _damaged(folder)
    except BaseException as error:
        recorded.close()
        if isinstance(error, OSError):
            raise _damaged(folder) from None
        raise
    return recorded


def _kind_rank(kind: bytes) -> int:
    """Where a kind stands among the actions of one item, in the order in which they are made."""
    return _KIND_ORDER.index(kind) if kind in _KIND_ORDER else len(_KIND_ORDER)


def _parts(target: str) -> tuple[tuple[Place, Place], tuple[Place, Place]]:
    """The two ranges in which a target and its cells stand; other targets may stand between them."""
    own, cells = Place(target.encode()), Place(f"{target}@".encode())
    return (own, own.after()), (cells, Place(target.encode() + b"A"))


def _damaged(folder: Path) -> DamagedRun:
    return DamagedRun(f"{FILE} of run {folder.name} is damaged, so what it says is not shown; choose another run")

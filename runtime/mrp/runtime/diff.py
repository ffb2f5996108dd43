"""Two runs compared action by action: what differs, in the order in which the plan builds.

Both sides are sorted alike, so they are merged: lines that are equal as bytes are passed by, and only the others are
parsed. Of those that differ only their places in the two files are kept.
"""

from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from mrp.cache.canonical import Json
from mrp.runtime.recorded import Line, Place, Recorded
from mrp.runtime.runs import DigestLine


class Kind(StrEnum):
    """How an action differs between two runs."""

    BYTES = "bytes"
    KEY = "key"
    CUTOFF = "cutoff"
    ONLY_OLD = "only_old"
    ONLY_NEW = "only_new"


MEANING = {
    Kind.BYTES: "same key, other bytes: it is not reproducible",
    Kind.KEY: "another key and other bytes: its inputs changed",
    Kind.CUTOFF: "another key, the same bytes: its inputs changed, its result did not",
    Kind.ONLY_OLD: "only in the first run",
    Kind.ONLY_NEW: "only in the second run",
}

_KINDS = tuple(Kind)
_IN_ITEM = ("trial", "grade")
_ABSENT = -1


@dataclass(frozen=True)
class Divergence:
    """One action that differs."""

    kind: Kind
    old: DigestLine | None
    new: DigestLine | None

    @property
    def identity(self) -> tuple[str, str, str]:
        line = self.new or self.old
        assert line is not None
        return line.label, line.item, line.kind

    def to_json(self) -> Json:
        label, item, kind = self.identity
        return {
            "label": label,
            "item": item,
            "kind": kind,
            "what": self.kind.value,
            "meaning": MEANING[self.kind],
            "old": None if self.old is None else self.old.to_json(),
            "new": None if self.new is None else self.new.to_json(),
        }


@dataclass(frozen=True)
class DiffReport:
    """What differs between two files, which must stay open while the divergences are asked for.

    `same` counts equal actions, `counts` the others by how they differ.
    """

    old: Recorded
    new: Recorded
    same: int
    counts: dict[Kind, int]
    _places: "list[array[int]]"

    @property
    def first(self) -> Divergence | None:
        """Where the runs part: the first divergence in build order."""
        return next(self.divergences(), None)

    @property
    def differing(self) -> int:
        return sum(self.counts.values())

    def divergences(self, kind: Kind | None = None) -> Iterator[Divergence]:
        """All in build order, or those of one kind, one at a time."""
        for places in self._places:
            for start in range(0, len(places), 3):
                number, old, new = places[start : start + 3]
                if kind is None or _KINDS[number] is kind:
                    yield Divergence(_KINDS[number], _line_at(self.old, old), _line_at(self.new, new))

    def to_json(self) -> dict[str, Json]:
        """With an iterator of all divergences."""
        first = self.first
        return {
            "same": self.same,
            "counts": {kind.value: number for kind, number in self.counts.items()},
            "first": None if first is None else first.to_json(),
            "divergences": (divergence.to_json() for divergence in self.divergences()),
        }


def diff_runs(old: Recorded, new: Recorded, order: Sequence[str], leave_out: Collection[str] = ()) -> DiffReport:
    """Pair actions by (label, item, kind), those of a kind in `leave_out` apart.

    `order` is the labels in dependency order; others come last, by name.
    """
    merge = _Merge(old, new, frozenset(kind.encode() for kind in leave_out))
    merge.run()
    position = {label: index for index, label in enumerate(order)}
    last = len(position)
    labels = sorted(merge.found, key=lambda label: (position.get(label.decode(), last), label))
    return DiffReport(old, new, merge.same, merge.counts, [merge.found[label] for label in labels])


@dataclass
class _Merge:
    """`found` has three numbers for each divergence: its kind, and its offsets in the old and the new file."""

    old: Recorded
    new: Recorded
    leave_out: frozenset[bytes]
    same: int = 0
    counts: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    found: "dict[bytes, array[int]]" = field(default_factory=dict)
    _item: list[tuple[Place, Kind, int, int]] = field(default_factory=list)

    def run(self) -> None:
        left, right = _Side(self.old), _Side(self.new)
        while left.raw is not None or right.raw is not None:
            if left.raw == right.raw and not self.leave_out:
                self.same += 1
                left.advance()
                right.advance()
                continue
            old, new = left.line(), right.line()
            place = min(line.place for line in (old, new) if line is not None)
            old = old if old is not None and old.place == place else None
            new = new if new is not None and new.place == place else None
            if place.kind not in self.leave_out:
                self._compare(place, old, left.offset, new, right.offset)
            if old is not None:
                left.advance()
            if new is not None:
                right.advance()
        self._end_item()

    def _compare(self, place: Place, old: Line | None, left: int, new: Line | None, right: int) -> None:
        kind = _kind(old, new)
        if kind is None:
            self.same += 1
            return
        self.counts[kind] += 1
        if self._item and self._item[0][0][:2] != place[:2]:
            self._end_item()
        self._item.append((place, kind, _ABSENT if old is None else left, _ABSENT if new is None else right))

    def _end_item(self) -> None:
        """Take over the actions of one item, in the order in which they are made."""
        for place, kind, left, right in sorted(self._item, key=lambda found: _rank(found[0])):
            self.found.setdefault(place.label, array("q")).extend((_KINDS.index(kind), left, right))
        self._item.clear()


class _Side:
    """The line that a file is at, parsed at most once; `raw` is None behind the last one."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._lines = recorded.raw()
        self._line: Line | None = None
        self.raw: bytes | None = None
        self.offset = 0
        self.advance()

    def advance(self) -> None:
        self.offset, self.raw = next(self._lines, (self.offset, None))
        self._line = None

    def line(self) -> Line | None:
        if self._line is None and self.raw is not None:
            self._line = self._recorded.line(self.raw)
        return self._line


def _kind(old: Line | None, new: Line | None) -> Kind | None:
    if old is None:
        return Kind.ONLY_NEW
    if new is None:
        return Kind.ONLY_OLD
    if old.key == new.key:
        return None if old.result == new.result else Kind.BYTES
    return Kind.CUTOFF if old.result == new.result else Kind.KEY


def _rank(place: Place) -> tuple[int, bytes]:
    kind = place.kind.decode()
    return _IN_ITEM.index(kind) if kind in _IN_ITEM else -1, place.kind


def _line_at(recorded: Recorded, offset: int) -> DigestLine | None:
    return None if offset == _ABSENT else recorded.parse(recorded.at(offset))

"""Two runs compared action by action: the first that differs, in the order in which the plan builds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mrp.cache.canonical import Json
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

_IN_ITEM = ("trial", "grade")


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
    """`divergences` in build order, so the first one is where the runs part; `same` counts equal actions."""

    divergences: tuple[Divergence, ...]
    same: int

    @property
    def first(self) -> Divergence | None:
        return self.divergences[0] if self.divergences else None

    def of_kind(self, kind: Kind) -> list[Divergence]:
        return [divergence for divergence in self.divergences if divergence.kind is kind]

    def to_json(self) -> Json:
        return {
            "same": self.same,
            "counts": {kind.value: len(self.of_kind(kind)) for kind in Kind},
            "first": None if self.first is None else self.first.to_json(),
            "divergences": [divergence.to_json() for divergence in self.divergences],
        }


def diff_runs(old: Iterable[DigestLine], new: Iterable[DigestLine], order: Sequence[str]) -> DiffReport:
    """Pair actions by (label, item, kind). `order` is the labels in dependency order; others come last, by name."""
    position = {label: index for index, label in enumerate(order)}
    before = {(line.label, line.item, line.kind): line for line in old}
    after = {(line.label, line.item, line.kind): line for line in new}
    found = []
    same = 0
    for identity in before.keys() | after.keys():
        kind = _compare(before.get(identity), after.get(identity))
        if kind is None:
            same += 1
        else:
            found.append(Divergence(kind, before.get(identity), after.get(identity)))
    found.sort(key=lambda divergence: _rank(divergence, position))
    return DiffReport(tuple(found), same)


def _compare(old: DigestLine | None, new: DigestLine | None) -> Kind | None:
    if old is None:
        return Kind.ONLY_NEW
    if new is None:
        return Kind.ONLY_OLD
    if old.key == new.key:
        return None if old.result == new.result else Kind.BYTES
    return Kind.CUTOFF if old.result == new.result else Kind.KEY


def _rank(divergence: Divergence, position: dict[str, int]) -> tuple[int, str, str, int, str]:
    label, item, kind = divergence.identity
    within = _IN_ITEM.index(kind) if kind in _IN_ITEM else -1
    return position.get(label, len(position)), label, item, within, kind

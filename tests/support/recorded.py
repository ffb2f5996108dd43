"""Runs of any size without running anything: files as a run writes them."""

from collections.abc import Iterable
from pathlib import Path

from mrp.cache.canonical import canonical_text
from mrp.runtime.recorded import Recorded
from mrp.runtime.runs import DigestLine


def line(label: str, item: str, kind: str, key: str, result: str = "r", outcome: str = "ok") -> DigestLine:
    return DigestLine(label, item, kind, key, result, outcome, True)


def many(count: int, label: str = "//:solve", key: str = "k") -> list[DigestLine]:
    """A trial and a grade for each of `count` items."""
    items = [f"task-{number:06d}" for number in range(count)]
    return [line(label, item, kind, f"{key}-{item}-{kind}") for item in items for kind in ("grade", "trial")]


def recorded(path: Path, lines: Iterable[DigestLine]) -> Recorded:
    """The actions of a run that had these, open."""
    ordered = sorted(lines, key=lambda one: (one.label, one.item, one.kind))
    path.write_text("".join(canonical_text(one.to_json()) + "\n" for one in ordered))
    return Recorded(path)

"""What must be reached: ratios of medians in one run, from the table of the issue on speed."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.results import Results

MIB = 1024**2


@dataclass(frozen=True)
class Measured:
    """One median: of a row of a benchmark by a tool."""

    benchmark: str
    row: str
    tool: str


@dataclass(frozen=True)
class Bar:
    """`ours` may be at most `must` times `against`, and is hoped to be `hope` times it."""

    work: str
    ours: Measured
    against: Measured
    must: float
    hope: float | None = None

    def ratio(self, results: Mapping[str, Results]) -> float | None:
        """The ratio that was measured; None when a side of it was not."""
        ours, against = seconds(results, self.ours), seconds(results, self.against)
        return ours / against if ours is not None and against else None


@dataclass(frozen=True)
class MemoryBar:
    """The largest process of `ours` may need at most `must` bytes, and is hoped to need `hope`."""

    work: str
    ours: Measured
    must: int
    hope: int

    def memory(self, results: Mapping[str, Results]) -> int | None:
        """The bytes that were measured."""
        known = results.get(self.ours.benchmark)
        spread = known.spread(self.ours.row, self.ours.tool) if known else None
        return spread.memory if spread else None


def seconds(results: Mapping[str, Results], what: Measured) -> float | None:
    """The median of `what` in seconds; None when it was not measured."""
    known = results.get(what.benchmark)
    spread = known.spread(what.row, what.tool) if known else None
    return spread.median if spread else None


def _bar(work: str, benchmark: str, ours: str, against: str, must: float, hope: float | None = None) -> Bar:
    """A bar in one benchmark; `ours` and `against` are a row and a tool, as in `null/mrp`."""
    row, tool = ours.split("/")
    other_row, other_tool = against.split("/")
    return Bar(work, Measured(benchmark, row, tool), Measured(benchmark, other_row, other_tool), must, hope)


def _growth(row: str) -> Bar:
    small, large = (Measured(f"w1-{size}", row, "mrp") for size in (10_000, 100_000))
    return Bar(f"W1 {row}, growth from 10,000 to 100,000", large, small, 12, 10)


BARS: tuple[Bar, ...] = (
    _bar("`mrp --version`", "version", "start/mrp", "start/python", 2.5, 1.5),
    _bar("W1 null, 10,000", "w1-10000", "null/mrp", "null/ninja", 2, 1.2),
    _bar("W1 null, 10,000", "w1-10000", "null/mrp", "null/bazel", 0.5),
    _bar("W1 null, 100,000", "w1-100000", "null/mrp", "null/ninja", 1.5, 1),
    _bar("W1 one leaf edited, 10,000", "w1-10000", "edit/mrp", "edit/ninja", 5, 3),
    _bar("W1 one leaf edited, 10,000", "w1-10000", "edit/mrp", "edit/bazel", 0.5),
    _bar("W1 touch without change, 10,000", "w1-10000", "touch/mrp", "null/ninja", 5),
    _bar("W1 revert after edit, 10,000", "w1-10000", "revert/mrp", "null/ninja", 5),
    _bar("W1 cold, 1,000, sandboxed", "w1-1000", "cold/mrp sandboxed", "cold/bazel", 0.45, 0.3),
    _bar("W1 cold, 10,000, isolation none", "w1-10000", "cold/mrp", "cold/ninja", 2, 1.4),
    _bar("W1 outputs deleted, cache kept, 10,000", "w1-10000", "deleted/mrp", "cold/mrp", 0.1),
    _bar("10,000 items, pure, first", "pure-10000", "first/mrp", "first/ray", 0.6, 0.3),
    _bar("10,000 items, pure, all cached", "pure-10000", "again/mrp", "again/redun", 0.05),
    _bar("10,000 items, pure, all cached", "pure-10000", "again/mrp", "again/joblib", 0.1),
    _bar("10,000 items, pure, on Ray", "ray-10000", "first/mrp", "first/ray", 0.5),
    _bar("1,000 trials, forked, sandboxed", "trials-1000", "first/mrp", "first/bazel", 0.45, 0.3),
    _bar("1,000-sample eval, first", "eval-1000", "first/mrp", "first/inspect_ai", 0.3),
    _bar("1,000-sample eval, one sample edited", "eval-1000", "edited/mrp", "edited/inspect_ai", 0.03),
    _bar("2 GiB file, first hash", "file-2GiB", "first/mrp", "first/python", 1.5, 1.1),
    _bar("2 GiB file, check again", "file-2GiB", "again/mrp", "again/python", 2, 1.1),
    _bar("50,000 files of 4 KiB, first", "files-50000", "first/mrp", "first/python", 1.5),
    _bar("50,000 files of 4 KiB, check again", "files-50000", "again/mrp", "again/python", 1.5),
    _growth("null"),
    _growth("edit"),
    _growth("cold"),
)

MEMORY_BARS: tuple[MemoryBar, ...] = (
    MemoryBar("peak memory, 100,000 items", Measured("pure-100000", "first", "mrp"), 600 * MIB, 250 * MIB),
)

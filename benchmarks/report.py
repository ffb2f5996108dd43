"""The results as Markdown: first what must be reached, then everything that was measured."""

from collections.abc import Mapping, Sequence

from benchmarks.bars import BARS, MEMORY_BARS, MIB, Bar, MemoryBar, seconds
from benchmarks.results import Results, Spread

OWN_TOOLS = ("mrp", "mrp sandboxed")


def report(results: Sequence[Results], *, plot: str | None) -> str:
    """The whole document; `plot` is the file of the picture. Without one, bars that were not measured are left out."""
    by_name = {each.benchmark: each for each in results}
    parts = [
        "# Benchmarks",
        "Made by `make bench`; [README.md](README.md) says how. Times are medians of wall time of whole processes, in "
        "seconds unless said otherwise, in rounds in which all tools take turns. A ratio is mrp's median by that of "
        "the other tool: below 1 mrp is faster.",
        *([f"![medians by tool]({plot})"] if plot else []),
        _machine(results),
        _bars(by_name, whole=plot is not None),
        *(_benchmark(each) for each in results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(results: Sequence[Results]) -> str:
    if not results:
        return "Nothing was measured."
    machine = "; ".join(f"{name}: {value}" for name, value in results[0].machine.items() if not name.startswith("load"))
    loads = [float(each.machine["load at the start"]) for each in results]
    tools = {name: {each.versions[name] for each in results} for name in results[-1].versions}
    rows = [[name, "; ".join(sorted(found))] for name, found in tools.items()]
    return (
        f"## Machine and tools\n\n{machine}. Load when a benchmark began: {min(loads):.1f} to {max(loads):.1f}.\n\n"
        + _table(["tool", "version"], rows)
    )


def _bars(results: Mapping[str, Results], *, whole: bool) -> str:
    rows = [_bar_row(bar, results) for bar in BARS if whole or bar.ratio(results) is not None]
    rows += [_memory_row(bar, results) for bar in MEMORY_BARS if whole or bar.memory(results) is not None]
    if not rows:
        return ""
    head = ["work", "mrp", "against", "ratio", "must reach", "hope for", "verdict"]
    return "## What must be reached\n\n" + _table(head, rows)


def _bar_row(bar: Bar, results: Mapping[str, Results]) -> list[str]:
    ours, against, ratio = seconds(results, bar.ours), seconds(results, bar.against), bar.ratio(results)
    name = bar.against.tool if bar.against.benchmark == bar.ours.benchmark else bar.against.benchmark
    if bar.against.row != bar.ours.row:
        name += f" {bar.against.row}"
    hope = f"{bar.hope:g} x" if bar.hope else ""
    against_text = f"{name} {_seconds(against)}" if against is not None else f"{name}: not measured"
    ours_text = _seconds(ours) if ours is not None else "not measured"
    ratio_text = f"{ratio:.3g} x" if ratio is not None else ""
    return [bar.work, ours_text, against_text, ratio_text, f"{bar.must:g} x", hope, _verdict(ratio, bar.must, bar.hope)]


def _memory_row(bar: MemoryBar, results: Mapping[str, Results]) -> list[str]:
    memory = bar.memory(results)
    text = _memory(memory) if memory is not None else "not measured"
    return [bar.work, text, "", "", _memory(bar.must), _memory(bar.hope), _verdict(memory, bar.must, bar.hope)]


def _verdict(value: float | None, must: float, hope: float | None) -> str:
    if value is None:
        return "not measured"
    if value > must:
        return f"**missed**, {value / must:.2g} times the bar"
    return "hope reached" if hope is not None and value <= hope else "met"


def _benchmark(results: Results) -> str:
    rows = []
    for row in results.rows:
        for tool in results.tools:
            spread = results.spread(row, tool)
            if spread is not None:
                rows.append(_measured_row(results, row, tool, spread))
    head = ["row", "tool", "median", "least", "most", "rounds", "CPU", "peak memory", "ratio"]
    problems = "".join(f"\n- {tool}: {reason}" for tool, reason in results.problems.items())
    return "\n\n".join(
        part
        for part in (
            f"## {results.benchmark}",
            results.about,
            _table(head, rows) if rows else "",
            f"Left out or not finished:\n{problems}" if problems else "",
        )
        if part
    )


def _measured_row(results: Results, row: str, tool: str, spread: Spread) -> list[str]:
    own = results.spread(row, "mrp")
    ratio = f"{own.median / spread.median:.3g} x" if own and tool not in OWN_TOOLS else ""
    if sandboxed := results.spread(row, "mrp sandboxed") if ratio else None:
        ratio += f", sandboxed {sandboxed.median / spread.median:.3g} x"
    count = results.count(row, tool)
    return [
        row,
        tool,
        *_values(results.unit, spread, count),
        str(spread.rounds),
        _seconds(spread.cpu) if spread.cpu is not None else "",
        _memory(spread.memory) if spread.memory is not None else "",
        ratio,
    ]


def _values(unit: str, spread: Spread, count: int | None) -> list[str]:
    """Median, least and most; with a `count` of pieces, also what one of them took."""
    if unit == "calls":
        return [f"{value:,.0f} calls" for value in (spread.median, spread.least, spread.most)]
    each = f" ({_seconds(spread.median / count)} each of {count:,})" if count else ""
    return [_seconds(spread.median) + each, _seconds(spread.least), _seconds(spread.most)]


def _seconds(value: float) -> str:
    if value >= 10:
        return f"{value:.1f} s"
    if value >= 1:
        return f"{value:.2f} s"
    if value >= 0.001:
        return f"{value * 1000:.3g} ms"
    return f"{value * 1e6:.3g} µs"


def _memory(value: float) -> str:
    return f"{value / MIB:.0f} MiB"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

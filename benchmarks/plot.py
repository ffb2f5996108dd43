"""The medians as a picture: a line for each row of work, a dot for each tool, seconds on a logarithmic scale.

A red stroke is where mrp must be at most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.bars import BARS, seconds
from benchmarks.results import Results

COLORS = {
    "mrp": "#c0392b",
    "mrp sandboxed": "#e59866",
    "ninja": "#1f618d",
    "bazel": "#239b56",
    "snakemake": "#b7950b",
    "redun": "#7d3c98",
    "dvc": "#138d75",
    "ray": "#2e86c1",
    "joblib": "#566573",
    "inspect_ai": "#a04000",
    "python": "#17202a",
}
LEFT, WIDTH, RIGHT, TOP, LINE = 190, 640, 30, 70, 18


@dataclass(frozen=True)
class Scale:
    """Seconds to pixels, from one power of ten to another."""

    low: int
    high: int

    def x(self, seconds: float) -> float:
        """Where `seconds` lies."""
        return LEFT + WIDTH * (math.log10(seconds) - self.low) / (self.high - self.low)


def plot(results: Sequence[Results]) -> str:
    """An SVG of all medians in `results`."""
    lines = [
        (f"{each.benchmark} {row}", points)
        for each in results
        if each.unit == "seconds"
        for row in each.rows
        if (points := {tool: found.median for tool in each.tools if (found := each.spread(row, tool))})
    ]
    if not lines:
        return _document(TOP, [])
    limits = _limits(results)
    medians = [median for _, points in lines for median in points.values()]
    scale = Scale(math.floor(math.log10(min(medians))), math.ceil(math.log10(max(medians) * 1.001)))
    bottom = TOP + LINE * len(lines)
    used = {tool for _, points in lines for tool in points}
    parts = [*_legend([tool for tool in COLORS if tool in used]), *_grid(scale, bottom)]
    for number, (name, points) in enumerate(lines):
        y = TOP + LINE * number + LINE / 2
        parts += [*_line(name, points, scale, y), *_strokes(limits.get(name, []), scale, y)]
    return _document(bottom + 20, parts)


def _legend(tools: Sequence[str]) -> list[str]:
    parts: list[str] = []
    x, y = 20.0, 20.0
    for tool in tools:
        width = 30 + 7 * len(tool)
        if x + width > LEFT + WIDTH + RIGHT:
            x, y = 20.0, y + LINE
        parts += [_dot(x, y - 4, tool), _text(x + 10, y, tool)]
        x += width
    return parts


def _grid(scale: Scale, bottom: float) -> list[str]:
    parts = []
    for power in range(scale.low, scale.high + 1):
        x = scale.x(10.0**power)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#ccc"/>')
        label = f"{10**power:g} s" if power >= 0 else f"{10 ** (power + 3):g} ms" if power >= -3 else f"1e{power} s"
        parts.append(_text(x, TOP - 8, label, anchor="middle"))
    return parts


def _line(name: str, points: dict[str, float], scale: Scale, y: float) -> list[str]:
    ends = [scale.x(edge(points.values())) for edge in (min, max)]
    parts = [
        _text(LEFT - 12, y + 4, name, anchor="end"),
        f'<line x1="{ends[0]:.1f}" y1="{y}" x2="{ends[1]:.1f}" y2="{y}" stroke="#999"/>',
    ]
    return parts + [_dot(scale.x(points[tool]), y, tool) for tool in reversed(COLORS) if tool in points]


def _limits(results: Sequence[Results]) -> dict[str, list[float]]:
    """By line, the seconds that mrp must reach."""
    by_name = {each.benchmark: each for each in results}
    limits: dict[str, list[float]] = {}
    for bar in BARS:
        if (against := seconds(by_name, bar.against)) is not None:
            limits.setdefault(f"{bar.ours.benchmark} {bar.ours.row}", []).append(against * bar.must)
    return limits


def _strokes(limits: Sequence[float], scale: Scale, y: float) -> list[str]:
    places = [scale.x(limit) for limit in limits]
    return [
        f'<line x1="{x:.1f}" y1="{y - 8}" x2="{x:.1f}" y2="{y + 8}" stroke="{COLORS["mrp"]}" stroke-width="2"/>'
        for x in places
        if x <= LEFT + WIDTH
    ]


def _dot(x: float, y: float, tool: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{COLORS[tool]}"><title>{escape(tool)}</title></circle>'


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _document(height: float, parts: Sequence[str]) -> str:
    width = LEFT + WIDTH + RIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" font-family="sans-serif" '
            'font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )

"""System calls of a null build: work counted, not timed, so that it says the same on a busy machine."""

from dataclasses import replace
from pathlib import Path

from benchmarks.environments import HERE, MRP, program
from benchmarks.measure import measure
from benchmarks.terms import Benchmark, Contestant
from benchmarks.workloads.w1 import TOOLS

LIMIT = 600.0
"""Seconds that the cold build may take."""


def null_calls(size: int, *, rounds: int = 3) -> Benchmark:
    """The calls of W1's null build with `size` leaves, and of builds after an edit of one leaf and its revert."""

    def contestants(folder: Path) -> list[Contestant]:
        return [_counting(TOOLS[tool](folder / tool, size, {})) for tool in ("mrp", "ninja")]

    about = f"System calls of W1's builds with {size:,} leaves, counted by strace. The builds are those of w1-{size}."
    return Benchmark(f"calls-{size}", about, ("edit", "revert", "null"), rounds, contestants, "calls")


def _counting(contestant: Contestant) -> Contestant:
    """The same contestant under strace, which begins after its cold build."""
    counter = (str(MRP / "python"), str(HERE / "programs" / "count_calls.py"), program("strace", "strace"))
    steps = {
        row: replace(step, command=(*counter, *step.command), inside=True) for row, step in contestant.steps.items()
    }

    def prepare() -> None:
        contestant.prepare()
        cold = contestant.steps["cold"]
        cold.check(measure(cold.command, cold.folder, cold.environment, LIMIT))

    return replace(contestant, prepare=prepare, steps=steps, peer="strace")

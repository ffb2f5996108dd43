"""Running a benchmark: in each round every row is done by all contestants, one after the other.

So what disturbs the machine for a while disturbs all of them. Which contestant comes first changes from round to round.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.environments import installed
from benchmarks.machine import machine, versions
from benchmarks.measure import Finished, measure
from benchmarks.places import without_places
from benchmarks.results import Results, Sample
from benchmarks.terms import Benchmark, Contestant, Step, WrongWork

LIMIT = 1800.0
"""Seconds after which a step is killed."""

OWN = "mrp"
"""Contestants whose name begins with this are ours: that they cannot do the work is an error of the run."""


def run(benchmark: Benchmark, folder: Path, rounds: int) -> Results:
    """Do `benchmark` in `folder`, which is emptied before and removed after. A contestant that fails is left out from
    there on, with the reason in the results."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    before, contestants = machine(), benchmark.contestants(folder)
    problems: dict[str, str] = {}
    prepared: list[Contestant] = []
    try:
        for contestant in contestants:
            _say(f"{benchmark.name}: preparing {contestant.tool}")
            if problem := _prepare(contestant):
                problems[contestant.tool] = problem
            else:
                prepared.append(contestant)
        samples = [
            sample
            for number in range(rounds)
            for row in benchmark.rows
            for sample in _row(row, number, prepared, problems)
        ]
    finally:
        for contestant in prepared:
            contestant.finish()
        shutil.rmtree(folder, ignore_errors=True)
    counts = {
        f"{row}/{each.tool}": step.count for each in contestants for row, step in each.steps.items() if step.count
    }
    tools = tuple(contestant.tool for contestant in contestants)
    return Results(
        benchmark=benchmark.name,
        unit=benchmark.unit,
        about=benchmark.about,
        rows=benchmark.rows,
        tools=tools,
        samples=tuple(samples),
        problems=problems,
        counts=counts,
        machine=before,
        versions=versions(),
    )


def _prepare(contestant: Contestant) -> str | None:
    """Why `contestant` cannot take part; None when it can."""
    absent = installed(contestant.peer).absent if contestant.peer else None
    if absent:
        return f"absent: {absent}"
    try:
        contestant.prepare()
    except (WrongWork, OSError, subprocess.CalledProcessError) as error:
        return f"it could not be prepared: {without_places(str(error))}"
    return None


def _row(row: str, number: int, contestants: Sequence[Contestant], problems: dict[str, str]) -> Iterator[Sample]:
    """One row of one round by all that had no problem so far."""
    for contestant in _rotated(contestants, number):
        step = contestant.steps.get(row)
        if step is None or contestant.tool in problems or (step.rounds is not None and number >= step.rounds):
            continue
        _say(f"  {number + 1} {row}: {contestant.tool}", end=" ")
        try:
            finished, value = _done(step)
        except (WrongWork, OSError, subprocess.CalledProcessError) as error:
            problems[contestant.tool] = f"{row}, round {number + 1}: {without_places(str(error))}"
            _say(f"failed: {error}")
        else:
            _say(f"{value:.3f}")
            yield _sample(contestant, row, number, value, finished)


def _rotated(contestants: Sequence[Contestant], by: int) -> list[Contestant]:
    start = by % len(contestants) if contestants else 0
    return [*contestants[start:], *contestants[:start]]


def _done(step: Step) -> tuple[Finished, float]:
    """The step's measurement and its value. What is still to be written to disk of earlier steps is written first."""
    step.before()
    os.sync()
    finished = measure(step.command, step.folder, step.environment, LIMIT)
    if finished.code != 0:
        lines = finished.output.strip().splitlines() or ["nothing was printed"]
        raise WrongWork(f"exit code {finished.code}: {lines[-1][:200]}")
    step.check(finished)
    if not step.inside:
        return finished, finished.seconds
    said = re.search(r"^value: ([0-9.e-]+)$", finished.output, re.MULTILINE)
    if said is None:
        raise WrongWork("the command did not say what it measured")
    return finished, float(said[1])


def _sample(contestant: Contestant, row: str, number: int, value: float, finished: Finished) -> Sample:
    if contestant.served or contestant.steps[row].inside:
        return Sample(row, contestant.tool, number, value, None, None)
    return Sample(row, contestant.tool, number, value, finished.cpu, finished.memory)


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)

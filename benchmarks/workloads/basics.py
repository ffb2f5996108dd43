"""What nothing can be faster than: starting, spawning, walking and hashing on this machine."""

from pathlib import Path

from benchmarks.environments import HERE, MRP
from benchmarks.terms import Benchmark, Contestant, Step, nothing
from benchmarks.workloads.mrp import PROGRAM

PYTHON = str(MRP / "python")


def starting(*, rounds: int = 21) -> Benchmark:
    """`mrp --version` against a Python that does nothing."""

    def contestants(folder: Path) -> list[Contestant]:
        return [
            Contestant("mrp", nothing, {"start": Step((PROGRAM, "--version"), folder)}),
            Contestant("python", nothing, {"start": Step((PYTHON, "-c", "pass"), folder)}),
        ]

    return Benchmark(
        "version", "`mrp --version` against `python3 -c pass`, the same interpreter.", ("start",), rounds, contestants
    )


def limits(*, rounds: int = 5) -> Benchmark:
    """Raw limits in one Python process each, timed inside."""
    rows = {"spawn": 1000, "walk": 10_000, "blake3": 256}

    def contestants(folder: Path) -> list[Contestant]:
        steps = {
            row: Step((PYTHON, str(HERE / "programs" / "limits.py"), row, str(count)), folder, inside=True, count=count)
            for row, count in rows.items()
        }
        return [Contestant("python", nothing, steps)]

    about = (
        "spawn: posix_spawn of /bin/true, one after the other; walk: scandir and stat of files, 100 in a folder; "
        "blake3: MiB in one thread."
    )
    return Benchmark("limits", about, tuple(rows), rounds, contestants)

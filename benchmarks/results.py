"""Raw results: one JSON file a benchmark, written when all its rounds are done, so that a long run can be resumed."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Sample:
    """One measured step. `value` is in the benchmark's unit: seconds of wall time, or calls.

    `cpu` are seconds and `memory` bytes; both are only there where they are those of the work.
    """

    row: str
    tool: str
    round: int
    value: float
    cpu: float | None
    memory: int | None


@dataclass(frozen=True)
class Spread:
    """The values of a step over its rounds, and the medians of CPU and memory."""

    rounds: int
    median: float
    least: float
    most: float
    cpu: float | None
    memory: int | None


@dataclass(frozen=True)
class Results:
    """All samples of a benchmark. `problems` says by tool why it is absent or did not finish; `counts` how many pieces
    of work a step had, by row and tool, where the time of one piece is of interest."""

    benchmark: str
    unit: str
    about: str
    rows: tuple[str, ...]
    tools: tuple[str, ...]
    samples: tuple[Sample, ...]
    problems: dict[str, str]
    counts: dict[str, int]
    machine: dict[str, str]
    versions: dict[str, str]

    def spread(self, row: str, tool: str) -> Spread | None:
        """What was measured of one step; None when nothing was."""
        samples = [sample for sample in self.samples if (sample.row, sample.tool) == (row, tool)]
        if not samples:
            return None
        values = [sample.value for sample in samples]
        cpu = [sample.cpu for sample in samples if sample.cpu is not None]
        memory = [sample.memory for sample in samples if sample.memory is not None]
        return Spread(
            len(samples),
            median(values),
            min(values),
            max(values),
            median(cpu) if cpu else None,
            int(median(memory)) if memory else None,
        )

    def count(self, row: str, tool: str) -> int | None:
        """How many pieces of work the step had."""
        return self.counts.get(f"{row}/{tool}")


def save(results: Results, folder: Path) -> None:
    """Write `results` into `folder`, over those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, results.benchmark)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(asdict(results), indent=1) + "\n")
    beside.replace(path)


def load(folder: Path, benchmark: str) -> Results | None:
    """The results of an earlier run; None when there are none."""
    try:
        known = json.loads(_path(folder, benchmark).read_bytes())
    except FileNotFoundError:
        return None
    samples = tuple(Sample(**sample) for sample in known.pop("samples"))
    results = Results(samples=samples, **known)
    return replace(results, rows=tuple(results.rows), tools=tuple(results.tools))


def _path(folder: Path, benchmark: str) -> Path:
    return folder / f"{benchmark}.json"

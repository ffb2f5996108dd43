"""Runs: one folder each under .mrp/runs, with a lease that the kernel gives up when its process dies."""

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from mrp.cache.canonical import Json, canonical_text
from mrp.specs.errors import InfraError, UsageError

_LEASE = "lease"


@dataclass(frozen=True)
class DigestLine:
    """One action of a run, as digests.jsonl holds it."""

    label: str
    item: str
    kind: str
    key: str
    result: str
    outcome: str
    reproducible: bool

    def to_json(self) -> Json:
        return {
            "label": self.label,
            "item": self.item,
            "kind": self.kind,
            "key": self.key,
            "result": self.result,
            "outcome": self.outcome,
            "reproducible": self.reproducible,
        }


class Run:
    """A run under way: its folder, scratch space and lease."""

    def __init__(self, state: Path) -> None:
        self.run_id = _next_id(state)
        self.folder = state / "runs" / self.run_id
        self.scratch = state / "tmp" / self.run_id
        self.folder.mkdir(parents=True)
        self.scratch.mkdir(parents=True)
        self._lease = os.open(self.folder / _LEASE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._lease, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write_digests(self, lines: Iterable[DigestLine]) -> None:
        """digests.jsonl, sorted by label, item and kind."""
        ordered = sorted(lines, key=lambda line: (line.label, line.item, line.kind))
        write_whole(self.folder / "digests.jsonl", "".join(canonical_text(line.to_json()) + "\n" for line in ordered))

    def write_record(self, record: Json) -> None:
        """run.json."""
        write_whole(self.folder / "run.json", canonical_text(record) + "\n")

    def close(self) -> None:
        """Remove the scratch space and give up the lease."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        os.close(self._lease)


def sweep_dead_runs(state: Path) -> list[Path]:
    """Remove the scratch space of runs whose process is gone; returns what was removed."""
    removed: list[Path] = []
    scratch = state / "tmp"
    if not scratch.is_dir():
        return removed
    for folder in scratch.iterdir():
        if not _is_alive(state / "runs" / folder.name):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def list_runs(state: Path) -> list[str]:
    """Ids of finished and unfinished runs, oldest first."""
    folder = state / "runs"
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def find_run(state: Path, name: str) -> Path:
    """The folder of a run named by id, unique prefix, `last` or `last~N`; raises UsageError."""
    runs = list_runs(state)
    if name == "last" or name.startswith("last~"):
        back = name[5:] or "0"
        if not back.isdigit() or int(back) >= len(runs):
            raise UsageError(f"there is no run {name!r}; this workspace has {len(runs)} runs")
        return state / "runs" / runs[-1 - int(back)]
    matching = [run for run in runs if run.startswith(name)]
    if len(matching) != 1:
        problem = "no run" if not matching else f"{len(matching)} runs"
        raise UsageError(f"{problem} match {name!r}; `mrp log` lists the runs")
    return state / "runs" / matching[0]


def read_record(folder: Path) -> dict[str, Json]:
    """A run's run.json; raises UsageError when the run did not get so far."""
    try:
        record: dict[str, Json] = json.loads((folder / "run.json").read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, ValueError):
        raise UsageError(f"run {folder.name} was cut off before it wrote its record; choose another") from None
    return record


def read_digests(folder: Path) -> Iterator[DigestLine]:
    """The lines of a run's digests.jsonl, in order."""
    path = folder / "digests.jsonl"
    if not path.exists():
        raise UsageError(f"run {folder.name} was cut off before it wrote its digests; choose another")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield DigestLine(**json.loads(line))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InfraError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from None


def _next_id(state: Path) -> str:
    """Numbered, so that runs stay in order whatever the clock does; the rest tells two that start together apart."""
    newest = max((int(run.partition("-")[0]) for run in list_runs(state)), default=0)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{newest + 1:05d}-{stamp}-{secrets.token_hex(2)}"


def _is_alive(folder: Path) -> bool:
    try:
        lease = os.open(folder / _LEASE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lease)
    return False

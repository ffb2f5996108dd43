"""Runs: one folder each under .mrp/runs, with a lease that the kernel gives up when its process dies.

run.json carries a checksum and the digest of digests.jsonl, so that a damaged record is told from a right one.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from mrp.cache.canonical import Json, canonical_digest, canonical_text, quoted
from mrp.cache.digest import digest_bytes
from mrp.runtime.sandbox.scratch import remove_folder, sweep
from mrp.runtime.state import explained, make_folder
from mrp.specs.errors import UsageError

_LEASE = "lease"


class DigestLine(NamedTuple):
    """One action of a run, as digests.jsonl holds it."""

    label: str
    item: str
    kind: str
    key: str
    result: str
    outcome: str
    reproducible: bool

    def to_json(self) -> Json:
        return self._asdict()

    def text(self) -> str:
        """The line in canonical JSON."""
        return (
            f'{{"item":{quoted(self.item)},"key":"{self.key}","kind":"{self.kind}","label":{quoted(self.label)}'
            f',"outcome":"{self.outcome}","reproducible":{"true" if self.reproducible else "false"}'
            f',"result":"{self.result}"}}'
        )


class DamagedRun(UsageError):
    """A file of the run is not what the run wrote."""


class Run:
    """A run under way: its folder, scratch space and lease. Raises InfraError when its files cannot be written."""

    def __init__(self, state: Path) -> None:
        with explained(state):
            make_folder(state / "runs")
            make_folder(state / "tmp")
            self.run_id = _next_id(state)
            self.folder = state / "runs" / self.run_id
            self.scratch = state / "tmp" / self.run_id
            self.folder.mkdir()
            self._lease = os.open(self.folder / _LEASE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lease, fcntl.LOCK_EX)
            # Last, since a scratch folder without a lease is swept by the next run that starts.
            self.scratch.mkdir()
        self._digests = ""

    def write_digests(self, text: bytes) -> None:
        """digests.jsonl: canonical JSON lines, sorted by label, item and kind."""
        write_whole(self.folder / "digests.jsonl", text)
        self._digests = digest_bytes(text)

    def write_record(self, record: dict[str, Json]) -> dict[str, Json]:
        """run.json, after the digests; gives the record with all that its checksum covers."""
        sealed = {**record, "digests": self._digests}
        text = canonical_text({**sealed, "checksum": canonical_digest(sealed)}) + "\n"
        write_whole(self.folder / "run.json", text.encode())
        return sealed

    def forget(self) -> None:
        """Leave no trace of a run that executed nothing and was given up for another one."""
        for name in ("events.jsonl", "digests.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / _LEASE).unlink()
        self.folder.rmdir()

    def close(self) -> None:
        """Remove the scratch space and give up the lease."""
        remove_folder(self.scratch)
        os.close(self._lease)


def sweep_dead_runs(state: Path) -> list[Path]:
    """Remove the scratch space of runs whose process is gone; returns what was removed. Raises InfraError."""
    scratch = state / "tmp"
    with explained(scratch):
        left = list(scratch.iterdir()) if scratch.is_dir() else []
    dead = [folder for folder in left if not is_alive(state, folder.name)]
    for folder in dead:
        sweep(folder)
        remove_folder(folder)
    return dead


def list_runs(state: Path) -> list[str]:
    """Ids of finished and unfinished runs, oldest first; what else stands among them is no run."""
    folder = state / "runs"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if _number(name).isdecimal())


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
        problem = "no run matches" if not matching else f"{len(matching)} runs match"
        raise UsageError(f"{problem} {name!r}; `mrp log` lists the runs")
    return state / "runs" / matching[0]


def read_record(folder: Path) -> dict[str, Json]:
    """A run's run.json; raises UsageError when the run did not get so far, and DamagedRun when the file is damaged."""
    text = _read(folder, "run.json", "record")
    try:
        record: dict[str, Json] = json.loads(text, parse_float=Decimal)
        if record.pop("checksum") == canonical_digest(record):
            return record
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise _damaged(folder, "run.json")


def read_digests(folder: Path) -> Iterator[DigestLine]:
    """The lines of a run's digests.jsonl, in order; raises UsageError as read_record does."""
    text = _read(folder, "digests.jsonl", "digests")
    if digest_bytes(text) != read_record(folder)["digests"]:
        raise _damaged(folder, "digests.jsonl")
    for line in text.splitlines():
        yield DigestLine(**json.loads(line))


def _read(folder: Path, name: str, what: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise UsageError(f"run {folder.name} was cut off before it wrote its {what}; choose another") from None
    except OSError:
        raise _damaged(folder, name) from None


def _damaged(folder: Path, name: str) -> DamagedRun:
    return DamagedRun(f"{name} of run {folder.name} is damaged, so what it says is not shown; choose another run")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises InfraError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _next_id(state: Path) -> str:
    """Numbered, so that runs stay in order whatever the clock does; the rest tells two that start together apart."""
    newest = max((int(_number(run)) for run in list_runs(state)), default=0)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return f"{newest + 1:05d}-{stamp}-{os.urandom(2).hex()}"


def _number(run: str) -> str:
    return run.partition("-")[0]


def is_alive(state: Path, run: str) -> bool:
    """Whether the process of a run, by its id, still goes on."""
    try:
        lease = os.open(state / "runs" / run / _LEASE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lease)
    return False

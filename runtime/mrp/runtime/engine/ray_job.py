"""What the engine asks of a Ray worker, and what the worker says while it does it: plain values that are pickled."""

import copyreg
import io
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from mrp.cache.digest import Digest
from mrp.runtime.sandbox.protocol import Endpoint
from mrp.runtime.sandbox.provider import Owner
from mrp.specs.work import Completed, Mount, Process

BEAT_SECONDS = 1.0
"""A worker says something at least this often while it has a process."""

BLOB_SECONDS = 60.0
"""How long a worker waits for blobs from the machine of the build."""


@dataclass(frozen=True)
class Folder:
    """A folder of the build's machine, and what tells whether a worker sees the same one at that path.

    Only a process under the same kernel does: SQLite's log cannot be shared over a network file system.
    """

    path: str
    boot: str
    device: int
    inode: int

    def is_here(self) -> bool:
        """Whether this process sees that folder."""
        try:
            return folder_of(Path(self.path)) == self
        except OSError:
            return False


def folder_of(path: Path) -> Folder:
    """The folder at `path`, as this process sees it. Raises OSError."""
    status = path.stat()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Folder(os.fspath(path), boot, status.st_dev, status.st_ino)


@dataclass(frozen=True)
class Setup:
    """What a worker's store and sandbox backend are made of; the same for all jobs of a build.

    dead: ids of runs whose sandboxes may be swept. environment: of the vendors' SDKs, for workers alone.
    """

    version: str
    cache: Folder
    scratch: Folder
    sandbox: str
    require: str
    owner: Owner
    dead: frozenset[str] | None
    environment: tuple[tuple[str, str], ...] = field(repr=False)


@dataclass(frozen=True)
class Job:
    """Processes for one worker: one for `run`, several for `run_many`, none to ask how well it isolates."""

    setup: Setup
    processes: tuple[Process, ...] = ()
    tags: tuple[str, ...] = ()
    together: bool = False
    may_return: bool = False
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has the job. shared: it sees the build's own folders."""

    node: str
    shared: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a large blob that the build's store may lack, before the process that made it is Done."""

    digest: Digest
    data: bytes
    is_last: bool


@dataclass(frozen=True, slots=True)
class Done:
    """What came of one process, with the small blobs that it put."""

    number: int
    completed: Completed
    small: Mapping[Digest, bytes]


@dataclass(frozen=True, slots=True)
class Broke:
    """The sandbox backend failed; the number is that of the process."""

    number: int
    reason: str
    retryable: bool


@dataclass(frozen=True, slots=True)
class Lacks:
    """Blobs that the worker needs and could not get: nothing of the processes from `number` on has begun."""

    number: int
    missing: frozenset[Digest]


@dataclass(frozen=True, slots=True)
class Returned:
    """The processes from `number` on have not begun, and will not."""

    number: int


@dataclass(frozen=True, slots=True)
class Over:
    """The job's end: how many processes could share a sandbox, and how well the backend isolates."""

    taken: int
    isolation: str


_Reducer = Callable[[Any], Any]

Said = Started | Piece | Done | Broke | Lacks | Returned | Over


def packed(value: object) -> bytes:
    """`value` pickled. A dataclass with slots goes as its class and values: pickle itself would go through its fields
    in Python, on both sides, which takes longer than what some processes do.
    """
    out = io.BytesIO()
    pickler = pickle.Pickler(out, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _REDUCERS
    pickler.dump(value)
    return out.getvalue()


def _reducer(kind: type[Any]) -> _Reducer:
    names = [each.name for each in fields(kind)]
    if len(names) == 1:
        return lambda value: (kind, (getattr(value, names[0]),))
    values = attrgetter(*names)
    return lambda value: (kind, values(value))


_SLOTTED = (Process, Mount, Completed, Started, Piece, Done, Broke, Lacks, Returned, Over)
_REDUCERS: dict[type[Any], _Reducer] = {**copyreg.dispatch_table, **{kind: _reducer(kind) for kind in _SLOTTED}}

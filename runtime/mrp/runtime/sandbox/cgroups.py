"""Control groups: hard limits on memory, processor time and the number of processes, where this user may make them.

They are made below the group that mrp runs in, so that limits set on mrp hold too. Version 1 has a hierarchy for
each controller; version 2 has one, whose controllers must be delegated to this user.
"""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from mrp.specs.errors import InfraError

_CONTROLLERS = ("memory", "cpu", "pids")
_ACCOUNTING = "cpuacct"
_PERIOD = 100_000
_MIN_QUOTA = 1000
_REMOVAL_SECONDS = 5.0


@dataclass(frozen=True)
class Events:
    """How often limits were hit: processes killed for memory, and processes that could not be made."""

    memory: int = 0
    pids: int = 0


@dataclass(frozen=True)
class Hierarchy:
    """Where groups can be made: a parent folder for each controller (all the same in version 2)."""

    version: int
    parents: dict[str, Path]

    def create(self, name: str, *, memory: int, cpus: Decimal, pids: int) -> "Group":
        """A new group with these limits (bytes, cores, number); raises InfraError."""
        group = Group(self.version, {key: parent / name for key, parent in self.parents.items()})
        try:
            for folder in set(group.folders.values()):
                folder.mkdir()
            group.limit(memory, cpus, pids)
        except OSError as error:
            group.remove()
            raise InfraError(f"a control group could not be made: {error}") from error
        return group

    def find(self, prefix: str) -> list["Group"]:
        """The groups below the parents whose names start with `prefix`, each with the folders that are there."""
        names: dict[str, dict[str, Path]] = {}
        for key, parent in self.parents.items():
            with suppress(OSError):
                for child in parent.iterdir():
                    if child.name.startswith(prefix) and child.is_dir():
                        names.setdefault(child.name, {})[key] = child
        return [Group(self.version, folders) for _, folders in sorted(names.items())]


@dataclass(frozen=True)
class Group:
    """One group; `folders` by controller."""

    version: int
    folders: dict[str, Path]

    def limit(self, memory: int, cpus: Decimal, pids: int) -> None:
        quota = max(_MIN_QUOTA, int(cpus * _PERIOD))
        if self.version == 1:
            self._write("memory", "memory.limit_in_bytes", str(memory))
            self._write("memory", "memory.memsw.limit_in_bytes", str(memory), optional=True)
            self._write("cpu", "cpu.cfs_period_us", str(_PERIOD))
            self._write("cpu", "cpu.cfs_quota_us", str(quota))
        else:
            self._write("memory", "memory.max", str(memory))
            self._write("memory", "memory.swap.max", "0", optional=True)
            self._write("cpu", "cpu.max", f"{quota} {_PERIOD}")
        self._write("pids", "pids.max", str(pids))

    def process_files(self) -> list[Path]:
        """The files that a process enters the group by writing its id to them."""
        return sorted({folder / "cgroup.procs" for folder in self.folders.values()})

    def add(self, pid: int) -> None:
        """Put a process into the group; raises OSError when it is gone."""
        for file in self.process_files():
            _put(file, str(pid))

    def events(self) -> Events:
        """How often limits were hit so far."""
        with closing(self.counters()) as counters:
            return counters.events()

    def usage(self) -> tuple[float, int]:
        """Seconds of processor time, and the most bytes of memory at once, files in memory included; 0 if unknown."""
        with closing(self.counters()) as counters:
            return counters.usage()

    def counters(self) -> "Counters":
        """The group's counters, to be read again and again, and closed."""
        if self.version == 1:
            memory, cpu, peak = "memory.oom_control", "cpuacct.usage", "memory.max_usage_in_bytes"
        else:
            memory, cpu, peak = "memory.events", "cpu.stat", "memory.peak"
        return Counters(
            self.version,
            _opened(self.folders["memory"] / memory),
            _opened(self.folders["pids"] / "pids.events"),
            _opened(self.folders.get(_ACCOUNTING, self.folders["cpu"]) / cpu),
            _opened(self.folders["memory"] / peak),
        )

    def processes(self) -> list[int]:
        """The ids of the processes in the group."""
        found: set[int] = set()
        for file in self.process_files():
            with suppress(OSError):
                found.update(int(word) for word in file.read_text().split())
        return sorted(found - {0})

    def remove(self) -> None:
        """Kill what is in the group and remove it; what resists for some seconds is left for the next sweep."""
        deadline = time.monotonic() + _REMOVAL_SECONDS
        pause = 0.0005
        while True:
            if _remove_all(set(self.folders.values())):
                return
            for pid in self.processes():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def _write(self, controller: str, name: str, text: str, *, optional: bool = False) -> None:
        try:
            _put(self.folders[controller] / name, text)
        except OSError:
            if not optional:
                raise


@dataclass(frozen=True)
class Counters:
    """The open files of a group that count; -1 for one that is not there."""

    version: int
    memory: int
    pids: int
    cpu: int
    peak: int

    def events(self) -> Events:
        """See Group.events."""
        return Events(_counter(self.memory, b"oom_kill"), _counter(self.pids, b"max"))

    def usage(self) -> tuple[float, int]:
        """See Group.usage."""
        if self.version == 1:
            return _number(self.cpu) / 1e9, _number(self.peak)
        return _counter(self.cpu, b"usage_usec") / 1e6, _number(self.peak)

    def close(self) -> None:
        for descriptor in (self.memory, self.pids, self.cpu, self.peak):
            if descriptor >= 0:
                os.close(descriptor)


def find_hierarchy(proc_cgroup: str | None = None, mounts: str | None = None) -> Hierarchy | None:
    """Where this process may make groups with all three controllers; None when it may not.

    The arguments stand for /proc/self/cgroup and /proc/self/mounts.
    """
    try:
        own = Path("/proc/self/cgroup").read_text() if proc_cgroup is None else proc_cgroup
        mounted = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    except OSError:
        return None
    return _version_1(own, mounted) or _version_2(own, mounted)


def _version_1(own: str, mounts: str) -> Hierarchy | None:
    points: dict[str, Path] = {}
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[2] == "cgroup":
            for option in fields[3].split(","):
                if option in (*_CONTROLLERS, _ACCOUNTING):
                    points[option] = Path(fields[1])
    parents: dict[str, Path] = {}
    for line in own.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if name in points:
                parents[name] = points[name] / path.lstrip("/")
    parents = {name: parent for name, parent in parents.items() if os.access(parent, os.W_OK)}
    return Hierarchy(1, parents) if set(_CONTROLLERS) <= set(parents) else None


def _version_2(own: str, mounts: str) -> Hierarchy | None:
    point = next((line.split()[1] for line in mounts.splitlines() if line.split()[2:3] == ["cgroup2"]), None)
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::")), None)
    if point is None or path is None:
        return None
    parent = Path(point) / path.lstrip("/")
    try:
        if not set(_CONTROLLERS) <= set((parent / "cgroup.controllers").read_text().split()):
            return None
        # Refused where the group holds processes and is not the root: then its controllers are not ours to give on.
        _put(parent / "cgroup.subtree_control", " ".join(f"+{name}" for name in _CONTROLLERS))
    except OSError:
        return None
    return Hierarchy(2, dict.fromkeys(_CONTROLLERS, parent)) if os.access(parent, os.W_OK) else None


def _opened(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _counter(descriptor: int, name: bytes) -> int:
    for line in _read(descriptor).splitlines():
        key, _, value = line.partition(b" ")
        if key == name:
            return int(value)
    return 0


def _number(descriptor: int) -> int:
    try:
        return int(_read(descriptor))
    except ValueError:
        return 0


def _read(descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, 4096, 0) if descriptor >= 0 else b""
    except OSError:
        return b""


def _remove_all(folders: Iterable[Path]) -> bool:
    left = False
    for folder in folders:
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            left = True
    return not left


def _put(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)

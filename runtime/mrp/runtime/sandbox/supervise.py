"""Supervision: wait for a sandboxed process while its logs are drained and its limits watched.

One thread does this for one process, with one poll; nothing that the process does can block it.
"""

import os
import select
import stat
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mrp.cache.folders import ENTRY_BYTES
from mrp.runtime.sandbox.protocol import Cancelled
from mrp.specs.errors import InfraError
from mrp.specs.work import LOG_BYTES

_FIRST_TICK, _TICK = 0.02, 0.1
_GRACE = 1.0
_DRAIN_SECONDS = 5.0
_CHUNK = 1 << 16
_FREE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Ended:
    """How the program in a sandbox ended; cpu_s in seconds, max_rss in bytes.

    exec_error: the errno when it could not be executed. started: false when the sandbox ended before it began, for a
    reason that the log tells.
    """

    exit_code: int
    cpu_s: float
    max_rss: int
    exec_error: int | None = None
    started: bool = True


class Running(Protocol):
    """A process in a sandbox, seen from outside. All of these may be called from any thread."""

    def fileno(self) -> int:
        """A descriptor that is readable when `ended` may know more."""

    def ended(self) -> Ended | None:
        """How it ended, None while it runs. Raises InfraError when the sandbox failed, not the process."""

    def processes(self) -> Sequence[int]:
        """The ids, as this machine knows them, of the processes inside that are not the sandbox's own."""

    def ask_to_end(self) -> None:
        """Send SIGTERM to `processes`."""

    def kill(self) -> None:
        """Kill everything in the sandbox at once."""

    def close(self) -> None:
        """Let go of what is only needed while it runs."""


class NotExecuted:
    """A Running whose program could not be executed at all."""

    def __init__(self, error: int) -> None:
        self._ended = Ended(127, 0.0, 0, exec_error=error)
        self._readable = os.eventfd(1, os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._readable

    def ended(self) -> Ended | None:
        return self._ended

    def processes(self) -> Sequence[int]:
        return ()

    def ask_to_end(self) -> None:
        """There is nothing to end."""

    def kill(self) -> None:
        """There is nothing to kill."""

    def close(self) -> None:
        os.close(self._readable)


@dataclass(frozen=True)
class Supervised:
    """What came of it; `killed` is wall, disk, memory or pids when this watch ended it.

    stdout and stderr hold more than LOG_BYTES bytes when there was more, but not all of it.
    """

    ended: Ended
    killed: str | None
    stdout: bytes
    stderr: bytes
    wall_s: float


class Wake:
    """Interrupts a supervision from another thread, for good."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._descriptor

    def set(self) -> None:
        os.eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass
class Watch:
    """Limits that are watched, not enforced by the kernel: bytes in writable folders, and more where no cgroup is.

    `disk` and `memory` are in bytes; `memory` and `pids` None where a cgroup limits them; `base` is what the folders
    held at first, `left` what they held at last. `full` and `crowded` tell whether disk and pids were ever used up.
    """

    folders: Sequence[Path]
    disk: int
    memory: int | None = None
    pids: int | None = None
    base: int = 0
    left: int = 0
    full: bool = False
    crowded: bool = False

    def used(self) -> int:
        """Bytes that the folders hold now beyond what they held at first."""
        return folder_bytes(self.folders) - self.base

    def exceeded(self, processes: Sequence[int]) -> str | None:
        """The limit that is exceeded now: disk, memory, pids or None. Raises InfraError when this disk is full."""
        used = self.used() + _unlinked_bytes(processes, self.folders)
        self.full = self.full or used >= self.disk
        if used > self.disk:
            return "disk"
        self.check_disk()
        if self.memory is not None and sum(map(_resident_bytes, processes)) > self.memory:
            return "memory"
        if self.pids is not None:
            self.crowded = self.crowded or len(processes) >= self.pids
            if len(processes) > self.pids:
                return "pids"
        return None

    def check_disk(self) -> None:
        """Raises InfraError when this machine's disk is full, which is no fault of the process."""
        for folder in self.folders[:1]:
            state = os.statvfs(folder)
            if state.f_bavail * state.f_frsize < _FREE_BYTES:
                raise InfraError(
                    f"the disk that holds {folder} is full, with less than {_FREE_BYTES // 2**20} MiB left; free some "
                    "space there and build again"
                )


def supervise(
    running: Running, logs: tuple[int, int], timeout: float, watch: Watch, wake: Wake, margin: int
) -> Supervised:
    """Wait until `running` ends, is cancelled, or exceeds a limit and is killed; takes over the ends `logs` of pipes.

    `margin` is how many bytes beyond the limit are kept of each log, for redaction. Raises Cancelled when `wake` was
    set, and InfraError; then the sandbox has been killed.
    """
    started = time.monotonic()
    state = _Supervision(running, logs, started + timeout, watch, wake, margin)
    try:
        ended = state.wait()
        wall = time.monotonic() - started
        stdout, stderr = state.finish_logs()
        return Supervised(ended, state.killed, stdout, stderr, wall)
    except BaseException:
        running.kill()
        raise
    finally:
        for descriptor in logs:
            os.close(descriptor)


class _Supervision:
    def __init__(
        self, running: Running, logs: tuple[int, int], deadline: float, watch: Watch, wake: Wake, margin: int
    ) -> None:
        self._running, self._watch, self._deadline = running, watch, deadline
        self._kept = {descriptor: bytearray() for descriptor in logs}
        self._open = set(logs)
        self._wake = wake
        self._margin = margin
        self._poll = select.poll()
        for descriptor in (running.fileno(), wake.fileno(), *logs):
            self._poll.register(descriptor, select.POLLIN)
        self.killed: str | None = None

    def wait(self) -> Ended:
        """Poll until the process has ended; limits are looked at in ticks, rarer when looking takes long."""
        # Where a control group holds memory, only disk is watched, and most processes end before that matters.
        tick = _TICK if self._watch.memory is None else _FIRST_TICK
        next_look = time.monotonic() + tick
        kill_at: float | None = None
        while True:
            now = time.monotonic()
            until = min(next_look, self._deadline if kill_at is None else kill_at)
            ready = [descriptor for descriptor, _ in self._poll.poll(max(0.0, until - now) * 1000 + 1)]
            if self._wake.fileno() in ready:
                self._running.kill()
                raise Cancelled
            self._drain(ready)
            if self._running.fileno() in ready:
                ended = self._running.ended()
                if ended is not None:
                    return ended
            now = time.monotonic()
            if kill_at is not None and now >= kill_at:
                self._running.kill()
                kill_at = now + _GRACE
            elif kill_at is None and now >= self._deadline:
                self.killed = "wall"
                self._running.ask_to_end()
                kill_at = now + _GRACE
            elif now >= next_look:
                exceeded = self._watch.exceeded(self._running.processes()) if kill_at is None else None
                if exceeded is not None:
                    self.killed = exceeded
                    self._running.kill()
                    kill_at = now + _GRACE
                tick = min(_TICK, 2 * tick)
                next_look = time.monotonic() + max(tick, 5 * (time.monotonic() - now))

    def finish_logs(self) -> tuple[bytes, bytes]:
        """Read what is left in the pipes, which are closed at the other end since everything is dead."""
        self._poll.unregister(self._running.fileno())
        self._poll.unregister(self._wake.fileno())
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._open and time.monotonic() < deadline:
            self._drain([descriptor for descriptor, _ in self._poll.poll(100)])
        stdout, stderr = (bytes(kept) for kept in self._kept.values())
        return stdout, stderr

    def _drain(self, ready: Iterable[int]) -> None:
        for descriptor in self._open.intersection(ready):
            data = os.read(descriptor, _CHUNK)
            if not data:
                self._open.discard(descriptor)
                self._poll.unregister(descriptor)
            kept = self._kept[descriptor]
            room = LOG_BYTES + self._margin + 1 - len(kept)
            if room > 0:
                kept += data[:room]


def folder_bytes(folders: Iterable[Path]) -> int:
    """What folders count towards the disk limit: each entry its size, but at least ENTRY_BYTES."""
    total = 0
    waiting: list[str] = [str(folder) for folder in folders]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    total += max(status.st_size, ENTRY_BYTES) if stat.S_ISREG(status.st_mode) else ENTRY_BYTES
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(entry.path)
    return total


def _unlinked_bytes(processes: Sequence[int], folders: Sequence[Path]) -> int:
    """Files that have no name any more but are held open, so that no walk of the folders finds them."""
    device = os.stat(folders[0]).st_dev
    sizes: dict[int, int] = {}
    for pid in processes:
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{descriptor}")
                    if stat.S_ISREG(status.st_mode) and not status.st_nlink and status.st_dev == device:
                        sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


_PAGE = os.sysconf("SC_PAGE_SIZE")


def _resident_bytes(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE


def descendants(pid: int) -> list[int]:
    """The ids of all processes below `pid`, as far as /proc tells."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        for child in _children(waiting.pop()):
            found.append(child)
            waiting.append(child)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found.extend(map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()))
    return found


def signal_all(processes: Iterable[int], number: int) -> None:
    """Send a signal to processes that may be gone."""
    for pid in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)

"""Isolation `none`: a process with the same folders under other names, its own session and limits, and no walls."""

import errno
import os
import resource
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mrp.runtime.sandbox.cgroups import Group
from mrp.runtime.sandbox.supervise import Ended, NotExecuted, Running, descendants, signal_all
from mrp.specs.errors import InfraError

_LIMITS = {
    "core": resource.RLIMIT_CORE,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
}


def limit_process(pid: int, rlimits: Mapping[str, int]) -> None:
    """Set soft and hard limits of another process, never above the hard limit that is there."""
    for name, value in rlimits.items():
        kind = resource.RLIMIT_NPROC if name == "nproc" else _LIMITS[name]
        _, hard = resource.prlimit(pid, kind)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.prlimit(pid, kind, (allowed, allowed))


def start_plain(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    rlimits: Mapping[str, int],
    outputs: tuple[int, int],
    group: Group | None,
) -> Running:
    """Start a process. Raises InfraError."""
    try:
        process = subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=outputs[0],
            stderr=outputs[1],
            start_new_session=True,
            umask=0o022,
        )
    except OSError as error:
        return NotExecuted(error.errno or errno.EACCES)
    plain = Plain(process)
    try:
        if group is not None:
            group.add(process.pid)
        # The number of processes is counted for the whole user here, and so is left alone.
        limit_process(process.pid, {name: value for name, value in rlimits.items() if name != "nproc"})
    except ProcessLookupError:
        return plain
    except OSError as error:
        plain.kill()
        plain.close()
        raise InfraError(f"the limits of a process could not be set: {error}") from error
    return plain


class Plain:
    """A process in a session of its own; see mrp.runtime.sandbox.supervise.Running."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)

    def fileno(self) -> int:
        return self._pidfd

    def ended(self) -> Ended | None:
        if not select.select([self._pidfd], [], [], 0)[0]:
            return None
        self._kill_session()
        _, status, usage = os.wait4(self._process.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._process.returncode = code
        return Ended(128 - code if code < 0 else code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def processes(self) -> list[int]:
        return [self._process.pid, *descendants(self._process.pid)]

    def ask_to_end(self) -> None:
        signal_all(self.processes(), signal.SIGTERM)

    def kill(self) -> None:
        signal_all(self.processes(), signal.SIGKILL)
        self._kill_session()

    def close(self) -> None:
        if self._process.returncode is None:
            self.kill()
            self._process.wait()
        os.close(self._pidfd)

    def _kill_session(self) -> None:
        """Kill what is still in the session; the process itself is not reaped yet, so its id is not another's."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != self._process.pid and _session(entry) == self._process.pid:
                signal_all([int(entry)], signal.SIGKILL)


def _session(pid: str) -> int:
    try:
        return os.getsid(int(pid))
    except (ProcessLookupError, PermissionError):
        return 0

"""Commands through bubblewrap: the job as its options, which go through a descriptor so that no list of processes
shows them."""

import errno
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mrp.runtime.sandbox.cgroups import Group
from mrp.runtime.sandbox.launcher import HOSTNAME, Job
from mrp.runtime.sandbox.neighbour import listen_inside
from mrp.runtime.sandbox.steps import Step
from mrp.runtime.sandbox.supervise import Ended, NotExecuted, Running, descendants, signal_all
from mrp.runtime.sandbox.warm import wait_for_end
from mrp.specs.errors import InfraError

_OLDEST = (0, 8)
_EXEC_ERRORS = {
    os.strerror(code): code
    for code in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP, errno.E2BIG, errno.EISDIR)
}
_LIMITS = {
    "core": resource.RLIMIT_CORE,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
}
_EXEC_FAILED = re.compile(rb"bwrap: execvp .*: ([A-Za-z ]+)\n\Z")


def find_bubblewrap() -> str | None:
    """The bubblewrap of this machine, if it is one that knows all options needed."""
    path = shutil.which("bwrap", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/local/bin")
    if path is None:
        return None
    with suppress(OSError, ValueError):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        version = tuple(int(part) for part in said.split()[-1].split(".")[:2]) if said else (0, 0)
        return path if version >= _OLDEST else None
    return None


def start_bubblewrap(
    bubblewrap: str,
    job: Job,
    outputs: tuple[int, int],
    group: Group | None,
    opened: Callable[[list[int]], None] | None = None,
) -> Running:
    """Start a job that has an argv and no `allow`; `opened` gets its doors. Raises InfraError."""
    assert job.argv is not None and job.allow is None
    _refuse_divided_words(job)
    seccomp = _memory_file(bytes.fromhex(job.seccomp))
    status_read, status_write = os.pipe()
    block_read, block_write = os.pipe()
    options = _memory_file(
        b"".join(os.fsencode(word) + b"\0" for word in _options(job, seccomp, status_write, block_read))
    )
    given = [options, seccomp, status_write, block_read]
    try:
        process = subprocess.Popen(
            [bubblewrap, "--args", str(options), "--", *job.argv],
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=outputs[0],
            stderr=outputs[1],
            pass_fds=given,
            start_new_session=True,
        )
    except OSError as error:
        os.close(status_read)
        os.close(block_write)
        if error.errno == errno.E2BIG:
            return NotExecuted(errno.E2BIG)
        raise InfraError(f"bubblewrap could not be started: {error}") from error
    finally:
        for descriptor in given:
            os.close(descriptor)
    wrapped = Wrapped(process, status_read)
    try:
        wrapped.release(block_write, job, group, opened)
    except BaseException:
        wrapped.kill()
        wrapped.close()
        raise
    finally:
        os.close(block_write)
    return wrapped


class Wrapped:
    """A sandbox of bubblewrap; see mrp.runtime.sandbox.supervise.Running."""

    def __init__(self, process: subprocess.Popen[bytes], status: int) -> None:
        self._process = process
        self._status = status
        self._said = b""
        self._pidfd = os.pidfd_open(process.pid)
        self._inner_pidfd = -1
        self._inner = 0

    def release(
        self, block: int, job: Job, group: Group | None, opened: Callable[[list[int]], None] | None = None
    ) -> None:
        """Put the sandbox's first process under its limits, open its doors, and let it go on by a byte into `block`."""
        while b"\n" not in self._said:
            data = os.read(self._status, 4096)
            if not data:
                return  # It failed already; `ended` finds that there was no exit code.
            self._said += data
        self._inner = int(json.loads(self._said.split(b"\n")[0])["child-pid"])
        try:
            self._inner_pidfd = os.pidfd_open(self._inner)
            if group is not None:
                group.add(self._inner)
            _limit_process(self._inner, job.rlimits)
        except (ProcessLookupError, OSError) as error:
            if not isinstance(error, ProcessLookupError) and error.errno != errno.ESRCH:
                raise InfraError(f"the sandbox's limits could not be set: {error}") from error
        if job.doors and opened is not None:
            opened(listen_inside(self._inner, job.doors))
        with suppress(BrokenPipeError):
            os.write(block, b"g")

    def fileno(self) -> int:
        return self._pidfd

    def ended(self) -> Ended | None:
        if not select.select([self._pidfd], [], [], 0)[0]:
            return None
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._kill_inner()
        while data := os.read(self._status, 4096):
            self._said += data
        cpu = usage.ru_utime + usage.ru_stime
        for line in self._said.splitlines():
            told = json.loads(line)
            if "exit-code" in told:
                return Ended(int(told["exit-code"]), cpu, usage.ru_maxrss * 1024)
        return Ended(self._process.returncode & 0xFF, cpu, 0, started=False)

    def processes(self) -> list[int]:
        return descendants(self._inner) if self._inner else []

    def ask_to_end(self) -> None:
        signal_all(self.processes(), signal.SIGTERM)

    def kill(self) -> None:
        self._kill_inner()
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Wait for what is left after `kill`, and let go of it."""
        self.kill()
        if self._process.returncode is None:
            self._process.wait()
        for descriptor in (self._pidfd, self._inner_pidfd, self._status):
            if descriptor >= 0:
                os.close(descriptor)

    def _kill_inner(self) -> None:
        if self._inner_pidfd < 0:
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._inner_pidfd, signal.SIGKILL)
        wait_for_end(self._inner_pidfd)


def why_not_started(stderr: bytes) -> tuple[int, bytes]:
    """What bubblewrap said when it ended before the program began: the errno of executing it, and the log before that.

    Raises InfraError when it was the sandbox that failed.
    """
    found = _EXEC_FAILED.search(stderr)
    code = _EXEC_ERRORS.get(found[1].decode()) if found else None
    if found is None or code is None:
        said = stderr.decode(errors="replace").strip().splitlines()
        raise InfraError(f"bubblewrap failed: {said[-1] if said else 'it said nothing'}")
    return code, stderr[: found.start()]


def _limit_process(pid: int, rlimits: Mapping[str, int]) -> None:
    """Set soft and hard limits of another process, never above the hard limit that is there."""
    for name, value in rlimits.items():
        kind = _LIMITS[name]
        _, hard = resource.prlimit(pid, kind)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.prlimit(pid, kind, (allowed, allowed))


def _options(job: Job, seccomp: int, status: int, block: int) -> list[str]:
    words = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"]
    words += ["--unshare-net"] if job.private_network else []
    words += ["--uid", str(job.uid), "--gid", str(job.gid), "--hostname", HOSTNAME]
    words += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    for name, value in job.env.items():
        words += ["--setenv", name, value]
    for step in job.steps:
        words += _step_options(step)
    words += ["--remount-ro", "/", "--chdir", job.cwd]
    return [*words, "--seccomp", str(seccomp), "--json-status-fd", str(status), "--block-fd", str(block)]


def _refuse_divided_words(job: Job) -> None:
    """A word that holds a NUL would reach bubblewrap as two, and so could give it options. Raises InfraError."""
    if any("\0" in word for word in _options(job, 0, 0, 0)):
        raise InfraError("a variable or path holds a NUL character, which no process can be given", retryable=False)


def _step_options(step: Step) -> list[str]:
    if step.kind == "bind":
        return ["--bind" if step.writable else "--ro-bind", step.source, step.path]
    if step.kind == "link":
        return ["--symlink", step.source, step.path]
    if step.kind == "tmpfs":
        return ["--size", str(step.size), "--tmpfs", step.path]
    if step.kind == "dev":
        shared = f"{step.path}/shm"
        return ["--dev", step.path, "--size", str(step.size), "--tmpfs", shared, "--remount-ro", step.path]
    return [f"--{step.kind}", step.path]


def _memory_file(data: bytes) -> int:
    descriptor = os.memfd_create("mrp")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def works(bubblewrap: str) -> bool:
    """Whether bubblewrap can make a sandbox here; in many containers it cannot."""
    command = [bubblewrap, "--unshare-all", "--uid", "1000", "--gid", "1000", "--ro-bind", "/usr", "/usr"]
    for folder in ("/bin", "/lib", "/lib64"):
        if Path(folder).is_symlink():
            command += ["--symlink", str(Path(folder).readlink()), folder]
        elif Path(folder).is_dir():
            command += ["--ro-bind", folder, folder]
    command += ["--proc", "/proc", "--dev", "/dev", "--cap-drop", "ALL", "true"]
    done = subprocess.run(command, capture_output=True, check=False, cwd="/", stdin=subprocess.DEVNULL)
    return done.returncode == 0

"""Commands inside a sandbox that is elsewhere: started, watched, ended. Part of mrp.runtime.sandbox.guest."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    Job = dict[str, Any]
    Source = Callable[[], IO[bytes]]
    Send = Callable[[int, bytes], None]

OUT, ERR = 1, 2
"""The kinds of bytes that a command sends."""

HOSTNAME = "mrp"
SUBREAPER, NO_NEW_PRIVILEGES, BOUNDING_DROP = 36, 38, 24

_TICK = 0.05
_GRACE = 1.0
_LAST_SECONDS = 30.0
_PATIENCE = 300.0


def run(job: Job, source: Source, send: Send) -> Job:
    """Run a command to its end, with all that it left behind; what it tells is how it ended."""
    import socket

    with contextlib.suppress(OSError):
        # Not every service lets root do that.
        socket.sethostname(HOSTNAME)
    outs, errs = os.pipe(), os.pipe()
    command = _Command(job)
    command.start((os.open("/dev/null", os.O_RDONLY), outs[1], errs[1]))
    pumps = [_Pump(outs[0], OUT, job["log_bytes"], send), _Pump(errs[0], ERR, job["log_bytes"], send)]
    command.watch()
    for pump in pumps:
        pump.finish()
    return command.told()


class _Command:
    """A command and all that it starts: the descendants of this process, or where that cannot be had all newer ones."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._strangers = None if control(SUBREAPER, 1) else {each[0] for each in _processes()}
        self._status: int | None = None
        self._limit: str | None = None
        self._exec_error: int | None = None
        self._kills = _oom_kills()

    def start(self, streams: tuple[int, int, int]) -> None:
        """Fork it, as its user; what is told beside the streams, which are closed here, is why it cannot be run."""
        self._news, news = os.pipe()
        os.set_blocking(news, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(news, warn_on_full_buffer=False)
        self._began = time.monotonic()
        self._pid, why = fork(self._job["argv"], self._job["env"], streams, lambda: _become(self._job))
        if why.isdigit():
            self._exec_error = int(why)
        elif why:
            raise OSError(why.decode(errors="replace"))

    def watch(self) -> None:
        """Hold its limits until the first process has ended, and end what it left."""
        import select

        deadline = self._began + self._job["timeout"]
        kill_at: float | None = None
        while self._reap() and self._status is None:
            now = time.monotonic()
            if kill_at is not None:
                if now >= kill_at:
                    self._kill(signal.SIGKILL)
            elif now >= deadline:
                self._limit, kill_at = "wall", now + _GRACE
                self._kill(signal.SIGTERM)
            else:
                self._limit = self._exceeded()
                if self._limit is not None:
                    kill_at = now
                    self._kill(signal.SIGKILL)
            wait = _TICK if kill_at is not None else min(_TICK, max(0.0, deadline - now))
            if select.select([self._news], [], [], wait)[0]:
                os.read(self._news, 4096)
        self._wall = time.monotonic() - self._began
        if self._limit is None and self._crowded(self._mine()):
            self._limit = "pids"
        until = time.monotonic() + _LAST_SECONDS
        # Without children there are no descendants; a look at /proc may miss one that was born meanwhile.
        while self._kill(signal.SIGKILL) | (self._reap() and self._strangers is None):
            if time.monotonic() > until:
                raise OSError("what the command started does not end")
            time.sleep(0.002)

    def told(self) -> Job:
        """How it ended, as mrp.runtime.sandbox.provider.Exit."""
        assert self._status is not None
        signalled = os.WIFSIGNALED(self._status)
        code = 128 + os.WTERMSIG(self._status) if signalled else os.WEXITSTATUS(self._status)
        if self._limit is None and code == 128 + signal.SIGKILL and _oom_kills() > self._kills:
            self._limit = "memory"
        return {
            "code": None if self._limit else code,
            "limit": self._limit,
            "exec_error": self._exec_error,
            "cpu": self._usage.ru_utime + self._usage.ru_stime,
            "rss": self._usage.ru_maxrss * 1024,
            "wall": self._wall,
        }

    def _reap(self) -> bool:
        """Take note of all that died; whether there are others."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self._pid:
                self._status, self._usage = status, usage

    def _mine(self) -> dict[int, int]:
        """Its processes that live, with the number of their threads."""
        found = _processes()
        if self._strangers is not None:
            others = {os.getpid(), *self._strangers}
            return {pid: threads for pid, _, threads, alive in found if alive and pid not in others}
        below: dict[int, list[tuple[int, int, bool]]] = {}
        for pid, parent, threads, alive in found:
            below.setdefault(parent, []).append((pid, threads, alive))
        mine, waiting = {}, [os.getpid()]
        while waiting:
            for pid, threads, alive in below.get(waiting.pop(), ()):
                waiting.append(pid)
                if alive:
                    mine[pid] = threads
        return mine

    def _kill(self, number: int) -> bool:
        """Send a signal to all of them; whether there was one."""
        mine = self._mine()
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(mine)

    def _crowded(self, mine: dict[int, int]) -> bool:
        return self._job["pids"] is not None and sum(mine.values()) > self._job["pids"]

    def _exceeded(self) -> str | None:
        mine = self._mine()
        if self._crowded(mine):
            return "pids"
        memory = self._job["memory"]
        # What a fork shares is counted once only by the second, which costs more to read.
        if memory is not None and sum(map(_resident, mine)) > memory and sum(map(_proportional, mine)) > memory:
            return "memory"
        return None


class _Pump:
    """Sends the first `most` bytes that come from a pipe; more is read, so that nobody is held up, and dropped."""

    def __init__(self, reader: int, kind: int, most: int, send: Send) -> None:
        self._reader, self._kind, self._most, self._send = reader, kind, most, send
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until all is sent. Raises OSError when it cannot be."""
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise OSError("what the command wrote cannot be sent")
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while True:
            data = os.read(self._reader, 2**16)
            if not data:
                return
            if self._most > 0 and self._failure is None:
                try:
                    self._send(self._kind, data[: self._most])
                except OSError as error:
                    self._failure = error
                self._most -= len(data)


def fork(
    argv: list[str], env: dict[str, str], streams: tuple[int, int, int], become: Callable[[], None]
) -> tuple[int, bytes]:
    """Start a program with these streams, which are closed here; gives its pid and why it was not executed.

    That is b"" when it was, an errno when there is no such program that can be, and else a sentence.
    """
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            for target, descriptor in enumerate(streams):
                os.dup2(descriptor, target)
            become()
            # Python ignores some, a service perhaps others, and a program would inherit that.
            for number in range(1, signal.NSIG):
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_DFL)
            try:
                os.execvpe(argv[0], argv, env)
            except OSError as error:
                os.write(tell, b"%d" % (error.errno or errno.EIO))
                os._exit(127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126)
        except BaseException as error:
            os.write(tell, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(126)
    for descriptor in (*streams, tell):
        os.close(descriptor)
    why = os.read(told, 4096)
    os.close(told)
    return pid, why


def _become(job: Job) -> None:
    """Be the command's user, without privileges, in its folder."""
    import resource

    if job["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"], job["file_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o022)
    if not job["root"]:
        for number in range(64):
            control(BOUNDING_DROP, number)
        os.setgroups([])
        os.setresgid(job["gid"], job["gid"], job["gid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
        control(NO_NEW_PRIVILEGES, 1)
    os.chdir(job["cwd"])


def control(option: int, value: int) -> bool:
    """prctl; whether it could be done, which needs Python's ctypes too."""
    try:
        import ctypes

        return not ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return False


def _processes() -> list[tuple[int, int, int, bool]]:
    """All processes: pid, its parent's, the number of its threads, and whether it lives."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            found.append((int(name), int(fields[1]), max(1, int(fields[17])), fields[0] not in (b"Z", b"X")))
    return found


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared = map(int, file.read().split()[:3])
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGESIZE")


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            sizes = dict(line.split()[:2] for line in file if line.startswith(b"Pss"))
        return (int(sizes[b"Pss_Anon:"]) + int(sizes[b"Pss_Shmem:"])) * 1024
    except (OSError, KeyError):
        return _resident(pid)


def _oom_kills() -> int:
    try:
        with open("/sys/fs/cgroup/memory.events", "rb") as file:
            return int(dict(line.split() for line in file).get(b"oom_kill", 0))
    except OSError:
        return 0


def stream(job: Job, decoded: Callable[[bytes], bytes], encoded: Callable[[bytes], bytes]) -> None:
    """Join a command's stdin and stdout to those here; it is killed when stdin ends.

    It is root's, so that no command can end what it talks through.
    """
    given, got = os.pipe(), os.pipe()
    for descriptor in (given[1], got[0]):
        os.set_inheritable(descriptor, False)
    pid, why = fork(job["argv"], job["env"], (given[0], got[1], os.open("/dev/null", os.O_WRONLY)), lambda: None)
    del why

    def feed() -> None:
        with contextlib.suppress(OSError):
            while True:
                data = os.read(0, 2**16)
                if not data:
                    break
                write_all(given[1], decoded(data))
        os.kill(pid, signal.SIGKILL)

    threading.Thread(target=feed, daemon=True).start()
    while True:
        data = os.read(got[0], 3 << 13)
        if not data:
            break
        write_all(1, encoded(data))


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]

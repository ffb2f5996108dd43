"""What runs inside a Daytona sandbox for mrp: a program of its own, run by the image's Python.

Daytona's own means of running commands give one merged string, kill only the first process at their time limit, and
hang together with one HTTP connection. Here a command is started in the background, once however often that is asked
for; its logs are files, apart and to the byte; and whoever wants to know how it ended waits for a lock.

It imports nothing but the standard library, and nothing of mrp.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

Spec = dict[str, Any]

HOME = "/.mrp"
TICK = 0.05
GRACE = 1.0
DRAIN_SECONDS = 2.0
INLINE = 48 * 1024
MARK = "MRP "
LOGS = ("stdout", "stderr")

_SUBREAPER, _NO_NEW_PRIVS, _BOUNDING_DROP = 36, 38, 24
_NEW_UTS = 0x04000000
_PAGE = os.sysconf("SC_PAGE_SIZE")


def say(**values: object) -> None:
    """One line for the host; the shell, or the terminal, may write others."""
    print("\n" + MARK + json.dumps(values), flush=True)


# -- files ---------------------------------------------------------------------------------------------------------


def hello() -> None:
    os.chmod(HOME, 0o700)
    say(ok=True)


def unpack(path: str) -> None:
    """Unpack a tar archive at / with its owners, modes and times, and remove it. No file is in the way of another."""
    with tarfile.open(path) as archive:
        folders = []
        for member in archive:
            place = "/" + member.name.strip("/")
            if member.isdir():
                os.makedirs(place, exist_ok=True)
                folders.append((place, member))
                continue
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if os.path.lexists(place):
                os.unlink(place)
            if member.issym():
                os.symlink(member.linkname, place)
                os.chown(place, member.uid, member.gid, follow_symlinks=False)
                os.utime(place, (member.mtime, member.mtime), follow_symlinks=False)
            elif member.islnk():
                os.link("/" + member.linkname.strip("/"), place)
            elif member.isfile():
                source = archive.extractfile(member)
                assert source is not None
                with open(place, "wb") as out:
                    copy(source, out)
                stamp(place, member)
        for place, member in reversed(folders):
            stamp(place, member)
    os.unlink(path)
    say(ok=True)


def copy(source: IO[bytes], out: IO[bytes]) -> None:
    while chunk := source.read(1 << 20):
        out.write(chunk)


def stamp(place: str, member: tarfile.TarInfo) -> None:
    os.chown(place, member.uid, member.gid)
    os.chmod(place, member.mode)
    os.utime(place, (member.mtime, member.mtime))


def pack(path: str, most: str, root: str, *folders: str) -> None:
    """Write folders as a tar archive with names relative to `root`, unless that has more than `most` bytes."""
    room = int(most)
    # By descriptors: nested paths may be longer than a path can be.
    for folder in folders:
        for _, inner, files, descriptor in os.fwalk(folder):
            for name in inner + files:
                status = os.lstat(name, dir_fd=descriptor)
                room -= 512 if stat.S_ISDIR(status.st_mode) else 512 + status.st_size
    if room < 0:
        say(ok=False)
        return
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for folder in folders:
            for parent, inner, files, descriptor in os.fwalk(folder):
                inner.sort()
                for name in sorted(inner + files):
                    add(archive, os.path.relpath(os.path.join(parent, name), root), name, descriptor)
    say(ok=True)


def add(archive: tarfile.TarFile, path: str, name: str, folder: int) -> None:
    """Add one entry; what no tree can hold is shown as a pipe, and a second name of a file as a file of its own."""
    status = os.lstat(name, dir_fd=folder)
    info = tarfile.TarInfo(path)
    info.mode, info.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    if stat.S_ISREG(status.st_mode):
        info.size = status.st_size
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
            archive.addfile(info, file)
        return
    info.type = tarfile.DIRTYPE if stat.S_ISDIR(status.st_mode) else tarfile.FIFOTYPE
    if stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=folder)
    archive.addfile(info)


# -- commands ------------------------------------------------------------------------------------------------------


def start(folder: str) -> None:
    """Begin the command of a folder's spec.json in the background; once, however often it is asked for."""
    try:
        os.mkdir(folder + "/begun")
    except FileExistsError:
        return
    ready, told = os.pipe()
    if os.fork():
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        return
    os.setsid()
    lock = os.open(folder + "/lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    nowhere = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(told)
    try:
        with open(folder + "/spec.json", "rb") as file:
            spec = json.load(file)
        os.unlink(folder + "/spec.json")
        answer = Command(spec, folder).run()
    except BaseException as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    with open(folder + "/answer.new", "w") as file:
        json.dump(answer, file)
    os.rename(folder + "/answer.new", folder + "/answer")
    os._exit(0)


def wait(folder: str, seconds: str) -> None:
    """Say how the command of a folder ended, or after some seconds that it still runs."""
    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, float(seconds))
    try:
        with open(folder + "/lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except InterruptedError:
        say(running=True)
        return
    except FileNotFoundError:
        say(failed="it was never started")
        return
    try:
        with open(folder + "/answer") as file:
            answer = json.load(file)
    except FileNotFoundError:
        say(failed="what looks after commands in the sandbox was killed")
        return
    for name in LOGS:
        path = f"{folder}/{name}"
        if os.path.exists(path) and os.stat(path).st_size <= INLINE:
            with open(path, "rb") as file:
                answer[name] = base64.b64encode(file.read()).decode()
    say(**answer)


def give_up(number: int, frame: object) -> None:
    raise InterruptedError


class Command:
    """A command and all that it starts; they are the only descendants of this process."""

    def __init__(self, spec: Spec, folder: str) -> None:
        self.spec, self.folder = spec, folder
        self.ended: int | None = None
        self.killed: str | None = None
        self.usage = (0.0, 0)
        self.wall = 0.0
        self.exec_error = 0

    def run(self) -> Spec:
        control(_SUBREAPER, 1)
        kills = oom_kills()
        failure, report = os.pipe2(os.O_CLOEXEC)
        logs = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
        pid = os.fork()
        if not pid:
            self.become(logs[0][1], logs[1][1], report)
        os.close(report)
        for _, end in logs:
            os.close(end)
        self.exec_error = int(os.read(failure, 16) or 0)
        self.supervise(pid, [end for end, _ in logs])
        if self.killed is None and self.ended == 128 + signal.SIGKILL and oom_kills() > kills:
            self.killed = "memory"
        cpu, rss = self.usage
        return {
            "exit_code": self.ended, "limit": self.killed, "exec_error": self.exec_error or None,
            "cpu_s": round(cpu, 3), "max_rss": rss, "wall_s": round(self.wall, 3),
        }  # fmt: skip

    def become(self, stdout: int, stderr: int, report: int) -> None:
        """In the child: lose every privilege, and be the command."""
        try:
            spec = self.spec
            os.setsid()
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            if not spec["root"]:
                self.lose_privileges(spec)
            if spec["file_bytes"] is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (spec["file_bytes"], spec["file_bytes"]))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.umask(0o022)
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(ignored, signal.SIG_DFL)
            os.chdir(spec["cwd"])
            os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
        except BaseException as error:
            number = error.errno or errno.EIO if isinstance(error, OSError) else errno.EIO
            os.write(report, str(number).encode())
            os._exit(127 if number in (errno.ENOENT, errno.ENOTDIR) else 126)

    def lose_privileges(self, spec: Spec) -> None:
        # A host name of its own needs a privilege that not every runner gives.
        if not ctypes.CDLL(None).unshare(_NEW_UTS):
            socket.sethostname(spec["hostname"])
        for number in range(64):
            control(_BOUNDING_DROP, number)
        os.setgroups([])
        os.setresgid(spec["gid"], spec["gid"], spec["gid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
        if control(_NO_NEW_PRIVS, 1):
            raise OSError(errno.EPERM, "no_new_privs")

    def supervise(self, pid: int, logs: Sequence[int]) -> None:
        files = {end: Log(f"{self.folder}/{LOGS[n]}", self.spec["log_bytes"]) for n, end in enumerate(logs)}
        poll = select.poll()
        for end in logs:
            poll.register(end, select.POLLIN)
        ending = os.pidfd_open(pid)
        poll.register(ending, select.POLLIN)
        began = time.monotonic()
        kill_at: float | None = None
        while self.ended is None:
            for end, _ in poll.poll(TICK * 1000):
                if end == ending:
                    self.reap(pid)
                else:
                    drain(end, files, poll)
            now = time.monotonic()
            if self.ended is not None:
                break
            if kill_at is not None:
                if now >= kill_at:
                    self.kill(signal.SIGKILL)
            elif now - began >= self.spec["timeout"]:
                self.killed, kill_at = "wall", now + GRACE
                self.kill(signal.SIGTERM)
            elif over := self.exceeded():
                self.killed, kill_at = over, now
                self.kill(signal.SIGKILL)
        self.wall = time.monotonic() - began
        if self.killed is None and self.crowded():
            self.killed = "pids"
        until = time.monotonic() + DRAIN_SECONDS
        while (alive := descendants(os.getpid())) and time.monotonic() < until:
            self.kill(signal.SIGKILL)
            reap_all()
            time.sleep(0.002 if alive else 0)
        poll.unregister(ending)
        while files and time.monotonic() < until:
            for end, _ in poll.poll(100):
                drain(end, files, poll)

    def reap(self, pid: int) -> None:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            self.ended = code if code >= 0 else 128 - code
            self.usage = (usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)

    def kill(self, number: int) -> None:
        for each in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)

    def crowded(self) -> bool:
        return not self.spec["root"] and len(descendants(os.getpid())) > self.spec["pids"]

    def exceeded(self) -> str | None:
        """The limit that is exceeded now. What the kernel would hold by user is shared with neighbours; this is not."""
        memory = self.spec["memory"]
        if memory is None:
            return None
        if self.crowded():
            return "pids"
        processes = descendants(os.getpid())
        # What a fork shares is counted once only by the second, which costs more to read.
        if sum(map(resident, processes)) > memory and sum(map(proportional, processes)) > memory:
            return "memory"
        return None


class Log:
    """A file that takes no more than `room` bytes; what is beyond is dropped, so that nobody is held up."""

    def __init__(self, path: str, room: int) -> None:
        self.file, self.room = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), room

    def write(self, data: bytes) -> None:
        write_all(self.file, data[: self.room])
        self.room -= min(self.room, len(data))


def drain(end: int, files: dict[int, Log], poll: select.poll) -> None:
    data = os.read(end, 1 << 16)
    files[end].write(data)
    if not data:
        poll.unregister(end)
        del files[end]


def reap_all() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def descendants(pid: int) -> list[int]:
    """All processes below one, the dead among them left out."""
    found: list[int] = []
    parents: dict[int, list[tuple[int, bytes]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append((int(name), fields[0]))
    waiting = [pid]
    while waiting:
        for child, state in parents.get(waiting.pop(), ()):
            waiting.append(child)
            if state not in (b"Z", b"X"):
                found.append(child)
    return found


def resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            fields = file.read().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * _PAGE


def proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            sizes = dict(line.split()[:2] for line in file if line.startswith("Pss"))
    except OSError:
        return resident(pid)
    return (int(sizes["Pss_Anon:"]) + int(sizes["Pss_Shmem:"])) * 1024


def oom_kills() -> int:
    try:
        with open("/sys/fs/cgroup/memory.events") as file:
            return int(dict(line.split() for line in file).get("oom_kill", 0))
    except OSError:
        return 0


def control(option: int, value: int) -> int:
    return int(ctypes.CDLL(None).prctl(option, value, 0, 0, 0))


# -- streams -------------------------------------------------------------------------------------------------------


def stream(folder: str) -> None:
    """Join a command's stdin and stdout to this terminal, as lines of base64, so that no terminal can change them."""
    import termios
    import threading
    import tty

    tty.setraw(0, termios.TCSANOW)
    with open(folder + "/spec.json", "rb") as file:
        spec = json.load(file)
    os.unlink(folder + "/spec.json")
    given, put = os.pipe()
    got, taken = os.pipe()
    pid = os.fork()
    if not pid:
        for source, target in ((given, 0), (taken, 1), (os.open("/dev/null", os.O_WRONLY), 2)):
            os.dup2(source, target)
        os.closerange(3, 64)
        try:
            os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
        finally:
            os._exit(127)
    os.close(given)
    os.close(taken)
    say(ok=True)

    def feed() -> None:
        rest = b""
        while data := os.read(0, 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                write_all(put, base64.b64decode(line))
        os.kill(pid, signal.SIGKILL)

    threading.Thread(target=feed, daemon=True).start()
    while data := os.read(got, 3 << 13):
        write_all(1, base64.b64encode(data) + b"\n")
    os.waitpid(pid, 0)
    say(ended=True)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def run(folder: str, seconds: str) -> None:
    start(folder)
    wait(folder, seconds)


VERBS: dict[str, Callable[..., None]] = {
    "hello": hello, "unpack": unpack, "pack": pack, "run": run, "wait": wait, "stream": stream
}  # fmt: skip

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])

"""What runs inside a sandbox of Modal for this side of it: it unpacks and packs folders, and watches over commands.

Modal moves single files and starts commands as root; users, limits, trees and the end of a command are made here. The
text of this file is given to the image's own python3 (3.8 or newer), so it imports the standard library alone, and
only what its job needs. stdin begins with the job: its length in 4 bytes, then JSON. stdout is frames: a byte that
says what it is, the length in 4 bytes, the data; the last frame is JSON of how it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tarfile import TarFile, TarInfo
    from typing import Any

    Job = dict[str, Any]

_sending = threading.Lock()

END, OUT, ERR = 0, 1, 2
_ROUND = 0.1
_NO_NEW_PRIVILEGES = 38


def main() -> None:
    job = json.loads(_take(int.from_bytes(_take(4), "big")))
    do = {"unpack": _unpack, "lay": _lay, "pack": _pack, "run": _run, "stream": _stream}[job["do"]]
    try:
        told = do(job)
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}"}
    _send(END, json.dumps(told).encode())
    os._exit(0)


def _take(size: int) -> bytes:
    """So many bytes of stdin, and nothing of what comes after them."""
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            raise EOFError("stdin ended")
        data += piece
    return data


def _send(kind: int, data: bytes) -> None:
    frame = bytes([kind]) + len(data).to_bytes(4, "big") + data
    with _sending:
        while frame:
            frame = frame[os.write(1, frame) :]


class _Frames:
    """A file whose bytes become frames."""

    def write(self, data: bytes) -> int:
        _send(OUT, bytes(data))
        return len(data)


def _unpack(job: Job) -> Job:
    """Unpack the tar archive that follows, at /, as it says."""
    import tarfile

    folders = []
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            path = "/" + member.name.strip("/")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if member.isdir():
                if not os.path.isdir(path) or os.path.islink(path):
                    _clear(path)
                    os.mkdir(path)
                folders.append((path, member.mtime))
            else:
                _clear(path)
                _make(archive, member, path)
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
            if not member.issym():
                os.chmod(path, member.mode)
                os.utime(path, (member.mtime, member.mtime))
    for path, mtime in reversed(folders):
        os.utime(path, (mtime, mtime))
    return {}


def _lay(job: Job) -> Job:
    """Lay out `entries`: path, kind (d, f or l), mode, uid, gid, mtime, and where its bytes are or what it points to.

    These are ["in", text in base64], or ["at", name below `blobs`, size]; for links the target.
    """
    import base64
    import shutil

    # Only root may pass, so that no command finds in there what is kept from it.
    os.chmod(os.path.dirname(job["blobs"]), 0o700)
    folders = []
    for path, kind, mode, uid, gid, mtime, what in job["entries"]:
        if kind == "d":
            os.makedirs(path, exist_ok=True)
            folders.append((path, mtime))
        elif kind == "l":
            os.symlink(what, path)
        elif what[0] == "in":
            with open(path, "wb") as file:
                file.write(base64.b64decode(what[1]))
        else:
            shutil.copyfile(os.path.join(job["blobs"], what[1]), path)
            if os.path.getsize(path) != what[2]:
                raise OSError(f"the volume holds another {what[1]}")
        os.chown(path, uid, gid, follow_symlinks=False)
        if kind != "l":
            os.chmod(path, mode)
            os.utime(path, (mtime, mtime))
    for path, mtime in reversed(folders):
        os.utime(path, (mtime, mtime))
    return {}


def _make(archive: TarFile, member: TarInfo, path: str) -> None:
    import shutil

    if member.issym():
        os.symlink(member.linkname, path)
    elif member.islnk():
        os.link("/" + member.linkname.strip("/"), path)
    elif member.isfile():
        with open(path, "wb") as file:
            content = archive.extractfile(member)
            assert content is not None
            shutil.copyfileobj(content, file, 2**20)


def _clear(path: str) -> None:
    import shutil

    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.lexists(path):
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def _pack(job: Job) -> Job:
    """Send folders as a tar archive, with names relative to `base`; what it tells is whether that is all of them."""
    import tarfile

    left = [job["most"]]
    frames: Any = _Frames()
    with tarfile.open(fileobj=frames, mode="w|", format=tarfile.GNU_FORMAT, bufsize=2**20) as archive:
        for path in job["paths"]:
            name = path[len(job["base"]) :].lstrip("/")
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if not _pack_folder(archive, folder, name + "/" if name else "", left, job["deep"]):
                return {"whole": False}
    return {"whole": True}


def _pack_folder(archive: TarFile, folder: int, name: str, left: list[int], deep: int) -> bool:
    """Add what is in an open folder, and close it; whether it was no more than `left`.

    By descriptors, since nested paths may be longer than a path can be.
    """
    import stat
    import tarfile

    for entry in sorted(os.listdir(folder)):
        found = os.stat(entry, dir_fd=folder, follow_symlinks=False)
        info = tarfile.TarInfo(name + entry)
        info.mode, info.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
        info.uid, info.gid = found.st_uid, found.st_gid
        if stat.S_ISDIR(found.st_mode):
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
            if deep > 0:
                inner = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                if not _pack_folder(archive, inner, name + entry + "/", left, deep - 1):
                    return False
        elif stat.S_ISLNK(found.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(entry, dir_fd=folder)
            archive.addfile(info)
        elif stat.S_ISREG(found.st_mode):
            left[0] -= found.st_size
            if left[0] < 0:
                return False
            info.size = found.st_size
            with open(os.open(entry, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
                archive.addfile(info, file)
        elif stat.S_ISFIFO(found.st_mode):
            info.type = tarfile.FIFOTYPE
            archive.addfile(info)
        # Sockets and devices have no bytes, and no place in a tree.
    os.close(folder)
    return True


# -- commands ------------------------------------------------------------------------------------------------------


def _run(job: Job) -> Job:
    """Run a command to its end, with all that it left behind; what it tells is how it ended."""
    import signal
    import time

    _harden()
    before = _processes()
    outs, errs, failures = os.pipe(), os.pipe(), os.pipe()
    began, killed, limit, peak = time.monotonic(), None, None, 0
    pid = _start(job, os.open("/dev/null", os.O_RDONLY), outs[1], errs[1], failures[1])
    for descriptor in (outs[1], errs[1], failures[1]):
        os.close(descriptor)
    failed = os.read(failures[0], 4)
    pumps = [
        threading.Thread(target=_pump, args=(reader, kind, job["log_bytes"]), daemon=True)
        for reader, kind in ((outs[0], OUT), (errs[0], ERR))
    ]
    for pump in pumps:
        pump.start()
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            ended = time.monotonic()
            break
        now = time.monotonic()
        mine = _processes() - before - {os.getpid()}
        memory = sum(map(_memory, mine))
        peak = max(peak, memory)
        if limit is None:
            over = (("memory", memory > job["memory"]), ("pids", sum(map(_threads, mine)) > job["pids"]))
            limit = next((name for name, is_over in over if is_over), None)
            if limit is not None:
                _kill(before, signal.SIGKILL)
            elif now - began >= job["timeout"]:
                limit, killed = "wall", now + 1
                _kill(before, signal.SIGTERM)
        elif killed is not None and now >= killed:
            _kill(before, signal.SIGKILL)
        time.sleep(
            min(_ROUND, 0.005 + (now - began) / 20, max(0.001, began + job["timeout"] - now) if not limit else 1)
        )
    while _kill(before, signal.SIGKILL):
        time.sleep(0.005)
    for pump in pumps:
        pump.join(5)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return {
        "code": None if limit else code,
        "limit": limit,
        "exec_error": int.from_bytes(failed, "big") or None,
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss": max(peak, usage.ru_maxrss * 1024),
        "wall": ended - began,
    }


def _stream(job: Job) -> Job:
    """Run a command whose stdin and stdout are this one's own; it dies when stdin ends."""
    import signal

    _harden()
    reader, writer = os.pipe()
    pid = _start(job, reader, 1, os.open("/dev/null", os.O_WRONLY), None)

    def feed() -> None:
        try:
            while True:
                data = os.read(0, 2**16)
                if not data:
                    break
                while data:
                    data = data[os.write(writer, data) :]
        except OSError:
            pass
        os.close(writer)
        os.kill(pid, signal.SIGTERM)
        threading.Timer(1, os.kill, (pid, signal.SIGKILL)).start()

    threading.Thread(target=feed, daemon=True).start()
    os.waitpid(pid, 0)
    # Its bytes are no frames, and neither is its end.
    os._exit(0)


def _start(job: Job, stdin: int, stdout: int, stderr: int, failures: int | None) -> int:
    """Fork a command, as its user, in a session of its own; when it cannot be executed, `failures` gets the errno."""
    import signal

    pid = os.fork()
    if pid:
        os.close(stdin)
        return pid
    try:
        os.setsid()
        # Python ignores these, and a program would inherit that.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if failures is not None:
            os.set_inheritable(failures, False)
        for descriptor, target in ((stdin, 0), (stdout, 1), (stderr, 2)):
            os.dup2(descriptor, target, inheritable=True)
        _become(job)
        os.execvpe(job["argv"][0], job["argv"], job["env"])
    except OSError as error:
        if failures is not None:
            os.write(failures, (error.errno or 1).to_bytes(4, "big"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    finally:
        os._exit(126)


def _harden() -> None:
    """Name the host, and let no program give privileges, as far as the service and this Python can."""
    import socket

    with contextlib.suppress(OSError):
        socket.sethostname("mrp")
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _become(job: Job) -> None:
    import resource

    if job["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_bytes"], job["file_bytes"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o022)
    if job["uid"]:
        os.setgroups([])
        os.setresgid(job["gid"], job["gid"], job["gid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
    os.chdir(job["cwd"])
    # A program is looked for where the command's own variables say.
    os.environ.clear()
    os.environ.update(job["env"])


def _pump(reader: int, kind: int, most: int) -> None:
    """Pass on the first `most` bytes that a command writes; more is read, so that nobody is held up, and dropped."""
    while True:
        data = os.read(reader, 2**16)
        if not data:
            return
        if most > 0:
            _send(kind, data[:most])
            most -= len(data)


def _processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _kill(before: set[int], number: int) -> bool:
    """Send a signal to every process that is no older than the command; whether there was one that lives."""
    alive = False
    for pid in _processes() - before - {os.getpid()}:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if fields[0] not in (b"Z", b"X"):
                os.kill(pid, number)
                alive = True
        except OSError:
            pass
    return alive


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _memory(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared = map(int, file.read().split()[:3])
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    main()

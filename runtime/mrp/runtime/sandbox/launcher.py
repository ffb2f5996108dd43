"""The launcher: makes the calling process the first of a sandbox, and runs programs and functions inside it.

The caller has been cloned into new namespaces (see mrp.runtime.sandbox.zygote) and is process 1 there. It builds the
root; what runs in it gives up all privileges first (see mrp.runtime.sandbox.stage and slot). Only the standard library
is imported: this runs in the image's Python, as a file that the image does not contain.
"""

from __future__ import annotations

import array
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from mrp.runtime.sandbox import kernel
from mrp.runtime.sandbox.elf import loader_of
from mrp.runtime.sandbox.steps import Step

HOSTNAME = "mrp"
MAX_DESCRIPTORS = 16
DEVPTS_OPTIONS = "newinstance,ptmxmode=0666,mode=0620"

_IP_FREEBIND = 15
_FRAME = 1 << 14
_BACKLOG = 512
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_LIMITS = {
    "core": resource.RLIMIT_CORE,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
}


class AllowError(Exception):
    """A name in `allow` is no program of the image."""


class Job(NamedTuple):
    """What to run and in which sandbox; everything is in guest terms but `root` and the sources of `steps`.

    root: an empty folder of the host that the new root is mounted on. argv: the program, or None for a function of
    the warm process. rlimits: soft and hard limit by name (core, data, fsize, nofile, nproc). seccomp: BPF in hex.
    allow: the only programs that may be executed, or None. import_paths: what comes first on sys.path of a function.
    doors: ports of the private network's loopback that the backend listens at; see mrp.runtime.sandbox.doorway.
    """

    root: str
    steps: Sequence[Step]
    argv: Sequence[str] | None
    env: Mapping[str, str]
    cwd: str
    uid: int
    gid: int
    rlimits: Mapping[str, int]
    seccomp: str
    allow: Sequence[str] | None = None
    private_network: bool = True
    import_paths: Sequence[str] = ()
    doors: Sequence[int] = ()

    def to_bytes(self) -> bytes:
        return json.dumps(self._asdict()).encode()


def parse_job(data: bytes) -> Job:
    """The inverse of Job.to_bytes."""
    fields: dict[str, Any] = json.loads(data)
    fields["steps"] = [Step(*step) for step in fields["steps"]]
    return Job(**fields)


def namespaces(private_network: bool) -> int:
    """The flags for mrp.runtime.sandbox.kernel.clone."""
    flags = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC
    flags |= kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
    return flags | kernel.CLONE_NEWNET if private_network else flags


def send_frame(channel: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """One message: its length in 4 bytes, then its bytes, then a byte that carries `descriptors` if there are any."""
    channel.sendall(len(data).to_bytes(4, "big") + data)
    if descriptors:
        socket.send_fds(channel, [b"+"], list(descriptors))


def receive_frame(channel: socket.socket) -> bytes:
    """The bytes of the next message. Raises EOFError when the other end closed."""
    size = int.from_bytes(_receive(channel, 4), "big")
    return _receive(channel, size)


def receive_only_frame(channel: socket.socket) -> bytes:
    """The same, in one system call where that will do: nothing may follow the message until it is answered."""
    data = channel.recv(_FRAME)
    if len(data) < 4:
        data += _receive(channel, 4 - len(data))
    return data[4:] + _receive(channel, 4 + int.from_bytes(data[:4], "big") - len(data))


def receive_descriptors(channel: socket.socket) -> list[int]:
    """The descriptors that follow a message. Raises EOFError when the other end closed."""
    data, found = receive_with_descriptors(channel, 1)
    if not data:
        raise EOFError("the backend is gone")
    return found


def receive_with_descriptors(channel: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """Up to `size` bytes and the descriptors that came with them, which no program that is executed inherits."""
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
    data, messages, _, _ = channel.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, list(descriptors)


def report(channel: socket.socket, **fields: object) -> None:
    """Tell the backend something, as one line of JSON; nobody may be listening any more."""
    try:
        channel.sendall(json.dumps(fields).encode() + b"\n")
    except OSError:
        return


def open_doors(ports: Sequence[int], channel: socket.socket) -> None:
    """Listen at ports of this network's loopback, and hand the listeners to the other end of `channel`."""
    listeners = []
    for port in ports:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listeners.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The loopback may not be up yet.
        listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
    socket.send_fds(channel, [b'{"doors": %d}\n' % len(ports)], [listener.fileno() for listener in listeners])
    for listener in listeners:
        listener.close()


def exit_code(status: int) -> int:
    """A wait status as a shell's exit code: 128 + N for death by signal N."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def map_user(job: Job, owner: tuple[int, int]) -> None:
    """Be the image's user in here, and `owner` outside."""
    _write("/proc/self/uid_map", f"{job.uid} {owner[0]} 1")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/gid_map", f"{job.gid} {owner[1]} 1")


def join(cgroups: Sequence[int]) -> None:
    """Enter cgroups by their open cgroup.procs files, and close these."""
    for descriptor in cgroups:
        os.write(descriptor, b"0")
        os.close(descriptor)


def build(job: Job) -> None:
    """Make the root of `job` and enter it; needs the privileges of a new user namespace."""
    if job.private_network:
        kernel.start_loopback()
    kernel.set_hostname(HOSTNAME)
    os.umask(0o022)
    kernel.make_mounts_private()
    kernel.mount("root", job.root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=8m")
    for step in job.steps:
        _make(step, job.root + step.path)
    kernel.restrict_mount(job.root, kernel.ATTR_RDONLY, below=False)
    kernel.change_root(job.root)


def confine(job: Job) -> None:
    """Give up every privilege for good: capabilities, system calls, and programs beyond `allow`."""
    kernel.drop_capabilities()
    if job.allow is not None:
        kernel.allow_execution_of(executables(job.allow, job.env.get("PATH", "")))
    kernel.load_filter(bytes.fromhex(job.seccomp))
    kernel.die_with_parent()


def executables(allow: Sequence[str], path: str) -> set[str]:
    """The files that may be executed so that the programs `allow` can run: themselves and their dynamic loaders."""
    found: set[str] = set()
    for name in allow:
        folders = [""] if name.startswith("/") else path.split(":")
        places = [os.path.join(folder, name) for folder in folders]
        program = next((place for place in places if os.access(place, os.X_OK) and os.path.isfile(place)), None)
        if program is None:
            raise AllowError(f"`allow` names {name}, which is no program of the image; add it there or remove it")
        program = os.path.realpath(program)
        found.add(program)
        loader = loader_of(program)
        if loader is not None:
            found.add(os.path.realpath(loader))
    return found


def start_work(
    job: Job,
    channel: socket.socket,
    outputs: tuple[int, int],
    function: Callable[[Mapping[str, str]], int],
) -> NoReturn:
    """Become what `job` is about, in a sandbox whose privileges are given up; `function` is for a job without argv.

    A failure of ours is reported on `channel` as {"failed": text}, and a program that cannot be executed as {"exec":
    errno}.
    """
    try:
        os.setsid()
        os.chdir(job.cwd)
        null = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((null, 0), (outputs[0], 1), (outputs[1], 2)):
            os.dup2(source, target)
        limit_resources(job.rlimits)
    except BaseException as error:
        report(channel, failed=f"{type(error).__name__}: {error}")
        os._exit(1)
    if job.argv is None:
        channel.close()
        os.closerange(3, 65536)
        prepare_imports(job)
        os._exit(_finish_interpreter(run_function(job.env, function)))
    # Python ignores these two, and what it executes would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    report(channel, exec=kernel.execute(job.argv, job.env))
    os._exit(127)


def prepare_imports(job: Job) -> None:
    """Make this warm interpreter import, and tell the time, as a fresh one in the sandbox would."""
    zone = job.env.get("TZ", "UTC")
    if zone != os.environ.get("TZ"):
        os.environ["TZ"] = zone
        time.tzset()
    sys.path[0:0] = job.import_paths
    for place, finder in list(sys.path_importer_cache.items()):
        if finder is None:
            del sys.path_importer_cache[place]


def run_function(env: Mapping[str, str], function: Callable[[Mapping[str, str]], int]) -> int:
    """The exit code of `function`; an exception goes to stderr and is 1."""
    try:
        return function(env)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1


def flush_streams(code: int) -> int:
    """Write out what is buffered; returns `code`, or 120 as Python does when that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    return code & 0xFF


def limit_resources(rlimits: Mapping[str, int]) -> None:
    """Set soft and hard limits, never above the hard limit that is there."""
    kernel.run_calls(limit_calls(rlimits))


def limit_calls(rlimits: Mapping[str, int]) -> list[kernel.Call]:
    """What limit_resources does."""
    calls = []
    for name, value in rlimits.items():
        _, hard = resource.getrlimit(_LIMITS[name])
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        calls.append(kernel.limit_call(_LIMITS[name], (allowed, allowed)))
    return calls


def _finish_interpreter(code: int) -> int:
    import atexit
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        code = code or 1
    return flush_streams(code)


def _make(step: Step, target: str) -> None:
    if step.kind == "link":
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(step.source, target)
    elif step.kind == "dir":
        os.makedirs(target, exist_ok=True)
    elif step.kind == "bind":
        _bind(step, target)
    elif step.kind == "tmpfs":
        os.makedirs(target, exist_ok=True)
        _tmpfs(target, step.size, step.execute)
    elif step.kind == "proc":
        os.makedirs(target, exist_ok=True)
        kernel.mount("proc", target, "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    elif step.kind == "dev":
        _devices(target, step)
    else:
        raise ValueError(f"no step of kind {step.kind}")


def _bind(step: Step, target: str) -> None:
    if os.path.isdir(step.source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    kernel.mount(step.source, target, None, kernel.MS_BIND | kernel.MS_REC)
    attributes = kernel.ATTR_NOSUID | kernel.ATTR_NODEV
    if not step.writable:
        attributes |= kernel.ATTR_RDONLY
    if not step.execute:
        attributes |= kernel.ATTR_NOEXEC
    kernel.restrict_mount(target, attributes)


def _devices(target: str, step: Step) -> None:
    os.makedirs(target, exist_ok=True)
    kernel.mount("dev", target, "tmpfs", kernel.MS_NOSUID | kernel.MS_NOEXEC, "mode=0755,size=1m")
    for name in _DEVICES:
        place = f"{target}/{name}"
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        kernel.mount(f"/dev/{name}", place, None, kernel.MS_BIND)
    for name, aim in _DEVICE_LINKS.items():
        os.symlink(aim, f"{target}/{name}")
    os.mkdir(f"{target}/pts")
    kernel.mount("devpts", f"{target}/pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, DEVPTS_OPTIONS)
    os.mkdir(f"{target}/shm")
    kernel.restrict_mount(target, kernel.ATTR_RDONLY, below=False)
    _tmpfs(f"{target}/shm", step.size, step.execute)


def shared_memory_call(job: Job) -> kernel.Call:
    """Mounts a new /dev/shm, as the step for /dev in `job` says."""
    step = next(step for step in job.steps if step.kind == "dev")
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | (0 if step.execute else kernel.MS_NOEXEC)
    return kernel.mount_call("tmpfs", f"{step.path}/shm", "tmpfs", flags, f"mode=0777,size={step.size}")


def _tmpfs(target: str, size: int, execute: bool) -> None:
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | (0 if execute else kernel.MS_NOEXEC)
    kernel.mount("tmpfs", target, "tmpfs", flags, f"mode=0777,size={size}")


def _receive(channel: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the backend is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)

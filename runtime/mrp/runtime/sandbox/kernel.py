"""The Linux system calls that a sandbox is made of, which Python's standard library does not offer.

Each function raises OSError with the name of the call and what it was about. Nothing outside the standard library is
imported, since this runs in the image's own Python.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_MOVE, MS_REC = 0x1000, 0x2000, 0x4000
MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 18, 1 << 19, 1 << 20
MNT_DETACH = 2

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_PIDFD = 0x10000000, 0x20000000, 0x40000000, 0x00001000

_NUMBERS = {
    "x86_64": {"clone": 56, "pivot_root": 155, "capset": 126, "unshare": 272},
    "aarch64": {"clone": 220, "pivot_root": 41, "capset": 91, "unshare": 97},
}
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_PR_SET_CHILD_SUBREAPER = 36
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LANDLOCK_EXECUTE = 1
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41
_NS_GET_USERNS = 0xB701

# PyDLL keeps the interpreter's lock during a call: after `clone` the child goes on as the thread that holds it.
_libc = ctypes.PyDLL(None, use_errno=True)


def clone(flags: int) -> tuple[int, int]:
    """Fork into new namespaces: (0, -1) in the child, (pid, pidfd) in the parent, which must have a single thread."""
    pidfd = ctypes.c_int(-1)
    flags |= CLONE_PIDFD | signal.SIGCHLD
    pid = _syscall("clone", _number("clone"), flags, None, ctypes.byref(pidfd), None, None)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    return pid, pidfd.value


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names for new ones."""
    _syscall("unshare", _number("unshare"), flags)


def enter_namespace(descriptor: int, flag: int) -> None:
    """Enter the namespace, of the kind `flag`, that an open file of /proc/PID/ns stands for."""
    _check(_libc.setns(descriptor, flag), "setns")


def owning_user_namespace(descriptor: int) -> int:
    """An open file for the user namespace that a namespace belongs to."""
    return fcntl.ioctl(descriptor, _NS_GET_USERNS)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    result = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), options.encode() or None)
    _check(result, f"mount {source or kind or ''} on {target}")


def make_mounts_private() -> None:
    """Keep what is mounted from here on in this mount namespace."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)


def unmount(target: str) -> None:
    """Detach what is mounted at `target`; who still uses it keeps it until then."""
    _check(_libc.umount2(_bytes(target), MNT_DETACH), f"umount {target}")


def restrict_mount(target: str, attributes: int, *, below: bool = True) -> None:
    """Add restrictions (ATTR_*) to the mount at `target`, and with `below` to all mounts below it."""
    values = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _syscall(
        f"mount_setattr {target}",
        _MOUNT_SETATTR,
        _AT_FDCWD,
        ctypes.c_char_p(_bytes(target)),
        _AT_RECURSIVE if below else 0,
        ctypes.c_char_p(values),
        ctypes.c_size_t(len(values)),
    )


def change_root(folder: str) -> None:
    """Make the mount at `folder` the root, and let go of the old one."""
    os.chdir(folder)
    _syscall("pivot_root", _number("pivot_root"), ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))
    unmount(".")
    os.chdir("/")


def set_hostname(name: str) -> None:
    data = name.encode()
    _check(_libc.sethostname(data, ctypes.c_size_t(len(data))), "sethostname")


def start_loopback() -> None:
    """Bring up `lo` of this network namespace, so that a sandbox can talk to itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that made it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def hide_memory() -> None:
    """Keep processes with the same user from reading or tracing this one."""
    _prctl(_PR_SET_DUMPABLE, 0)


def show_memory() -> None:
    """The opposite of hide_memory, as it is for each fresh process."""
    _prctl(_PR_SET_DUMPABLE, 1)


def drop_capabilities() -> None:
    """Give up all capabilities for good, and the gain of any by executing a file."""
    bound_capabilities()
    give_up_capabilities()


def bound_capabilities() -> None:
    """Keep what this process and its children execute from gaining a capability; those that it has stay."""
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            break
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def give_up_capabilities() -> None:
    """Have no capability any more."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _syscall("capset", _number("capset"), ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def load_filter(program: bytes) -> None:
    """Install a seccomp filter, given as its BPF instructions of 8 bytes; needs no_new_privs."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header))


def allow_execution_of(paths: Iterable[str]) -> None:
    """Landlock: from now on only the files `paths` can be executed; needs no_new_privs."""
    attributes = struct.pack("=Q", _LANDLOCK_EXECUTE)
    ruleset = _syscall(
        "landlock_create_ruleset", _LANDLOCK_CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), 0
    )
    try:
        for path in paths:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", _LANDLOCK_EXECUTE, descriptor)
                _syscall(f"landlock_add_rule {path}", _LANDLOCK_ADD, ruleset, 1, ctypes.c_char_p(rule), 0)
            finally:
                os.close(descriptor)
        _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def execute(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Become the program argv[0], found on the PATH of `env` as execvp does; returns an errno when that fails."""
    os.environ.clear()
    os.environ.update(env)
    words = (ctypes.c_char_p * (len(argv) + 1))(*[os.fsencode(word) for word in argv], None)
    _libc.execvp(words[0], words)
    return ctypes.get_errno()


Call: TypeAlias = "tuple[Callable[..., int], tuple[object, ...], str]"
"""A system call made ready: what to call with which arguments, and what an error is about."""


def run_calls(calls: Sequence[Call]) -> None:
    """Make calls that were made ready. A forked child that only does this touches, and so copies, little memory."""
    for function, values, what in calls:
        if function(*values) < 0:
            _check(-1, what)


def fork_alone() -> int:
    """Fork without what Python does in a child about other threads and held locks: the caller must have neither.

    Modules are not told of the fork. For those that stand ready in a zygote that is about threads and locks, too, and
    that `random` is seeded anew, which mrp.sdk does.
    """
    return _check(_libc.fork(), "fork")


def mount_call(source: str, target: str, kind: str | None, flags: int, options: str = "") -> Call:
    """See mount."""
    values = (_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), options.encode() or None)
    return _libc.mount, values, f"mount {source} on {target}"


def unmount_call(target: str) -> Call:
    """See unmount."""
    return _libc.umount2, (_bytes(target), MNT_DETACH), f"umount {target}"


def unshare_call(flags: int) -> Call:
    """See unshare."""
    return _libc.unshare, (flags,), "unshare"


def give_up_capabilities_call() -> Call:
    """See give_up_capabilities."""
    values = (ctypes.c_long(_number("capset")), struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
    return _libc.syscall, values, "capset"


def load_filter_call(program: bytes) -> Call:
    """See load_filter."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    values = (_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), header, ctypes.c_ulong(0), ctypes.c_ulong(0))

    def load(*given: object) -> int:
        # The header points into the buffer, which lives as long as this function.
        return int(_libc.prctl(*given)) if instructions else -1

    return load, values, "prctl seccomp"


def limit_call(kind: int, limit: tuple[int, int]) -> Call:
    """resource.setrlimit."""
    return _libc.setrlimit, (kind, struct.pack("=QQ", *(value & 0xFFFFFFFFFFFFFFFF for value in limit))), "setrlimit"


def session_call() -> Call:
    """os.setsid."""
    return _libc.setsid, (), "setsid"


def enter_call(folder: str) -> Call:
    """os.chdir."""
    return _libc.chdir, (os.fsencode(folder),), f"chdir {folder}"


def duplicate_call(source: int, target: int) -> Call:
    """os.dup2, for programs to come."""
    return _libc.dup2, (source, target), "dup2"


def default_signal_call(number: int) -> Call:
    """What the signal does is up to the program again."""
    return _libc.signal, (number, None), "signal"


def execute_call(argv: Sequence[str], env: Mapping[str, str]) -> Call:
    """See execute; the PATH that counts is this process's."""
    words = (ctypes.c_char_p * (len(argv) + 1))(*[os.fsencode(word) for word in argv], None)
    pairs = [os.fsencode(f"{name}={value}") for name, value in env.items()]
    return _libc.execvpe, (words[0], words, (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None)), "execve"


def _prctl(option: int, *values: object) -> None:
    given = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in values]
    missing = [ctypes.c_ulong(0)] * (4 - len(given))
    _check(_libc.prctl(option, *given, *missing), f"prctl {option}")


def _syscall(what: str, number: int, *values: object) -> int:
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in values]
    return _check(_libc.syscall(ctypes.c_long(number), *given), what)


def _number(name: str) -> int:
    machine = os.uname().machine
    if machine not in _NUMBERS:
        raise OSError(f"{name}: the number of this system call on {machine} is not known here")
    return _NUMBERS[machine][name]


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return int(result)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)

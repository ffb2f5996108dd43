"""The seccomp filter: system calls that no task needs, and that could reach out of a sandbox, fail with EPERM.

Everything else is allowed. What is refused: changing namespaces and mounts, kernel keyrings, tracing of the kernel,
loading code into it, asynchronous calls that no filter sees, handles that name files without a path, sockets of
families that network namespaces do not hold back, and typing into the caller's terminal.
"""

import ctypes.util
import errno
import functools
import importlib
import tempfile
from typing import Any

from mrp.specs.errors import InfraError

_REFUSED = (
    "acct add_key bpf clock_adjtime clock_settime delete_module fanotify_init finit_module fsconfig fsmount fsopen"
    " fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kexec_file_load kexec_load keyctl"
    " lookup_dcookie mount mount_setattr move_mount name_to_handle_at nfsservctl open_by_handle_at open_tree"
    " perf_event_open pivot_root quotactl quotactl_fd reboot request_key setns settimeofday swapoff swapon syslog"
    " umount umount2 unshare uselib userfaultfd vhangup"
).split()
_OPEN_TREE_ATTR = 467
_CLONE_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_TERMINAL_CONTROLS = (0x5412, 0x541C)
_SOCKET_FAMILIES = (1, 2, 10, 16)
_LAST_FAMILY = 46
_LIBRARIES = {"c": "libc.so.6", "seccomp": "libseccomp.so.2"}


@functools.cache
def filter_program(*, forbid_memory_files: bool = False) -> bytes:
    """The filter as BPF instructions; `forbid_memory_files` refuses memfd_create, whose files Landlock lets run.

    Raises InfraError when libseccomp is not on this machine.
    """
    try:
        pyseccomp = _load_pyseccomp()
    except (ImportError, OSError, RuntimeError) as error:
        raise InfraError(
            f"the seccomp filter cannot be built ({error}); install libseccomp2 and pyseccomp", retryable=False
        ) from error
    arg = pyseccomp.Arg
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    # A 32-bit program would name the same calls by other numbers.
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, refuse)
    names = [*_REFUSED, "memfd_create"] if forbid_memory_files else _REFUSED
    for name in names:
        _add(rules, refuse, name)
    _add(rules, refuse, _OPEN_TREE_ATTR)
    # clone3 takes its flags in memory, where no filter sees them; on ENOSYS the C library falls back to clone.
    _add(rules, pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for flag in _CLONE_NAMESPACES:
        _add(rules, refuse, "clone", arg(0, pyseccomp.MASKED_EQ, flag, flag))
    for control in _TERMINAL_CONTROLS:
        _add(rules, refuse, "ioctl", arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, control))
    for family in range(_LAST_FAMILY + 1):
        if family not in _SOCKET_FAMILIES:
            _add(rules, refuse, "socket", arg(0, pyseccomp.EQ, family))
    _add(rules, refuse, "socket", arg(0, pyseccomp.GT, _LAST_FAMILY))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _load_pyseccomp() -> Any:
    """Import pyseccomp, which asks where libraries are; to find out, Python runs ldconfig, 10 ms for each."""
    ask = ctypes.util.find_library
    ctypes.util.find_library = lambda name: _LIBRARIES.get(name) or ask(name)
    try:
        return importlib.import_module("pyseccomp")
    except OSError:
        # Not under these names.
        pass
    finally:
        ctypes.util.find_library = ask
    return importlib.import_module("pyseccomp")


def _add(rules: object, action: int, call: str | int, *arguments: object) -> None:
    try:
        rules.add_rule(action, call, *arguments)  # type: ignore[attr-defined]
    except (ValueError, OSError):
        # This machine has no such call, under this name at least.
        return

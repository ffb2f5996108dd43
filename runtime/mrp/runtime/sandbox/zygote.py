"""The zygote: a warm Python that has loaded trusted code only, and forks one sandboxed process for each request.

A request is one byte and the descriptors that the process needs; what the process is to do goes over a channel of
its own, which the zygote passes on unread, so that nothing of one item is in its memory when it forks the next. It
ends when its backend does, and takes all that it forked with it. Only the standard library is imported.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import NoReturn

from mrp.runtime.sandbox import kernel
from mrp.runtime.sandbox.launcher import namespaces, parse_job, receive_frame, receive_with_descriptors, report, run_job
from mrp.runtime.sandbox.slot import run_slot

ONE, ONE_WITH_NETWORK, SLOT, SLOT_WITH_NETWORK = b"1", b"n", b"s", b"t"
"""Requests: one job, or a slot that runs many items; in a new network namespace or in the machine's."""

_PRELOADED = (
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "collections",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "io",
    "itertools",
    "json",
    "logging",
    "math",
    "pathlib",
    "random",
    "re",
    "shutil",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "traceback",
    "typing",
)


def main(control: int, import_root: str, sdk: str, guest_sdk: str) -> NoReturn:
    """Serve requests from the socket `control` until it closes.

    `import_root` is where this module came from, which jobs must not see. `sdk` is the folder with mrp.sdk on this
    machine, or "" when no functions will be run; they find it at `guest_sdk`.
    """
    owner = (os.geteuid(), os.getegid())
    for name in [name for name in sys.modules if name == "mrp" or name.startswith("mrp.")]:
        del sys.modules[name]
    hidden = ("", import_root)
    sys.path[:] = [place for place in sys.path if place not in hidden and not place.startswith("/usr/local/")]
    function = _load_sdk(sdk, guest_sdk) if sdk else _no_function
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=control), owner, function)


def _serve(control: socket.socket, owner: tuple[int, int], function: Callable[[Mapping[str, str]], int]) -> NoReturn:
    children: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    parent = os.getppid()
    while True:
        for descriptor, _ in poll.poll(2000):
            if descriptor == control.fileno():
                request, descriptors = receive_with_descriptors(control, 1)
                if not request:
                    _end(children)
                channel = socket.socket(fileno=descriptors.pop(0))
                started = _start(request, channel, descriptors, owner, function)
                for each in descriptors:
                    os.close(each)
                if started is not None:
                    poll.register(started[1], select.POLLIN)
                    children[started[1]] = (started[0], channel)
            else:
                poll.unregister(descriptor)
                pid, channel = children.pop(descriptor)
                _reap(pid, channel)
                os.close(descriptor)
        if os.getppid() != parent:
            _end(children)


def _start(
    request: bytes,
    channel: socket.socket,
    descriptors: Sequence[int],
    owner: tuple[int, int],
    function: Callable[[Mapping[str, str]], int],
) -> tuple[int, int] | None:
    try:
        pid, pidfd = kernel.clone(namespaces(request in (ONE, SLOT)))
    except OSError as error:
        report(channel, failed=str(error))
        channel.close()
        return None
    if pid == 0:
        _child(request, channel, descriptors, owner, function)
    socket.send_fds(channel, [b'{"started": %d}\n' % pid], [pidfd])
    return pid, pidfd


def _child(
    request: bytes,
    channel: socket.socket,
    descriptors: Sequence[int],
    owner: tuple[int, int],
    function: Callable[[Mapping[str, str]], int],
) -> NoReturn:
    try:
        _close_all_but([0, 1, 2, channel.fileno(), *descriptors])
        job = parse_job(receive_frame(channel))
        if request in (SLOT, SLOT_WITH_NETWORK):
            run_slot(job, owner, channel, descriptors, function)
        stdout, stderr, *cgroups = descriptors
        run_job(job, owner, channel, (stdout, stderr), cgroups, function)
    except BaseException as error:
        report(channel, failed=f"{type(error).__name__}: {error}")
    os._exit(1)


def _reap(pid: int, channel: socket.socket) -> None:
    _, status, usage = os.wait4(pid, 0)
    report(channel, status=status, cpu=usage.ru_utime + usage.ru_stime, rss=usage.ru_maxrss * 1024)
    channel.close()


def _end(children: Mapping[int, tuple[int, socket.socket]]) -> NoReturn:
    for pidfd in children:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os._exit(0)


def _close_all_but(kept: Sequence[int]) -> None:
    following = sorted(kept)
    for lower, upper in zip(following, [*following[1:], 65536], strict=True):
        os.closerange(lower + 1, upper)


def _no_function(environ: Mapping[str, str]) -> int:
    raise RuntimeError("this zygote was started without mrp.sdk")


def _load_sdk(folder: str, guest: str) -> Callable[[Mapping[str, str]], int]:
    """Load mrp.sdk from `folder` as if it stood at `guest`, so that paths in it are those of the sandbox."""
    for name in _PRELOADED:
        importlib.import_module(name)
    finder = _SdkFinder(folder, guest)
    sys.meta_path.insert(0, finder)
    try:
        runner = importlib.import_module("mrp.sdk.runner")
        for name in ("mrp.sdk", "mrp.sdk.builtin", "mrp.sdk.context"):
            importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
    function: Callable[[Mapping[str, str]], int] = runner.run_entry
    return function


class _SdkFinder(importlib.abc.MetaPathFinder):
    """Finds `mrp` and `mrp.sdk` in a folder of this machine, and says that they are in the sandbox's."""

    def __init__(self, folder: str, guest: str) -> None:
        self._folder = folder
        self._guest = guest

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "mrp" and not name.startswith("mrp."):
            return None
        place = name.replace(".", "/")
        for inner, package in ((f"{place}/__init__.py", True), (f"{place}.py", False)):
            if os.path.isfile(f"{self._folder}/{inner}"):
                loader = _SdkLoader(f"{self._folder}/{inner}", f"{self._guest}/{inner}")
                spec = importlib.machinery.ModuleSpec(name, loader, origin=f"{self._guest}/{inner}", is_package=package)
                spec.has_location = True
                break
        else:
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            package = True
        if package:
            spec.submodule_search_locations = [f"{self._guest}/{place}"]
        return spec


class _SdkLoader(importlib.abc.Loader):
    def __init__(self, path: str, guest: str) -> None:
        self._path = path
        self._guest = guest

    def exec_module(self, module: ModuleType) -> None:
        with open(self._path, "rb") as file:
            code = compile(file.read(), self._guest, "exec", dont_inherit=True)
        exec(code, module.__dict__)

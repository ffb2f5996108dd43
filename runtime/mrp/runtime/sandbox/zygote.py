"""The zygote: a warm Python that has loaded trusted code only, and forks a sandbox for each request.

A request is one byte and the descriptors that the process needs; what the process is to do goes over a channel of
its own, which the zygote passes on unread, so that nothing of one item is in its memory when it forks the next. It
ends when its backend does, and takes all that it forked with it; hands see that for themselves. Only the standard
library is imported.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

from mrp.runtime.sandbox import kernel
from mrp.runtime.sandbox.hand import run_hand
from mrp.runtime.sandbox.launcher import namespaces, parse_job, receive_frame, receive_with_descriptors, report
from mrp.runtime.sandbox.slot import run_slot
from mrp.runtime.sandbox.stage import run_stage

STAGE, STAGE_WITH_NETWORK, SLOT, SLOT_WITH_NETWORK, HAND = b"g", b"h", b"s", b"t", b"p"
"""Requests: a stage for many jobs, a slot for many items, both in a new network namespace or in the machine's; or a
hand, which is in no namespaces."""


def main(control: int, import_root: str, sdk: str, guest_sdk: str) -> NoReturn:
    """Serve requests from the socket `control` until it closes.

    `import_root` is where this module came from, which jobs must not see. `sdk` is the folder with mrp.sdk on this
    machine, or "" when no functions will be run; they find it at `guest_sdk`.
    """
    owner = (os.geteuid(), os.getegid())
    if sdk:
        # Left out where it is not needed: all that is loaded is copied with each fork.
        from mrp.runtime.sandbox.sdk_loading import load_sdk
    for name in [name for name in sys.modules if name == "mrp" or name.startswith("mrp.")]:
        del sys.modules[name]
    hidden = ("", import_root)
    sys.path[:] = [place for place in sys.path if place not in hidden and not place.startswith("/usr/local/")]
    function = load_sdk(sdk, guest_sdk) if sdk else _no_function
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=control), owner, function)


def _serve(control: socket.socket, owner: tuple[int, int], function: Callable[[Mapping[str, str]], int]) -> NoReturn:
    children: dict[int, tuple[int, socket.socket]] = {}
    walled: set[int] = set()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    parent = os.getppid()
    while True:
        for descriptor, _ in poll.poll(2000):
            if descriptor == control.fileno():
                request, descriptors = receive_with_descriptors(control, 1)
                if not request:
                    _end(walled)
                channel = socket.socket(fileno=descriptors.pop(0))
                started = _start(request, channel, descriptors, owner, function)
                for each in descriptors:
                    os.close(each)
                if started is not None:
                    poll.register(started[1], select.POLLIN)
                    children[started[1]] = (started[0], channel)
                    if request != HAND:
                        walled.add(started[1])
            else:
                poll.unregister(descriptor)
                walled.discard(descriptor)
                pid, channel = children.pop(descriptor)
                _reap(pid, channel)
                os.close(descriptor)
        if os.getppid() != parent:
            _end(walled)


def _start(
    request: bytes,
    channel: socket.socket,
    descriptors: Sequence[int],
    owner: tuple[int, int],
    function: Callable[[Mapping[str, str]], int],
) -> tuple[int, int] | None:
    try:
        pid, pidfd = kernel.clone(0 if request == HAND else namespaces(request in (STAGE, SLOT)))
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
        if request == HAND:
            run_hand(channel, descriptors)
        job = parse_job(receive_frame(channel))
        run = run_slot if request in (SLOT, SLOT_WITH_NETWORK) else run_stage
        run(job, owner, channel, descriptors, function)
    except BaseException as error:
        report(channel, failed=f"{type(error).__name__}: {error}")
    os._exit(1)


def _reap(pid: int, channel: socket.socket) -> None:
    _, status, usage = os.wait4(pid, 0)
    report(channel, status=status, cpu=usage.ru_utime + usage.ru_stime, rss=usage.ru_maxrss * 1024)
    channel.close()


def _end(walled: Iterable[int]) -> NoReturn:
    for pidfd in walled:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os._exit(0)


def _close_all_but(kept: Sequence[int]) -> None:
    following = sorted(kept)
    for lower, upper in zip(following, [*following[1:], 65536], strict=True):
        os.closerange(lower + 1, upper)


def _no_function(environ: Mapping[str, str]) -> int:
    raise RuntimeError("this zygote was started without mrp.sdk")

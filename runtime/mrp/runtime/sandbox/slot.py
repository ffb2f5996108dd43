"""A slot: one sandbox that runs the items of a pure operator one after the other, each with folders of its own.

Process 1 keeps the privilege to mount and sees the folder where the backend lays out items; the worker, which runs
user code, lost both. Process 1 mounts an item's folders, and the mounts spread to the worker, whose file system is a
slave of its own; then the worker runs the item, and they are unmounted again.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from mrp.runtime.sandbox import kernel
from mrp.runtime.sandbox.launcher import (
    Job,
    build,
    confine,
    exit_code,
    flush_streams,
    join,
    limit_resources,
    map_user,
    prepare_imports,
    receive_descriptors,
    receive_frame,
    report,
    run_function,
    send_frame,
)

READ_ONLY, WRITABLE = "/mnt", "/run"
"""Where process 1 finds the backend's folder of items; the worker finds these empty, as they are in other sandboxes."""


def run_slot(
    job: Job,
    owner: tuple[int, int],
    channel: socket.socket,
    cgroups: Sequence[int],
    function: Callable[[Mapping[str, str]], int],
) -> NoReturn:
    """Serve items until the channel closes, then end; ends also when the worker does, with its exit code.

    An item is a frame of JSON: mounts, a list of [guest path, path below the folder of items, writable], env and cwd;
    with it come descriptors for stdout and stderr. The answer is {"exit", "cpu", "rss"}.
    """
    try:
        kernel.die_with_parent()
        map_user(job, owner)
        join(cgroups)
        build(job)
        kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_SHARED)
        ours, theirs = socket.socketpair()
        worker = os.fork()
        if worker == 0:
            channel.close()
            ours.close()
            _become_worker(job)
            _serve(job, theirs, function)
        theirs.close()
        kernel.hide_memory()
        _pass_on(channel, ours, worker)
    except BaseException as error:
        report(channel, failed=f"{type(error).__name__}: {error}")
    os._exit(1)


def _pass_on(channel: socket.socket, worker_end: socket.socket, worker: int) -> NoReturn:
    pidfd = os.pidfd_open(worker)
    while True:
        if pidfd in _readable(channel.fileno(), pidfd):
            _leave(worker)
        try:
            item = json.loads(receive_frame(channel))
            outputs = receive_descriptors(channel)
        except EOFError:
            os._exit(0)
        for path, inner, writable in item["mounts"]:
            kernel.mount(f"{WRITABLE if writable else READ_ONLY}/{inner}", path, None, kernel.MS_BIND)
        try:
            send_frame(worker_end, json.dumps({"env": item["env"], "cwd": item["cwd"]}).encode(), outputs)
            for descriptor in outputs:
                os.close(descriptor)
            # A child of the worker may hold its end of the channel open, so that its death alone tells of it.
            if worker_end.fileno() not in _readable(worker_end.fileno(), pidfd):
                _leave(worker)
            answer = json.loads(receive_frame(worker_end))
            # The worker runs user code: only numbers of its are passed on, never a claim that the sandbox failed.
            numbers = {"exit": int(answer["exit"]), "cpu": float(answer["cpu"]), "rss": int(answer["rss"])}
        except (EOFError, OSError, ValueError, KeyError, TypeError):
            os.kill(worker, signal.SIGKILL)
            _leave(worker)
        for path, _, _ in reversed(item["mounts"]):
            kernel.unmount(path)
        _reap_orphans(worker)
        report(channel, **numbers)


def _readable(*descriptors: int) -> list[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll()]


def _reap_orphans(worker: int) -> None:
    while True:
        waiting = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if waiting is None or waiting.si_pid == worker:
            return
        os.waitpid(waiting.si_pid, 0)


def _leave(worker: int) -> NoReturn:
    """End as the worker ended; other processes of the sandbox may end at the same time."""
    while True:
        pid, status = os.wait()
        if pid == worker:
            os._exit(exit_code(status))


def _become_worker(job: Job) -> None:
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_SLAVE)
    for place in (READ_ONLY, WRITABLE):
        kernel.unmount(place)
    confine(job)
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    limit_resources(job.rlimits)


def _serve(job: Job, channel: socket.socket, function: Callable[[Mapping[str, str]], int]) -> NoReturn:
    prepare_imports(job)
    null = os.open("/dev/null", os.O_WRONLY)
    while True:
        try:
            item: dict[str, Any] = json.loads(receive_frame(channel))
            outputs = receive_descriptors(channel)
        except EOFError:
            os._exit(0)
        for descriptor, target in zip(outputs, (1, 2), strict=True):
            os.dup2(descriptor, target)
            os.close(descriptor)
        before = _cpu_seconds()
        os.chdir(item["cwd"])
        code = flush_streams(run_function(item["env"], function))
        os.chdir("/")
        for target in (1, 2):
            os.dup2(null, target)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        send_frame(channel, json.dumps({"exit": code, "cpu": _cpu_seconds() - before, "rss": rss}).encode())


def _cpu_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total

"""A stage: one sandbox whose root stands ready, in which one job after the other runs and leaves nothing to the next.

Process 1 keeps the privilege to mount. It does not read what a function is to do: the worker that it forks for that
reads it, so that no later one finds it in its memory, as no program that is executed can. The worker leaves for mounts
and IPC of its own, mounts the job's folders, gives up all privileges and then runs the job. When it ends, everything
else in the sandbox is killed, process ids start anew, and so does a network that was used.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

from mrp.runtime.sandbox import kernel
from mrp.runtime.sandbox.launcher import (
    DEVPTS_OPTIONS,
    AllowError,
    Job,
    build,
    executables,
    join,
    limit_calls,
    map_user,
    open_doors,
    receive_descriptors,
    receive_frame,
    report,
    shared_memory_call,
    start_work,
)

MATERIALS, JOBS = "/dev/pts", "/dev/shm"
"""Where process 1 finds the backend's folders; no job can mount there, and each has fresh ones of these on top."""

_TRACES = ("dev", "snmp", "snmp6", "netstat", "ip6_flowlabel")


def run_stage(
    job: Job,
    owner: tuple[int, int],
    channel: socket.socket,
    cgroups: Sequence[int],
    function: Callable[[Mapping[str, str]], int],
) -> NoReturn:
    """Serve jobs until the channel closes, then end.

    `job` describes what is the same for all of them. A job is a frame of JSON (mounts, a list of [source in here, guest
    path]; argv or null; env; cwd; rlimits) and descriptors for stdout and stderr. The answer is {"ended": wait status,
    "cpu", "rss"}, before it {"exec": errno} when the program could not be executed.
    """
    try:
        kernel.die_with_parent()
        map_user(job, owner)
        join(cgroups)
        kernel.make_mounts_private()
        last_pid = _open_last_pid(job.root)
        build(job)
        kernel.bound_capabilities()
        kernel.hide_memory()
        # From inside a process 1 gets only signals that it handles, and Python handles this one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        untouched = _network_traces() if job.private_network else b""
        walls = _walls(job)
        commands = Commands(job, channel, walls) if job.argv is not None and job.allow is None else None
        while _is_wanted(channel):
            if job.doors:
                open_doors(job.doors, channel)
            os.pwrite(last_pid, b"1", 0)
            if commands is not None:
                worker = commands.start()
            else:
                worker = kernel.fork_alone()
            if worker == 0:
                os.close(last_pid)
                _work(job, channel, walls, function)
            status, cpu, rss = _wait_for(worker)
            if job.doors or (job.private_network and _network_traces() != untouched):
                kernel.unshare(kernel.CLONE_NEWNET)
                kernel.start_loopback()
                untouched = _network_traces()
            report(channel, ended=status, cpu=cpu, rss=rss)
    except BaseException as error:
        report(channel, failed=f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def _open_last_pid(place: str) -> int:
    """The file of the kernel that says which process id was the last; jobs find it read-only."""
    kernel.mount("proc", place, "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    try:
        return os.open(f"{place}/sys/kernel/ns_last_pid", os.O_WRONLY | os.O_CLOEXEC)
    finally:
        kernel.unmount(place)


def _is_wanted(channel: socket.socket) -> bool:
    """Wait for a job, and look at no more of it than that it is there."""
    select.select([channel], [], [])
    return bool(channel.recv(1, socket.MSG_PEEK))


def _wait_for(worker: int) -> tuple[int, float, int]:
    """Reap until the worker ended, then kill all others; nothing of the job is left when this returns."""
    while True:
        pid, status, usage = os.wait4(-1, 0)
        if pid == worker:
            break
    with suppress(ProcessLookupError):
        # All at once: a process that is being forked meanwhile does not come to be.
        os.kill(-1, signal.SIGKILL)
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _network_traces() -> bytes:
    """What later processes in this network could see of earlier ones: counters, and labels that outlive a socket."""
    found = []
    for name in _TRACES:
        try:
            with open(f"/proc/self/net/{name}", "rb") as file:
                found.append(file.read())
        except FileNotFoundError:
            continue
    return b"".join(found)


class Walls(NamedTuple):
    """Calls made ready before a fork: to leave process 1's namespaces, to hide its folders and to be harmless."""

    leave: Sequence[kernel.Call]
    close: Sequence[kernel.Call]
    confine: Sequence[kernel.Call]


def _walls(job: Job) -> Walls:
    return Walls(
        [kernel.unshare_call(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)],
        [
            kernel.unmount_call(MATERIALS),
            kernel.unmount_call(JOBS),
            kernel.mount_call("devpts", "/dev/pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, DEVPTS_OPTIONS),
            shared_memory_call(job),
            kernel.give_up_capabilities_call(),
        ],
        [kernel.load_filter_call(bytes.fromhex(job.seccomp))],
    )


class Commands:
    """Starts programs: all is made ready here, so that the forked worker has little left to do and to copy."""

    def __init__(self, job: Job, channel: socket.socket, walls: Walls) -> None:
        self._channel = channel
        self._null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._before = walls.leave
        self._after = [
            *walls.close,
            *walls.confine,
            kernel.session_call(),
            # Python ignores these two, and what it executes would inherit that.
            kernel.default_signal_call(signal.SIGPIPE),
            kernel.default_signal_call(signal.SIGXFSZ),
            kernel.duplicate_call(self._null, 0),
        ]

    def start(self) -> int:
        """Fork the worker for the job that waits in the channel."""
        told = json.loads(receive_frame(self._channel))
        outputs = receive_descriptors(self._channel)
        calls = [*self._before]
        calls += [kernel.mount_call(source, path, None, kernel.MS_BIND) for source, path in told["mounts"]]
        calls += self._after
        calls.append(kernel.enter_call(told["cwd"]))
        calls += [kernel.duplicate_call(descriptor, target) for descriptor, target in zip(outputs, (1, 2), strict=True)]
        calls += limit_calls(told["rlimits"])
        execute = kernel.execute_call(told["argv"], told["env"])
        os.environ["PATH"] = told["env"].get("PATH", os.defpath)
        worker = kernel.fork_alone()
        if worker == 0:
            self._become(calls, execute)
        for descriptor in outputs:
            os.close(descriptor)
        return worker

    def _become(self, calls: Sequence[kernel.Call], execute: kernel.Call) -> NoReturn:
        try:
            kernel.run_calls(calls)
        except OSError as error:
            report(self._channel, failed=str(error))
            os._exit(1)
        try:
            kernel.run_calls([execute])
        except OSError as error:
            report(self._channel, exec=error.errno)
        os._exit(127)


def _work(job: Job, channel: socket.socket, walls: Walls, function: Callable[[Mapping[str, str]], int]) -> NoReturn:
    try:
        told = json.loads(receive_frame(channel))
        outputs = receive_descriptors(channel)
        kernel.run_calls(walls.leave)
        for source, path in told["mounts"]:
            kernel.mount(source, path, None, kernel.MS_BIND)
        kernel.run_calls(walls.close)
        job = job._replace(argv=told["argv"], env=told["env"], cwd=told["cwd"], rlimits=told["rlimits"])
        if job.allow is not None:
            kernel.allow_execution_of(executables(job.allow, job.env.get("PATH", "")))
        kernel.run_calls(walls.confine)
        kernel.show_memory()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    except AllowError as error:
        report(channel, failed=str(error), permanent=True)
        os._exit(1)
    except BaseException as error:
        report(channel, failed=f"{type(error).__name__}: {error}")
        os._exit(1)
    start_work(job, channel, (outputs[0], outputs[1]), function)

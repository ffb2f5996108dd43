"""A hand: a process in a control group that runs one command after the other there, without walls.

What it starts is in the group from its first instruction. It is the parent of all that a command leaves behind, even
in sessions of their own, and kills it. Only the standard library is imported.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from mrp.runtime.sandbox import kernel
from mrp.runtime.sandbox.launcher import join, receive_descriptors, receive_frame, report

_LIMITS = {
    "core": resource.RLIMIT_CORE,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
}
_PAUSE = 0.01


def run_hand(channel: socket.socket, cgroups: Sequence[int]) -> NoReturn:
    """Serve jobs until the channel closes, then kill what runs, and end.

    A job is a frame of JSON (argv, env, cwd, rlimits) and descriptors for stdout and stderr. The answer is {"ended":
    wait status, "cpu", "rss"}, before it {"exec": errno} when the program could not be executed.
    """
    try:
        join(cgroups)
        kernel.adopt_orphans()
        os.umask(0o022)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        while True:
            job = json.loads(receive_frame(channel))
            outputs = receive_descriptors(channel)
            _run(job, outputs, channel)
    except EOFError:
        _kill_descendants()
    except BaseException as error:
        _kill_descendants()
        report(channel, failed=f"{type(error).__name__}: {error}")
    os._exit(0)


def _run(job: Mapping[str, Any], outputs: Sequence[int], channel: socket.socket) -> None:
    try:
        os.chdir(job["cwd"])
        # Hard limits cannot be raised again in here, so that these are set from outside once it runs.
        for name, value in job["rlimits"].items():
            _, hard = resource.getrlimit(_LIMITS[name])
            resource.setrlimit(_LIMITS[name], (_allowed(value, hard), hard))
        pid = _spawn(job["argv"], job["env"], outputs)
    except OSError as error:
        report(channel, exec=error.errno or errno.EACCES, ended=0, cpu=0.0, rss=0)
        return
    finally:
        os.chdir("/")
        for descriptor in outputs:
            os.close(descriptor)
    for name, value in job["rlimits"].items():
        _, hard = resource.getrlimit(_LIMITS[name])
        resource.prlimit(pid, _LIMITS[name], (_allowed(value, hard), _allowed(value, hard)))
    _wait_for_end(pid, channel)
    _, status, usage = os.wait4(pid, 0)
    _kill_descendants()
    report(channel, ended=status, cpu=usage.ru_utime + usage.ru_stime, rss=usage.ru_maxrss * 1024)


def _allowed(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _spawn(argv: Sequence[str], env: Mapping[str, str], outputs: Sequence[int]) -> int:
    """Start a program, found on the PATH of `env` as execvp does; the error of the last place that is worth telling."""
    actions = [(os.POSIX_SPAWN_DUP2, descriptor, target) for descriptor, target in zip(outputs, (1, 2), strict=True)]
    failed: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    folders = [""] if "/" in argv[0] else env.get("PATH", os.defpath).split(":")
    for folder in folders:
        program = os.path.join(folder, argv[0])
        try:
            if len(folders) > 1:
                os.stat(program)
            # Python ignores these two signals, and what it executes would inherit that.
            return os.posix_spawn(
                program, list(argv), env, file_actions=actions, setsid=True, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ]
            )
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            failed = error
    raise failed


def _wait_for_end(pid: int, channel: socket.socket) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(channel, select.POLLIN)
        # While a command runs, the channel has nothing to say but that it closed.
        if pidfd not in [descriptor for descriptor, _ in poll.poll()]:
            raise EOFError("the backend is gone")
    finally:
        os.close(pidfd)


def _kill_descendants() -> None:
    """Until there are none: who is being forked meanwhile is killed in the next round."""
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        waiting = [os.getpid()]
        while waiting:
            for child in _children(waiting.pop()):
                waiting.append(child)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        select.select([], [], [], _PAUSE)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found

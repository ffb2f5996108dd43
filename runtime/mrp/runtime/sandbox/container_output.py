"""What comes of a container that was started: its two outputs, what its control group counts, and how it ended.

One thread follows one container, with one poll.
"""

import errno
import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from mrp.runtime.sandbox.cgroups import Counters, Group
from mrp.runtime.sandbox.provider import KEPT_LOG, Exit
from mrp.specs.errors import InfraError

STDOUT, STDERR = 1, 2
"""The numbers of the outputs in Docker's stream."""

_CHUNK = 1 << 16
_GRACE = 1.0
_DEAD_SECONDS = 60.0
"""After the time limit; the outputs of a container that was killed end long before."""

_FIRST_TICK, _LONGEST_TICK = 0.005, 0.2
_CGROUPS = "/sys/fs/cgroup"


@dataclass
class Seen:
    """What was seen of a container. killed: processes killed for memory; refused: ones that could not be made."""

    stdout: Path
    stderr: Path
    over_time: bool = False
    killed: int = 0
    refused: int = 0
    cpu_s: float = 0.0
    max_rss: int = 0

    def count(self, counters: Counters | None) -> None:
        """Look at the control group, which is removed as soon as the container has ended."""
        if counters is not None:
            events, (cpu, peak) = counters.events(), counters.usage()
            self.killed, self.refused = max(self.killed, events.memory), max(self.refused, events.pids)
            self.cpu_s, self.max_rss = max(self.cpu_s, cpu), max(self.max_rss, peak)


def follow(
    attached: socket.socket, counters: Counters | None, timeout: float, logs: Path, end: Callable[[bool], None]
) -> Seen:
    """Write the outputs of a container to files in `logs` until they end; takes over `counters`.

    After `timeout` seconds `end` gets True (ask it to end), and a second later False (kill it). Raises InfraError when
    they do not end even then.
    """
    seen = Seen(logs / "stdout", logs / "stderr")
    with ExitStack() as stack:
        if counters is not None:
            stack.enter_context(closing(counters))
        kept = {
            STDOUT: _Log(stack.enter_context(seen.stdout.open("wb"))),
            STDERR: _Log(stack.enter_context(seen.stderr.open("wb"))),
        }
        for kind, data in _output(attached, counters, time.monotonic() + timeout, seen, end):
            if kind in kept:
                kept[kind].write(data)
    return seen


def exit_of(seen: Seen, state: Mapping[str, Any]) -> Exit:
    """How a container ended, from what was seen and the State that Docker tells of it."""
    code = int(state["ExitCode"])
    limit = "wall" if seen.over_time else None
    if limit is None and code != 0:
        if state["OOMKilled"] or seen.killed:
            limit = "memory"
        elif seen.refused:
            limit = "pids"
    return Exit(
        code,
        limit,
        seen.stdout,
        seen.stderr,
        cpu_s=Decimal(f"{seen.cpu_s:.3f}"),
        max_rss=seen.max_rss,
        wall_s=_seconds(state["StartedAt"], state["FinishedAt"]),
        exec_error=_take_exec_error(seen.stderr) if code in (126, 127) else None,
    )


def open_counters(container: str) -> Counters | None:
    """The counters of a container's control group, where the engine is on this machine and shows them."""
    kinds = ("memory", "pids", "cpu", "cpuacct")
    first = {kind: found for kind in kinds if (found := _group_below(Path(_CGROUPS, kind), container)) is not None}
    if len(first) == len(kinds):
        return Group(1, first).counters()
    second = _group_below(Path(_CGROUPS), container)
    return Group(2, dict.fromkeys(kinds, second)).counters() if second is not None else None


def _group_below(root: Path, container: str) -> Path | None:
    """The group of a container in a folder that its engine chose: `docker`, `system.slice`, or another one."""
    return next((group for name in (container, f"docker-{container}.scope") for group in root.glob(f"*/{name}")), None)


@dataclass
class _Log:
    file: BinaryIO
    room: int = KEPT_LOG

    def write(self, data: bytes) -> None:
        self.file.write(data[: self.room])
        self.room -= min(self.room, len(data))


def _output(
    attached: socket.socket, counters: Counters | None, deadline: float, seen: Seen, end: Callable[[bool], None]
) -> Iterator[tuple[int, bytes]]:
    buffer = bytearray()
    # All reading is after a wait; the timeout is for data that turns out to be none yet.
    attached.settimeout(_LONGEST_TICK)
    poll = select.poll()
    poll.register(attached, select.POLLIN)
    if counters is not None and counters.pids >= 0:
        poll.register(counters.pids, select.POLLPRI)
    tick = _FIRST_TICK
    latest = deadline + _DEAD_SECONDS
    while True:
        seen.count(counters)
        left = deadline - time.monotonic()
        if left <= 0:
            if time.monotonic() > latest:
                raise InfraError("the outputs of a container that was killed do not end")
            ask, seen.over_time = not seen.over_time, True
            end(ask)
            deadline = time.monotonic() + _GRACE
            continue
        ready = poll.poll(min(left, tick) * 1000 + 1)
        tick = min(2 * tick, _LONGEST_TICK)
        if not any(descriptor == attached.fileno() for descriptor, _ in ready):
            continue
        with suppress(TimeoutError):
            data = attached.recv(_CHUNK)
            if not data:
                return
            buffer += data
            yield from frames(buffer)


def frames(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take whole frames of Docker's stream of two outputs from the start of `buffer`: which one, and the bytes."""
    while len(buffer) >= 8:
        end = 8 + int.from_bytes(buffer[4:8], "big")
        if len(buffer) < end:
            return
        yield buffer[0], bytes(buffer[8:end])
        del buffer[:end]


_NOT_EXECUTED = re.compile(rb"\[FATAL tini \(\d+\)\] exec .* failed: (.*)\n\Z", re.DOTALL)


def _take_exec_error(log: Path) -> int | None:
    """The errno when the first process says, last of all, that it could not execute the program; takes the line out."""
    data = log.read_bytes()
    found = _NOT_EXECUTED.search(data)
    if found is None:
        return None
    log.write_bytes(data[: found.start()])
    said = found.group(1).decode(errors="replace")
    return next((number for number in errno.errorcode if os.strerror(number) == said), errno.EACCES)


def _seconds(began: str, ended: str) -> Decimal | None:
    try:
        first, last = (datetime.fromisoformat(f"{text[:26].rstrip('Z')}+00:00") for text in (began, ended))
    except ValueError:
        return None
    return Decimal(f"{max(0.0, (last - first).total_seconds()):.3f}")

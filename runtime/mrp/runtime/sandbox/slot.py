"""A slot: one sandbox that runs the items of a pure operator one after the other, each with empty or laid-out folders.

Process 1 keeps its privileges and sees the folder that holds the slot's folders; the worker, which runs user code,
lost both. The folders are mounted once. For each item process 1 fills them, tells the worker to run, reads what it
left and empties them again. What the backend must look at itself it is told, and waited for.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from mrp.runtime.sandbox import kernel, slot_folders
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
    receive_frame,
    receive_only_frame,
    report,
    run_function,
)

FOLDERS = "/run"
"""Where process 1 finds the slot's folders; the worker finds it empty, as it is in other sandboxes."""

FOLDERS_ARE, CHUNK, GO, STOP = b"f", b"c", b"g", b"s"
"""To process 1: its folders, and items to run (a frame follows both); go on after an item that was held; run no
further item. The first is answered with a byte that carries the folders' descriptors."""

STDOUT, STDERR, ITEM, RETURNED = b"o", b"e", b"i", b"r"
"""From process 1, each before a frame: a piece of a log; how an item ended; that the rest will not be run.

An item's frame is ITEM_ENDED, then of that size the JSON of the trees that it left (null for one that is as it was
given), unless it is held, then the bytes of their files. The last one's frame is "running" when an item still runs,
"waiting" when none does and the slot can be used further, "ending" when it cannot.
"""

LOG_BYTES = 16 * 2**20
"""More than this is not passed on of a log, but for the last piece."""

ROOM = 2**20
"""Bytes of outputs that process 1 hands over itself."""

ITEM_ENDED = struct.Struct("=BddqqB3xI")
"""Exit code, seconds of CPU and of wall time, bytes of memory and left in folders, whether the item is held, a size."""

_PIECE = 1 << 20
_ANSWER = struct.Struct("=Bdq")


class Ends(NamedTuple):
    """The descriptors of a slot: the channel for chunks, and both ends of the pipes for stdout and stderr."""

    chunks: int
    stdout: int
    stdout_writer: int
    stderr: int
    stderr_writer: int


def run_slot(
    job: Job,
    owner: tuple[int, int],
    channel: socket.socket,
    descriptors: Sequence[int],
    function: Callable[[Mapping[str, str]], int],
) -> NoReturn:
    """Serve chunks until their channel closes, then end; ends also when the worker does, with its exit code.

    `descriptors` are those of Ends, then open cgroup.procs files.
    """
    try:
        kernel.die_with_parent()
        map_user(job, owner)
        join(descriptors[len(Ends._fields) :])
        build(job)
        ends = Ends(*descriptors[: len(Ends._fields)])
        ours, theirs = socket.socketpair()
        worker = os.fork()
        if worker == 0:
            become_worker(theirs, ends, [channel.fileno(), ours.fileno()])
            kernel.unshare(kernel.CLONE_NEWNS)
            kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
            kernel.unmount(FOLDERS)
            confine(job)
            limit_resources(job.rlimits)
            work(job, theirs, ends, function)
        theirs.close()
        kernel.hide_memory()
        Keeper(ends, ours, worker, FOLDERS, extra="/dev/shm").serve()
    except BaseException as error:
        report(channel, failed=f"{type(error).__name__}: {error}")
    os._exit(1)


class Folder(NamedTuple):
    """A folder of the slot: whether the worker may write to it, and whether what it wrote is kept."""

    descriptor: int
    writable: bool
    kept: bool
    size_when_empty: int | None

    @classmethod
    def open(cls, place: str, *, writable: bool = True, kept: bool = False) -> Folder:
        """The empty folder at `place`."""
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return cls(descriptor, writable, writable and kept, slot_folders.size_when_empty(descriptor))

    def is_empty(self) -> bool:
        """Whether it is empty for certain."""
        return self.size_when_empty is not None and os.fstat(self.descriptor).st_size == self.size_when_empty

    def clear(self, tree: Sequence[Any]) -> None:
        """Empty it of all that the worker made; `tree` is what was seen of it."""
        with suppress(OSError):
            slot_folders.unlay(self.descriptor, tree)
        slot_folders.clear(self.descriptor, is_empty=self.is_empty())


class Keeper:
    """Process 1: it keeps the folders, and is the only one that talks to the backend.

    `place` is where the folders are; `extra` one more that is emptied after each item.
    """

    def __init__(self, ends: Ends, worker_end: socket.socket, worker: int, place: str, extra: str = "") -> None:
        os.close(ends.stdout_writer)
        os.close(ends.stderr_writer)
        self._chunks = socket.socket(fileno=ends.chunks)
        self._worker_end, self._worker = worker_end, worker
        self._pidfd = os.pidfd_open(worker)
        self._logs = {ends.stdout: STDOUT, ends.stderr: STDERR}
        self._said = dict.fromkeys(self._logs, 0)
        self._place = place
        self._extra = Folder.open(extra) if extra else None
        self._folders: list[Folder] = []
        self._stopped = False
        # The order matters: what the worker wrote before its answer is seen when the answer is.
        self._poll = select.poll()
        for descriptor in (worker_end.fileno(), self._pidfd, self._chunks.fileno(), *self._logs):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> NoReturn:
        """Run chunks until the backend is gone or the worker has ended."""
        idle = select.poll()
        idle.register(self._pidfd, select.POLLIN)
        idle.register(self._chunks, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in idle.poll()]
            if self._pidfd in ready:
                self._give_back(b"ending")
                self._leave()
            request = self._chunks.recv(1)
            if not request:
                self._end_all()
            if request == FOLDERS_ARE:
                self._open_folders(json.loads(receive_frame(self._chunks)))
            elif request == CHUNK:
                self._chunk(receive_frame(self._chunks))

    def _open_folders(self, folders: list[tuple[str, bool, bool]]) -> None:
        """Take note of each folder: its name, whether the worker may write to it, and whether it is kept."""
        for name, writable, kept in folders:
            self._folders.append(Folder.open(f"{self._place}/{name}", writable=writable, kept=kept))
        socket.send_fds(self._chunks, [FOLDERS_ARE], [folder.descriptor for folder in self._folders])

    def _chunk(self, frame: bytes) -> None:
        """Run the items of a frame: the size of a header in 4 bytes, the header in JSON, then all bytes it tells of.

        Header: room for what an item may leave in all, trees with their number of bytes, and items: for each folder
        the number of a tree, or None for one that is laid out already, and the number of bytes of what the worker is
        sent.
        """
        size = int.from_bytes(frame[:4], "big")
        header = json.loads(frame[4 : 4 + size])
        data = memoryview(frame)[4 + size :]
        trees = []
        for tree, count in header["trees"]:
            trees.append((tree, data[:count]))
            data = data[count:]
        self._stopped = False
        for chosen, count in header["items"]:
            given = [None if number is None else trees[number] for number in chosen]
            try:
                for folder, laid in zip(self._folders, given, strict=True):
                    if laid is not None:
                        slot_folders.lay(folder.descriptor, laid[0], laid[1], writable=folder.writable)
            except OSError:
                self._give_back(b"ending")
                self._end_all()
            self._item(given, bytes(data[:count]), header["room"])
            data = data[count:]
            if self._stopped:
                return

    def _item(self, given: list[Any], message: bytes, room: int) -> None:
        started = time.monotonic()
        self._said = dict.fromkeys(self._logs, 0)
        try:
            self._worker_end.sendall(len(message).to_bytes(4, "big") + message)
            code, cpu, rss = self._answer()
        except OSError:
            self._kill_worker()
        wall = time.monotonic() - started
        pieces: list[bytes] = []
        taken: list[Any] = []
        seen: dict[int, Sequence[Any]] = {}
        used, held = 0, code != 0
        try:
            left = ROOM
            for folder, laid in zip(self._folders, given, strict=True):
                if not folder.writable:
                    continue
                is_empty = folder.is_empty()
                if not folder.kept:
                    used += 0 if is_empty else slot_folders.measure(folder.descriptor)
                    continue
                own: list[bytes] = []
                tree = [] if is_empty else slot_folders.take(folder.descriptor, left, own)
                seen[folder.descriptor] = tree
                used += slot_folders.counted(tree)
                if laid is not None and tree == laid[0] and b"".join(own) == laid[1]:
                    taken.append(None)
                    continue
                left -= sum(map(len, own))
                taken.append(tree)
                pieces += own
            held = held or used > room
        except (slot_folders.NotPlain, OSError, RecursionError):
            held = True
        trees = b"" if held else json.dumps(taken).encode()
        ended = ITEM_ENDED.pack(code, cpu, wall, rss, used, held, len(trees))
        self._send(ITEM, b"".join([ended, trees, *(() if held else pieces)]))
        if held:
            self._wait_for_go()
        try:
            for folder, laid in zip(self._folders, given, strict=True):
                if laid is not None and not folder.writable:
                    slot_folders.unlay(folder.descriptor, laid[0])
                else:
                    folder.clear(seen.get(folder.descriptor, ()))
            if self._extra is not None:
                self._extra.clear(())
        except (OSError, RecursionError):
            self._give_back(b"ending")
            self._end_all()
        _reap_orphans(self._worker)

    def _answer(self) -> tuple[int, float, int]:
        """The worker's numbers; meanwhile pass its logs on, and notice its end and the backend's."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            for descriptor in self._logs.keys() & ready:
                self._pass_log(descriptor)
            if self._worker_end.fileno() in ready:
                code, cpu, rss = _ANSWER.unpack(_receive_exactly(self._worker_end, _ANSWER.size))
                # The worker runs user code: only numbers of its are passed on, and only such as there can be.
                return code, cpu if 0 <= cpu < 1e9 else 0.0, max(0, rss)
            # A child of the worker may hold its end of the channel open, so that its death alone tells of it.
            if self._pidfd in ready:
                self._leave()
            if self._chunks.fileno() in ready:
                if not self._chunks.recv(1):
                    self._end_all()
                self._give_back(b"running")

    def _pass_log(self, descriptor: int) -> None:
        data = os.read(descriptor, _PIECE)
        if data and self._said[descriptor] <= LOG_BYTES:
            self._said[descriptor] += len(data)
            self._send(self._logs[descriptor], data)

    def _wait_for_go(self) -> None:
        while (request := self._chunks.recv(1)) != GO:
            if not request:
                self._end_all()
            self._give_back(b"waiting")

    def _give_back(self, state: bytes) -> None:
        if not self._stopped or state == b"ending":
            self._stopped = True
            self._send(RETURNED, state)

    def _send(self, kind: bytes, data: bytes) -> None:
        try:
            self._chunks.sendall(kind + len(data).to_bytes(4, "big") + data)
        except OSError:
            self._end_all()

    def _kill_worker(self) -> NoReturn:
        os.kill(self._worker, signal.SIGKILL)
        self._leave()

    def _leave(self) -> NoReturn:
        """End as the worker ended; other processes of the sandbox may end at the same time."""
        while True:
            pid, status = os.wait()
            if pid == self._worker:
                os._exit(exit_code(status))

    def _end_all(self) -> NoReturn:
        """End, and with process 1 everything in its sandbox."""
        os._exit(0)


def become_worker(channel: socket.socket, ends: Ends, others: Sequence[int]) -> None:
    """Let go of all that is process 1's alone, and of its session."""
    for descriptor in (ends.chunks, ends.stdout, ends.stderr, *others):
        os.close(descriptor)
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), 0)


def work(job: Job, channel: socket.socket, ends: Ends, function: Callable[[Mapping[str, str]], int]) -> NoReturn:
    """Run each item that process 1 sends, a frame of JSON with env and cwd, and answer with its numbers."""
    prepare_imports(job)
    outputs = ((ends.stdout_writer, 1), (ends.stderr_writer, 2))
    before, _ = _used()
    while True:
        try:
            item: dict[str, Any] = json.loads(receive_only_frame(channel))
        except EOFError:
            os._exit(0)
        for descriptor, target in outputs:
            os.dup2(descriptor, target)
        os.chdir(item["cwd"])
        code = flush_streams(run_function(item["env"], function))
        os.chdir("/")
        after, rss = _used()
        channel.sendall(_ANSWER.pack(code, after - before, rss))
        before = after


def _receive_exactly(channel: socket.socket, size: int) -> bytes:
    data = channel.recv(size, socket.MSG_WAITALL)
    if len(data) != size:
        raise OSError("the worker closed its channel")
    return data


def _reap_orphans(worker: int) -> None:
    while True:
        waiting = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if waiting is None or waiting.si_pid == worker:
            return
        os.waitpid(waiting.si_pid, 0)


def _used() -> tuple[float, int]:
    """Seconds of CPU and the most bytes of memory until now."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds, own.ru_maxrss * 1024

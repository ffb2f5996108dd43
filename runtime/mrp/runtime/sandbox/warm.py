"""The backend's end of warm processes: starting zygotes, and handing them jobs and items."""

import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import mrp.runtime.sandbox.zygote as zygote_module
from mrp.runtime.sandbox.cgroups import Group
from mrp.runtime.sandbox.launcher import MAX_DESCRIPTORS, Job, exit_code, send_frame
from mrp.runtime.sandbox.slot import FOLDERS_ARE
from mrp.runtime.sandbox.supervise import Ended, descendants, signal_all
from mrp.runtime.sandbox.zygote import HAND, SLOT, SLOT_WITH_NETWORK, STAGE, STAGE_WITH_NETWORK
from mrp.specs.errors import InfraError
from mrp.specs.work import SDK_DIR

_START = (
    "import sys; sys.path[:] = filter(None, sys.path); sys.path.append(sys.argv[2]); "
    "from mrp.runtime.sandbox.zygote import main; main(int(sys.argv[1]), *sys.argv[2:])"
)
_ENV = {
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    "TZ": "UTC",
}
_START_SECONDS = 30.0


class Zygote:
    """A warm process of `python`; `sdk` is the folder with mrp.sdk when it is to run functions.

    `log` takes what it says when it fails. Starts at once; raises InfraError when it cannot.
    """

    def __init__(self, python: str, sdk: Path | None, log: Path) -> None:
        self._log = log
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = Path(zygote_module.__file__).parents[3]
        arguments = [str(theirs.fileno()), str(root), str(sdk or ""), SDK_DIR]
        try:
            with log.open("ab") as errors:
                self._process = subprocess.Popen(
                    # Only functions need the site's packages; commands start the faster the smaller this one is.
                    [python, *(["-I", "-S"] if sdk is None else []), "-c", _START, *arguments],
                    env=_ENV,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError as error:
            raise InfraError(f"the warm process {python} could not be started: {error}") from error
        finally:
            theirs.close()

    def start_stage(self, job: Job, group: Group | None) -> "Channel":
        """Fork a sandboxed process that runs jobs (see mrp.runtime.sandbox.stage). Raises InfraError."""
        return self._send(STAGE if job.private_network else STAGE_WITH_NETWORK, job, (), group)

    def start_hand(self, group: Group | None) -> "Channel":
        """Fork a process that runs commands (see mrp.runtime.sandbox.hand). Raises InfraError."""
        return self._send(HAND, None, (), group)

    def start_slot(self, job: Job, group: Group | None) -> "Slot":
        """Fork a sandboxed process that runs items. Raises InfraError."""
        request = SLOT if job.private_network else SLOT_WITH_NETWORK
        return open_slot(lambda ends: self._send(request, job, ends.given, group))

    def is_alive(self) -> bool:
        """Whether it still serves requests."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it, and with it all that it forked. Idempotent."""
        self._control.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, request: bytes, job: Job | None, outputs: Sequence[int], group: Group | None) -> "Channel":
        ours, theirs = socket.socketpair()
        opened: list[int] = []
        try:
            for file in group.process_files() if group is not None else ():
                opened.append(os.open(file, os.O_WRONLY | os.O_CLOEXEC))
            socket.send_fds(self._control, [request], [theirs.fileno(), *outputs, *opened])
            if job is not None:
                send_frame(ours, job.to_bytes())
        except OSError as error:
            ours.close()
            raise InfraError(f"a warm process ended early: {error}{self._said()}") from error
        finally:
            theirs.close()
            for descriptor in opened:
                os.close(descriptor)
        return Channel(ours, self._said)

    def _said(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace").strip()
        return f" ({text.splitlines()[-1]})" if text else ""


class Channel:
    """Lines of JSON from process 1 of a sandbox and from its zygote; the first names the process."""

    def __init__(self, connection: socket.socket, said: Callable[[], str]) -> None:
        self.connection = connection
        self._said = said
        self._buffer = b""
        self._early: list[dict[str, object]] = []
        self.pidfd = -1
        self.pid = 0
        self._doors: list[int] = []
        try:
            self._wait_for_start()
        except BaseException:
            self.close()
            raise

    def lines(self, *, wait: bool = False) -> list[dict[str, object]]:
        """What has arrived; with `wait`, at least one line. Raises InfraError when the sandbox or its zygote failed."""
        found, self._early = self._early, []
        while not found:
            if not wait and not select.select([self.connection], [], [], 0)[0]:
                return found
            data, descriptors, _, _ = socket.recv_fds(self.connection, 1 << 16, MAX_DESCRIPTORS)
            if descriptors and self.pidfd < 0:
                self.pidfd = descriptors.pop(0)
            self._doors += descriptors
            if not data:
                raise InfraError(f"a warm process ended while a sandbox ran{self._said()}")
            *whole, self._buffer = (self._buffer + data).split(b"\n")
            found += [json.loads(line) for line in whole]
            for line in found:
                if "failed" in line:
                    raise InfraError(
                        f"the sandbox could not be set up: {line['failed']}", retryable=not line.get("permanent")
                    )
        return found

    def take_doors(self) -> list[int]:
        """The listeners that came since the last call; see mrp.runtime.sandbox.launcher.open_doors."""
        doors, self._doors = self._doors, []
        return doors

    def kill(self) -> None:
        """Kill process 1, and so everything in its sandbox."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def wait_for_end(self) -> None:
        """Kill process 1 and wait until nothing of its sandbox is left."""
        if self.pidfd >= 0:
            self.kill()
            wait_for_end(self.pidfd)

    def hang_up(self) -> None:
        """Let a process that ends when nobody is there do so, and wait for it."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        wait_for_end(self.pidfd)

    def workers(self) -> list[int]:
        """The processes inside, without process 1."""
        return descendants(self.pid)

    def close(self) -> None:
        self.connection.close()
        for descriptor in self.take_doors():
            os.close(descriptor)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _wait_for_start(self) -> None:
        self.connection.settimeout(_START_SECONDS)
        early: list[dict[str, object]] = []
        while not self.pid:
            try:
                lines = self.lines(wait=True)
            except TimeoutError as error:
                raise InfraError("a warm process did not answer") from error
            for line in lines:
                if isinstance(line.get("started"), int):
                    self.pid = int(str(line["started"]))
                else:
                    early.append(line)
        self._early = early
        self.connection.settimeout(None)


class SlotChannel(Protocol):
    """What tells of a slot's process 1 and ends it; Channel is one."""

    @property
    def connection(self) -> "Selectable": ...

    def lines(self) -> list[dict[str, object]]:
        """What has arrived; see Channel."""

    def kill(self) -> None: ...

    def wait_for_end(self) -> None: ...

    def workers(self) -> list[int]: ...

    def close(self) -> None: ...


class Selectable(Protocol):
    """Something with a descriptor."""

    def fileno(self) -> int: ...


class Slot:
    """A sandbox that runs items one after the other, a chunk at a time; `dead` once it ended.

    `chunks` is the connection to its process 1 and `logs` the ends to read from of its pipes; these and the descriptors
    in `held` are closed with it.
    """

    def __init__(self, channel: SlotChannel, chunks: socket.socket, logs: tuple[int, int]) -> None:
        self.channel, self.chunks, self.logs = channel, chunks, logs
        self.dead = False
        self.served = 0
        self.held: list[int] = []

    def introduce(self, folders: Sequence[tuple[str, bool, bool]]) -> list[int]:
        """Tell its process 1 of its folders (name, writable, kept); gives their descriptors. Raises InfraError."""
        data = json.dumps(folders).encode()
        try:
            self.chunks.sendall(FOLDERS_ARE + len(data).to_bytes(4, "big") + data)
            self.chunks.settimeout(_START_SECONDS)
            _, descriptors, _, _ = socket.recv_fds(self.chunks, 1, len(folders))
            self.chunks.settimeout(None)
        except OSError as error:
            self.ended()
            raise InfraError(f"a process for pure operators did not start: {error}") from error
        if len(descriptors) != len(folders):
            self.channel.wait_for_end()
            self.ended()
            raise InfraError("a process for pure operators ended before it began")
        return descriptors

    def ended(self) -> Ended | None:
        """How the sandbox ended, None while it lives. Raises InfraError when it failed by itself."""
        try:
            lines = self.channel.lines()
        except InfraError:
            self.dead = True
            raise
        for line in lines:
            if "status" in line:
                self.dead = True
                code = exit_code(int(str(line["status"])))
                return Ended(code, float(str(line["cpu"])), int(str(line["rss"])))
        return None

    def processes(self) -> list[int]:
        """The processes inside that are not the sandbox's own."""
        return self.channel.workers()

    def ask_to_end(self) -> None:
        """Send SIGTERM to `processes`."""
        signal_all(self.processes(), signal.SIGTERM)

    def kill(self) -> None:
        """Kill everything in it at once."""
        self.dead = True
        self.channel.kill()

    def wait(self) -> None:
        """Kill the sandbox and wait until nothing of it is left."""
        self.dead = True
        self.channel.wait_for_end()

    def close(self) -> None:
        """Kill the sandbox, wait, and let go of it."""
        self.wait()
        self.channel.close()
        self.chunks.close()
        for descriptor in (*self.logs, *self.held):
            os.close(descriptor)


def open_slot(start: Callable[["SlotEnds"], SlotChannel]) -> Slot:
    """A slot whose process 1 `start` starts with the descriptors it is given. Raises what that does."""
    ends = SlotEnds()
    try:
        channel = start(ends)
    except BaseException:
        ends.close()
        raise
    ends.started()
    return Slot(channel, ends.chunks, ends.logs)


class SlotEnds:
    """A new slot's descriptors before it starts: ours, and those that its process 1 gets."""

    def __init__(self) -> None:
        self.chunks, self._theirs = socket.socketpair()
        stdout, stderr = os.pipe(), os.pipe()
        self.logs = (stdout[0], stderr[0])
        # A duplicate for each side, so that what is left in a pipe can be read when process 1 is gone.
        self.given = (self._theirs.fileno(), *stdout, *stderr)
        for descriptor in self.logs:
            os.set_blocking(descriptor, False)

    def started(self) -> None:
        """Let go of what process 1 alone needs."""
        self._theirs.close()
        for descriptor in (self.given[2], self.given[4]):
            os.close(descriptor)

    def close(self) -> None:
        """Let go of all, when no slot could be started."""
        self.started()
        self.chunks.close()
        for descriptor in self.logs:
            os.close(descriptor)


class Zygotes:
    """The warm processes of one backend, each started when it is first needed. Safe from any thread."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Zygote] = {}
        self._started = 0

    def get(self, python: str, sdk: Path | None) -> Zygote:
        """The zygote of this Python that has loaded this mrp.sdk; another one when the last has died."""
        key = (python, sdk.name if sdk is not None else "")
        with self._lock:
            known = self._known.get(key)
            if known is None or not known.is_alive():
                if known is not None:
                    known.close()
                self._started += 1
                known = self._known[key] = Zygote(python, sdk, self._place / f"zygote-{self._started}.log")
            return known

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            known, self._known = self._known, {}
        for zygote in known.values():
            zygote.close()


def wait_for_end(pidfd: int) -> None:
    """Wait until a process that was killed is gone, and with process 1 all of its sandbox."""
    if pidfd >= 0:
        select.select([pidfd], [], [], 10)

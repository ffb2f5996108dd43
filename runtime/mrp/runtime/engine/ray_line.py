"""The line to a bridge: one process started, one thread that hears what it says and hands it to whom it concerns."""

import contextlib
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from mrp.runtime.engine.ray_bridge import Heard, Lost, Ready, Silent, ToBridge, Unusable
from mrp.runtime.engine.ray_cluster import Place, bridge_environment

_START = "import sys; from mrp.runtime.engine.ray_bridge import main; main(sys.argv[1:])"
_END_SECONDS = 10.0
_LOG_TAIL = 2000


class Gone:
    """Said to all who wait when the bridge is no more."""


class Stop:
    """Said to all who wait when the build is interrupted."""


Inbox = queue.SimpleQueue[Heard | Lost | Silent | Gone | Stop]


class Line:
    """A bridge and the calls on it. `slots` and `unusable` are set once `is_ready`; safe to use from many threads."""

    def __init__(self, place: Place, cache: Path, log: Path) -> None:
        ours, theirs = socket.socketpair()
        self._log = log
        self._send_lock, self._calls_lock = threading.Lock(), threading.Lock()
        self._calls: dict[int, Inbox] = {}
        self.ended = threading.Event()
        self.is_ready = threading.Event()
        self.slots = 1
        self.unusable: str | None = None
        with theirs, open(log, "ab") as output:
            # A session of its own: a Ctrl-C at the terminal is for the build, which decides what becomes of it.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(theirs.fileno())],
                env=bridge_environment(os.environ, place.address),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        self._connection.send_bytes(pickle.dumps((place, cache)))
        threading.Thread(target=self._hear, name="mrp-ray", daemon=True).start()

    def open(self, call: int) -> Inbox:
        """A place for what is said about a call."""
        inbox: Inbox = queue.SimpleQueue()
        with self._calls_lock:
            self._calls[call] = inbox
        if self.ended.is_set():
            inbox.put(Gone())
        return inbox

    def close_call(self, call: int) -> None:
        """Drop what is still said about a call."""
        with self._calls_lock:
            self._calls.pop(call, None)

    def say(self, message: ToBridge) -> None:
        """Tell the bridge; one that is gone is told nothing."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with contextlib.suppress(OSError), self._send_lock:
            self._connection.send_bytes(data)

    def stop(self) -> None:
        """Wake all who wait. May be called from a signal handler, so that it takes no lock."""
        for inbox in list(self._calls.values()):
            inbox.put(Stop())

    def why(self) -> str:
        """What the bridge printed last, for an error message."""
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace")[-_LOG_TAIL:].strip().splitlines()
            return lines[-1] if lines else ""
        return ""

    def end(self, *, kill: bool) -> None:
        """Let the bridge end, which ends its cluster; with `kill` at once. Idempotent."""
        with contextlib.suppress(OSError):
            if kill:
                self._process.kill()
            else:
                # The reader has the same socket, and only this makes both ends see its end.
                socket.socket(fileno=os.dup(self._connection.fileno())).shutdown(socket.SHUT_WR)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.ended.wait(_END_SECONDS)

    def _hear(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = pickle.loads(self._connection.recv_bytes())
                if isinstance(message, Heard | Lost):
                    self._deliver(message.call, message)
                elif isinstance(message, Silent):
                    self._tell_all(message)
                elif isinstance(message, Ready):
                    self.slots = message.slots
                    self.is_ready.set()
                elif isinstance(message, Unusable):
                    self.unusable = message.reason
                    break
        self.ended.set()
        self.is_ready.set()
        self._tell_all(Gone())

    def _deliver(self, call: int, message: Heard | Lost) -> None:
        inbox = self._calls.get(call)
        if inbox is not None:
            inbox.put(message)

    def _tell_all(self, message: Silent | Gone) -> None:
        with self._calls_lock:
            inboxes = list(self._calls.values())
        for inbox in inboxes:
            inbox.put(message)

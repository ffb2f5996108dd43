"""The relay: connections to a port in a sandbox without a network travel over the standard streams of one process.

This file is both ends. In the sandbox it runs as a script, with the image's own python3 (3.8 or newer) and nothing but
the standard library; outside, `Relayed` makes a connection to the gateway of each one that was made inside.

    frame = kind (1 byte), connection (4), length of what follows (2)

Each side of a connection may send _WINDOW bytes that the other has not passed on yet, so that a slow one holds up no
other. What comes from the sandbox is not trusted: it can spoil its own connections only.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections import deque
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mrp.runtime.sandbox.protocol import Endpoint
    from mrp.runtime.sandbox.provider import Stream

READY, OPEN, DATA, END, RESET, CREDIT, ALIVE = range(7)
"""READY: the port is open. END: no more data this way. RESET: the connection broke. CREDIT: so much was passed on.

ALIVE: a question of the outer end, and the answer.
"""

_FRAME = struct.Struct(">BIH")
_AMOUNT = struct.Struct(">I")
_PIECE = 1 << 15
_WINDOW = 1 << 18
_MOST_LINKS = 4096
_START_SECONDS = 60.0
_ANSWER_SECONDS = 30.0


class Ends:
    """One end of a relay: frames in through `read`, out through `write`, and the connections of this side.

    `connect` makes the connection for one that was opened at the other end; None where none are.
    """

    def __init__(
        self,
        read: Callable[[], bytes],
        write: Callable[[bytes], None],
        connect: Callable[[], socket.socket] | None = None,
    ) -> None:
        self._read, self._write, self._connect = read, write, connect
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._links: dict[int, _Link] = {}
        self._closed = False
        self.ready = threading.Event()
        self.answered = threading.Event()

    def run(self) -> None:
        """Take frames until the other end is gone; then every connection breaks."""
        buffer = bytearray()
        try:
            while True:
                data = self._read()
                if not data:
                    return
                buffer += data
                while len(buffer) >= _FRAME.size:
                    kind, number, length = _FRAME.unpack_from(buffer)
                    end = _FRAME.size + length
                    if len(buffer) < end:
                        break
                    payload = bytes(buffer[_FRAME.size : end])
                    del buffer[:end]
                    self._take(kind, number, payload)
        finally:
            self.close()

    def open(self, number: int, connection: socket.socket) -> None:
        """Tell the other end of a connection that was made here."""
        link = _Link(self, number, lambda: connection)
        with self._lock:
            self._links[number] = link
        self.send(OPEN, number)
        link.start()

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        """Send a frame; once the other end is gone that does nothing."""
        with self._sending, suppress(Exception):
            self._write(_FRAME.pack(kind, number, len(payload)) + payload)

    def forget(self, number: int) -> None:
        """The connection is over."""
        with self._lock:
            self._links.pop(number, None)

    def close(self) -> None:
        """Break every connection. Idempotent."""
        with self._lock:
            self._closed = True
            links = list(self._links.values())
        for link in links:
            link.break_off(tell=False)
        self.ready.set()
        self.answered.set()

    @property
    def closed(self) -> bool:
        return self._closed

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind == READY:
            self.ready.set()
            return
        if kind == ALIVE:
            if self._connect is None:
                self.send(ALIVE, 0)
            self.answered.set()
            return
        if kind == OPEN:
            self._accept(number)
            return
        with self._lock:
            link = self._links.get(number)
        if link is not None:
            link.take(kind, payload)

    def _accept(self, number: int) -> None:
        with self._lock:
            taken = self._closed or number in self._links or len(self._links) >= _MOST_LINKS
            if not taken and self._connect is not None:
                link = self._links[number] = _Link(self, number, self._connect)
                link.start()
                return
        self.send(RESET, number)


class _Link:
    """One connection, with a thread for each direction."""

    def __init__(self, ends: Ends, number: int, connect: Callable[[], socket.socket]) -> None:
        self._ends, self._number, self._connect = ends, number, connect
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._credit = _WINDOW
        self._ended_there = self._over = False
        self._halves = 2
        self._connection: socket.socket | None = None

    def start(self) -> None:
        threading.Thread(target=self._begin, daemon=True).start()

    def take(self, kind: int, payload: bytes) -> None:
        """A frame for this connection; never blocks."""
        if kind == RESET:
            self.break_off(tell=False)
            return
        with self._changed:
            if kind == DATA:
                self._waiting.append(payload)
                self._waiting_bytes += len(payload)
            elif kind == END:
                self._ended_there = True
            elif kind == CREDIT and len(payload) == _AMOUNT.size:
                self._credit = min(_WINDOW, self._credit + _AMOUNT.unpack(payload)[0])
            too_much = self._waiting_bytes > _WINDOW
            self._changed.notify_all()
        if too_much:
            self.break_off(tell=True)

    def break_off(self, *, tell: bool) -> None:
        """End both directions at once."""
        with self._changed:
            if self._over:
                return
            self._over = True
            connection = self._connection
            self._changed.notify_all()
        if connection is not None:
            # Closing alone would not wake a thread that waits in recv.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._ends.forget(self._number)
        if tell:
            self._ends.send(RESET, self._number)

    def _begin(self) -> None:
        try:
            connection = self._connect()
        except OSError:
            self.break_off(tell=True)
            return
        with self._changed:
            self._connection = connection
            over = self._over
        if over:
            connection.close()
            return
        threading.Thread(target=self._run, args=(connection, self._inward), daemon=True).start()
        self._run(connection, self._outward)

    def _run(self, connection: socket.socket, half: Callable[[socket.socket], None]) -> None:
        try:
            half(connection)
        except OSError:
            self.break_off(tell=True)
        with self._changed:
            self._halves -= 1
            last = not self._halves
        if last:
            self._ends.forget(self._number)
            connection.close()

    def _outward(self, connection: socket.socket) -> None:
        """From the connection to the other end, as far as its credit goes."""
        while True:
            with self._changed:
                while not self._credit and not self._over:
                    self._changed.wait()
                if self._over:
                    return
                room = min(self._credit, _PIECE)
            data = connection.recv(room)
            if not data:
                self._ends.send(END, self._number)
                return
            with self._changed:
                self._credit -= len(data)
            self._ends.send(DATA, self._number, data)

    def _inward(self, connection: socket.socket) -> None:
        """From the other end to the connection."""
        while True:
            with self._changed:
                while not self._waiting and not self._ended_there and not self._over:
                    self._changed.wait()
                if self._over:
                    return
                data = self._waiting.popleft() if self._waiting else b""
            if not data:
                connection.shutdown(socket.SHUT_WR)
                return
            connection.sendall(data)
            with self._changed:
                self._waiting_bytes -= len(data)
            self._ends.send(CREDIT, self._number, _AMOUNT.pack(len(data)))


class Relayed:
    """The outer end: runs the script in a sandbox through `start`, and leads its connections to the gateway.

    Usable once made; `close` ends it. Raises InfraError when the script does not begin to listen.
    """

    def __init__(self, start: Callable[[Sequence[str]], Stream], endpoint: Endpoint, port: int) -> None:
        from mrp.runtime.sandbox.doorway import connect
        from mrp.specs.errors import InfraError

        self._stream = start(guest_argv(port))
        self._ends = Ends(self._read, self._stream.write, lambda: connect(endpoint))
        self._thread = threading.Thread(target=self._ends.run, name="mrp-relay", daemon=True)
        self._thread.start()
        if not self._ends.ready.wait(_START_SECONDS) or self._ends.closed:
            self.close()
            raise InfraError("the relay to the model did not start in the sandbox; is its python3 at least 3.8?")

    def check(self) -> None:
        """Raises InfraError when it has not led to the gateway all the time until now."""
        from mrp.specs.errors import InfraError

        self._ends.answered.clear()
        self._ends.send(ALIVE, 0)
        if self._ends.closed or not self._ends.answered.wait(_ANSWER_SECONDS) or self._ends.closed:
            # What the process made of that says nothing of the process.
            raise InfraError("the relay to the model ended while the process ran")

    def close(self) -> None:
        """End it, with all of its connections. Idempotent."""
        self._ends.close()
        self._stream.close()

    def _read(self) -> bytes:
        from mrp.specs.errors import InfraError

        try:
            return self._stream.read()
        except (InfraError, OSError):
            return b""


def guest_argv(port: int) -> tuple[str, ...]:
    """The command that is the inner end, for an image that has a python3."""
    with open(__file__, encoding="utf-8") as file:
        source = file.read()
    return ("python3", "-I", "-S", "-c", source, str(port))


def serve(port: int) -> None:
    """The inner end: listen on loopback, and talk to the outer one on stdin and stdout until that is gone."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    ends = Ends(lambda: os.read(0, 1 << 16), write)

    def accept() -> None:
        number = 0
        while True:
            connection, _ = listener.accept()
            number += 1
            ends.open(number, connection)

    threading.Thread(target=accept, daemon=True).start()
    ends.send(READY, 0)
    ends.run()
    os._exit(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]))

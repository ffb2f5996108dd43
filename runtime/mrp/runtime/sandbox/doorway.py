"""Doorways: listening sockets within a sandbox's network whose connections are served by threads out here.

A socket belongs to the network that it was made in, wherever its descriptor goes. So nothing runs in the sandbox for
this, and nothing in it but the port can be reached. What a connection is for is up to its `Serve`.
"""

import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from mrp.runtime.sandbox.protocol import Endpoint

_MOST = 256
"""Connections of one doorway at once; more wait until one of these ended."""

_BUFFER = 1 << 17
_BACKLOG = 512
_CONNECT_SECONDS = 10.0
_END_SECONDS = 5.0
_PAUSE_SECONDS = 0.01


@dataclass(frozen=True)
class Until:
    """Tells the threads of a doorway that it is closed: then `ended` is readable."""

    ended: socket.socket

    def wait(self, *conditions: tuple[socket.socket, int], seconds: float | None = None) -> dict[int, int]:
        """Poll sockets for events; what happened by descriptor. Raises EOFError when the doorway is closed."""
        poll = select.poll()
        poll.register(self.ended, select.POLLIN)
        for connection, events in conditions:
            poll.register(connection, events)
        happened = dict(poll.poll(None if seconds is None else seconds * 1000))
        if self.ended.fileno() in happened:
            raise EOFError("the doorway is closed")
        return happened


Serve = Callable[[socket.socket, Until], None]
"""Serves one connection and gives it back open; an OSError or EOFError ends it."""


@dataclass(frozen=True)
class Door:
    """What a process finds at `port` of its loopback, and the variables that lead there; `env` gets the port."""

    port: int
    serve: Serve
    env: Callable[[int], Mapping[str, str]] = field(compare=False)


class Doorway:
    """Serves the connections to `listener`, which it takes over, until it is closed."""

    def __init__(self, listener: socket.socket, serve: Serve) -> None:
        self._listener, self._serve = listener, serve
        self._free = threading.BoundedSemaphore(_MOST)
        self._ended, self._end = socket.socketpair()
        self._until = Until(self._ended)
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        listener.setblocking(False)
        self._accepting = threading.Thread(target=self._accept, name="mrp-doorway", daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """End all connections and let go of the port. Idempotent."""
        self._end.close()
        self._accepting.join(_END_SECONDS)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(_END_SECONDS)
        self._listener.close()
        if not any(thread.is_alive() for thread in (self._accepting, *threads)):
            self._ended.close()

    def _accept(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._until.wait((self._listener, select.POLLIN))
                while not self._free.acquire(timeout=0.1):
                    self._until.wait(seconds=0)
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    # Who called is gone again, or this process has no descriptor left at the moment.
                    self._free.release()
                    self._until.wait(seconds=_PAUSE_SECONDS)
                    continue
                thread = threading.Thread(target=self._run, args=(connection,), name="mrp-doorway", daemon=True)
                with self._lock:
                    self._threads.add(thread)
                thread.start()

    def _run(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError, EOFError):
                connection.setblocking(False)
                self._serve(connection, self._until)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
            self._free.release()


def to_endpoint(endpoint: Endpoint) -> Serve:
    """Each connection goes to the gateway."""

    def serve(connection: socket.socket, until: Until) -> None:
        with connect(endpoint) as gateway:
            relay(connection, gateway, until)

    return serve


def connect(endpoint: Endpoint) -> socket.socket:
    """A connection to the gateway that has told it which trial it is of. Raises OSError."""
    kind, _, place = endpoint.address.partition(":")
    if kind == "unix":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        host, _, port = place.rpartition(":")
        connection = socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        connection.settimeout(_CONNECT_SECONDS)
        if kind == "unix":
            connection.connect(place)
        connection.sendall(endpoint.preface())
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection


def relay(first: socket.socket, second: socket.socket, until: Until) -> None:
    """Pass on what each of two sockets says to the other, until both have said all or one fails."""
    first.setblocking(False)
    second.setblocking(False)
    if first.family == socket.AF_INET:
        first.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ways = [_Way(first, second), _Way(second, first)]
    while waiting := [way for way in ways if not way.is_over]:
        events: dict[socket.socket, int] = {}
        for way in waiting:
            each, event = way.wants()
            events[each] = events.get(each, 0) | event
        happened = until.wait(*events.items())
        for way in waiting:
            each, event = way.wants()
            # What went wrong shows when a byte is read or written.
            if happened.get(each.fileno(), 0) & (event | select.POLLERR | select.POLLHUP):
                way.move()


class _Way:
    """One direction: bytes from `source` that wait for `target`, and then its end. What fails is over."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self._source, self._target = source, target
        self._data = memoryview(b"")
        self.is_over = False

    def wants(self) -> tuple[socket.socket, int]:
        """The socket that it waits for, and the event."""
        return (self._target, select.POLLOUT) if self._data else (self._source, select.POLLIN)

    def move(self) -> None:
        try:
            if not self._data:
                self._data = memoryview(self._source.recv(_BUFFER))
            if not self._data:
                self._finish()
            else:
                self._data = self._data[self._target.send(self._data) :]
        except BlockingIOError:
            return
        except OSError:
            self._finish()

    def _finish(self) -> None:
        self.is_over = True
        with suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)


class Doorways:
    """The doorways of one process.

    private: the process has a loopback of its own; its listeners, one for each of `ports`, come to `open`. Else they
    are free ports of this machine's loopback.
    """

    def __init__(self, doors: Sequence[Door], *, private: bool) -> None:
        self._doors = doors
        self._open: list[Doorway] = []
        self.ports = tuple(door.port for door in doors) if private else ()
        self.env: dict[str, str] = {}
        for door in doors:
            if private:
                self.env |= door.env(door.port)
                continue
            listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
            self.env |= door.env(listener.getsockname()[1])
            self._open.append(Doorway(listener, door.serve))

    def open(self, listeners: Sequence[int]) -> None:
        """Serve at listening sockets, given as descriptors in the order of `ports`."""
        for descriptor, door in zip(listeners, self._doors, strict=True):
            self._open.append(Doorway(socket.socket(fileno=descriptor), door.serve))

    def close(self) -> None:
        """End all connections. Idempotent."""
        for doorway in self._open:
            doorway.close()
        self._open.clear()

"""A small HTTP server behind a unix socket that stands where a gateway does, and notes who called."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrp.runtime.sandbox.protocol import Endpoint


class Handler(socketserver.StreamRequestHandler):
    """Answers each request on a connection with the trial's word, the path and the body, until the client is done."""

    server: "Gateway"

    def handle(self) -> None:
        preface = self.rfile.readline()
        with self.server.lock:
            self.server.prefaces.append(preface)
        while first := self.rfile.readline():
            size = 0
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    size = int(value)
            path = first.split()[1]
            if path.endswith(b"/wait"):
                self.server.released.wait(30)
            body = b"%s %s %s" % (preface.split()[1], path, self.rfile.read(size))
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class Gateway(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """`prefaces` are the first lines of all connections; requests for /wait are answered when `released` is set."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.lock = threading.Lock()
        self.prefaces: list[bytes] = []
        self.released = threading.Event()
        self.address = f"unix:{path}"

    def endpoint(self, token: str) -> Endpoint:
        return Endpoint(self.address, token)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may go as they like."""


@contextmanager
def gateway_at(path: Path) -> Iterator[Gateway]:
    """A gateway that listens at a unix socket."""
    with Gateway(path) as gateway:
        thread = threading.Thread(target=gateway.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield gateway
        finally:
            gateway.released.set()
            gateway.shutdown()
            thread.join()

"""The streams of a container on Docker: one connection, on which its outputs come in frames."""

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mrp.runtime.sandbox.container_output import STDOUT, frames
from mrp.runtime.sandbox.docker_client import service
from mrp.specs.errors import InfraError

_CHUNK = 1 << 16


class Connection:
    """The socket of an answer that became a stream, which is open for as long as both are."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        # Of a file object only the socket below knows timeouts.
        self.socket: socket.socket = getattr(answer, "_sock", answer)
        self.socket.settimeout(None)

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._answer.close()


class DockerStream:
    """See mrp.runtime.sandbox.provider.Stream; `discard` removes the container."""

    def __init__(self, attached: Connection, discard: Callable[[], None]) -> None:
        self._attached, self._discard = attached, discard
        self._buffer = bytearray()

    def read(self) -> bytes:
        while True:
            data = b"".join(data for kind, data in frames(self._buffer) if kind == STDOUT)
            if data:
                return data
            try:
                more = self._attached.socket.recv(_CHUNK)
            except OSError:
                return b""
            if not more:
                return b""
            self._buffer += more

    def write(self, data: bytes) -> None:
        try:
            self._attached.socket.sendall(data)
        except OSError as error:
            raise InfraError(f"a relay in Docker ended: {error}") from error

    def close(self) -> None:
        self._attached.close()
        with suppress(InfraError), service("asked to end a relay"):
            self._discard()

"""A stream into a Daytona sandbox: the service has terminals, and no pipes, so bytes travel there as lines of base64.

A terminal of the service is one websocket. Its sessions can be given input too, but they keep every byte in a log
inside the sandbox, and need programs that small images lack.
"""

import base64
import queue
import threading
import uuid
from contextlib import suppress
from typing import Any

from mrp.runtime.sandbox.guest import MARK
from mrp.specs.errors import InfraError

_START_SECONDS = 60.0


class DaytonaStream:
    """A command on a terminal of the service, with its bytes as lines of base64."""

    def __init__(self, box: Any, command: str) -> None:
        self._handle = box.process.create_pty_session(id=f"mrp-{uuid.uuid4().hex}")
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._ended = False
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._handle.send_input(f"exec {command}\n")
            while not self._next(_START_SECONDS).startswith(MARK.encode()):
                """What the shell says before."""
        except BaseException:
            self.close()
            raise

    def read(self) -> bytes:
        while not self._ended:
            line = self._lines.get()
            if line is None:
                self._ended = True
            elif line:
                return base64.b64decode(line)
        return b""

    def write(self, data: bytes) -> None:
        try:
            with self._writing:
                self._handle.send_input(base64.b64encode(data) + b"\n")
        except Exception as error:
            raise InfraError(f"the stream into a sandbox at Daytona was cut: {error}") from error

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._lines.put(None)
            with suppress(Exception):
                self._handle.kill()
            with suppress(Exception):
                self._handle.disconnect()

    def _listen(self) -> None:
        rest = b""
        marks = 0
        with suppress(Exception):
            for data in self._handle:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    # The first mark says that the command began, the second that it ended.
                    marks += line.startswith(MARK.encode())
                    self._lines.put(line.strip() if marks < 2 else None)
        self._lines.put(None)

    def _next(self, seconds: float) -> bytes:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            line = None
        if line is None:
            raise InfraError("the stream into a sandbox at Daytona did not begin; build again")
        return line

"""The gateway's door: HTTP/1.1 on a socket, each connection of which begins with the line that names its trial.

It speaks as much of OpenAI's API as models answer, so that its stock client works unchanged. A stream is given once the
whole answer is there; until then comment lines keep the connection alive.
"""

import json
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from mrp.cache.canonical import Json, canonical_bytes, canonical_text
from mrp.runtime.models.protocol import Refused
from mrp.runtime.models.session import Declined, Session, error_json

_PREFACE = b"MRP "
_MAX_LINE = 200
_PREFACE_SECONDS = 20.0
_MAX_BODY = 64 * 2**20
_LARGE = 2**20
_LARGE_AT_ONCE = 4
"""So many requests of one trial may be larger than `_LARGE` at a time: they stand in the memory of the build."""

_ALIVE_SECONDS = 5.0
"""Between two comment lines, for as long as a stream has nothing to give."""

_POLL_SECONDS = 0.05
_LENGTH = re.compile(r"[0-9]{1,16}")
_CHUNK_SIZE = re.compile(rb"[0-9a-fA-F]{1,16}")

_MOST_CONNECTIONS = 512
"""Of one trial: each takes a thread of the build."""

_ANSWERED = {"/v1/chat/completions": "chat/completions", "/v1/completions": "completions"}


class Door:
    """Serves until `close`. `find` gives the open session of a token, or None.

    address: as mrp.runtime.sandbox.protocol.Endpoint has it. Raises OSError when it cannot listen.
    """

    def __init__(self, find: Callable[[str], Session | None], *, path: Path | None = None, host: str = "") -> None:
        self._find = find
        self._lock = threading.Lock()
        self._connections: dict[str, set[socket.socket]] = {}
        self._turns: dict[str, threading.Semaphore] = {}
        door = self

        class Handler(_Handler):
            def __init__(self, request: Any, address: Any, server: Any) -> None:
                self.door = door
                super().__init__(request, address, server)

        self._server: socketserver.BaseServer
        if path is not None:
            self._server = _UnixServer(str(path), Handler)
            path.chmod(0o600)
            self.address = f"unix:{path}"
        else:
            tcp = _TcpServer((host, 0), Handler)
            self._server = tcp
            self.address = f"tcp:{host}:{tcp.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="mrp-gateway", daemon=True
        )
        self._thread.start()

    def enter(self, token: str, connection: socket.socket) -> Session | None:
        """The session of a connection, which is noted so that it can be ended; None to close it at once."""
        session = self._find(token)
        if session is None:
            return None
        with self._lock:
            connections = self._connections.setdefault(token, set())
            if len(connections) >= _MOST_CONNECTIONS:
                return None
            connections.add(connection)
        return session

    def turns(self, token: str) -> threading.Semaphore:
        """What a trial's large requests go through."""
        with self._lock:
            return self._turns.setdefault(token, threading.Semaphore(_LARGE_AT_ONCE))

    def leave(self, token: str, connection: socket.socket) -> None:
        with self._lock:
            self._connections.get(token, set()).discard(connection)

    def shut(self, token: str) -> None:
        """End the connections of a trial that is over."""
        with self._lock:
            connections = self._connections.pop(token, set())
            self._turns.pop(token, None)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for token in list(self._connections):
            self.shut(token)


class _Quiet:
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is its client's business."""


class _UnixServer(_Quiet, socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    pass


class _TcpServer(_Quiet, socketserver.ThreadingTCPServer):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mrp", ""
    door: Door
    session: Session
    _token = ""

    def setup(self) -> None:
        if self.request.family != socket.AF_UNIX:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        super().setup()

    def address_string(self) -> str:
        return "sandbox"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Calls are in the record; nothing is printed."""

    def handle(self) -> None:
        self.request.settimeout(_PREFACE_SECONDS)
        line = self.rfile.readline(_MAX_LINE)
        if not line.startswith(_PREFACE) or not line.endswith(b"\n"):
            return
        self._token = line[len(_PREFACE) :].strip().decode("ascii", "replace")
        session = self.door.enter(self._token, self.request)
        if session is None:
            return
        self.session = session
        self.request.settimeout(None)
        super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()
        self.door.leave(self._token, self.request)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server finds wrong, in the words of the API."""
        self.close_connection = True
        self._decline(Declined(int(code), "invalid_request", message or explain or "this is no request"))

    # -- routes --------------------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].rstrip("/")
        model: Json = {"id": self.session.name, "object": "model", "created": 0, "owned_by": "mrp"}
        if path == "/v1/models":
            self._send(200, {"object": "list", "data": [model]})
        elif path.startswith("/v1/models/"):
            self._send(200, model)
        else:
            self._decline(Declined(404, "unknown_url", f"there is no GET {path}; there is GET /v1/models"))

    def do_POST(self) -> None:
        with ExitStack() as large:
            self._post(large)

    def _post(self, large: ExitStack) -> None:
        try:
            data = self._read_body(large)
            path = self.path.partition("?")[0].rstrip("/")
            if path not in _ANSWERED:
                known = " and ".join(_ANSWERED)
                raise Declined(404, "unknown_url", f"there is no POST {path}; there are {known}")
            body = _parsed(data)
            if body.get("stream"):
                self._stream(_ANSWERED[path], body)
            else:
                self._send(200, self.session.answer(_ANSWERED[path], body).body)
        except Declined as declined:
            self._decline(declined)
        except Refused as refused:
            self._send(refused.status, error_json(refused))

    def _decline(self, declined: Declined) -> None:
        self._send(declined.status, error_json(declined))

    def _send(self, status: int, value: Json) -> None:
        data = canonical_bytes(value)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status >= 400:
            # What the gateway gives up has been tried again already.
            self.send_header("x-should-retry", "false")
        self.end_headers()
        self.wfile.write(data)

    # -- streams -------------------------------------------------------------------------------------------------

    def _stream(self, path: str, body: Mapping[str, Json]) -> None:
        """Headers and comments go out while the answer is waited for; an error before that has its own status."""
        came = _Came(lambda: self.session.answer(path, body).chunks)
        try:
            self._give(came)
        finally:
            # A client that left keeps its connection's place, as one does that asked for no stream: else an agent
            # could have any number of calls under way.
            came.wait()

    def _give(self, came: "_Came") -> None:
        begun = False
        while not came.wait(_ALIVE_SECONDS):
            if not begun:
                self._begin_stream()
                begun = True
            self._chunk(": waiting for the model\n\n")
        if came.error is not None and not begun:
            raise came.error
        if not begun:
            self._begin_stream()
        if isinstance(came.error, Declined | Refused):
            self._chunk(f"data: {canonical_text(error_json(came.error))}\n\n")
        elif came.error is None:
            self._chunk("".join(f"data: {canonical_text(chunk)}\n\n" for chunk in came.chunks) + "data: [DONE]\n\n")
        if self._knows_chunks:
            self.wfile.write(b"0\r\n\r\n")

    @property
    def _knows_chunks(self) -> bool:
        return self.request_version != "HTTP/1.0"

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        if self._knows_chunks:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        self.end_headers()

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if self._knows_chunks else data)
        self.wfile.flush()

    # -- bodies --------------------------------------------------------------------------------------------------

    def _read_body(self, large: ExitStack) -> bytes:
        """The whole body, so that the next request on this connection begins where this one ends.

        `large` gets the turn that a large one has to wait for.
        """
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._read_chunks(large)
        length = self.headers.get("Content-Length", "0")
        if not _LENGTH.fullmatch(length) or int(length) > _MAX_BODY:
            self.close_connection = True
            raise Declined(413, "too_large", f"a request may have {_MAX_BODY} bytes")
        if int(length) > _LARGE:
            large.enter_context(self.door.turns(self._token))
        return self.rfile.read(int(length))

    def _read_chunks(self, large: ExitStack) -> bytes:
        data = bytearray()
        while True:
            word = self.rfile.readline(_MAX_LINE).partition(b";")[0].strip()
            if not _CHUNK_SIZE.fullmatch(word):
                self.close_connection = True
                raise Declined(400, "invalid_request", "the body is cut short")
            size = int(word, 16)
            if len(data) + size > _MAX_BODY:
                self.close_connection = True
                raise Declined(413, "too_large", f"a request may have {_MAX_BODY} bytes")
            if len(data) <= _LARGE < len(data) + size:
                large.enter_context(self.door.turns(self._token))
            if size == 0:
                while self.rfile.readline(_MAX_LINE).strip():
                    pass
                return bytes(data)
            data += self.rfile.read(size)
            self.rfile.readline(_MAX_LINE)


class _Came:
    """What came of a call that another thread makes."""

    def __init__(self, ask: Callable[[], tuple[Json, ...]]) -> None:
        self.chunks: tuple[Json, ...] = ()
        self.error: Exception | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, args=(ask,), daemon=True).start()

    def wait(self, seconds: float | None = None) -> bool:
        return self._done.wait(seconds)

    def _run(self, ask: Callable[[], tuple[Json, ...]]) -> None:
        try:
            self.chunks = ask()
        except Exception as error:
            self.error = error
        finally:
            self._done.set()


def _parsed(data: bytes) -> dict[str, Json]:
    try:
        body = json.loads(data, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise Declined(400, "invalid_request", f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise Declined(400, "invalid_request", "the body is not an object")
    return body

"""The relay to the gateway over the standard streams of a process, here one of this machine."""

import http.client
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mrp.runtime.sandbox.protocol import Endpoint
from mrp.runtime.sandbox.relay import Ends, Relayed, guest_argv
from mrp.specs.errors import InfraError


class Pipe:
    """The Stream of a process of this machine."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def read(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(1 << 16) or b""

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        try:
            view = memoryview(data)
            while view:
                view = view[self.process.stdin.write(view) or 0 :]
        except (OSError, ValueError) as error:
            raise InfraError("it is gone") from error

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Gateway:
    """Takes connections that begin with a preface, and gives each to `answer`."""

    def __init__(self, place: Path) -> None:
        self.address = f"unix:{place}"
        self.prefaces: list[bytes] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(place))
        self._server.listen(200)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            file = connection.makefile("rb")
            self.prefaces.append(file.readline())
            self.answer(connection, file)

    def answer(self, connection: socket.socket, file: object) -> None:
        """Say everything back in capitals once all of it is here; ends its own direction then."""
        said = file.read()  # type: ignore[attr-defined]
        connection.sendall(said.upper())

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


class Chatty(Gateway):
    """An echo, piece by piece."""

    def answer(self, connection: socket.socket, file: object) -> None:
        while piece := file.read1(1 << 14):  # type: ignore[attr-defined]
            connection.sendall(piece)


@contextmanager
def relayed(gateway: Gateway, token: str = "a-token") -> Iterator[tuple[int, Pipe]]:
    port = free_port()
    pipes: list[Pipe] = []

    def start(argv: Sequence[str]) -> Pipe:
        pipes.append(Pipe(argv))
        return pipes[0]

    relay = Relayed(start, Endpoint(gateway.address, token), port)
    try:
        yield port, pipes[0]
    finally:
        relay.close()


def ask(port: int, said: bytes) -> bytes:
    """What comes back when all of `said` was sent and this direction ended."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        sender = threading.Thread(target=send_all, args=(connection, said))
        sender.start()
        came = bytearray()
        while piece := connection.recv(1 << 16):
            came += piece
        sender.join()
        return bytes(came)


def send_all(connection: socket.socket, said: bytes) -> None:
    connection.sendall(said)
    connection.shutdown(socket.SHUT_WR)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path / "s")
    yield made
    made.close()


def test_a_connection_reaches_the_gateway_with_its_preface_and_halves_close_apart(gateway: Gateway) -> None:
    with relayed(gateway) as (port, _):
        assert ask(port, b"hello") == b"HELLO"
        assert ask(port, b"") == b""
    assert gateway.prefaces == [b"MRP a-token\n"] * 2


def test_large_bodies_pass_in_both_directions_at_once(tmp_path: Path) -> None:
    body = bytes(range(256)) * (20 * 2**12)
    gateway = Chatty(tmp_path / "s")
    with relayed(gateway) as (port, _):
        assert ask(port, body) == body
    gateway.close()


def test_a_connection_that_nobody_reads_holds_up_no_other(tmp_path: Path) -> None:
    gateway = Chatty(tmp_path / "s")
    with relayed(gateway) as (port, _), socket.create_connection(("127.0.0.1", port)) as stuck:
        stuck.settimeout(1)
        with pytest.raises(TimeoutError):
            # What comes back is never read, so that all buffers on the way fill.
            while True:
                stuck.send(bytes(1 << 16))
        assert ask(port, b"and yet") == b"and yet"
    gateway.close()


def test_a_hundred_connections_at_once_do_not_mix(gateway: Gateway) -> None:
    came: dict[int, bytes] = {}

    with relayed(gateway) as (port, _):

        def one(number: int) -> None:
            came[number] = ask(port, f"number {number} ".encode() * 500)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert came == {number: f"NUMBER {number} ".encode() * 500 for number in range(100)}


def test_two_relays_keep_their_tokens_apart(gateway: Gateway) -> None:
    with relayed(gateway, "one") as (first, _), relayed(gateway, "two") as (second, _):
        ask(second, b"x")
        ask(first, b"x")
    assert gateway.prefaces == [b"MRP two\n", b"MRP one\n"]


def test_a_real_http_client_and_server_understand_each_other(tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[::-1])

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    class Served(Gateway):
        def answer(self, connection: socket.socket, file: object) -> None:
            handler = Handler.__new__(Handler)
            handler.request, handler.client_address, handler.server = connection, ("", 0), None  # type: ignore[assignment]
            handler.rfile, handler.wfile = file, connection.makefile("wb", 0)  # type: ignore[assignment]
            handler.close_connection = False
            while not handler.close_connection:
                handler.handle_one_request()

    gateway = Served(tmp_path / "s")
    with relayed(gateway) as (port, _):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for body in (b"abc", b"x" * 300_000 + b"y"):
            client.request("POST", "/v1/chat/completions", body)
            assert client.getresponse().read() == body[::-1]
        client.close()
    gateway.close()


def test_a_gateway_that_is_gone_breaks_the_connection_and_nothing_hangs(gateway: Gateway, tmp_path: Path) -> None:
    with relayed(gateway) as (port, _):
        assert ask(port, b"x") == b"X"
        gateway.close()
        (tmp_path / "s").unlink()
        with suppress(ConnectionError):
            assert ask(port, b"y") == b""


def test_when_the_process_dies_open_connections_end(tmp_path: Path) -> None:
    ended = threading.Event()

    class Waiting(Gateway):
        def answer(self, connection: socket.socket, file: object) -> None:
            assert file.read() == b"", "the other end is gone"  # type: ignore[attr-defined]
            ended.set()

    gateway = Waiting(tmp_path / "s")
    with relayed(gateway) as (port, pipe), socket.create_connection(("127.0.0.1", port)):
        while not gateway.prefaces:
            time.sleep(0.01)
        pipe.process.kill()
        assert ended.wait(120)
    gateway.close()


def test_the_process_ends_with_its_streams(gateway: Gateway) -> None:
    with relayed(gateway) as (_, pipe):
        assert pipe.process.stdin is not None
        pipe.process.stdin.close()
        assert pipe.process.wait(120) == 0


def test_a_relay_that_ended_is_noticed(gateway: Gateway) -> None:
    pipes: list[Pipe] = []

    def start(argv: Sequence[str]) -> Pipe:
        pipes.append(Pipe(argv))
        return pipes[0]

    relay = Relayed(start, Endpoint(gateway.address, "t"), free_port())
    relay.check()
    pipes[0].process.kill()
    with pytest.raises(InfraError, match="relay to the model ended"):
        relay.check()
    relay.close()


def test_a_script_that_cannot_listen_is_said(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InfraError, match="did not start"):
        Relayed(Pipe, Endpoint(gateway.address, "t"), taken.getsockname()[1])


def test_a_sandbox_that_sends_more_than_it_may_spoils_its_own_connection_only() -> None:
    """The outer end against frames that the script would never send."""
    from mrp.runtime.sandbox.relay import _FRAME, DATA, OPEN

    sent: list[bytes] = []
    inner, outer = socket.socketpair()
    never_read, kept = socket.socketpair()
    ends = Ends(lambda: outer.recv(1 << 16), sent.append, lambda: never_read)
    thread = threading.Thread(target=ends.run)
    thread.start()
    inner.sendall(_FRAME.pack(OPEN, 7, 0))
    for _ in range(4000):
        inner.sendall(_FRAME.pack(DATA, 7, 1 << 15) + bytes(1 << 15))
    inner.sendall(_FRAME.pack(99, 1, 0))
    inner.close()
    thread.join(120)
    assert not thread.is_alive()
    assert _FRAME.pack(4, 7, 0) in sent
    kept.close()


def test_the_script_needs_nothing_but_the_standard_library() -> None:
    argv = guest_argv(0)
    assert "import mrp" not in argv[4].replace("    from mrp", "").replace("        from mrp", "")
    done = subprocess.run(
        [sys.executable, *argv[1:]], stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")

"""What a sandbox reaches through its doorways: its model, whatever the network policy, and the hosts that it may."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.gateways import Gateway, gateway_at
from support.sandboxes import BACKENDS, LIMITS, SHOWN, WALLED, Bench, benches, make_bench, why_not

from mrp.runtime.sandbox.allowlist import is_public, parse_allowed, through_proxy
from mrp.runtime.sandbox.doorway import Doorway, to_endpoint
from mrp.runtime.sandbox.protocol import Cancelled, Endpoint
from mrp.specs.errors import InfraError
from mrp.specs.work import MODEL_PORT, TASK

ASK = """
import http.client, os, sys
from urllib.parse import urlsplit
url = urlsplit(os.environ['OPENAI_BASE_URL'])
def ask(path, body=b'', connection=None):
    connection = connection or http.client.HTTPConnection(url.hostname, url.port, timeout=120)
    connection.request('POST', url.path + path, body)
    return connection.getresponse().read().decode()
"""


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[str], Bench]]:
    with benches() as get:
        yield get


@pytest.fixture(scope="module", params=list(BACKENDS))
def bench(request: pytest.FixtureRequest, opened: Callable[[str], Bench]) -> Bench:
    return opened(request.param)


@pytest.fixture(scope="module", params=WALLED)
def walled(request: pytest.FixtureRequest, opened: Callable[[str], Bench]) -> Bench:
    return opened(request.param)


@pytest.fixture(scope="module", params=[*SHOWN, "plain"])
def anywhere(request: pytest.FixtureRequest, opened: Callable[[str], Bench]) -> Bench:
    return opened(request.param)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with gateway_at(tmp_path / "gateway") as made:
        yield made


# --- The model --------------------------------------------------------------------------------------------------


def test_a_command_reaches_its_model_without_any_network(anywhere: Bench, gateway: Gateway) -> None:
    done = anywhere.python(ASK + "print(ask('/chat', b'hello'))", endpoint=gateway.endpoint("word-1"))
    assert (done.exit_code, anywhere.stdout(done)) == (0, "word-1 /v1/chat hello\n")
    assert gateway.prefaces == [b"MRP word-1\n"]


def test_without_a_model_nothing_listens(walled: Bench, gateway: Gateway) -> None:
    assert walled.python(ASK + "ask('/chat')", endpoint=gateway.endpoint("word-1")).exit_code == 0
    source = "import os, socket\nassert 'OPENAI_BASE_URL' not in os.environ\n"
    done = walled.python(source + f"socket.create_connection(('127.0.0.1', {MODEL_PORT}))")
    assert done.exit_code == 1
    assert "ConnectionRefusedError" in walled.stderr(done)
    assert len(gateway.prefaces) == 1


def test_operators_reach_it_too_and_pure_ones_share_nothing(anywhere: Bench, gateway: Gateway) -> None:
    source = ASK + "import mrp.sdk\nclass Op(mrp.sdk.Agent):\n    def run(self, task, ctx): print(ask('/x'))"
    for pure in (False, True):
        for word in ("one", "two"):
            files = {TASK: {"record.json": "{}"}}
            done = anywhere.operator(source, files=files, pure=pure, endpoint=gateway.endpoint(word))
            assert anywhere.stdout(done) == f"{word} /v1/x \n", anywhere.stderr(done)


def test_an_open_network_reaches_it_at_another_port(walled: Bench, gateway: Gateway) -> None:
    done = walled.python(ASK + "print(ask('/x'))", box=walled.box(network="open"), endpoint=gateway.endpoint("open"))
    assert walled.stdout(done) == "open /v1/x \n", walled.stderr(done)


def test_trials_at_once_do_not_mix(bench: Bench, gateway: Gateway) -> None:
    box = bench.box()
    found: dict[str, str] = {}

    def trial(word: str) -> None:
        source = ASK + "print({ask('/x') for _ in range(20)})"
        found[word] = bench.stdout(bench.python(source, box=box, endpoint=gateway.endpoint(word)))

    threads = [threading.Thread(target=trial, args=(f"trial-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {word: f"{{'{word} /v1/x '}}\n" for word in found}
    assert len(found) == 4


def test_a_hundred_connections_at_once_are_served(walled: Bench, gateway: Gateway) -> None:
    source = """
import threading
said = []
def one(number): said.append(ask('/wait', str(number).encode()))
threads = [threading.Thread(target=one, args=(number,)) for number in range(100)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(said), len(set(said)))
"""

    def release() -> None:
        deadline = time.monotonic() + 120
        while len(gateway.prefaces) < 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        gateway.released.set()

    releasing = threading.Thread(target=release)
    releasing.start()
    box = walled.box(limits=replace(LIMITS, pids=200))
    done = walled.python(ASK + source, box=box, endpoint=gateway.endpoint("many"))
    releasing.join()
    assert walled.stdout(done) == "100 100\n", walled.stderr(done)


def test_large_bodies_and_half_closed_connections_come_through(bench: Bench, gateway: Gateway) -> None:
    source = """
import socket
body = bytes(range(256)) * 40000
assert raw('/large', body).startswith(b'half /v1/large ')
plain = socket.create_connection((url.hostname, url.port))
plain.sendall(b'GET /last HTTP/1.1\\r\\n\\r\\n')
plain.shutdown(socket.SHUT_WR)
data = b''
while piece := plain.recv(100): data += piece
print(data.splitlines()[-1].decode())
"""
    raw = ASK.replace(".decode()", "").replace("def ask", "def raw")
    done = bench.python(raw + source, endpoint=gateway.endpoint("half"))
    assert bench.stdout(done) == "half /last \n", bench.stderr(done)


def test_a_gateway_that_is_gone_is_an_end_and_no_wait(bench: Bench, tmp_path: Path) -> None:
    source = ASK + "try: ask('/x')\nexcept (OSError, http.client.HTTPException) as error: print('gone')"
    for address in (f"unix:{tmp_path}/nobody", "tcp:127.0.0.1:1"):
        done = bench.python(source, endpoint=Endpoint(address, "word"))
        assert (done.exit_code, bench.stdout(done)) == (0, "gone\n")


def test_a_gateway_that_hangs_up_is_an_end_too(bench: Bench, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "rude"))
        listener.listen()

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(4)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        source = ASK + "try: ask('/x')\nexcept (OSError, http.client.HTTPException) as error: print('gone')"
        done = bench.python(source, endpoint=Endpoint(f"unix:{tmp_path}/rude", "word"))
        thread.join()
    assert (done.exit_code, bench.stdout(done)) == (0, "gone\n")


def test_a_limit_ends_a_process_that_waits_for_its_model(bench: Bench, gateway: Gateway) -> None:
    done = bench.python(ASK + "ask('/wait')", endpoint=gateway.endpoint("late"), timeout=1)
    assert done.limit == "wall"
    assert bench.python("print(1)").exit_code == 0


@pytest.mark.parametrize("name", list(BACKENDS))
def test_cancel_ends_a_process_that_is_connected(name: str, tmp_path: Path) -> None:
    reason = why_not(name)
    if reason:
        pytest.skip(reason)
    bench = make_bench(name, tmp_path)
    box = bench.box()
    ended = []

    def wait() -> None:
        with pytest.raises(Cancelled):
            bench.python(ASK + "ask('/wait')", box=box, endpoint=server.endpoint("late"), timeout=60)
        ended.append(True)

    with gateway_at(tmp_path / "gateway") as server:
        thread = threading.Thread(target=wait)
        thread.start()
        deadline = time.monotonic() + 120
        while not server.prefaces and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.prefaces
        bench.backend.cancel()
        thread.join()
    assert ended == [True]
    bench.backend.close()
    bench.store.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "mrp-doorway"]


def test_descriptors_are_not_used_up(bench: Bench, gateway: Gateway) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    counts = []
    for _ in range(4):
        bench.python(ASK + "ask('/x')", endpoint=gateway.endpoint("again"))
        counts.append(count())
    assert counts[1] >= counts[3]


def test_the_next_process_of_a_sandbox_finds_the_port_of_its_own_trial(walled: Bench, gateway: Gateway) -> None:
    """An orphan that the first one leaves must not serve, nor reach, the second one's model."""
    leave = "\nimport subprocess\nsubprocess.Popen(['sleep', '60'], start_new_session=True)\nprint(ask('/x'))"
    for word in ("first", "second"):
        done = walled.python(ASK + leave, endpoint=gateway.endpoint(word))
        assert walled.stdout(done) == f"{word} /v1/x \n", walled.stderr(done)
    assert gateway.prefaces == [b"MRP first\n", b"MRP second\n"]


# --- Allowlists -------------------------------------------------------------------------------------------------

FETCH = """
import http.client, os, sys
from urllib.parse import urlsplit
proxy = urlsplit(os.environ['HTTPS_PROXY'])
def tunnel(host, port):
    connection = http.client.HTTPConnection(proxy.hostname, proxy.port, timeout=120)
    connection.set_tunnel(host, port)
    connection.request('GET', '/x')
    return connection.getresponse().read().decode()
def plain(url):
    connection = http.client.HTTPConnection(proxy.hostname, proxy.port, timeout=120)
    connection.request('GET', url)
    answer = connection.getresponse()
    return f'{answer.status} {answer.read().decode()}'
"""


@pytest.fixture
def site() -> Iterator[int]:
    """A web server on this machine's loopback: its port."""
    import http.server

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"{self.path} of {self.headers['Host']}".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_an_allowlist_lets_through_what_it_names_and_no_more(walled: Bench, site: int) -> None:
    box = walled.box(network=(f"127.0.0.1:{site}",))
    done = walled.python(
        FETCH
        + f"""
import socket
print(tunnel('127.0.0.1', {site}))
print(plain('http://127.0.0.1:{site}/y'))
print(plain('http://127.0.0.1:{site + 1}/y'))
print(plain('http://localhost:{site}/y'))
try: tunnel('127.0.0.2', {site})
except OSError as error: print(error)
try: socket.create_connection(('127.0.0.1', {site}), 5)
except OSError as error: print(type(error).__name__)
""",
        box=box,
    )
    assert walled.stdout(done).splitlines() == [
        f"/x of 127.0.0.1:{site}",
        f"200 /y of 127.0.0.1:{site}",
        f"403 mrp: 127.0.0.1:{site + 1} is not in the `network: {{allow: [...]}}` of this sandbox",
        "",
        f"403 mrp: localhost:{site} is not in the `network: {{allow: [...]}}` of this sandbox",
        "",
        "Tunnel connection failed: 403 Forbidden",
        "ConnectionRefusedError",
    ], walled.stderr(done)


def test_a_name_that_leads_to_a_private_address_is_refused(walled: Bench, site: int) -> None:
    box = walled.box(network=(f"localhost:{site}",))
    done = walled.python(FETCH + f"print(plain('http://localhost:{site}/y'))", box=box)
    assert walled.stdout(done).startswith("403 mrp: localhost has no public address"), walled.stderr(done)


def test_an_allowlist_and_a_model_go_together(walled: Bench, gateway: Gateway, site: int) -> None:
    box = walled.box(network=(f"127.0.0.1:{site}",))
    source = ASK + FETCH + f"print(ask('/x')); print(tunnel('127.0.0.1', {site}))"
    done = walled.python(source, box=box, endpoint=gateway.endpoint("both"))
    assert walled.stdout(done) == f"both /v1/x \n/x of 127.0.0.1:{site}\n", walled.stderr(done)


@pytest.mark.parametrize(
    ("entry", "host", "permitted"),
    [
        ("example.org:443", "example.org", True),
        ("Example.org:443", "example.org", True),
        ("example.org:443", "www.example.org", False),
        ("*.example.org:443", "www.example.org", True),
        ("*.example.org:443", "a.b.example.org", True),
        ("*.example.org:443", "example.org", False),
        ("*.example.org:443", "notexample.org", False),
        ("example.org:80", "example.org", False),
        ("*.0.0.1:443", "127.0.0.1", False),
    ],
)
def test_which_hosts_an_entry_stands_for(entry: str, host: str, permitted: bool) -> None:
    assert parse_allowed([entry]).permits(host, 443) == permitted


PRIVATE = ("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "fe80::1%eth0", "fd00::1")
TRANSLATED = ("::ffff:127.0.0.1", "::ffff:7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::7f00:1")


@pytest.mark.parametrize("address", [*PRIVATE, *TRANSLATED, "224.0.0.1", "ff02::1"])
def test_names_that_lead_to_such_an_address_are_refused(address: str) -> None:
    """Whatever form the address comes in; decimal and octal ones are names, which the machine looks up."""
    public = ("8.8.8.8", "::ffff:808:808", "64:ff9b::808:808", "2606:4700::1111")
    assert not is_public(address)
    assert all(map(is_public, public))


@pytest.mark.parametrize("entry", ["*:443", "a*.org:443", "example.org", "example.org:0", "example.org:70000"])
def test_an_entry_that_is_not_clear_is_an_error(entry: str) -> None:
    with pytest.raises(InfraError, match="is no host and port") as error:
        parse_allowed([entry])
    assert not error.value.retryable


# --- Doorways themselves ----------------------------------------------------------------------------------------


def test_a_doorway_ends_its_connections_when_it_is_closed(gateway: Gateway) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    place = listener.getsockname()
    doorway = Doorway(listener, to_endpoint(gateway.endpoint("word")))
    with socket.create_connection(place) as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\n\r\n")
        while not gateway.prefaces:
            time.sleep(0.01)
        doorway.close()
        doorway.close()
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place)


def test_what_is_no_request_gets_no_connection() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    place = listener.getsockname()
    doorway = Doorway(listener, through_proxy(parse_allowed(["example.org:443"])))
    requests = [b"nonsense", b"GET /x HTTP/1.1", b"CONNECT [::1]:443 HTTP/1.1", b"CONNECT example.org:+443 HTTP/1.1"]
    requests += [b"GET http://example.org:443/\nHost:other HTTP/1.1", b"GET http://other@example.org:443/ HTTP/1.1"]
    plain = b"GET http://example.org:443/ HTTP/1.1\r\n"
    requests += [
        plain + line for line in (b"A: b\nHost: other", b"A: b\rHost: other", b"Host : other", b"A: b\r\n c: d")
    ]
    for request in (line + b"\r\n\r\n" for line in requests):
        with socket.create_connection(place) as connection:
            connection.sendall(request)
            assert connection.recv(100).startswith(b"HTTP/1.1 400 Bad Request\r\n"), request
    doorway.close()

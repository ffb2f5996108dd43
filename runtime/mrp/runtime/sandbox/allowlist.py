"""Allowlists of hosts: an HTTP proxy, served through a doorway, that lets through what the list names and no more.

Names are looked up out here. An address that is not public is refused unless the list itself holds that address.
"""

import ipaddress
import re
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from mrp.runtime.sandbox.doorway import Serve, Until, relay
from mrp.specs.errors import InfraError

PROXY_PORT = 8378
"""Where a process with an allowlist finds the proxy, on the loopback of its sandbox."""

_HEAD_BYTES = 1 << 16
_HEAD_SECONDS = 30.0
_CONNECT_SECONDS = 15.0
_ENTRY = re.compile(r"(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*\Z")
_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*\Z")
_UNCLEAR = re.compile(rb"[\r\n\0]|\A[ \t]|\A[^:]*[ \t]:")
"""In a line of a head: a break that not everybody takes for one, what may belong to the line before, `Host :`."""

_ABSOLUTE = re.compile(r"http://([^/?#@]+)(/[^ ]*)?\Z", re.IGNORECASE)

_TRANSLATED = tuple(ipaddress.IPv6Network(net) for net in ("64:ff9b::/96", "::/96"))
"""Networks of version 6 whose addresses end in one of version 4."""


def proxy_env(port: int) -> dict[str, str]:
    """The variables that lead HTTP clients to the proxy, but for what is in the sandbox itself."""
    address = f"http://127.0.0.1:{port}"
    env = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "http_proxy", "https_proxy"), address)
    return env | dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1")


@dataclass(frozen=True)
class Allowed:
    """(host, port) pairs; a host that begins with `*.` stands for every name below it."""

    pairs: tuple[tuple[str, int], ...]

    def permits(self, host: str, port: int) -> bool:
        return any(port == known and _matches(host, name) for name, known in self.pairs)

    def names(self, host: str, port: int) -> bool:
        """Whether the list has this very pair."""
        return (host, port) in self.pairs


def parse_allowed(entries: Sequence[str]) -> Allowed:
    """Raises InfraError for an entry that says not clearly what is allowed."""
    pairs = []
    for entry in entries:
        host, _, port = entry.lower().rpartition(":")
        if not _ENTRY.match(host) or not port.isdigit() or not 0 < int(port) < 65536:
            raise InfraError(
                f"`network` allows {entry!r}, which is no host and port; write example.org:443 or *.example.org:443",
                retryable=False,
            )
        pairs.append((host, int(port)))
    return Allowed(tuple(pairs))


def _matches(host: str, name: str) -> bool:
    if name.startswith("*."):
        return host.endswith(name[1:]) and not _is_address(host)
    return host == name


def through_proxy(allowed: Allowed) -> Serve:
    """Serves CONNECT, and requests for http:// addresses one a connection."""

    def serve(connection: socket.socket, until: Until) -> None:
        head, rest = _read_head(connection, until)
        try:
            host, port, request = _parse(head)
            server = _connect(host, port, allowed)
        except _Refused as refused:
            _answer(connection, until, refused.status, str(refused))
            return
        with server:
            if request:
                server.sendall(request + rest)
            else:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                server.sendall(rest)
            relay(connection, server, until)

    return serve


class _Refused(Exception):
    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


def _read_head(connection: socket.socket, until: Until) -> tuple[bytes, bytes]:
    """The head of a request, with its last empty line, and what came after it. Raises EOFError when none comes."""
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > _HEAD_BYTES or not until.wait((connection, select.POLLIN), seconds=_HEAD_SECONDS):
            raise EOFError("no request came")
        piece = connection.recv(_HEAD_BYTES)
        if not piece:
            raise EOFError("no request came")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _parse(head: bytes) -> tuple[str, int, bytes]:
    """Host and port that a request is for, and the request to send there; b"" for CONNECT."""
    first, *lines = head.split(b"\r\n")
    if any(_UNCLEAR.search(line) for line in (first, *lines)):
        raise _Refused("400 Bad Request", "the request holds a line that servers do not read alike")
    words = first.decode("latin-1").split(" ")
    if len(words) != 3:
        raise _Refused("400 Bad Request", "this is no HTTP request")
    method, target, _ = words
    if method == "CONNECT":
        return *_host_and_port(target, None), b""
    found = _ABSOLUTE.match(target)
    if found is None:
        raise _Refused("400 Bad Request", f"a proxy is asked for http://... or CONNECT, not for {target!r}")
    host, port = _host_and_port(found[1], 80)
    dropped = (b"connection:", b"proxy-", b"keep-alive:", b"host:")
    kept = [line for line in lines if not line.lower().startswith(dropped)]
    own = [f"{method} {found[2] or '/'} HTTP/1.1", f"Host: {found[1]}", "Connection: close"]
    return host, port, b"\r\n".join([*(line.encode("latin-1") for line in own), *kept, b"", b""])


def _host_and_port(text: str, default: int | None) -> tuple[str, int]:
    host, colon, port = text.lower().partition(":")
    host = host.removesuffix(".")
    if not colon and default is not None:
        port = str(default)
    if not _HOST.match(host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise _Refused("400 Bad Request", f"{text!r} is no host and port")
    return host, int(port)


def _connect(host: str, port: int, allowed: Allowed) -> socket.socket:
    if not allowed.permits(host, port):
        raise _Refused("403 Forbidden", f"{host}:{port} is not in the `network: {{allow: [...]}}` of this sandbox")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Refused("502 Bad Gateway", f"{host} could not be looked up: {error}") from error
    literal = _is_address(host) and allowed.names(host, port)
    public = [place for place in found if literal or is_public(str(place[4][0]))]
    if not public:
        raise _Refused("403 Forbidden", f"{host} has no public address; to allow a private one, name it itself")
    failed: OSError | None = None
    for family, kind, protocol, _, place in public:
        server = socket.socket(family, kind, protocol)
        try:
            server.settimeout(_CONNECT_SECONDS)
            server.connect(place)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return server
        except OSError as error:
            server.close()
            failed = error
    raise _Refused("502 Bad Gateway", f"{host}:{port} cannot be reached: {failed}")


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.IPv4Address(host)
        return True
    return False


def is_public(address: str) -> bool:
    """Whether an address, as getaddrinfo gives it, is one of the whole world and of one machine."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        # An address of version 4 within one of version 6, which the network may turn into it.
        low = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        inner = found.ipv4_mapped or found.sixtofour or (low if any(found in net for net in _TRANSLATED) else None)
        if inner is not None and not inner.is_global:
            return False
        found = found.ipv4_mapped or found
    return found.is_global and not found.is_multicast


def _answer(connection: socket.socket, until: Until, status: str, text: str) -> None:
    body = f"mrp: {text}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode() + body)
    connection.shutdown(socket.SHUT_WR)
    # What still comes is taken, so that the answer is not lost by a reset.
    while until.wait((connection, select.POLLIN), seconds=1.0) and connection.recv(_HEAD_BYTES):
        pass

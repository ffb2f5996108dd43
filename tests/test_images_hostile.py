"""What others publish may be damaged or made to do harm: it fails the build with a reason, and leads nowhere else."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.debs import make_deb
from support.kinds import workspace
from support.registry import LOGIN
from support.wheels import make_wheel

from mrp.cache.store import Entry, Store
from mrp.rules.image import PullImage
from mrp.runtime.images.debian import unpack_debs
from mrp.runtime.images.layers import layer_tree
from mrp.runtime.images.registry import pull_image
from mrp.runtime.images.unpacked import unpack_image
from mrp.runtime.images.wheels import unpack_wheels
from mrp.specs.errors import BuildFailed, InfraError

Member = tuple[str, bytes, bytes | str]
"""Name, type as tar has it, content or where a link leads."""

FILE, LINK, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def tar(*members: Member) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname = content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return packed.getvalue()


def huge_hole() -> bytes:
    """A sparse file of a TiB that takes no room in the archive."""
    info = tarfile.TarInfo("hole")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    size = b"\x80" + (2**40).to_bytes(11, "big")
    header[386:398], header[398:410], header[483:495] = size, b"\x80" + bytes(11), size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def as_tar(data: bytes, store: Store) -> dict[str, Entry]:
    pin = {"sha256": hashlib.sha256(data).hexdigest()}
    return store.read_tree(layer_tree("tar", pin, store.put_tree({"x": Entry("f", store.put_bytes(data))}), store))


def as_deb(data: bytes, store: Store) -> dict[str, Entry]:
    packed = make_deb({}).partition(b"data.tar.gz")[0] + f"{'data.tar':<48}{len(data):<10}`\n".encode() + data
    return store.read_tree(unpack_debs(store.put_tree({"x.deb": Entry("f", store.put_bytes(packed))}), store))


def as_layer(data: bytes, store: Store) -> dict[str, Entry]:
    return store.read_tree(unpack_image(b"{}", [lambda: io.BytesIO(data)], "x", store).layers[0])


WAYS = pytest.mark.parametrize("way", [as_tar, as_deb, as_layer])
Way = Callable[[bytes, Store], dict[str, Entry]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


@WAYS
@pytest.mark.parametrize(
    "data",
    [
        tar(("../x", FILE, b"1")),
        tar(("a", HARD, "/etc/passwd")),
        tar(("a", HARD, "a")),
        tar(("a", FILE, b"1"), ("a/x", FILE, b"1")),
        tar(("a/x", FILE, b"1"), ("a", FILE, b"1")),
        tar(("a", LINK, "b"), ("b", LINK, "a"), ("a/x", FILE, b"1")),
        tar(("a\udcff", FILE, b"1")),
        tar(("a", LINK, "")),
        tar(("/".join(["a"] * 3000), FILE, b"1")),
        tar(("a", FILE, b"1" * 4000))[:2000],
        gzip.compress(tar(("a", FILE, bytes(range(256)) * 4000)))[:2000],
        huge_hole(),
        b"<html>404</html>" * 100,
        b"",
    ],
    ids=[
        "leads out",
        "hard link out",
        "hard link to itself",
        "file as folder",
        "folder as file",
        "circle",
        "not UTF-8",
        "link to nothing",
        "too deep",
        "cut",
        "packed and cut",
        "a TiB of nothing",
        "no archive",
        "empty",
    ],
)
def test_an_archive_that_no_tree_can_hold_fails_with_its_name(way: Way, data: bytes, store: Store) -> None:
    with pytest.raises(BuildFailed, match=r"x|packages of a layer"):
        way(data, store)


@WAYS
def test_a_path_through_a_link_stays_inside(way: Way, store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    data = tar(("a", LINK, str(outside)), ("up", LINK, "../../.."), ("a/x", FILE, b"1"), ("up/y", FILE, b"2"))
    found = way(data, store)
    assert found[f"{outside}/x".lstrip("/")].kind == "f"
    assert found["y"].kind == "f"
    assert not outside.exists()


@WAYS
def test_what_comes_later_takes_the_place_of_a_link(way: Way, store: Store) -> None:
    if way is as_deb:
        pytest.skip("packages bring a path once")
    found = way(tar(("a", LINK, "etc"), ("a", FILE, b"1"), ("b", FILE, b"2")), store)
    assert {path: entry.kind for path, entry in found.items()} == {"a": "f", "b": "f"}


@pytest.mark.parametrize(
    "name", ["../../../../x", "/x", "x-1.data/scripts/../../../../x", "x-1.data/data/../../../../x"]
)
def test_a_wheel_cannot_lead_out(name: str, store: Store) -> None:
    wheel = make_wheel("x", "1", {name: b"evil"})
    files = store.put_tree({"x-1-py3-none-any.whl": Entry("f", store.put_bytes(wheel))})
    with pytest.raises(BuildFailed, match="is no wheel that can be laid out"):
        unpack_wheels(files, "usr/lib/python3", store)


# -- registries --------------------------------------------------------------------------------------------------


class Liar(http.server.BaseHTTPRequestHandler):
    """Answers as `answer` says: a path -> status, headers, content."""

    protocol_version = "HTTP/1.1"
    answer: ClassVar[Callable[[str, str], tuple[int, dict[str, str], bytes]]]
    asked: ClassVar[list[tuple[str, str, str | None]]]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).asked.append((self.command, self.headers["Host"], self.headers["Authorization"]))
        status, headers, data = type(self).answer(self.command, self.path)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(data)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def liar(answer: Callable[[str, str], tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[str, type[Liar]]]:
    """A registry that does as it likes; gives its host and what it was asked."""
    handler = type("Handler", (Liar,), {"answer": staticmethod(answer), "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


def pull(host: str, digest: str, store: Store) -> None:
    pull_image(PullImage(f"{host}/x", digest, "linux/amd64"), store)


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {"schemaVersion": 1},
        {"schemaVersion": 2},
        {"schemaVersion": 2, "config": "x", "layers": []},
        {"schemaVersion": 2, "config": {"digest": "sha256:../../x", "size": 1}, "layers": []},
        {"schemaVersion": 2, "manifests": [{"platform": {"os": "linux", "architecture": "amd64"}}]},
        {"schemaVersion": 2, "manifests": ["x"]},
        {"schemaVersion": 2, "manifests": {"a": 1}},
    ],
)
def test_a_manifest_that_is_none_fails_the_build(store: Store, manifest: object) -> None:
    data = json.dumps(manifest).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with liar(lambda method, path: (200, {}, data)) as (host, _), pytest.raises(BuildFailed, match=digest):
        pull(host, digest, store)


def test_a_blob_that_never_ends_is_left(store: Store) -> None:
    config = {"digest": f"sha256:{'0' * 64}", "size": 10}
    data = json.dumps({"schemaVersion": 2, "config": config, "layers": []}).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with (
        liar(lambda method, path: (200, {}, data if "manifests" in path else bytes(11))) as (host, _),
        pytest.raises(BuildFailed, match="gives more than 10 bytes"),
    ):
        pull(host, digest, store)


@pytest.mark.parametrize(
    "answer",
    [
        (302, {"Location": "/again"}, b""),
        (302, {"Location": "http://["}, b""),
        (302, {"Location": "file:///etc/passwd"}, b""),
        (401, {"WWW-Authenticate": 'Bearer realm="http://["'}, b""),
        (401, {"WWW-Authenticate": 'Bearer realm="/"'}, b""),
        (401, {"WWW-Authenticate": "nonsense"}, b""),
        (401, {}, b""),
        (404, {}, b""),
    ],
)
def test_a_registry_that_leads_in_circles_is_a_failure_of_the_registry(
    store: Store, answer: tuple[int, dict[str, str], bytes]
) -> None:
    with liar(lambda method, path: answer) as (host, handler), pytest.raises(InfraError, match=host):
        pull(host, f"sha256:{'0' * 64}", store)
    assert len(handler.asked) < 100


def test_a_password_is_not_sent_to_where_a_registry_leads(tmp_path: Path) -> None:
    place = workspace(tmp_path, {"img": {"kind": "image", "base": "scratch"}})
    basic = "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()
    with liar(lambda method, path: (201, {}, b"")) as (other, elsewhere):

        def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
            if not home.asked[-1][2]:
                return 401, {"WWW-Authenticate": "Basic"}, b""
            found = {"HEAD": 404, "POST": 202}.get(method, 201)
            return found, {"Location": f"http://{other}/put"}, b""

        with liar(answer) as (host, home):
            (tmp_path / "login").mkdir()
            login = {"auths": {host: {"auth": basic.partition(" ")[2]}}}
            (tmp_path / "login" / "config.json").write_text(json.dumps(login))
            done = place.mrp("image", "push", "//:img", f"{host}/x:1", DOCKER_CONFIG=str(tmp_path / "login"))
            assert done.returncode == 0, done.stderr
    assert basic in [authorization for _, _, authorization in home.asked]
    assert [method for method, _, _ in elsewhere.asked].count("PUT") == 2
    assert {authorization for _, _, authorization in elsewhere.asked} == {None}

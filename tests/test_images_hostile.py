"""What others publish may be damaged or made to do harm: it fails the build with a reason, and leads nowhere else."""

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import lzma
import socket
import ssl
import subprocess
import tarfile
import tempfile
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
from mrp.runtime.archives import unpack_archive
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


def huge_name() -> bytes:
    """A member whose name is said to have a GiB, and 2 MiB of it."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    return info.tobuf(tarfile.GNU_FORMAT) + b"x" * 2**21


def flipped(data: bytes) -> bytes:
    """With one byte in its middle wrong."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def as_tar(data: bytes, store: Store) -> dict[str, Entry]:
    pin = {"sha256": hashlib.sha256(data).hexdigest()}
    return store.read_tree(layer_tree("tar", pin, store.put_tree({"x": Entry("f", store.put_bytes(data))}), store))


def as_deb(data: bytes, store: Store) -> dict[str, Entry]:
    packed = make_deb({}).partition(b"data.tar.gz")[0] + f"{'data.tar':<48}{len(data):<10}`\n".encode() + data
    return store.read_tree(unpack_debs(store.put_tree({"x.deb": Entry("f", store.put_bytes(packed))}), store))


def as_archive(data: bytes, store: Store) -> dict[str, Entry]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return store.read_tree(unpack_archive(Path(file.name), "x", store))


def as_layer(data: bytes, store: Store) -> dict[str, Entry]:
    return store.read_tree(unpack_image(b"{}", [lambda: io.BytesIO(data)], "x", store).layers[0])


Way = Callable[[bytes, Store], dict[str, Entry]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


@pytest.mark.parametrize("way", [as_tar, as_deb, as_layer, as_archive])
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
        flipped(lzma.compress(tar(("a", FILE, bytes(range(256)) * 4000)))),
        gzip.compress(b"")[:6],
        huge_hole(),
        huge_name(),
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
        "packed and damaged",
        "cut in what packs it",
        "a TiB of nothing",
        "a GiB of name",
        "no archive",
        "empty",
    ],
)
def test_an_archive_that_no_tree_can_hold_fails_with_its_name(way: Way, data: bytes, store: Store) -> None:
    with pytest.raises(BuildFailed, match=r"x|packages of a layer"):
        way(data, store)


@pytest.mark.parametrize("way", [as_tar, as_deb, as_layer])
def test_a_path_through_a_link_stays_inside(way: Way, store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    data = tar(("a", LINK, str(outside)), ("up", LINK, "../../.."), ("a/x", FILE, b"1"), ("up/y", FILE, b"2"))
    found = way(data, store)
    assert found[f"{outside}/x".lstrip("/")].kind == "f"
    assert found["y"].kind == "f"
    assert not outside.exists()


@pytest.mark.parametrize("way", [as_tar, as_layer])
def test_what_comes_later_takes_the_place_of_a_link(way: Way, store: Store) -> None:
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


@pytest.mark.parametrize("damage", ["none", "cut", "flipped", "programs", "long"])
def test_a_wheel_that_is_none_fails_with_its_name(damage: str, store: Store) -> None:
    wheel = make_wheel("x", "1", {"x.py" if damage != "long" else "x" * 300: b"x = 1\n" * 100}, scripts="x = x:main")
    wheels = {"none": b"none", "cut": wheel[:-40], "flipped": flipped(wheel), "long": wheel}
    wheels["programs"] = make_wheel("x", "1", {}, scripts="nonsense")
    files = store.put_tree({"x-1-py3-none-any.whl": Entry("f", store.put_bytes(wheels[damage]))})
    with pytest.raises(BuildFailed, match=r"x-1-py3-none-any\.whl is no wheel that can be laid out"):
        unpack_wheels(files, "usr/lib/python3", store)


def test_a_package_with_a_member_of_less_than_nothing_fails(store: Store) -> None:
    packed = b"!<arch>\n" + f"{'x':<48}{-60:<10}`\n".encode()
    files = store.put_tree({"x.deb": Entry("f", store.put_bytes(packed))})
    with pytest.raises(
        BuildFailed, match=r"x\.deb is no Debian package that can be read: it has a member of -60 bytes"
    ):
        unpack_debs(files, store)


def test_a_hard_link_in_a_folder_of_an_archive_is_the_file_that_it_names(store: Store) -> None:
    found = as_archive(tar(("a", FILE, b"1"), ("./d/b", HARD, "a"), ("d/e/c", HARD, "./d/b")), store)
    assert found == {path: Entry("f", store.put_bytes(b"1")) for path in ("a", "d/b", "d/e/c")}


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
def liar(
    answer: Callable[[str, str], tuple[int, dict[str, str], bytes]], certificate: Path | None = None
) -> Iterator[tuple[str, type[Liar]]]:
    """A registry that does as it likes; gives its host and what it was asked. With a certificate it speaks https."""
    handler = type("Handler", (Liar,), {"answer": staticmethod(answer), "asked": []})
    name = "127.0.0.1" if certificate is None else socket.gethostname()
    server = http.server.ThreadingHTTPServer((name, 0), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{name}:{server.server_port}", handler
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
        {"schemaVersion": 2, "config": {"digest": f"sha256:{'0' * 64}", "size": float("inf")}, "layers": []},
        {"schemaVersion": 2, "config": {"digest": f"sha256:{'0' * 64}", "size": 2**40}, "layers": []},
        b"[" * 100_000,
    ],
)
def test_a_manifest_that_is_none_fails_the_build(store: Store, manifest: object) -> None:
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with liar(lambda method, path: (200, {}, data)) as (host, _), pytest.raises(BuildFailed, match=digest):
        pull(host, digest, store)


def image_of(config: bytes, *layers: bytes) -> tuple[str, dict[str, bytes]]:
    """An image's digest, and its blobs by the last part of their paths."""
    blobs = {f"sha256:{hashlib.sha256(data).hexdigest()}": data for data in (config, *layers)}
    listed = [{"digest": digest, "size": len(data)} for digest, data in blobs.items()]
    by_data = {blobs[str(one["digest"])]: one for one in listed}
    named = {"schemaVersion": 2, "config": by_data[config], "layers": [by_data[layer] for layer in layers]}
    manifest = json.dumps(named).encode()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    return digest, {**blobs, digest: manifest}


@pytest.mark.parametrize("variable", ["A=\0", "A=\ud800", "=1", 1, None])
def test_a_variable_that_no_program_can_have_fails_the_build(store: Store, variable: object) -> None:
    digest, blobs = image_of(json.dumps({"config": {"Env": ["A=1", variable]}}).encode())
    with (
        liar(lambda method, path: (200, {}, blobs[path.rpartition("/")[2]])) as (host, _),
        pytest.raises(BuildFailed, match=f"the configuration of .*{digest} cannot be read"),
    ):
        pull(host, digest, store)


def test_a_tag_beside_a_digest_says_nothing_and_a_layer_that_comes_twice_is_asked_for_once(store: Store) -> None:
    layer = tar(("a", FILE, b"1"))
    digest, blobs = image_of(b"{}", layer, layer)
    with liar(lambda method, path: (200, {}, blobs[path.rpartition("/")[2]] if "/v2/x/" in path else b"")) as (
        host,
        asked,
    ):
        image = pull_image(PullImage(f"{host}/x:1.0", digest, "linux/amd64"), store)
    assert len(image.layers) == 2
    assert len(asked.asked) == 3


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


@pytest.mark.parametrize("status", [301, 307])
def test_what_is_brought_to_a_registry_is_not_brought_elsewhere(tmp_path: Path, status: int) -> None:
    place = workspace(tmp_path, {"img": {"kind": "image", "base": "scratch"}})

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        found = {"HEAD": 404, "POST": 202}.get(method, status)
        return found, {"Location": "/put"}, b""

    with liar(answer) as (host, _):
        done = place.mrp("image", "push", "//:img", f"{host}/x:1")
    assert done.returncode == 4
    assert f"answered {status} for" in done.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of this machine's name."""
    file, name = tmp_path_factory.mktemp("tls") / "both", socket.gethostname()
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests"]
    argv += ["-addext", f"subjectAltName=DNS:{name}", "-keyout", str(file), "-out", str(file)]
    try:
        socket.getaddrinfo(name, 443)
        subprocess.run(argv, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine's name cannot have a certificate here: {error}")
    return file


def test_a_registry_that_leads_to_where_nothing_is_encrypted_is_not_followed(
    store: Store, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    digest, blobs = image_of(b"{}", tar(("a", FILE, b"1")))
    given = liar(lambda method, path: (200, {}, blobs[path.rpartition("/")[2]]))
    with (
        given as (plain, asked),
        liar(lambda method, path: (302, {"Location": leads + path}, b""), certificate) as home,
    ):
        leads = f"http://{plain}"
        with pytest.raises(InfraError, match=r"leads to 127\.0\.0\.1 without encryption"):
            pull(home[0], digest, store)
    assert asked.asked == []
    with liar(lambda method, path: (200, {}, blobs[path.rpartition("/")[2]]), certificate) as (host, _):
        pull(host, digest, store)

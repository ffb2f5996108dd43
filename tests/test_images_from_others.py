"""Stories of images that are partly made by others: registries, Dockerfiles, wheels and Debian itself."""

import base64
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.debs import lock_of, make_deb
from support.images import export_rootfs, layout_digest, rootfs
from support.kinds import workspace
from support.places import Place
from support.registry import LOGIN, registry
from support.serving import served
from support.wheels import make_wheel, only, put_wheel

from mrp.cache.store import Store
from mrp.rules.locks import applicable, parse_deb_lock, parse_requirements
from mrp.runtime.images.unpacked import unpack_image
from mrp.specs.errors import BuildFailed


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry."""
    with registry(tmp_path_factory.mktemp("registry") / "data") as address:
        yield address


def simple(folder: Path, **more: Any) -> Place:
    """A workspace with an image of two copied files."""
    layers = [{"copy": {"a.txt": "/data/a"}}, {"copy": {"b.txt": "/data/b"}}, {"links": {"/data/c": "a"}}]
    targets = {"img": {"kind": "image", "base": "scratch", "layers": layers, "env": {"A": "1"}}, **more}
    return workspace(folder, targets, {"a.txt": "a\n", "b.txt": "b\n"})


def push(place: Place, name: str) -> str:
    done = place.mrp("image", "push", "//:img", name)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- Registries -------------------------------------------------------------------------------------------------


def test_an_image_goes_to_a_registry_and_comes_back_by_digest(tmp_path: Path, host: str) -> None:
    place = simple(tmp_path)
    reference = push(place, f"{host}/team/img:1")
    name, _, digest = reference.partition("@")
    assert name == f"{host}/team/img"
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    asked = urllib.request.Request(f"http://{host}/v2/team/img/manifests/1", headers=accept)
    with urllib.request.urlopen(asked) as answer:
        assert answer.headers["Docker-Content-Digest"] == digest
    assert push(place, f"{host}/team/other").endswith(digest)
    based = {"kind": "image", "base": f"registry:///{reference}", "layers": [{"copy": {"b.txt": "/data/d"}}]}
    other = simple(tmp_path / "other", based=based)
    other.build("//:based")
    assert [kind for kind, _, _ in other.executed()] == ["fetch", "image"]
    found, original = rootfs(other, "based"), rootfs(place)
    assert found["data/d"] == b"b\n"
    assert all(found[path] == original[path] for path in ("data/a", "data/b", "data/c", "etc/passwd"))
    assert json.loads((other.folder / "mrp-out/based/image").read_text())["env"] == {"A": "1"}
    # What is there needs the registry no more, whatever it is called.
    other.edit("BUILD.yaml", f"registry:///{host}/", "example.org/")
    other.build("//:based", "--offline")
    assert other.executed() == []


def test_skopeo_takes_a_pushed_image_by_its_digest(tmp_path: Path, host: str) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("there is no skopeo here; `apt-get install skopeo` brings it")
    reference = push(simple(tmp_path), f"{host}/skopeo/img")
    argv = ["skopeo", "copy", "--src-tls-verify=false", f"docker://{reference}", f"dir:{tmp_path}/copied"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest = (tmp_path / "copied/manifest.json").read_bytes()
    assert reference.endswith(hashlib.sha256(manifest).hexdigest())


def docker_login(folder: Path, host: str) -> str:
    """A folder for DOCKER_CONFIG, as `docker login` leaves it."""
    folder.mkdir()
    entry = {"auth": base64.b64encode(":".join(LOGIN).encode()).decode()}
    (folder / "config.json").write_text(json.dumps({"auths": {host: entry}}))
    return str(folder)


def test_a_locked_registry_takes_saved_passwords_and_secrets_and_nobody_else(tmp_path: Path) -> None:
    nobody = str(tmp_path / "nobody")
    with registry(tmp_path / "registry", locked=True) as host:
        place = simple(tmp_path, based={"kind": "image", "base": "scratch"})
        name = f"{host}/team/img"
        refused = place.mrp("image", "push", "//:img", name, DOCKER_CONFIG=nobody)
        assert refused.returncode == 4
        assert f"`docker login {host}`" in refused.stderr
        wrong = place.mrp("image", "push", "//:img", name, "--secret", "KEY", DOCKER_CONFIG=nobody, KEY="ali:other")
        assert wrong.returncode == 4
        pushed = place.mrp(
            "image", "push", "//:img", name, "--secret", "KEY", DOCKER_CONFIG=nobody, KEY=":".join(LOGIN)
        )
        assert pushed.returncode == 0, pushed.stderr
        place.edit("BUILD.yaml", '"base": "scratch"\n  }', f'"base": "{pushed.stdout.strip()}"\n  }}')
        assert place.mrp("build", "//:based", DOCKER_CONFIG=nobody).returncode == 4
        built = place.mrp("build", "//:based", DOCKER_CONFIG=docker_login(tmp_path / "docker", host))
        assert built.returncode == 0, built.stderr
    state = [path for path in (*place.folder.rglob("*"), *place.cache.rglob("*")) if path.is_file()]
    secret = base64.b64encode(":".join(LOGIN).encode())
    assert not [path for path in state if secret in path.read_bytes() or LOGIN[1].encode() in path.read_bytes()]


class TokenRegistry(http.server.BaseHTTPRequestHandler):
    """Gives `files` to those who bring the token that it gives to those who know the password."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        basic = "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()
        path = self.path.partition("?")[0]
        self.asked.append(self.path)
        if path == "/token" and self.headers["Authorization"] == basic:
            self._answer(200, json.dumps({"token": "t0ken"}).encode())
        elif self.headers["Authorization"] != "Bearer t0ken":
            self._answer(401, b"")
        else:
            self._answer(200 if path in self.files else 404, self.files.get(path, b""))

    do_HEAD = do_GET

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        if status == 401:
            realm = f"http://{self.headers['Host']}/token"
            self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="tests",scope="ignored"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def test_a_registry_that_wants_a_token_is_asked_for_one_with_the_scope(tmp_path: Path) -> None:
    config, packed = b'{"config":{"Env":["A=1"]}}', layer({"data/a": b"a\n"})
    blobs = {f"sha256:{hashlib.sha256(data).hexdigest()}": data for data in (config, packed)}
    listed = [{"digest": digest, "size": len(data), "mediaType": "x"} for digest, data in blobs.items()]
    manifest = json.dumps({"schemaVersion": 2, "config": listed[0], "layers": listed[1:]}).encode()
    platforms = [{"os": "linux", "architecture": machine} for machine in ("s390x", "amd64", "arm64")]
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    entries = [{"digest": digest if p["architecture"] != "s390x" else "sha256:0", "platform": p} for p in platforms]
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    pinned = f"sha256:{hashlib.sha256(index).hexdigest()}"
    TokenRegistry.files = {f"/v2/x/y/blobs/{name}": data for name, data in blobs.items()}
    TokenRegistry.files |= {f"/v2/x/y/manifests/{digest}": manifest, f"/v2/x/y/manifests/{pinned}": index}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), TokenRegistry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        host = f"127.0.0.1:{server.server_port}"
        place = workspace(tmp_path, {"img": {"kind": "image", "base": f"{host}/x/y@{pinned}"}})
        built = place.mrp("build", "//:img", DOCKER_CONFIG=docker_login(tmp_path / "docker", host))
        assert built.returncode == 0, built.stderr
    finally:
        server.shutdown()
        server.server_close()
    assert rootfs(place)["data/a"] == b"a\n"
    assert [path for path in TokenRegistry.asked if path.startswith("/token")] == [
        "/token?scope=repository%3Ax%2Fy%3Apull&service=tests"
    ]


def test_a_registry_that_gives_other_bytes_is_not_believed(tmp_path: Path) -> None:
    good = json.dumps({"schemaVersion": 2}).encode()
    digest = f"sha256:{hashlib.sha256(good).hexdigest()}"
    with served({f"/v2/x/manifests/{digest}": good + b" "}) as (address, _):
        reference = f"{address.removeprefix('http://')}/x@{digest}"
        place = workspace(tmp_path, {"img": {"kind": "image", "base": reference}})
        assert "trust it no more" in place.build("//:img", code=1)["reason"]
    assert place.committed_keys() == set()
    lost = place.mrp("build", "//:img")
    assert lost.returncode == 4
    assert "cannot be reached" in lost.stderr


def layer(files: Mapping[str, bytes | None]) -> bytes:
    """A packed layer: files, and folders where there is None."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return gzip.compress(packed.getvalue())


def unpacked(tmp_path: Path, *layers: bytes) -> tuple[int, dict[str, bytes]]:
    """How many trees the layers become, and the files of all of them together."""
    with Store.open(tmp_path / "cache") as store:
        made = unpack_image(b"{}", [lambda data=data: io.BytesIO(data) for data in layers], "it", store)  # type: ignore[misc]
        entries = store.read_tree(store.merge_trees(made.layers))
        files = {path: store.get_bytes(e.digest) if e.digest else b"" for path, e in entries.items()}
        return len(made.layers), files


def test_layers_that_remove_files_are_joined_with_those_below(tmp_path: Path) -> None:
    low = layer({"a": b"a", "d/x": b"x", "d/y": b"y", "e/z": b"z", "f": b"f"})
    assert unpacked(tmp_path, low, layer({"a": b"A"})) == (
        2,
        {"a": b"A", "d/x": b"x", "d/y": b"y", "e/z": b"z", "f": b"f"},
    )
    removing = layer({".wh.a": b"", "d/.wh.x": b"", "e/.wh..wh..opq": b"", "e/new": b"n", "f": None, "f/g": b"g"})
    assert unpacked(tmp_path, low, removing, layer({"top": b"t"})) == (
        2,
        {"d/y": b"y", "e/new": b"n", "f/g": b"g", "top": b"t"},
    )
    # A folder that is emptied stays, and one that is removed does not.
    emptying = layer({"d/.wh.x": b"", "d/.wh.y": b"", "e/.wh..wh..opq": b"", ".wh.f": b""})
    assert unpacked(tmp_path, layer({"d/x": b"", "d/y": b"", "e/s/z": b"", "f/g/h": b""}), emptying) == (
        1,
        {"d": b"", "e": b""},
    )
    with pytest.raises(BuildFailed, match="leads out of it"):
        unpacked(tmp_path, layer({"../x": b""}))
    with pytest.raises(BuildFailed, match="no tar archive that can be read"):
        unpacked(tmp_path, b"no archive")


# --- Wheels -----------------------------------------------------------------------------------------------------

PYTHON = {"libpython3.11-minimal": (make_deb({"usr/lib/python3.11/os.py": b""}), ())}


def with_wheels(folder: Path, address: str, requirements: str) -> Place:
    layers = [{"deb": ["libpython3.11-minimal"], "lock": "debs.lock"}, {"pip": "requirements.txt"}]
    targets = {"img": {"kind": "image", "base": "scratch", "layers": layers}}
    files: dict[str, str | bytes] = {"debs.lock": lock_of(address, PYTHON), "requirements.txt": requirements}
    return workspace(folder, targets, files)


def build_with(place: Place, links: Path) -> subprocess.CompletedProcess[str]:
    return place.mrp("build", "//:img", **only(links))


def test_wheels_come_to_where_the_images_python_imports_from(tmp_path: Path) -> None:
    links = tmp_path / "links"
    pure = make_wheel("tool", "1.0", {"tool.py": b"def main(): pass\n"}, scripts="tool = tool:main")
    tag = "cp311-cp311-manylinux_2_17_x86_64"
    fast = make_wheel("fast", "2.0", {"fast.so": b"elf"}, tag)
    lines = put_wheel(links, "tool", "1.0", pure) + put_wheel(links, "fast", "2.0", fast, tag)
    lines += "old==1.0 ; python_version < '3.8' --hash=sha256:" + "0" * 64 + "\n"
    with served({f"/{name}.deb": data for name, (data, _) in PYTHON.items()}) as (address, _):
        place = with_wheels(tmp_path, address, f"# locked\n{lines}")
        done = build_with(place, links)
        assert done.returncode == 0, done.stderr
        assert [kind for kind, _, _ in place.executed()] == ["fetch", "fetch", "fetch", "image"]
        found = rootfs(place)
        assert found["usr/local/lib/python3.11/dist-packages/tool.py"] == b"def main(): pass\n"
        assert found["usr/local/lib/python3.11/dist-packages/fast.so"] == b"elf"
        assert bytes(found["usr/local/bin/tool"]).startswith(b"#!/usr/bin/python3\n")  # type: ignore[arg-type]
        assert not [path for path in found if path.endswith(".pyc")]
        bill = json.loads((place.folder / "mrp-out/img/sbom.json").read_text())
        assert [one["purl"] for one in bill["components"]][-2:] == ["pkg:pypi/fast@2.0", "pkg:pypi/tool@1.0"]
        again = with_wheels(tmp_path / "again", address, f"# another comment\n{lines}")
        build_with(again, links)
    assert layout_digest(place) == layout_digest(again)


def test_a_wheel_with_another_hash_or_for_another_python_is_refused(tmp_path: Path) -> None:
    links = tmp_path / "links"
    tag = "cp312-cp312-manylinux_2_17_x86_64"
    other = put_wheel(links, "other", "1.0", make_wheel("other", "1.0", {"other.so": b""}, tag), tag)
    put_wheel(links, "evil", "1.0", make_wheel("evil", "1.0", {"evil.py": b""}))
    with served({f"/{name}.deb": data for name, (data, _) in PYTHON.items()}) as (address, _):
        place = with_wheels(tmp_path, address, other)
        done = build_with(place, links)
        assert done.returncode == 1
        assert "has no wheel with a pinned hash for Python 3.11" in done.stderr
        place.write({"requirements.txt": f"evil==1.0 --hash=sha256:{'0' * 64}\n"})
        done = build_with(place, links)
        assert done.returncode == 1
        assert "has none of the hashes" in done.stderr
        place.write({"requirements.txt": put_wheel(links, "none", "1.0", b"none")})
        done = build_with(place, links)
        assert done.returncode == 1
        assert "none 1.0 is no wheel that can be read" in done.stderr


def test_lines_with_markers_hold_for_the_images_python_and_bring_a_package_once() -> None:
    def bring(*markers: str) -> list[str]:
        lines = [f"six==1.{n} {f'; {m}' if m else ''} --hash=sha256:{'0' * 64}" for n, m in enumerate(markers)]
        return [one.version for one in applicable(parse_requirements("\n".join(lines).encode()), "3.11")]

    assert bring("python_version < '3.11'", "python_version >= '3.11'") == ["1.1"]
    assert bring("platform_release == ''", "implementation_version < '3.11'") == ["1.0"]  # nothing of this machine
    for markers in (("", "python_version > '3'"), ("python_version > '2'", "python_version > '3'")):
        with pytest.raises(BuildFailed, match=r"bring six for Python 3\.11"):
            bring(*markers)
    for marker in ("nonsense", "os_name ~= 'x'"):
        with pytest.raises(BuildFailed, match=f"the marker `{marker}` in a requirements file cannot be read"):
            bring(marker)


# --- Debian -----------------------------------------------------------------------------------------------------

CHECK = "import json, ssl, sqlite3; print(ssl.create_default_context().cert_store_stats()['x509_ca'] > 50)"


def test_debians_python_works_without_its_maintainer_scripts(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("chroot", path="/usr/sbin:/sbin:/usr/bin") is None:
        pytest.skip("only root can look at an image with chroot")
    layers = [{"deb": ["python3", "dash", "ca-certificates"], "lock": "locks/debs.lock"}]
    place = workspace(tmp_path, {"img": {"kind": "image", "base": "scratch", "layers": layers}})
    locked = place.mrp("image", "lock", "//:img")
    if "apt-get" in locked.stderr:
        pytest.skip(f"apt has no sources here: {locked.stderr}")
    assert locked.returncode == 0, locked.stderr
    lock = (place.folder / "locks/debs.lock").read_bytes()
    names = {package.name for package in parse_deb_lock(lock).packages}
    assert {"libc6", "libssl3", "libsqlite3-0", "python3-minimal"} <= names  # also what this machine has already
    assert place.mrp("image", "lock", "locks/debs.lock").returncode == 0
    assert (place.folder / "locks/debs.lock").read_bytes() == lock
    built = place.mrp("build", "//:img")
    if built.returncode == 4:
        pytest.skip(f"Debian's packages cannot be had here: {built.stderr}")
    assert built.returncode == 0, built.stderr
    archive, root = tmp_path / "rootfs.tar", tmp_path / "root"
    with archive.open("wb") as file:
        export_rootfs(place, file)
    with tarfile.open(archive) as packed:
        packed.extractall(root, filter="tar")
    chroot = str(shutil.which("chroot", path="/usr/sbin:/sbin:/usr/bin"))

    def run(*argv: str) -> str:
        env = {"PATH": "/usr/bin", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([chroot, str(root), *argv], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("/usr/bin/python3", "-c", CHECK) == "True\n"
    assert run("/bin/sh", "-c", "echo $0") == "/bin/sh\n"

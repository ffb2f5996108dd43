import hashlib
import io
import os
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.datasets import files_of

from mrp.cache.store import Store
from mrp.rules.fetching import check_fetch, fetch_preimage, file_name
from mrp.runtime.fetch import fetch
from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.ir import FetchSpec


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server:
    """An HTTP server on loopback that answers with `answers[path]` (status, headers, body) and notes the headers."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.connections = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers.get("Authorization")))
                status, headers, body = server.answers.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                # A body that is cut ends the connection, and so does a path that says so, without a word.
                self.close_connection = "Content-Length" in headers or self.path == "/leaves"

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    running = Server()
    yield running
    running.stop()


# -- url and path ------------------------------------------------------------------------------------------------


def test_a_url_becomes_a_file_by_its_own_name(store: Store, server: Server, tmp_path: Path) -> None:
    data = b'{"n": 1}\n'
    server.answers["/data/a%20b.jsonl?x=1"] = (200, {}, data)
    spec = FetchSpec(url=f"{server.address}/data/a%20b.jsonl?x=1", sha256=sha256(data), size=len(data))
    assert files_of(store, fetch(spec, tmp_path, store)) == {"a b.jsonl": '{"n": 1}\n'}


def test_other_content_than_was_pinned_is_refused_with_both_digests(
    store: Store, server: Server, tmp_path: Path
) -> None:
    server.answers["/a"] = (200, {}, b"new")
    with pytest.raises(BuildFailed) as caught:
        fetch(FetchSpec(url=f"{server.address}/a", sha256=sha256(b"old")), tmp_path, store)
    assert sha256(b"old") in str(caught.value) and sha256(b"new") in str(caught.value)


@pytest.mark.parametrize("size", [2, 4])
def test_another_size_than_was_pinned_is_refused(store: Store, server: Server, tmp_path: Path, size: int) -> None:
    server.answers["/a"] = (200, {}, b"new")
    with pytest.raises(BuildFailed, match="size"):
        fetch(FetchSpec(url=f"{server.address}/a", sha256=sha256(b"new"), size=size), tmp_path, store)


@pytest.mark.parametrize(("status", "retryable"), [(404, False), (403, False), (429, True), (500, True), (503, True)])
def test_a_server_that_says_no_is_no_verdict_on_the_task(
    store: Store, server: Server, tmp_path: Path, status: int, retryable: bool
) -> None:
    server.answers["/a"] = (status, {}, b"")
    with pytest.raises(InfraError, match=rf"http://127\.0\.0\.1:\d+/a answered {status}") as caught:
        fetch(FetchSpec(url=f"{server.address}/a", sha256="0" * 64), tmp_path, store)
    assert caught.value.retryable is retryable


def test_a_connection_serves_all_downloads_of_a_thread_while_it_lasts(
    store: Store, server: Server, tmp_path: Path
) -> None:
    for path in ("/a", "/b", "/leaves"):
        server.answers[path] = (200, {}, path.encode())

    def bring(path: str) -> int:
        fetch(FetchSpec(url=server.address + path, sha256=sha256(path.encode())), tmp_path, store)
        return server.connections

    assert [bring(path) for path in ("/a", "/b", "/a")] == [1, 1, 1]
    assert [bring(path) for path in ("/leaves", "/a", "/b")] == [1, 2, 2]
    with pytest.raises(InfraError, match="answered 404"):
        bring("/none")
    assert bring("/a") == 3
    with pytest.raises(BuildFailed, match="was pinned"):
        fetch(FetchSpec(url=f"{server.address}/a", sha256="0" * 64), tmp_path, store)
    with pytest.raises(BuildFailed, match="larger than the 1 bytes"):
        fetch(FetchSpec(url=f"{server.address}/a", sha256="0" * 64, size=1), tmp_path, store)
    # What was not read to its end is not taken for the next answer.
    assert bring("/b") == 4


def test_a_download_that_breaks_off_may_be_tried_again(store: Store, server: Server, tmp_path: Path) -> None:
    server.answers["/a"] = (200, {"Content-Length": "10"}, b"short")
    with pytest.raises(InfraError, match="the answer broke off 5 bytes before its end") as caught:
        fetch(FetchSpec(url=f"{server.address}/a", sha256="0" * 64, size=10), tmp_path, store)
    assert caught.value.retryable
    with pytest.raises(InfraError, match="cannot be downloaded") as caught_again:
        fetch(FetchSpec(url="http://127.0.0.1:9/a", sha256="0" * 64), tmp_path, store)
    assert caught_again.value.retryable


def test_a_file_of_the_workspace_is_pinned_too(store: Store, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    (workspace / "data").mkdir(parents=True)
    (workspace / "data/a.csv").write_bytes(b"x\n1\n")
    spec = FetchSpec(path="data/a.csv", sha256=sha256(b"x\n1\n"))
    assert files_of(store, fetch(spec, workspace, store, offline=True)) == {"a.csv": "x\n1\n"}
    (workspace / "data/a.csv").write_bytes(b"x\n2\n")
    with pytest.raises(BuildFailed, match=r"data/a\.csv has sha256"):
        fetch(spec, workspace, store)
    (workspace / "data/a.csv").unlink()
    with pytest.raises(BuildFailed, match=r"data/a\.csv cannot be read: No such file"):
        fetch(spec, workspace, store)
    (tmp_path / "outside").write_bytes(b"x\n1\n")
    (workspace / "data/a.csv").symlink_to(tmp_path / "outside")
    with pytest.raises(BuildFailed, match=r"data/a\.csv leads out of the workspace"):
        fetch(spec, workspace, store)


def test_offline_nothing_is_asked(store: Store, server: Server, tmp_path: Path) -> None:
    for spec in (
        FetchSpec(url=f"{server.address}/a", sha256="0" * 64),
        FetchSpec(git=f"{server.address}/a.git", rev="0" * 40),
        FetchSpec(pypi="example==1.0", sha256="0" * 64),
    ):
        with pytest.raises(InfraError, match="offline") as caught:
            fetch(spec, tmp_path, store, offline=True)
        assert not caught.value.retryable
    assert server.asked == []


def test_a_secret_needs_a_value_and_https(store: Store, tmp_path: Path) -> None:
    spec = FetchSpec(url="https://127.0.0.1:9/a", sha256="0" * 64, secret="TOKEN")
    with pytest.raises(InfraError, match="needs the secret TOKEN, which has no value"):
        fetch(spec, tmp_path, store)
    with pytest.raises(BuildFailed, match="`secret` is sent only to https addresses"):
        fetch(FetchSpec(url="http://127.0.0.1:9/a", sha256="0" * 64, secret="TOKEN"), tmp_path, store)


def test_a_password_in_an_address_is_not_shown(store: Store, server: Server, tmp_path: Path) -> None:
    address = server.address.replace("//", "//user:hunter2@")
    for wrong in (address, address.rpartition(":")[0]):
        with pytest.raises(InfraError, match="holds a password, which is not sent") as caught:
            fetch(FetchSpec(url=f"{wrong}/a?token=hunter2", sha256="0" * 64), tmp_path, store)
        assert "hunter2" not in str(caught.value)
    assert server.asked == []


def test_a_server_that_leads_to_no_address_is_no_verdict_on_the_task(
    store: Store, server: Server, tmp_path: Path
) -> None:
    for leads in ("http://[", "file:///etc/passwd", "/a"):
        server.answers["/a"] = (302, {"Location": leads}, b"")
        with pytest.raises(InfraError, match=r"http://127\.0\.0\.1:\d+/a "):
            fetch(FetchSpec(url=f"{server.address}/a", sha256="0" * 64), tmp_path, store)


# -- archives ----------------------------------------------------------------------------------------------------


def tar(members: list[tuple[str, bytes | str | None, int]]) -> bytes:
    """A .tar.gz of (name, bytes of a file | target of a link | None for a folder, mode)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content, mode in members:
            info = tarfile.TarInfo(name)
            info.mode = mode
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def unpacked(store: Store, folder: Path, data: bytes) -> dict[str, str]:
    (folder / "a.tar.gz").write_bytes(data)
    spec = FetchSpec(path="a.tar.gz", sha256=sha256(data))
    tree = fetch(spec, folder, store, unpack=True)
    return {
        path + ("*" if store.read_tree(tree)[path].kind == "x" else ""): text
        for path, text in files_of(store, tree).items()
    }


def test_an_archive_becomes_a_tree_of_its_members(store: Store, tmp_path: Path) -> None:
    data = tar([("r", None, 0o755), ("./r/a.py", b"a", 0o644), ("r/run", b"run", 0o755), ("big", b"x" * 2**21, 0o600)])
    found = unpacked(store, tmp_path, data)
    assert found.pop("big") == "x" * 2**21
    assert found == {"r/a.py": "a", "r/run*": "run"}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("r/a.py", "a")
        info = zipfile.ZipInfo("r/run")
        info.external_attr = 0o100755 << 16
        archive.writestr(info, "run")
        archive.mkdir("empty")
    assert unpacked(store, tmp_path, out.getvalue()) == {"r/a.py": "a", "r/run*": "run"}


def test_links_within_an_archive_become_copies(store: Store, tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str | None, int]] = [
        ("v1/m.py", b"m", 0o644),
        ("v1/sub/n.py", b"n", 0o755),
        ("latest", "v1", 0o777),
        ("m.py", "latest/sub/../m.py", 0o777),
        ("v1/self", "./sub/..", 0o777),
    ]
    assert unpacked(store, tmp_path, tar(members)) == {
        "v1/m.py": "m",
        "v1/sub/n.py*": "n",
        "latest/m.py": "m",
        "latest/sub/n.py*": "n",
        "m.py": "m",
        "v1/self/m.py": "m",
        "v1/self/sub/n.py*": "n",
    }


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("/etc/passwd", b"", 0)], "holds '/etc/passwd', which is no plain relative path"),
        ([("a/../../x", b"", 0)], "holds 'a/../../x', which is no plain relative path"),
        ([("a\\b", b"", 0)], "which is no plain relative path"),
        ([("l", "/etc", 0)], "holds the link 'l' to '/etc', which leads outside"),
        ([("d/l", "../..", 0)], "holds the link 'd/l' to '../..', which leads outside"),
        ([("d/p", "..", 0), ("l", "d/p/../x", 0), ("x", b"", 0)], "which leads outside"),
        ([("l", "nowhere", 0)], "holds the link 'l' to 'nowhere', which leads nowhere"),
        ([("a", "b", 0), ("b", "a", 0)], "which leads in a circle"),
        ([("a", b"1", 0), ("a", b"2", 0)], "holds 'a' twice"),
        ([("l", "d", 0), ("l/x", b"", 0), ("d/x", b"", 0)], "holds 'l' both as a folder and as something else"),
        ([("a", b"", 0), ("a/b", b"", 0)], "holds 'a' both as a folder and as something else"),
    ],
)
def test_an_archive_that_leads_outside_is_refused(
    store: Store, tmp_path: Path, members: list[tuple[str, bytes | str | None, int]], message: str
) -> None:
    with pytest.raises(BuildFailed) as caught:
        unpacked(store, tmp_path, tar(members))
    assert message in str(caught.value)
    assert not (tmp_path.parent / "x").exists()


def test_what_is_no_archive_or_is_damaged_is_refused(store: Store, tmp_path: Path) -> None:
    whole = tar([("a", os.urandom(20_000), 0o644)])
    for data in (b"no archive", whole[:-5000], b""):
        with pytest.raises(BuildFailed, match=r"a\.tar\.gz cannot be unpacked"):
            unpacked(store, tmp_path, data)


def test_devices_and_pipes_in_an_archive_are_refused(store: Store, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("pipe")
        info.type = tarfile.FIFOTYPE
        archive.addfile(info)
    with pytest.raises(BuildFailed, match="'pipe', which is no file, folder or link"):
        unpacked(store, tmp_path, out.getvalue())


# -- git ---------------------------------------------------------------------------------------------------------


def git(folder: Path, *argv: str) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        **{f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    return subprocess.run(
        ["git", *argv], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / "tasks").mkdir()
    (folder / "tasks/a.jsonl").write_bytes(b'{"n": 1}\r\n')
    (folder / "run.sh").write_text("echo $Format:%H$\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("tasks/a.jsonl")
    (folder / ".gitattributes").write_text("tasks export-ignore\nrun.sh export-subst\n*.jsonl text\n")
    git(folder, "-c", "core.autocrlf=false", "add", ".")
    git(folder, "commit", "--quiet", "-m", "one")
    return folder


def test_a_commit_becomes_its_files_untouched_by_attributes(store: Store, repository: Path, tmp_path: Path) -> None:
    rev = git(repository, "rev-parse", "HEAD")
    stored = git(repository, "cat-file", "blob", "HEAD:tasks/a.jsonl")
    (repository / "later").write_text("")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "two")
    tree = fetch(FetchSpec(git=f"file://{repository}", rev=rev), tmp_path, store, offline=True)
    found = files_of(store, tree)
    assert set(found) == {".gitattributes", "link", "run.sh", "tasks/a.jsonl"}
    assert found["run.sh"] == "echo $Format:%H$\n"
    assert found["tasks/a.jsonl"].strip() == found["link"].strip() == stored
    assert store.read_tree(tree)["run.sh"].kind == "x"


def test_a_commit_that_a_repository_lacks_is_a_wrong_pin(store: Store, repository: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=f"has no commit {'0' * 40}"):
        fetch(FetchSpec(git=f"file://{repository}", rev="0" * 40), tmp_path, store)


def test_a_repository_that_cannot_be_reached_may_be_tried_again(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="cannot be fetched") as caught:
        fetch(FetchSpec(git=f"file://{tmp_path}/none", rev="0" * 40), tmp_path, store)
    assert caught.value.retryable


# -- pypi --------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A wheel that pip finds, with no index but a folder."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "example_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("example_data/a.jsonl", '{"n": 1}\n')
        archive.writestr(
            "example_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: example-data\nVersion: 1.0\n"
        )
        archive.writestr(
            "example_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("example_data-1.0.dist-info/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return path.read_bytes()


def test_a_wheel_is_fetched_by_name_and_digest(store: Store, wheel: bytes, tmp_path: Path) -> None:
    spec = FetchSpec(pypi="example-data==1.0", sha256=sha256(wheel))
    assert list(store.read_tree(fetch(spec, tmp_path, store))) == ["example-data-1.0.whl"]
    assert files_of(store, fetch(spec, tmp_path, store, unpack=True))["example_data/a.jsonl"] == '{"n": 1}\n'


def test_another_wheel_than_was_pinned_is_refused(store: Store, wheel: bytes, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed) as caught:
        fetch(FetchSpec(pypi="example-data==1.0", sha256="0" * 64), tmp_path, store)
    assert sha256(wheel) in str(caught.value)
    with pytest.raises(InfraError, match=r"example-data==2\.0 cannot be downloaded as a wheel") as missing:
        fetch(FetchSpec(pypi="example-data==2.0", sha256="0" * 64), tmp_path, store)
    assert not missing.value.retryable


# -- what a fetch is ---------------------------------------------------------------------------------------------


def test_the_key_of_a_fetch_holds_its_pin_and_not_its_address() -> None:
    one = FetchSpec(url="https://a.example/x/d.jsonl?sig=1", sha256="1" * 64, secret="T", downloaded_at="2024")
    two = FetchSpec(url="https://mirror.example/d.jsonl", sha256="1" * 64, size=5)
    assert fetch_preimage(one, unpack=False) == fetch_preimage(two, unpack=False)
    for other in (
        FetchSpec(url="https://mirror.example/d.jsonl", sha256="2" * 64),
        FetchSpec(url="https://mirror.example/d.jsonl.gz", sha256="1" * 64),
    ):
        assert fetch_preimage(one, unpack=False) != fetch_preimage(other, unpack=False)
    assert fetch_preimage(one, unpack=False) != fetch_preimage(one, unpack=True)
    git_one, git_two = FetchSpec(git="https://a/x", rev="1" * 40), FetchSpec(git="https://b/x", rev="1" * 40)
    assert fetch_preimage(git_one, unpack=True) == fetch_preimage(git_two, unpack=False)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (FetchSpec(url="https://a.example/x/d%20e.csv?y=/z"), "d e.csv"),
        (FetchSpec(url="https://a.example/"), "download"),
        (FetchSpec(url="https://a.example/.."), "download"),
        (FetchSpec(url="https://a.example/..%2f..%2fetc"), "etc"),
        (FetchSpec(path="data/d.csv"), "d.csv"),
        (FetchSpec(pypi="example==1.0"), "example-1.0.whl"),
    ],
)
def test_a_fetched_file_has_a_plain_name(spec: FetchSpec, name: str) -> None:
    assert file_name(spec) == name


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (FetchSpec(url="http://[/x"), "`url` 'http://[/x' is no address"),
        (FetchSpec(url="ftp://a.example/x"), "`url` 'ftp://a.example/x' must start with one of https://"),
        (FetchSpec(url="a.example/x"), "`url` 'a.example/x' must start with"),
        (FetchSpec(git="ext::sh -c id"), "`git` 'ext::sh -c id' must start with"),
        (FetchSpec(git="--upload-pack=id"), "`git` '--upload-pack=id' must start with"),
        (FetchSpec(pypi="example"), "`pypi` 'example' must name one version, like example==1.2.0"),
        (FetchSpec(pypi="example==1.0 --hash=x"), "must name one version"),
        (FetchSpec(pypi="-r x==1"), "must name one version"),
        (FetchSpec(path="../x"), "`path` '../x' must be a path below the workspace"),
        (FetchSpec(pypi="x==1", secret="T"), "`secret` is sent only to https addresses"),
    ],
)
def test_a_fetch_that_cannot_be_is_named(spec: FetchSpec, problem: str) -> None:
    (found,) = check_fetch(spec)
    assert problem in found

"""What of a folder is a Dockerfile's context: what Docker's own command line sends for the same .dockerignore."""

import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.kinds import workspace

from mrp.cache.store import Entry, Store
from mrp.rules.docker_context import docker_context
from mrp.specs.errors import BuildFailed

FILES = ("a", "b.py", "a.md", "README.md", "d/a", "d/b.py", "d/e/f.py", "d/e/g/h.py", "de/x", "x+y", "[a]", "é", "x|y")
ALL = set(FILES)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


def sent(store: Store, ignore: bytes, dockerfile: str = "c/Dockerfile") -> set[str]:
    """The files of the context `c`, without the two that are always there."""
    entries = {f"c/{path}": Entry("f", store.put_bytes(b"")) for path in (*FILES, "Dockerfile")}
    entries |= {"c/.dockerignore": Entry("f", store.put_bytes(ignore)), "other/Dockerfile": entries["c/Dockerfile"]}
    tree, name = docker_context(store.put_tree(entries), "c", dockerfile, store)
    found = set(store.read_tree(tree))
    assert {name, ".dockerignore"} <= found
    return found - {name, ".dockerignore", "Dockerfile"}


CASES: list[tuple[str, set[str]]] = [
    ("", set()),
    ("**", ALL),
    ("*", ALL),
    ("*\n!a", ALL - {"a"}),
    ("*\n!d/e", ALL - {"d/e/f.py", "d/e/g/h.py"}),
    ("*\n!d\nd/e", ALL - {"d/a", "d/b.py"}),
    ("!a\na", {"a"}),
    ("*.md\n!README.md", {"a.md"}),
    ("# a\n #a\n\n  b.py \r\n", {"b.py"}),
    ("\ufeffa", {"a"}),
    ("/a\n//b.py\n./a.md\nd/../x+y\nde/", {"a", "b.py", "a.md", "x+y", "de/x"}),
    ("*.py", {"b.py"}),
    ("**/*.py", {"b.py", "d/b.py", "d/e/f.py", "d/e/g/h.py"}),
    ("**.py", {"b.py", "d/b.py", "d/e/f.py", "d/e/g/h.py"}),
    ("d**", {"d/a", "d/b.py", "d/e/f.py", "d/e/g/h.py", "de/x"}),
    ("d/**/h.py", {"d/e/g/h.py"}),
    ("d/?", {"d/a", "d/e/f.py", "d/e/g/h.py"}),
    ("[^a-z]", {"é"}),
    (r"\[a\]", {"[a]"}),
    ("[a]", {"a"}),
    ("x+*\nx|y", {"x+y", "x|y"}),
    (".", set()),
    ("/", set()),
    ("..", set()),
]


@pytest.mark.parametrize(("ignore", "left_out"), CASES)
def test_lines_leave_out_what_they_leave_out_for_docker(store: Store, ignore: str, left_out: set[str]) -> None:
    assert ALL - sent(store, ignore.encode()) == left_out


class Engine(http.server.BaseHTTPRequestHandler):
    """What Docker's command line takes for an engine; it keeps the context that it is sent."""

    protocol_version = "HTTP/1.1"
    context: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        answer = b"{}" if self.command == "GET" else b""
        self.send_response(200)
        for name, value in {"Api-Version": "1.41", "Ostype": "linux", "Content-Length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        Engine.context = b"".join(chunks)
        self.do_GET()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def test_docker_itself_sends_the_same(tmp_path: Path) -> None:
    if shutil.which("docker") is None:
        pytest.skip("Docker's command line is not here")
    for path in (*FILES, "Dockerfile"):
        (tmp_path / "c" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / path).write_bytes(b"")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"tcp://127.0.0.1:{server.server_port}"
    env = {**os.environ, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "0", "DOCKER_CONFIG": str(tmp_path)}
    try:
        for ignore, left_out in CASES:
            (tmp_path / "c/.dockerignore").write_text(ignore)
            Engine.context = b""
            done = subprocess.run(["docker", "build", str(tmp_path / "c")], env=env, capture_output=True, text=True)
            if not Engine.context:
                pytest.skip(f"this command line sends no context without BuildKit: {done.stderr}")
            with tarfile.open(fileobj=io.BytesIO(Engine.context)) as archive:
                assert ALL - {member.name for member in archive} == left_out, ignore
    finally:
        server.shutdown()
        server.server_close()


def test_the_dockerfile_stays_wherever_it_is(store: Store) -> None:
    assert sent(store, b"*", "c/Dockerfile") == set()
    assert sent(store, b"*", "other/Dockerfile") == set()


@pytest.mark.parametrize("ignore", [b"a\n[\n", b"!", b"\\", b"\xff"])
def test_a_pattern_that_is_none_is_refused_with_the_file(store: Store, ignore: bytes) -> None:
    with pytest.raises(BuildFailed, match=r"c/\.dockerignore cannot be read"):
        sent(store, ignore)


@pytest.mark.parametrize("base", [{"dockerfile": "c/Dockerfile", "context": "c"}, "dockerfile:///c/Dockerfile"])
def test_what_is_left_out_is_not_in_the_key(tmp_path: Path, base: object) -> None:
    files: dict[str, str | bytes] = {"c/Dockerfile": "FROM scratch\nCOPY . /\n", "c/.dockerignore": "*.log\n"}
    place = workspace(tmp_path, {"img": {"kind": "image", "base": base}}, {**files, "c/a.log": "1\n", "c/b": "1\n"})

    def key() -> str:
        (target,) = json.loads(place.mrp("plan", "//:img", "--json").stdout)["targets"]
        return str(target["miss"][0]["key"])

    first = key()
    place.write({"c/a.log": "2\n"})
    assert key() == first
    place.write({"c/b": "2\n"})
    assert key() != first
    second = key()
    place.write({"c/.dockerignore": "none\n"})
    assert key() != second

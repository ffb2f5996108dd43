"""A real registry of images on loopback, for as long as a story needs it."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_START_SECONDS = 120.0


LOGIN = ("ali", "open sesame")
"""Who may use a locked registry."""

_HASHED = "ali:$2b$04$abcdefghijklmnopqrstuu/LVz6MZlItEy42I2juLihZ66HnQx/cy\n"


@contextmanager
def registry(folder: Path, *, locked: bool = False) -> Iterator[str]:
    """Debian's docker-registry, with its files in `folder`; gives its host and port. `locked`: for LOGIN alone."""
    if shutil.which("docker-registry") is None:
        pytest.skip("there is no docker-registry here; `apt-get install docker-registry` brings it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True)
    settings = folder / "registry.yml"
    text = f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    if locked:
        (folder / "users").write_text(_HASHED)
        text += f"auth: {{htpasswd: {{realm: tests, path: {folder}/users}}}}\n"
    settings.write_text(text)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
    try:
        _wait(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    pytest.fail("docker-registry did not start")

"""A real Docker engine of the tests' own, in namespaces of its own, so that nothing of it outlives them.

It is unpacked from the distribution's packages into a cache folder of the user's where the machine has none. It has no
network: images are loaded or built from what is there.
"""

import atexit
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_PACKAGES = ("docker.io", "containerd", "runc", "tini")
_START_SECONDS = 60.0
_STOP_SECONDS = 15.0


class NoEngine(Exception):
    """Why there can be no Docker engine here."""


class DockerEngine:
    """One dockerd with a folder of its own. `host` is what DOCKER_HOST is to be.

    bridge: containers may have a network, on which there is nothing but the engine, at BRIDGE.
    """

    BRIDGE = ("172.17.0.1", 2375)

    def __init__(self, folder: Path, *, bridge: bool = False) -> None:
        self.folder = folder
        self._bridge = bridge
        self.host = f"unix://{folder}/docker.sock"
        self._groups = f"mrp-dockerd-{os.getpid()}-{folder.name}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, also anew after `kill`. Raises NoEngine."""
        folder = self.folder
        for name in ("docker.pid", "docker.sock"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "exec", ignore_errors=True)
        places = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/docker.pid"]
        places += ["-H", self.host, f"--cgroup-parent=/{self._groups}"]
        places += ["-H", f"tcp://0.0.0.0:{self.BRIDGE[1]}", "--tls=false"] if self._bridge else ["--bridge=none"]
        command = 'ip link set lo up; exec dockerd --iptables=false --ip6tables=false --ip-forward=false "$@"'
        # The whole of it dies with this process, however that dies.
        alone = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*alone, "--mount-proc", "sh", "-c", command, "sh", *places],
                env={**os.environ, "PATH": _search_path()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait()

    def kill(self) -> None:
        """Kill the engine with all of its containers, as a machine that loses its power does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it and remove all that it made."""
        if self._process is not None:
            with suppress(OSError, ValueError):
                children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
                os.kill(int(children[0]), signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_SECONDS)
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        deadline = time.monotonic() + _STOP_SECONDS
        while not self._remove_groups() and time.monotonic() < deadline:
            # What was killed is still dying.
            time.sleep(0.05)

    def _remove_groups(self) -> bool:
        """Remove the control groups of its containers; whether none is left."""
        left = False
        for group in Path("/sys/fs/cgroup").glob(f"*/{self._groups}"):
            for inner in sorted(group.glob("**/"), reverse=True):
                try:
                    inner.rmdir()
                except OSError:
                    left = True
        return not left

    def _wait(self) -> None:
        import docker

        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(docker.errors.DockerException, OSError):
                client = docker.DockerClient(base_url=self.host, timeout=5)
                try:
                    client.ping()
                    return
                finally:
                    client.close()
            time.sleep(0.05)
        log = (self.folder / "log").read_text(errors="replace")[-600:]
        self.kill()
        raise NoEngine(f"dockerd did not start: {log}")


@contextmanager
def docker_engine(*, bridge: bool = False) -> Iterator[DockerEngine]:
    """An engine for one story alone, which may kill it. Skips the test where there can be none."""
    engine = None
    try:
        engine = _new_engine(bridge=bridge)
        yield engine
    except NoEngine as error:
        pytest.skip(f"no Docker engine: {error}")
    finally:
        if engine is not None:
            engine.stop()


@pytest.fixture(scope="session")
def docker_host() -> str:
    """DOCKER_HOST of an engine that all tests of this process share; it is never killed but at the end."""
    try:
        return _shared_engine().host
    except NoEngine as error:
        pytest.skip(f"no Docker engine: {error}")


@functools.cache
def _shared_engine() -> DockerEngine:
    engine = _new_engine()
    atexit.register(engine.stop)
    return engine


def _new_engine(*, bridge: bool = False) -> DockerEngine:
    if os.geteuid() != 0:
        raise NoEngine("only root may start one")
    try:
        import docker  # noqa: F401
    except ImportError as error:
        raise NoEngine("the extra `docker` is not installed") from error
    missing = [name for name in ("dockerd", "containerd", "runc") if shutil.which(name, path=_search_path()) is None]
    if missing:
        _unpack()
    # A socket's path has at most 107 bytes.
    engine = DockerEngine(Path(tempfile.mkdtemp(prefix="mrp-dockerd-", dir="/tmp")), bridge=bridge)
    try:
        engine.start()
    except BaseException:
        engine.stop()
        raise
    return engine


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "mrp-tests" / "docker-engine"


def _search_path() -> str:
    unpacked = _cache() / "root"
    return os.pathsep.join([str(unpacked / "usr/sbin"), str(unpacked / "usr/bin"), os.environ.get("PATH", os.defpath)])


def _unpack() -> None:
    """Put the distribution's packages into the cache folder, once, whoever else does so meanwhile."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NoEngine("dockerd is not installed, and this machine has no apt-get to fetch it with")
    place = _cache()
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (place / "root").exists():
            return
        fresh = Path(tempfile.mkdtemp(prefix="fetching-", dir=place))
        try:
            done = subprocess.run(
                ["apt-get", "download", *_PACKAGES], cwd=fresh, capture_output=True, text=True, timeout=300, check=False
            )
            if done.returncode:
                raise NoEngine(f"apt-get cannot fetch it: {done.stderr.strip()[-300:]}")
            (fresh / "root").mkdir()
            for package in sorted(fresh.glob("*.deb")):
                subprocess.run(["dpkg-deb", "-x", package, fresh / "root"], check=True, timeout=120)
            (fresh / "root").rename(place / "root")
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

"""Where the peers are: each in an environment of its own, installed once, or absent for a reason that is kept.

PyPI's peers get a virtual environment each, since they do not agree on their dependencies. Bazel and strace, which
counts system calls, come from Debian.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.places import without_places

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".environments"
MRP = HERE.parent / ".venv" / "bin"
"""The programs of the checkout's own environment."""


@dataclass(frozen=True)
class Peer:
    """A tool to compare with: its PyPI packages, or its Debian package and the program that this brings."""

    name: str
    pypi: tuple[str, ...] = ()
    debian: str = ""
    program: str = ""


PEERS = (
    Peer("ninja", pypi=("ninja",)),
    Peer("bazel", debian="bazel-bootstrap", program="bazel"),
    Peer("strace", debian="strace", program="strace"),
    Peer("snakemake", pypi=("snakemake",)),
    Peer("dvc", pypi=("dvc",)),
    Peer("redun", pypi=("redun",)),
    Peer("joblib", pypi=("joblib",)),
    Peer("ray", pypi=("ray", "numpy")),
    Peer("inspect_ai", pypi=("inspect_ai",)),
)


@dataclass(frozen=True)
class Installed:
    """What became of an installation: the version, or why there is none."""

    version: str | None
    absent: str | None


def installed(name: str) -> Installed:
    """What is known of the peer `name`."""
    try:
        known = json.loads(_record(name).read_bytes())
    except FileNotFoundError:
        return Installed(None, "it was not installed; run `make bench`")
    return Installed(known["version"], known["absent"])


def program(peer: str, name: str) -> str:
    """The path of a program of `peer`; for one from Debian its name, since it is on the PATH."""
    if any(each.name == peer and each.debian for each in PEERS):
        return _behind_wrapper(name)
    return str(ENVIRONMENTS / peer / "bin" / name)


def install(names: list[str]) -> None:
    """Install the peers in `names` that are not there yet; an absent one is tried again."""
    for peer in PEERS:
        if peer.name in names and installed(peer.name).version is None:
            print(f"installing {peer.name}", file=sys.stderr, flush=True)
            found = _from_debian(peer) if peer.debian else _from_pypi(peer)
            _record(peer.name).parent.mkdir(parents=True, exist_ok=True)
            _record(peer.name).write_text(json.dumps({"version": found.version, "absent": found.absent}))
            if found.absent:
                print(f"{peer.name} is left out: {found.absent}", file=sys.stderr, flush=True)


def _from_pypi(peer: Peer) -> Installed:
    folder = ENVIRONMENTS / peer.name
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if reason := _failure([sys.executable, "-m", "venv", str(folder)]):
        return Installed(None, reason)
    if reason := _failure([*pip, "install", *peer.pypi]):
        return Installed(None, reason)
    asked = f"from importlib.metadata import version; print(version({peer.pypi[0]!r}))"
    return Installed(_output([str(folder / "bin" / "python"), "-c", asked]), None)


def _from_debian(peer: Peer) -> Installed:
    if shutil.which(peer.program) is None:
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            return Installed(None, f"`{peer.program}` is not here; install it (on Debian: {peer.debian})")
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-qq"]
        _failure([*apt, "update"])
        if reason := _failure([*apt, "install", "-y", "--no-install-recommends", peer.debian]):
            return Installed(None, reason)
    packaged = _output(["dpkg-query", "--show", "--showformat=${Version}", peer.debian])
    return Installed(packaged or _output([peer.program, "--version"]) or "of unknown version", None)


def _behind_wrapper(name: str) -> str:
    """Debian's `bazel` is a shell script that looks for the newest `bazel-4`; its time is not Bazel's."""
    found = shutil.which(name) or name
    behind = sorted(Path(found).parent.glob(f"{name}-[0-9]*"))
    return str(behind[-1]) if behind else found


def _record(name: str) -> Path:
    return ENVIRONMENTS / f"{name}.json"


def _failure(command: list[str]) -> str | None:
    """Why `command` failed, in one line; None when it did not."""
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if ended.returncode == 0:
        return None
    lines = (ended.stderr or ended.stdout).strip().splitlines()
    return without_places(lines[-1]) if lines else f"exit code {ended.returncode}"


def _output(command: list[str]) -> str | None:
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError:
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None

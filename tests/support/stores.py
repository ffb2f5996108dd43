"""Stores for tests, and small disks and other processes to use them on."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrp.cache.canonical import Json, action_key
from mrp.cache.store import ActionEntry, Entry, Store

SMALL = b"a small blob"
LARGE = bytes(range(256)) * 200
"""Larger than what the index takes in."""


def entry_of(store: Store, name: str, *, small: bytes = SMALL, large: bytes = LARGE) -> ActionEntry:
    """An entry that needs a small blob, a large one and a tree of both; its log is extra. Not committed."""
    blob, file = store.put_bytes(small), store.put_bytes(large)
    tree = store.put_tree({"bin/run": Entry("x", file), "notes.txt": Entry("f", blob), "empty": Entry("d")})
    key, preimage = action_key({"name": name})
    result: Json = {"outcome": "ok", "name": name}
    log = store.put_bytes(f"log of {name}".encode())
    return ActionEntry(key, "trial", preimage, result, [{"attempt": 1}], (blob, file), (tree,), (log,), "namespaces")


def settle() -> None:
    """Wait until the clock of the file system has moved on, so that what was written may be trusted by its stat."""
    time.sleep(0.03)


def run_python(script: str, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> str:
    """Run a script in another process and give what it prints; the test fails when the script does."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_on_disk_of(size: str, folder: Path, script: str, *arguments: str | Path) -> str:
    """Run a script while a disk of that size is mounted on `folder`, for that process alone."""
    return _run_mounted(f'mount -t tmpfs -o size={size} tmpfs "$1"', folder, script, *arguments)


def run_on_readonly(folder: Path, script: str, *arguments: str | Path) -> str:
    """Run a script while `folder` is mounted read-only, for that process alone."""
    return _run_mounted('mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"', folder, script, *arguments)


def _run_mounted(mount: str, folder: Path, script: str, *arguments: str | Path) -> str:
    flags = "-m" if os.geteuid() == 0 else "-Urm"
    if shutil.which("unshare") is None or subprocess.run(["unshare", flags, "true"], capture_output=True).returncode:
        pytest.skip("mounting needs root or user namespaces")
    prefix = ("unshare", flags, "sh", "-c", f'{mount} && shift && exec "$@"', "sh", str(folder))
    return run_python(script, *arguments, prefix=prefix)

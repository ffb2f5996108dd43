"""An image for trying out backends: programs of this machine as one portable layer, so that nothing is downloaded."""

import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from mrp.cache.canonical import canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.runtime.images.host import Digests, describe_host, host_env

PROGRAMS = ("cat", "chmod", "env", "id", "ln", "ls", "mkdir", "python3", "rm", "sh", "sleep", "touch", "true")
"""What the checks of mrp.runtime.contract run."""

_LEFT_OUT = ("__pycache__", "dist-packages", "site-packages", "test", "idlelib", "tkinter", "ensurepip", "lib2to3")
_ROOT_LINKS = ("/bin", "/sbin", "/lib", "/lib64")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def toolchain_image(store: Store, digests: Digests, programs: Sequence[str] = PROGRAMS) -> Digest:
    """The digest of a portable image with these programs and all that they need, as they are on this machine.

    Raises BuildFailed that names a program which is not here.
    """
    host = describe_host(programs, digests)
    entries = {path[1:]: Entry("l", target=os.readlink(path)) for path in _ROOT_LINKS if os.path.islink(path)}
    for path, kind, value in host["files"]:
        if kind == "l":
            entries[path.lstrip("/")] = Entry("l", target=value)
        elif kind == "t":
            entries |= _folder(Path(path), store)
        else:
            entries[path.lstrip("/")] = Entry(kind, store.put_file(Path(path)))
    machine = platform.machine()
    base = {"scratch": {"platform": f"linux/{_ARCHITECTURES.get(machine, machine)}"}}
    description = {"base": base, "env": host_env(host), "layers": [store.put_tree(entries)], "user": "1000:1000"}
    return store.put_bytes(canonical_bytes(description))


def _folder(folder: Path, store: Store) -> dict[str, Entry]:
    entries = {str(folder).lstrip("/"): Entry("d")}
    for path in _below(folder):
        name = str(path).lstrip("/")
        if path.is_symlink():
            entries[name] = Entry("l", target=str(path.readlink()))
        elif path.is_dir():
            entries[name] = Entry("d")
        elif path.is_file():
            entries[name] = Entry("x" if os.access(path, os.X_OK) else "f", store.put_file(path))
    return entries


def _below(folder: Path) -> Iterator[Path]:
    """All in a folder but byte code and what was installed beside the standard library."""
    if folder.name in _LEFT_OUT:
        return
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("config-"))
        for name in sorted([*folders, *names]):
            yield Path(parent, name)

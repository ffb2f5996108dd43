"""Debian packages made by the tests, and locks of them, so that stories of deb layers need no network."""

import hashlib
import io
import tarfile
from collections.abc import Mapping

from mrp.rules.locks import Deb, DebLock, write_deb_lock

Files = Mapping[str, bytes | str]
"""Path -> bytes of a file (executable below bin folders), or the target of a symbolic link."""


def make_deb(files: Files) -> bytes:
    """A package with these files, packed as dpkg-deb does."""
    members = {"debian-binary": b"2.0\n", "control.tar.gz": _tar({"control": b""}), "data.tar.gz": _tar(files)}
    packed = b"!<arch>\n"
    for name, data in members.items():
        packed += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return packed


def lock_of(address: str, packages: Mapping[str, tuple[bytes, tuple[str, ...]]], architecture: str = "amd64") -> bytes:
    """The lock of packages by name, each with its bytes and what it depends on, that are served below `address`."""
    debs = []
    for name, (data, depends) in packages.items():
        url, sha256 = f"{address}/{name}.deb", hashlib.sha256(data).hexdigest()
        debs.append(Deb(name, "1.0-1", architecture, url, sha256, len(data), depends))
    return write_deb_lock(DebLock("debian", architecture, tuple(debs)))


def _tar(files: Files) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.GNU_FORMAT) as archive:
        folders = {path[: place + 1] for path in files for place, letter in enumerate(path) if letter == "/"}
        for path in sorted([*folders, *files]):
            info = tarfile.TarInfo(f"./{path}")
            content = files.get(path, b"")
            if path in folders:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size, info.mode = len(content), 0o755 if "bin/" in path else 0o644
            archive.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return packed.getvalue()

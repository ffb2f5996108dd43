"""Debian packages as a tree: the files of each, and what their maintainer scripts would have made of a few of them.

No script of a package is run. Instead /bin, /sbin and /lib* are links into /usr as on every current Debian and Ubuntu,
certificates are gathered into the one file that programs read, and /bin/sh is there when a shell is.
"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.runtime.archives import content_at_fault, open_tar
from mrp.runtime.images.members import open_zstd, read_members, through_links, without_empty_parents
from mrp.specs.errors import BuildFailed

MERGED = ("bin", "lib", "lib32", "lib64", "libo32", "libx32", "sbin")
"""Folders of the root that are links to those of /usr."""

_MAGIC = b"!<arch>\n"
_HEADER = 60
_AUTHORITIES = "usr/share/ca-certificates/"
_BUNDLE = "etc/ssl/certs/ca-certificates.crt"


def unpack_debs(files: Digest, store: Store) -> Digest:
    """The tree that packages make together; `files` holds one .deb each. Raises BuildFailed, InfraError."""
    unpacked = _Unpacked()
    for name, packed in store.read_tree(files).items():
        assert packed.digest is not None
        for path, entry in _members(name, packed.digest, store):
            unpacked.add(path, entry, name)
    entries = unpacked.entries
    for folder in MERGED:
        if any(path.startswith(f"usr/{folder}/") for path in entries):
            entries[folder] = Entry("l", target=f"usr/{folder}")
    _gather_certificates(entries, store)
    shell = next((shell for shell in ("dash", "bash") if f"usr/bin/{shell}" in entries), None)
    if shell is not None:
        entries.setdefault("usr/bin/sh", Entry("l", target=shell))
    with content_at_fault("the packages of a layer do not fit together"):
        return store.put_tree(without_empty_parents(entries))


def merged_path(path: str) -> str:
    """Where a package's file is on a system whose /bin, /sbin and /lib are in /usr."""
    return f"usr/{path}" if path.partition("/")[0] in MERGED else path


class _Unpacked:
    """The files of several packages; no two bring different ones to the same place."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._links: dict[str, str] = {}
        self._owners: dict[str, str] = {}

    def add(self, path: str, entry: Entry, package: str) -> None:
        if path in MERGED:
            return
        path = through_links(merged_path(path), self._links)
        known = self.entries.get(path)
        if known is None or known.kind == "d":
            self.entries[path] = entry
            self._owners[path] = package
            if entry.target is not None:
                self._links[path] = entry.target
        elif entry.kind != "d" and known != entry:
            raise BuildFailed(
                f"{self._owners[path]} and {package} both bring /{path}, and not the same; put one of them into a layer"
                " of its own, above the other"
            )


def _members(name: str, digest: Digest, store: Store) -> Iterator[tuple[str, Entry]]:
    with (
        content_at_fault(f"{name} is no Debian package that can be read"),
        store.open_blob(digest) as stream,
        _data(stream, name) as archive,
    ):
        yield from read_members(archive, name, store)


@contextmanager
def _data(stream: IO[bytes], name: str) -> Iterator[tarfile.TarFile]:
    """The archive of a package's files, in the `ar` archive that a package is."""
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it does not begin as one")
    while header := stream.read(_HEADER):
        member = header[:16].decode("ascii", "replace").strip().rstrip("/")
        if (size := int(header[48:58])) < 0:
            raise ValueError(f"it has a member of {size} bytes")
        if not member.startswith("data.tar"):
            stream.seek(size + size % 2, 1)
            continue
        packed = open_zstd(stream, name) if member == "data.tar.zst" else stream
        with open_tar(packed, "r|*") as archive:
            yield archive
        return
    raise ValueError("it holds no data.tar")


def _gather_certificates(entries: dict[str, Entry], store: Store) -> None:
    """What update-ca-certificates makes: all certificates in one file, which OpenSSL's own default leads to."""
    certificates = sorted(path for path in entries if path.startswith(_AUTHORITIES) and path.endswith(".crt"))
    if not certificates or _BUNDLE in entries:
        return
    texts = [store.get_bytes(digest) for path in certificates if (digest := entries[path].digest) is not None]
    bundle = b"".join(text if text.endswith(b"\n") else text + b"\n" for text in texts)
    entries[_BUNDLE] = Entry("f", store.put_bytes(bundle))
    entries.setdefault("usr/lib/ssl/cert.pem", Entry("l", target=f"/{_BUNDLE}"))

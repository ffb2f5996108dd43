"""What the members of a tar archive are in a tree: bytes, the executable bit, folders and symbolic links."""

import hashlib
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.runtime.archives import MAX_BYTES, MAX_FILES, LinkError, follow_links, put_stream
from mrp.specs.errors import BuildFailed, InfraError


def open_zstd(stream: IO[bytes], name: str) -> IO[bytes]:
    """What a stream that zstd packed holds. Raises InfraError when zstandard is not installed."""
    try:
        import zstandard
    except ImportError:
        raise InfraError(
            f"{name} is packed with zstd; `pip install 'mrp-build[zstd]'` reads it", retryable=False
        ) from None
    unpacked: IO[bytes] = zstandard.ZstdDecompressor().stream_reader(stream, closefd=True)
    return unpacked


def sha256_of(blob: Digest, store: Store) -> str:
    """What others know a stored file by, in hex."""
    hasher = hashlib.sha256()
    with store.open_blob(blob) as stream:
        while chunk := stream.read(2**20):
            hasher.update(chunk)
    return hasher.hexdigest()


def read_members(
    archive: tarfile.TarFile, name: str, store: Store, *, devices: bool = False
) -> Iterator[tuple[str, Entry]]:
    """Each member's path, relative to /, with what it is; its bytes are put into the store.

    A path that leads through a symbolic link of the archive is where the link leads, as when it is unpacked. Owners,
    times, other modes and extended attributes are dropped, and so are `devices` when they are allowed. Raises
    BuildFailed for members that lead outside or that are too large; `name` is what the message calls the archive.
    """
    files: dict[str, Entry] = {}
    links: dict[str, str] = {}
    size = 0
    for number, member in enumerate(archive):
        path = posixpath.normpath(member.name)
        path = path.lstrip("/") if devices else path
        if path in (".", ""):
            continue
        if path.startswith(("/", "../")) or path == "..":
            raise BuildFailed(f"{name} holds {member.name!r}, which leads out of it; make the archive anew")
        size += member.size
        if size > MAX_BYTES or number >= MAX_FILES:
            raise BuildFailed(f"{name} holds more than {MAX_BYTES} bytes or {MAX_FILES} files; do not trust it")
        path = through_links(path, links)
        if member.isdir():
            yield path, Entry("d")
            continue
        links.pop(path, None)
        if member.issym():
            entry = Entry("l", target=member.linkname)
        elif member.islnk():
            linked = files.get(through_links(posixpath.normpath(member.linkname).lstrip("/" if devices else ""), links))
            if linked is None:
                raise BuildFailed(f"{name} links {member.name!r} to {member.linkname!r}, which does not come before it")
            entry = linked
        elif (content := archive.extractfile(member)) is not None:
            digest, _ = put_stream(content, store, member.size)
            entry = Entry("x" if member.mode & stat.S_IXUSR else "f", digest)
        elif devices:
            continue
        else:
            raise BuildFailed(f"{name} holds {member.name!r}, which is no file, folder or link")
        files[path] = entry
        if entry.target is not None:
            links[path] = entry.target
        yield path, entry


def without_empty_parents(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries without those of folders that other entries need anyway."""
    parents = set()
    for path in entries:
        while path := path.rpartition("/")[0]:
            parents.add(path)
    return {path: entry for path, entry in entries.items() if not (entry.kind == "d" and path in parents)}


def through_links(path: str, links: Mapping[str, str]) -> str:
    """Where a path is when the folders above its last name are looked up through symbolic links. Raises BuildFailed."""
    folder, _, name = path.rpartition("/")
    try:
        return posixpath.join(follow_links(folder, links, leaving="stays"), name)
    except LinkError as error:
        raise BuildFailed(f"/{path} {error}") from None

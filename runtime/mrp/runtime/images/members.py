"""What the members of a tar archive are in a tree: bytes, the executable bit, folders and symbolic links."""

import lzma
import posixpath
import stat
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.runtime.archives import MAX_BYTES, MAX_FILES
from mrp.specs.errors import BuildFailed, InfraError

BUFFER = 2**20
"""Bytes that are read at once from an archive that is read as a stream."""

_IN_MEMORY = 2**20
_MAX_HOPS = 40


@contextmanager
def content_at_fault(message: str) -> Iterator[None]:
    """Raises BuildFailed with `message` and the reason for content that is damaged, or that no tree can hold."""
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise BuildFailed(f"{message}: {_reason(error)}") from error
    except OSError as error:
        # Unpackers raise it without a number; with one it is this machine's.
        if error.errno is not None:
            raise
        raise BuildFailed(f"{message}: {_reason(error)}") from error
    except Exception as error:
        if "zstandard" in sys.modules and isinstance(error, sys.modules["zstandard"].ZstdError):
            raise BuildFailed(f"{message}: {_reason(error)}") from error
        raise


def _reason(error: Exception) -> str:
    """The first line of what an unpacker says."""
    return str(error).partition("\n")[0].rstrip(":-. ") or type(error).__name__


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
        if not member.isdir():
            links.pop(path, None)
        if member.isdir():
            yield path, Entry("d")
        elif member.issym():
            files[path] = Entry("l", target=member.linkname)
            links[path] = member.linkname
            yield path, files[path]
        elif member.islnk():
            linked = files.get(through_links(posixpath.normpath(member.linkname).lstrip("/" if devices else ""), links))
            if linked is None:
                raise BuildFailed(f"{name} links {member.name!r} to {member.linkname!r}, which does not come before it")
            files[path] = linked
            yield path, linked
        elif member.isfile():
            content = archive.extractfile(member)
            assert content is not None
            files[path] = Entry("x" if member.mode & stat.S_IXUSR else "f", put_stream(content, member.size, store))
            yield path, files[path]
        elif not devices:
            raise BuildFailed(f"{name} holds {member.name!r}, which is no file, folder or link")


def put_stream(stream: IO[bytes], size: int, store: Store) -> Digest:
    """Store what a stream holds; large ones go through a file."""
    if size <= _IN_MEMORY:
        return store.put_bytes(stream.read())
    with tempfile.NamedTemporaryFile(prefix="mrp-member-") as file:
        while chunk := stream.read(_IN_MEMORY):
            file.write(chunk)
        file.flush()
        return store.put_file(Path(file.name))


def without_empty_parents(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries without those of folders that other entries need anyway."""
    parents = set()
    for path in entries:
        while path := path.rpartition("/")[0]:
            parents.add(path)
    return {path: entry for path, entry in entries.items() if not (entry.kind == "d" and path in parents)}


def through_links(path: str, links: Mapping[str, str]) -> str:
    """Where a path leads when the folders above its last name are looked up through symbolic links."""
    folder, _, name = path.rpartition("/")
    done: list[str] = []
    waiting = list(reversed(folder.split("/")))
    hops = 0
    while waiting:
        word = waiting.pop()
        if word in ("", "."):
            continue
        if word == "..":
            del done[-1:]
            continue
        done.append(word)
        target = links.get("/".join(done))
        if target is None:
            continue
        hops += 1
        if hops > _MAX_HOPS:
            raise BuildFailed(f"/{path} leads through a circle of links")
        done = [] if target.startswith("/") else done[:-1]
        waiting.extend(reversed(target.split("/")))
    return "/".join([*done, name])

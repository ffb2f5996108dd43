"""What the members of a tar archive are in a tree: bytes, the executable bit, folders and symbolic links."""

import posixpath
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.specs.errors import BuildFailed

_IN_MEMORY = 2**20
_MAX_HOPS = 40


def read_members(
    archive: tarfile.TarFile, name: str, store: Store, *, devices: bool = False
) -> Iterator[tuple[str, Entry]]:
    """Each member's path, relative to /, with what it is; its bytes are put into the store.

    Owners, times, other modes and extended attributes are dropped, and so are `devices` when they are allowed. Raises
    BuildFailed for members that lead outside or that no tree can hold; `name` is what the message calls the archive.
    """
    files: dict[str, Entry] = {}
    for member in archive:
        path = posixpath.normpath(member.name)
        path = path.lstrip("/") if devices else path
        if path in (".", ""):
            continue
        if path.startswith(("/", "../")) or path == "..":
            raise BuildFailed(f"{name} holds {member.name!r}, which leads out of it; make the archive anew")
        if member.isdir():
            yield path, Entry("d")
        elif member.issym():
            files[path] = Entry("l", target=member.linkname)
            yield path, files[path]
        elif member.islnk():
            linked = files.get(posixpath.normpath(member.linkname).lstrip("/" if devices else ""))
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

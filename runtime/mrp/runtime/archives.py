"""Archives as trees: members become entries of the store, and never paths of this machine.

So nothing can be written outside: there is no outside. Links are followed within the archive and become copies.
"""

import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.specs.errors import BuildFailed, safe_relative

MAX_BYTES = 64 * 2**30
"""Bytes that an archive may unpack to."""

MAX_FILES = 1_000_000
"""Files that an archive may hold."""

_IN_MEMORY = 2**20
_CHUNK = 2**20
_MAX_HOPS = 40


def unpack_archive(archive: Path, name: str, store: Store) -> Digest:
    """The tree in a .zip (or wheel) or .tar file, packed with gzip, bzip2 or xz, which its first bytes tell.

    Raises BuildFailed when it is no archive, is damaged, is too large, or has members that lead outside; `name` is
    what the message calls it.
    """
    gathered = Gathered(name, store)
    try:
        members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
        for path, kind, content in members(archive, gathered):
            gathered.add(path, kind, content)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise BuildFailed(f"{name} cannot be unpacked ({error}); is it a .zip or .tar archive?") from error
    return gathered.tree()


@dataclass
class Gathered:
    """Files and links, as they are met; a tree at the end."""

    name: str
    store: Store
    files: dict[str, Entry] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    size: int = 0

    def add(self, path: str, kind: str, content: IO[bytes] | str) -> None:
        """A file ("f", or "x" when executable) with its stream, or a link ("l") with its target."""
        safe = safe_relative(path)
        if safe is None or str(safe) == ".":
            raise BuildFailed(f"{self.name} holds {path[:200]!r}, which is no plain relative path; do not trust it")
        path = str(safe)
        if path in self.files or path in self.links:
            raise BuildFailed(f"{self.name} holds {path!r} twice")
        if len(self.files) + len(self.links) >= MAX_FILES:
            raise BuildFailed(f"{self.name} holds more than {MAX_FILES} files")
        if isinstance(content, str):
            self.links[path] = content
        else:
            self.files[path] = Entry("x" if kind == "x" else "f", self._put(content), None)

    def tree(self) -> Digest:
        """The tree of all files, with links replaced by what they lead to."""
        for path in (*self.files, *self.links):
            folder = path.rpartition("/")[0]
            while folder:
                if folder in self.files or folder in self.links:
                    raise BuildFailed(f"{self.name} holds {folder!r} both as a folder and as something else")
                folder = folder.rpartition("/")[0]
        files = dict(self.files)
        for path, target in self.links.items():
            files.update(_followed(self.name, path, target, self.files, self.links))
        return self.store.put_tree(files)

    def _put(self, stream: IO[bytes]) -> Digest:
        data = stream.read(_IN_MEMORY + 1)
        self._count(len(data))
        if len(data) <= _IN_MEMORY:
            return self.store.put_bytes(data)
        with tempfile.NamedTemporaryFile(prefix="mrp-unpack-") as file:
            while data:
                file.write(data)
                data = stream.read(_CHUNK)
                self._count(len(data))
            file.flush()
            return self.store.put_file(Path(file.name))

    def _count(self, size: int) -> None:
        self.size += size
        if self.size > MAX_BYTES:
            raise BuildFailed(f"{self.name} unpacks to more than {MAX_BYTES} bytes")


_Member = tuple[str, str, IO[bytes] | str]


def _zip_members(archive: Path, gathered: Gathered) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            mode = info.external_attr >> 16
            if info.is_dir():
                continue
            with file.open(info) as stream:
                if stat.S_ISLNK(mode):
                    yield info.filename, "l", _target(stream, gathered)
                else:
                    yield info.filename, "x" if mode & 0o111 else "f", stream


def _tar_members(archive: Path, gathered: Gathered) -> Iterator[_Member]:
    with tarfile.open(archive) as file:
        for info in file:
            if info.isdir():
                continue
            if info.issym():
                yield info.name, "l", info.linkname
                continue
            stream = file.extractfile(info) if info.isreg() or info.islnk() else None
            if stream is None:
                raise BuildFailed(f"{gathered.name} holds {info.name!r}, which is no file, folder or link")
            with stream:
                yield info.name, "x" if info.mode & 0o111 else "f", stream


def _target(stream: IO[bytes], gathered: Gathered) -> str:
    data = stream.read(4097)
    try:
        if len(data) <= 4096:
            return data.decode()
    except UnicodeDecodeError:
        pass
    raise BuildFailed(f"{gathered.name} holds a link whose target is no path")


def _followed(
    name: str, path: str, target: str, files: Mapping[str, Entry], links: Mapping[str, str]
) -> dict[str, Entry]:
    """What stands at `path` once the link there is followed: a file, or the files of a folder."""

    def refuse(why: str) -> BuildFailed:
        return BuildFailed(f"{name} holds the link {path!r} to {target[:200]!r}, which {why}")

    found = _resolve(path, links, refuse)
    if found in files:
        return {path: files[found]}
    prefix = f"{found}/" if found else ""
    below = {f"{path}/{file[len(prefix) :]}": entry for file, entry in files.items() if file.startswith(prefix)}
    if not below:
        raise refuse("leads nowhere")
    return below


def _resolve(path: str, links: Mapping[str, str], refuse: Callable[[str], BuildFailed]) -> str:
    done: list[str] = []
    waiting = list(reversed(path.split("/")))
    hops = 0
    while waiting:
        word = waiting.pop()
        if word in ("", "."):
            continue
        if word == "..":
            if not done:
                raise refuse("leads outside")
            done.pop()
            continue
        done.append(word)
        target = links.get("/".join(done))
        if target is None:
            continue
        hops += 1
        if hops > _MAX_HOPS:
            raise refuse("leads in a circle")
        if target.startswith("/"):
            raise refuse("leads outside")
        done.pop()
        waiting.extend(reversed(target.split("/")))
    return "/".join(done)

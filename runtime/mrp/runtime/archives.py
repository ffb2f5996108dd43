"""Archives as trees: members become entries of the store, and never paths of this machine.

So nothing can be written outside: there is no outside. Links are followed within the archive and become copies.
"""

import errno
import lzma
import stat
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.specs.errors import BuildFailed, safe_relative

MAX_BYTES = 64 * 2**30
"""Bytes that an archive may unpack to."""

MAX_FILES = 1_000_000
"""Files that an archive may hold."""

BUFFER = 2**20
"""Bytes that are read at once from an archive that is read as a stream."""

_CHUNK = 2**20
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_HEADER = 2**20
_MAX_HOPS = 40
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    RuntimeError,
    TypeError,
)
"""What unpackers raise for content; ValueError also for what no tree can hold, TypeError for gzip that is cut."""
_DAMAGE_NUMBERS = (None, errno.EINVAL, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR)
"""Of an OSError: unpackers give it none, seek to before the beginning, or make folders that no disk holds."""


def unpack_archive(archive: Path, name: str, store: Store) -> Digest:
    """The tree in a .zip (or wheel) or .tar file, packed with gzip, bzip2 or xz, which its first bytes tell.

    Raises BuildFailed when it is no archive, is damaged, is too large, or has members that lead outside; `name` is
    what the message calls it.
    """
    gathered = Gathered(name, store)
    with content_at_fault(f"{name} cannot be unpacked as a .zip or .tar archive"):
        members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
        for path, kind, content in members(archive, gathered):
            gathered.add(path, kind, content)
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
            digest, size = put_stream(content, self.store, MAX_BYTES - self.size)
            self.size += size
            self.files[path] = Entry("x" if kind == "x" else "f", digest)

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
            files.update(self._followed(path, target))
        return self.store.put_tree(files)

    def _followed(self, path: str, target: str) -> dict[str, Entry]:
        """What stands at `path` once the link there is followed: a file, or the files of a folder."""
        link = f"{self.name} holds the link {path!r} to {target[:200]!r}"
        try:
            found = follow_links(path, self.links, leaving="refused")
        except LinkError as error:
            raise BuildFailed(f"{link}, which {error}") from None
        if found in self.files:
            return {path: self.files[found]}
        prefix = f"{found}/" if found else ""
        below = {
            f"{path}/{file[len(prefix) :]}": entry for file, entry in self.files.items() if file.startswith(prefix)
        }
        if not below:
            raise BuildFailed(f"{link}, which leads nowhere")
        return below


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
    with archive.open("rb") as packed, open_tar(packed, "r:*") as file:
        for info in file:
            if info.isdir():
                continue
            if info.issym():
                yield info.name, "l", info.linkname
            elif info.islnk():
                # Its target is named from the top of the archive; one that begins with / still leads outside.
                above = "../" * (len(PurePosixPath(info.name).parts) - 1)
                yield info.name, "l", info.linkname if info.linkname.startswith("/") else above + info.linkname
            elif info.size > MAX_BYTES:
                raise ValueError(f"{info.name!r} has {info.size} bytes")
            elif (stream := file.extractfile(info)) is not None:
                yield info.name, "x" if info.mode & 0o111 else "f", stream
            else:
                raise BuildFailed(f"{gathered.name} holds {info.name!r}, which is no file, folder or link")


def _target(stream: IO[bytes], gathered: Gathered) -> str:
    data = stream.read(4097)
    try:
        if len(data) <= 4096:
            return data.decode()
    except UnicodeDecodeError:
        pass
    raise BuildFailed(f"{gathered.name} holds a link whose target is no path")


# -- what all who unpack need ------------------------------------------------------------------------------------


@contextmanager
def content_at_fault(message: str) -> Iterator[None]:
    """Raises BuildFailed with `message` and the reason for content that is damaged, or that no tree can hold."""
    try:
        yield
    except _DAMAGE as error:
        raise BuildFailed(f"{message}: {_reason(error)}") from error
    except OSError as error:
        if error.errno not in _DAMAGE_NUMBERS:
            raise
        raise BuildFailed(f"{message}: {_reason(error)}") from error
    except Exception as error:
        if "zstandard" in sys.modules and isinstance(error, sys.modules["zstandard"].ZstdError):
            raise BuildFailed(f"{message}: {_reason(error)}") from error
        raise


def _reason(error: Exception) -> str:
    """The first line of what an unpacker says."""
    return str(error).partition("\n")[0].rstrip(":-. ") or type(error).__name__


def open_tar(stream: IO[bytes], mode: Literal["r:*", "r|*"]) -> tarfile.TarFile:
    """The archive in a stream: `r:*` for one that can seek, `r|*` for any. Raises tarfile.TarError."""
    return tarfile.open(fileobj=stream, mode=mode, bufsize=BUFFER, tarinfo=_Bounded)


class _Bounded(tarfile.TarInfo):
    """A member whose long name is no longer than any name is: it is read into memory at once."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADERS and self.size > _MAX_HEADER:
            raise tarfile.ReadError(f"it has a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


def put_stream(stream: IO[bytes], store: Store, most: int) -> tuple[Digest, int]:
    """Store what a stream holds, of `most` bytes; gives its digest and size. Raises ValueError when it holds more."""
    data = stream.read(_CHUNK)
    if len(data) < _CHUNK and len(data) <= most:
        return store.put_bytes(data), len(data)
    size = 0
    with tempfile.NamedTemporaryFile(prefix="mrp-unpack-") as file:
        while data:
            size += len(data)
            if size > most:
                raise ValueError("it unpacks to too many bytes")
            file.write(data)
            data = stream.read(_CHUNK)
        file.flush()
        return store.put_file(Path(file.name)), size


class LinkError(ValueError):
    """Where a link leads that cannot be followed, as the end of a sentence."""


def follow_links(path: str, links: Mapping[str, str], *, leaving: Literal["refused", "stays"]) -> str:
    """Where a path leads, its last name too, with the symbolic links of a tree.

    leaving: targets that begin with / and `..` at the top are `refused`, or have the tree's top for / and so it
    `stays` inside. Raises LinkError.
    """
    done: list[str] = []
    waiting = list(reversed(path.split("/")))
    hops = 0
    while waiting:
        word = waiting.pop()
        if word in ("", "."):
            continue
        if word == "..":
            if not done and leaving == "refused":
                raise LinkError("leads outside")
            del done[-1:]
            continue
        done.append(word)
        target = links.get("/".join(done))
        if target is None:
            continue
        hops += 1
        if hops > _MAX_HOPS:
            raise LinkError("leads in a circle")
        if target.startswith("/") and leaving == "refused":
            raise LinkError("leads outside")
        done = [] if target.startswith("/") else done[:-1]
        waiting.extend(reversed(target.split("/")))
    return "/".join(done)

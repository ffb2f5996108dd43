"""Packing: the folders of a process as tar archives, on the way to a sandbox that is elsewhere and on the way back."""

import errno
import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mrp.cache.checkout import CHECKOUT_TIME
from mrp.cache.digest import Digest
from mrp.cache.folders import ENTRY_BYTES
from mrp.cache.store import Entry, Store
from mrp.runtime.sandbox.layout import check_mount
from mrp.specs.errors import InfraError
from mrp.specs.work import OUT, WORK, Mount, Process

_CHUNK = 1 << 20
_BLOCK = 512
_MAX_DEPTH = 300
"""As mrp.runtime.sandbox.capture leaves out what is deeper."""


@dataclass(frozen=True)
class Points:
    """The folders of one process, sorted: those that it may write to, and those that it may not, with their trees.

    base: what the writable ones hold at first, see mrp.cache.folders.ENTRY_BYTES.
    """

    writable: Mapping[str, Digest | None]
    given: Mapping[str, Digest]
    within: Mapping[str, Sequence[str]]
    base: int


def plan_points(process: Process, store: Store) -> Points:
    """What lies where for a process. Raises InfraError for mounts that cannot be made."""
    mounts: dict[str, Mount | None] = dict.fromkeys(("/tmp", WORK, OUT, *process.outputs))
    mounts.update((mount.path, mount) for mount in process.mounts)
    writable: dict[str, Digest | None] = {}
    given: dict[str, Digest] = {}
    for path, mount in sorted(mounts.items()):
        check_mount(path)
        if mount is None or mount.writable:
            writable[path] = mount.tree if mount is not None else None
        else:
            given[path] = mount.tree
    within = {path: _within(path, writable, given, store) for path in (*writable, *given)}
    base = sum(_held(tree, store) for tree in writable.values() if tree is not None)
    base += ENTRY_BYTES * sum(len(made) for made in within.values())
    return Points(writable, given, {path: made for path, made in within.items() if made}, base)


def pack(points: Points, store: Store, owner: tuple[int, int], out: IO[bytes]) -> None:
    """Write the archive that, unpacked at /, fills the folders; writable ones belong to `owner` (uid, gid)."""
    for placed in place_entries(points, store, owner):
        _write_entry(placed, store, out)
    out.write(bytes(2 * _BLOCK))


@dataclass(frozen=True, slots=True)
class Placed:
    """What is to lie at a guest path; the mtime of all of them is that of a checkout."""

    path: str
    entry: Entry
    owner: tuple[int, int]
    mode: int


def place_entries(points: Points, store: Store, owner: tuple[int, int]) -> Iterator[Placed]:
    """All that fills the folders, a folder before what it holds; writable ones belong to `owner` (uid, gid)."""
    for path in sorted({*points.writable, *points.given}):
        writable = path in points.writable
        tree = points.writable[path] if writable else points.given[path]
        owners, modes = (owner, (0o644, 0o755)) if writable else ((0, 0), (0o444, 0o555))
        for made in points.within.get(path, ()):
            yield Placed(made, Entry("d"), owner, 0o755)
        yield Placed(path, Entry("d"), owners, modes[1])
        entries = store.read_tree(tree) if tree is not None else {}
        for name in sorted(_with_folders(entries)):
            entry = entries.get(name, Entry("d"))
            mode = {"d": modes[1], "x": modes[0] | 0o111, "l": 0o777}.get(entry.kind, modes[0])
            yield Placed(f"{path}/{name}", entry, owners, mode)


def unpack(archive: IO[bytes], folder: Path, below: str = "", leave_out: Sequence[str] = ()) -> list[str]:
    """Lay out what an archive from a sandbox holds `below` a folder, in an empty one; gives notes on what was left out.

    Nothing is written outside of `folder`, whatever the archive says. `leave_out`: folders that stay empty. Raises
    InfraError for what is no archive of a folder.
    """
    notes: list[str] = []
    folders, files = {""}, set()
    for member, name, opened in _members(archive, below):
        parent = posixpath.dirname(name)
        if not name or any(name.startswith(f"{inner}/") for inner in leave_out):
            continue
        place = os.path.join(folder, name)
        try:
            if parent not in folders:
                # What a folder that was left out held.
                continue
            if name.count("/") >= _MAX_DEPTH:
                notes.append(f"{os.fsencode(name)[:200]!r} was left out: it is nested deeper than {_MAX_DEPTH} folders")
            elif member.isdir():
                os.mkdir(place, 0o755)
                folders.add(name)
            elif member.isreg() or member.issparse():
                _write_file(opened, member, place)
                files.add(name)
            elif member.issym():
                os.symlink(member.linkname, place)
                files.add(name)
            elif member.islnk() and (target := _below(_relative(member.linkname), below)) in files:
                os.link(os.path.join(folder, target), place, follow_symlinks=False)
                files.add(name)
            else:
                os.mkfifo(place)
        except FileExistsError as error:
            raise InfraError(f"an archive from the sandbox holds {name!r} twice") from error
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            notes.append(f"{os.fsencode(name)[:200]!r} was left out: its path is too long")
        except (ValueError, EOFError, tarfile.TarError) as error:
            raise InfraError(f"an archive from the sandbox cannot be read: {error}") from error
    return notes


def count(archive: IO[bytes], below: str = "", leave_out: Sequence[str] = ()) -> int:
    """What an archive holds `below` a folder, see mrp.cache.folders.ENTRY_BYTES."""
    return sum(
        max(member.size, ENTRY_BYTES) if member.isreg() else ENTRY_BYTES
        for member, name, _ in _members(archive, below)
        if name and not any(name.startswith(f"{inner}/") for inner in leave_out)
    )


def _within(path: str, writable: Mapping[str, Digest | None], given: Mapping[str, Digest], store: Store) -> list[str]:
    """The folders that must be made in a writable one for `path` to be mounted there, outermost first."""
    outer = max((other for other in (*writable, *given) if path.startswith(f"{other}/")), key=len, default=None)
    if outer is None:
        return []
    if outer in given:
        raise InfraError(f"{path} cannot be mounted within {outer}, which is read-only", retryable=False)
    parts = path[len(outer) + 1 :].split("/")
    made = []
    tree = writable[outer]
    for depth in range(1, len(parts) + 1):
        inner = "/".join(parts[:depth])
        found = store.subtree(tree, inner) if tree is not None else None
        if found is None:
            made.append(f"{outer}/{inner}")
        elif found.kind != "t":
            raise InfraError(f"{path} cannot be mounted: {outer} holds something else there", retryable=False)
    return made


def _held(tree: Digest, store: Store) -> int:
    entries = store.read_tree(tree)
    total = 0
    for path in _with_folders(entries):
        entry = entries.get(path)
        total += max(store.size(entry.digest), ENTRY_BYTES) if entry is not None and entry.digest else ENTRY_BYTES
    return total


def _with_folders(entries: Mapping[str, Entry]) -> set[str]:
    paths = set(entries)
    for path in entries:
        parent = posixpath.dirname(path)
        while parent and parent not in paths:
            paths.add(parent)
            parent = posixpath.dirname(parent)
    return paths


def _write_entry(placed: Placed, store: Store, out: IO[bytes]) -> None:
    path, entry, owner, mode = placed.path, placed.entry, placed.owner, placed.mode
    if entry.kind == "d":
        out.write(_header(path, tarfile.DIRTYPE, owner, mode))
    elif entry.kind == "l":
        out.write(_header(path, tarfile.SYMTYPE, owner, mode, target=entry.target or ""))
    else:
        assert entry.digest is not None
        size = store.size(entry.digest)
        out.write(_header(path, tarfile.REGTYPE, owner, mode, size=size))
        with store.open_blob(entry.digest) as stream:
            written = 0
            while chunk := stream.read(_CHUNK):
                out.write(chunk)
                written += len(chunk)
        if written != size:
            raise InfraError(f"a stored file ended after {written} of {size} bytes; build again")
        out.write(bytes(-size % _BLOCK))


def _header(path: str, kind: bytes, owner: tuple[int, int], mode: int, *, size: int = 0, target: str = "") -> bytes:
    info = tarfile.TarInfo(path.lstrip("/"))
    info.type, info.mode, info.size, info.linkname, info.mtime = kind, mode, size, target, CHECKOUT_TIME
    info.uid, info.gid = owner
    return info.tobuf(tarfile.PAX_FORMAT)


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise InfraError(f"an archive from the sandbox cannot be read: {error}") from error


def _members(archive: IO[bytes], below: str) -> Iterator[tuple[tarfile.TarInfo, str, tarfile.TarFile]]:
    """The members of an archive `below` a folder, with their paths within it, "" for the folder itself."""
    archive.seek(0)
    with ExitStack() as stack:
        with _reading():
            opened = stack.enter_context(tarfile.open(fileobj=archive, mode="r:", errors="surrogateescape"))
        while True:
            with _reading():
                member = opened.next()
            if member is None:
                archive.seek(opened.offset)
                # Without its end it was cut short, if between two members.
                if archive.read(2 * _BLOCK) != bytes(2 * _BLOCK):
                    raise InfraError("an archive from the sandbox cannot be read: it has no end")
                return
            name = _below(_relative(member.name), below)
            if name is not None:
                yield member, name, opened


def _relative(name: str) -> str:
    normal = posixpath.normpath(name)
    if normal.startswith("/") or normal.split("/", 1)[0] == "..":
        raise InfraError(f"an archive from the sandbox holds {name!r}, which leads out of it")
    return "" if normal == "." else normal


def _below(name: str, folder: str) -> str | None:
    if not folder or name == folder:
        return name if not folder else ""
    return name[len(folder) + 1 :] if name.startswith(f"{folder}/") else None


def _write_file(opened: tarfile.TarFile, member: tarfile.TarInfo, place: str) -> None:
    content = opened.extractfile(member)
    assert content is not None
    with open(place, "xb") as file:
        left = member.size
        while left and (chunk := content.read(min(left, _CHUNK))):
            file.write(chunk)
            left -= len(chunk)
        if left:
            raise ValueError(f"{member.name!r} is cut short")
        os.fchmod(file.fileno(), 0o755 if member.mode & 0o100 else 0o644)

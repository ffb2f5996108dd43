"""Folders inside a sandbox that is elsewhere: how they are filled, and sent back. Part of mrp.runtime.sandbox.guest."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from tarfile import TarFile, TarInfo
    from typing import IO, Any

    Job = dict[str, Any]
    Source = Callable[[], IO[bytes]]
    Send = Callable[[int, bytes], None]

ARCHIVE = 1
"""The kind of bytes that an archive is sent as."""


def unpack(job: Job, source: Source, send: Send) -> Job:
    """Unpack a tar archive at /, as it says; what folders of `fresh` held before is removed."""
    import tarfile

    _empty(job["fresh"])
    folders = []
    with tarfile.open(fileobj=source(), mode="r|") as archive:
        for member in archive:
            path = "/" + member.name.strip("/")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if member.isdir():
                if not os.path.isdir(path):
                    _clear(path)
                    os.mkdir(path)
                folders.append((path, member.mtime))
            else:
                _clear(path)
                _make(archive, member, path)
            _stamp(path, member.uid, member.gid, None if member.issym() else member.mode, member.mtime)
    for path, mtime in reversed(folders):
        os.utime(path, (mtime, mtime))
    return {}


def _make(archive: TarFile, member: TarInfo, path: str) -> None:
    import shutil

    if member.issym():
        os.symlink(member.linkname, path)
    elif member.islnk():
        os.link("/" + member.linkname.strip("/"), path)
    elif member.isfile():
        with open(path, "wb") as file:
            content = archive.extractfile(member)
            assert content is not None
            shutil.copyfileobj(content, file, 2**20)
    else:
        raise OSError(f"an archive holds {member.name}, which is no file, folder or link")


def lay(job: Job, source: Source, send: Send) -> Job:
    """Lay out `entries`: path, kind (d, f or l), mode, uid, gid, mtime, and where its bytes are or what it points to.

    These are ["in", text in base64], or ["at", name below `blobs`, size]; for links the target. `fresh`: see unpack.
    """
    import base64
    import shutil

    # Only root may pass, so that no command finds in there what is kept from it.
    os.chmod(os.path.dirname(job["blobs"]), 0o700)
    _empty(job["fresh"])
    folders = []
    for path, kind, mode, uid, gid, mtime, what in job["entries"]:
        if kind == "d":
            os.makedirs(path, exist_ok=True)
            folders.append((path, mtime))
        elif kind == "l":
            os.symlink(what, path)
        elif what[0] == "in":
            with open(path, "wb") as file:
                file.write(base64.b64decode(what[1]))
        else:
            shutil.copyfile(os.path.join(job["blobs"], what[1]), path)
            if os.path.getsize(path) != what[2]:
                raise OSError(f"the volume holds another {what[1]}")
        _stamp(path, uid, gid, None if kind == "l" else mode, mtime)
    for path, mtime in reversed(folders):
        os.utime(path, (mtime, mtime))
    return {}


def _stamp(path: str, uid: int, gid: int, mode: int | None, mtime: float) -> None:
    os.chown(path, uid, gid, follow_symlinks=False)
    if mode is not None:
        os.chmod(path, mode)
    os.utime(path, (mtime, mtime), follow_symlinks=False)


def _empty(folders: list[str]) -> None:
    """Remove what an image has in folders that begin with nothing but what they are given."""
    for folder in folders:
        if not os.path.isdir(folder) or os.path.islink(folder):
            _clear(folder)
        else:
            for name in os.listdir(folder):
                _clear(os.path.join(folder, name))


def _clear(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def pack(job: Job, source: Source, send: Send) -> Job:
    """Send folders as a tar archive, with names relative to `base`; `whole` is whether that is not more than `most`.

    What no tree can hold is shown as a pipe, and a second name of a file as a file of its own.
    """
    import stat
    import tarfile

    room = job["most"]
    for path in job["paths"]:
        for _, _, found in _below(path, job["deep"]):
            room -= 512 + (found.st_size if stat.S_ISREG(found.st_mode) else 0)
    if room < 0:
        return {"whole": False}
    frames: Any = _Frames(send)
    with tarfile.open(fileobj=frames, mode="w|", format=tarfile.GNU_FORMAT, bufsize=2**20) as archive:
        for path in job["paths"]:
            prefix = path[len(job["base"].rstrip("/")) :].lstrip("/")
            for folder, name, found in _below(path, job["deep"]):
                _add(archive, f"{prefix}/{name}" if prefix else name, folder, os.path.basename(name), found)
    return {"whole": True}


def _below(path: str, deep: int) -> Iterator[tuple[int, str, os.stat_result]]:
    """All that is in a folder, by name: an open folder, the path within the outermost one, and its stat.

    By descriptors, since nested paths may be longer than a path can be.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    yield from _inside(folder, "", deep)


def _inside(folder: int, prefix: str, deep: int) -> Iterator[tuple[int, str, os.stat_result]]:
    import stat

    try:
        for name in sorted(os.listdir(folder)):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            yield folder, prefix + name, found
            if stat.S_ISDIR(found.st_mode) and deep > 0:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                yield from _inside(inner, f"{prefix}{name}/", deep - 1)
    finally:
        os.close(folder)


def _add(archive: TarFile, path: str, folder: int, name: str, found: os.stat_result) -> None:
    import stat
    import tarfile

    info = tarfile.TarInfo(path)
    info.mode, info.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
    info.uid, info.gid = found.st_uid, found.st_gid
    if stat.S_ISREG(found.st_mode):
        info.size = found.st_size
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
            archive.addfile(info, file)
        return
    info.type = tarfile.DIRTYPE if stat.S_ISDIR(found.st_mode) else tarfile.FIFOTYPE
    if stat.S_ISLNK(found.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=folder)
    archive.addfile(info)


class _Frames:
    """A file whose bytes are sent."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def write(self, data: bytes) -> int:
        self._send(ARCHIVE, bytes(data))
        return len(data)

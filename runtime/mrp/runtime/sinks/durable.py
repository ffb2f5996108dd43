"""Putting files in place so that a crash leaves the old content or the new, and never a part."""

import ctypes
import errno
import os
import shutil
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> None:
    """Make `folder` and those above it, durably."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Make `path` a file with content `data`; its folder must exist."""
    temporary = path.with_name(f".{path.name}.mrp-new")
    temporary.unlink(missing_ok=True)
    write_new(temporary, data, mode)
    temporary.replace(path)
    sync_folder(path.parent)


def write_new(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file that does not exist yet; its bytes are durable, its name is so once its folder is synced."""
    with path.open("xb") as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())


def replace_folder(path: Path, prepared: Path) -> None:
    """Put the folder `prepared` where `path` is or will be, and remove what was there. Both lie in one folder."""
    aside = path.with_name(f".{path.name}.mrp-old")
    if not path.exists():
        prepared.rename(path)
    else:
        _exchange(prepared, path, aside)
        sync_folder(path.parent)
        shutil.rmtree(prepared)
    if aside.exists():
        shutil.rmtree(aside)
    sync_folder(path.parent)


def _exchange(one: Path, other: Path, aside: Path) -> None:
    """Swap two names in one step where the system can, else in two with a moment when `other` is not there."""
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        if library.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), str(other))
    other.rename(aside)
    one.rename(other)
    aside.rename(one)

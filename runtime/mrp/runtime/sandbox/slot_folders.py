"""A slot's folders, seen from its first process: laid out from bytes, read back as bytes, and emptied.

Everything is opened relative to its folder and no symlink is followed, since what an item left running may change
names meanwhile. A tree is a list of [name, kind, value], sorted by name: f and x are files with their size, whose
bytes follow elsewhere in the same order; l is a symlink with its target; d is a folder with its own list. Only the
standard library is imported: this runs in the image's Python.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Any

ENTRY_BYTES = 4096
"""What an entry counts at least towards the disk limit; see mrp.runtime.sandbox.supervise.folder_bytes."""

MAX_DEPTH = 32
"""Folders within folders, beyond which a tree is not plain."""

_TIME = 946684800 * 10**9
_TIMES = (_TIME, _TIME)
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PROBE = ".mrp"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NotPlain(Exception):
    """A folder holds more than can be read here: it is large, deep, or holds what is no file, folder or symlink."""


def lay(folder: int, tree: list[Any], data: memoryview, *, writable: bool) -> memoryview:
    """Make what `tree` says in an empty folder, with fixed times and modes; returns the `data` that is left."""
    for name, kind, value in tree:
        if kind == "d":
            os.mkdir(name, 0o755, dir_fd=folder)
            inner = os.open(name, _FOLDER, dir_fd=folder)
            try:
                data = lay(inner, value, data, writable=writable)
            finally:
                os.close(inner)
        elif kind == "l":
            os.symlink(value, name, dir_fd=folder)
            os.utime(name, ns=_TIMES, dir_fd=folder, follow_symlinks=False)
        else:
            mode = (0o644 if writable else 0o444) | (0o111 if kind == "x" else 0)
            file = os.open(name, _MAKE, mode, dir_fd=folder)
            try:
                if value:
                    _write(file, data[:value])
                os.utime(file, ns=_TIMES)
            finally:
                os.close(file)
            data = data[value:]
    _settle(folder, 0o755 if writable else 0o555)
    return data


def take(folder: int, room: int, pieces: list[bytes], depth: int = 0) -> list[Any]:
    """The tree of a folder, with the bytes of its files appended to `pieces`, at most `room` in all.

    Raises NotPlain, and OSError when something cannot be read.
    """
    names = os.listdir(folder)
    if not names:
        return []
    if depth > MAX_DEPTH:
        raise NotPlain
    tree: list[Any] = []
    for name in sorted(names):
        _check_text(name)
        room -= ENTRY_BYTES // 64
        try:
            inner = os.open(name, _READ, dir_fd=folder)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            target = os.readlink(name, dir_fd=folder)
            _check_text(target)
            tree.append([name, "l", target])
        else:
            try:
                status = os.fstat(inner)
                before = len(pieces)
                if stat.S_ISREG(status.st_mode):
                    pieces.append(_content(inner, status.st_size, room))
                    tree.append([name, "x" if status.st_mode & stat.S_IXUSR else "f", status.st_size])
                elif stat.S_ISDIR(status.st_mode):
                    tree.append([name, "d", take(inner, room, pieces, depth + 1)])
                else:
                    raise NotPlain
                room -= sum(map(len, pieces[before:]))
            finally:
                os.close(inner)
        if room < 0:
            raise NotPlain
    return tree


def size_when_empty(folder: int) -> int | None:
    """The size of this folder, which is empty, where that tells of a folder that it has entries; else None."""
    sizes = [os.fstat(folder).st_size]
    os.mkdir(_PROBE, dir_fd=folder)
    sizes.append(os.fstat(folder).st_size)
    os.rmdir(_PROBE, dir_fd=folder)
    sizes.append(os.fstat(folder).st_size)
    return sizes[0] if sizes[0] < sizes[1] and sizes[0] == sizes[2] else None


def counted(tree: list[Any]) -> int:
    """What a tree counts towards the disk limit."""
    total = 0
    for _, kind, value in tree:
        total += max(value, ENTRY_BYTES) if kind in "fx" else ENTRY_BYTES
        if kind == "d":
            total += counted(value)
    return total


def measure(folder: int) -> int:
    """What a folder counts towards the disk limit."""
    total = 0
    for name in os.listdir(folder):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        total += max(status.st_size, ENTRY_BYTES) if stat.S_ISREG(status.st_mode) else ENTRY_BYTES
        if stat.S_ISDIR(status.st_mode):
            inner = os.open(name, _FOLDER, dir_fd=folder)
            try:
                total += measure(inner)
            finally:
                os.close(inner)
    return total


def unlay(folder: int, tree: Sequence[Any]) -> None:
    """Remove what `tree` says, and what it says alone. Raises OSError when something else is there."""
    for name, kind, value in tree:
        if kind == "d":
            inner = os.open(name, _FOLDER, dir_fd=folder)
            try:
                unlay(inner, value)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


def clear(folder: int, *, is_empty: bool = False) -> None:
    """Remove all that a folder holds, unless it was just found empty, and the attributes set on the folder itself."""
    names = [] if is_empty else os.listdir(folder)
    if names and os.fstat(folder).st_mode & 0o700 != 0o700:
        os.fchmod(folder, 0o755)
    for name in names:
        try:
            os.unlink(name, dir_fd=folder)
        except (IsADirectoryError, PermissionError):
            inner = os.open(name, _FOLDER, dir_fd=folder)
            try:
                clear(inner)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)
    for name in os.listxattr(folder):
        os.removexattr(folder, name)


def _settle(folder: int, mode: int) -> None:
    status = os.fstat(folder)
    if stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(folder, mode)
    if (status.st_atime_ns, status.st_mtime_ns) != _TIMES:
        os.utime(folder, ns=_TIMES)


def _write(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def _content(file: int, size: int, room: int) -> bytes:
    if size > room:
        raise NotPlain
    data = os.read(file, size + 1)
    if len(data) != size:
        raise NotPlain
    return data


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise NotPlain from None

"""ELF headers: which loader a program asks for."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

_PT_INTERP = 3
_MAX_PATH = 4096


def loader_of(path: str | os.PathLike[str]) -> str | None:
    """The dynamic loader that the ELF program at `path` names; None for static programs, libraries and other files.

    Raises OSError when the file cannot be read.
    """
    with open(path, "rb") as file:
        return _loader(file)


def is_elf(path: str | os.PathLike[str]) -> bool:
    """Whether the file starts as ELF does; raises OSError when it cannot be read."""
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def _loader(file: BinaryIO) -> str | None:
    header = file.read(64)
    if len(header) < 52 or header[:4] != b"\x7fELF":
        return None
    wide, order = header[4] == 2, "<" if header[5] == 1 else ">"
    try:
        if wide:
            (offset,) = struct.unpack_from(f"{order}Q", header, 32)
            size, count = struct.unpack_from(f"{order}HH", header, 54)
        else:
            (offset,) = struct.unpack_from(f"{order}I", header, 28)
            size, count = struct.unpack_from(f"{order}HH", header, 42)
        for index in range(count):
            file.seek(offset + index * size)
            entry = file.read(size)
            if struct.unpack_from(f"{order}I", entry)[0] != _PT_INTERP:
                continue
            start, length = _extent(entry, order, wide)
            file.seek(start)
            return file.read(min(length, _MAX_PATH)).rstrip(b"\0").decode()
    except (struct.error, UnicodeDecodeError):
        return None
    return None


def _extent(entry: bytes, order: str, wide: bool) -> tuple[int, int]:
    if wide:
        (start,) = struct.unpack_from(f"{order}Q", entry, 8)
        (length,) = struct.unpack_from(f"{order}Q", entry, 32)
    else:
        (start,) = struct.unpack_from(f"{order}I", entry, 4)
        (length,) = struct.unpack_from(f"{order}I", entry, 16)
    return start, length

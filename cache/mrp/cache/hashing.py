"""Hashing files: one buffer for small ones, threads for large ones.

Files that others may truncate are read, never mapped, since touching a mapping beyond the end of its file kills the
process; only the store's own files, which nobody shortens, are mapped.
"""

import os
from collections.abc import Iterable, Sequence
from stat import S_ISREG
from typing import NamedTuple

from blake3 import blake3

from mrp.cache.digest import Digest
from mrp.cache.errors import ChangedWhileRead

THREADED = 8 * 1024 * 1024
"""Files of at least this many bytes are hashed with threads; for smaller ones starting threads costs too much."""

_CHUNK = 16 * 1024 * 1024
_TRIES = 3


class FileStamp(NamedTuple):
    """What tells one state of a file from another without reading it."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


def stamp_of(status: os.stat_result) -> FileStamp:
    """The stamp in a stat result."""
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


def hash_descriptor(descriptor: int, size: int) -> Digest:
    """The digest of what can be read from `descriptor` up to its end; `size` is what stat says, to choose how."""
    if size < THREADED:
        return Digest(blake3(read_all(descriptor, size)).hexdigest())
    hasher = blake3(max_threads=blake3.AUTO)
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    while count := os.readv(descriptor, [buffer]):
        hasher.update(view[:count])
    return Digest(hasher.hexdigest())


def read_all(descriptor: int, size: int) -> bytes:
    """All bytes up to the end of the file, of which stat says that there are `size`."""
    data = os.read(descriptor, size + 1)
    if len(data) == size:
        return data
    parts = [data]
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def hash_mapped(path: str) -> Digest:
    """The digest of a file that is known not to shrink meanwhile: one of the store's own."""
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path)
    return Digest(hasher.hexdigest())


def hash_stamped(path: str | os.PathLike[str]) -> tuple[Digest, FileStamp]:
    """The digest of a file, symlinks followed, and the stamp that it had before and after.

    Raises ChangedWhileRead when the file changes each time, and OSError when it cannot be read or is no plain file.
    """
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not S_ISREG(status.st_mode):
                raise IsADirectoryError(21, "not a plain file", os.fspath(path))
            before = stamp_of(status)
            digest = hash_descriptor(descriptor, before.size)
            if stamp_of(os.fstat(descriptor)) == before:
                return digest, before
        finally:
            os.close(descriptor)
    raise ChangedWhileRead(os.fspath(path))


def hash_file(path: str | os.PathLike[str]) -> Digest:
    """The digest of a file, symlinks followed; raises as hash_stamped does."""
    return hash_stamped(path)[0]


def hash_files(paths: Iterable[str | os.PathLike[str]]) -> Sequence[Digest]:
    """The digests of many files, in order.

    One after the other: opening small files from several threads was measured to be slower than from one.
    """
    return [hash_stamped(path)[0] for path in paths]

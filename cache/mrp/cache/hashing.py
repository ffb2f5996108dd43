"""Hashing files: one buffer for small ones, and for large ones reading beside hashing.

Files that others may truncate are read, never mapped, since touching a mapping beyond the end of its file kills the
process; only the store's own files, which nobody shortens, are mapped. Two buffers that fit into the processor's cache,
one being filled while the other is hashed, were measured to be faster than a mapping of the whole file.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from stat import S_ISREG
from typing import NamedTuple

from blake3 import blake3

from mrp.cache.digest import Digest
from mrp.cache.errors import ChangedWhileRead

THREADED = 8 * 1024 * 1024
"""Files of at least this many bytes are hashed with threads; for smaller ones starting threads costs too much."""

_CHUNK = 2 * 1024 * 1024
_BUFFERS = 2
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
    _read_beside(descriptor, hasher.update)
    return Digest(hasher.hexdigest())


def hash_copied(source: int, target: int) -> Digest:
    """Write what can be read from `source` up to its end to `target`; the digest of the very bytes that were written.

    They are read once, so no change of the source meanwhile can make the digest name other bytes than were copied.
    """
    hasher = blake3(max_threads=blake3.AUTO)

    def take(data: memoryview) -> None:
        hasher.update(data)
        while data:
            data = data[os.write(target, data) :]

    _read_beside(source, take)
    return Digest(hasher.hexdigest())


def _read_beside(descriptor: int, take: Callable[[memoryview], object]) -> None:
    """Give `take` all that can be read, in order, while a thread reads on. Each piece is only good until it returns."""
    from queue import SimpleQueue
    from threading import Thread

    empty: SimpleQueue[bytearray | None] = SimpleQueue()
    full: SimpleQueue[memoryview | Exception] = SimpleQueue()
    for _ in range(_BUFFERS):
        empty.put(bytearray(_CHUNK))

    def read() -> None:
        while (buffer := empty.get()) is not None:
            try:
                count = os.readv(descriptor, [buffer])
            except Exception as error:
                full.put(error)
                return
            full.put(memoryview(buffer)[:count])
            if count == 0:
                return

    reader = Thread(target=read, name="mrp-read", daemon=True)
    reader.start()
    try:
        while True:
            piece = full.get()
            if isinstance(piece, Exception):
                raise piece
            if not piece:
                return
            take(piece)
            buffer = piece.obj
            assert isinstance(buffer, bytearray)
            empty.put(buffer)
    finally:
        # The descriptor is the caller's to close: no read of it may outlive this call.
        empty.put(None)
        reader.join()


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
    digest, status = hash_status(path)
    return digest, stamp_of(status)


def hash_status(path: str | os.PathLike[str]) -> tuple[Digest, os.stat_result]:
    """The digest of a file and all that stat says of it; raises as `hash_stamped` does."""
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            before = os.fstat(descriptor)
            if not S_ISREG(before.st_mode):
                raise IsADirectoryError(21, "not a plain file", os.fspath(path))
            digest = hash_descriptor(descriptor, before.st_size)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        # All that a stamp holds; the inode of an open file is always the same.
        if (
            after.st_ctime_ns == before.st_ctime_ns
            and after.st_mtime_ns == before.st_mtime_ns
            and after.st_size == before.st_size
        ):
            return digest, after
    raise ChangedWhileRead(os.fspath(path))


def hash_file(path: str | os.PathLike[str]) -> Digest:
    """The digest of a file, symlinks followed; raises as hash_stamped does."""
    return hash_stamped(path)[0]


def hash_files(paths: Iterable[str | os.PathLike[str]]) -> Sequence[Digest]:
    """The digests of many files, in order.

    One after the other: opening small files from several threads was measured to be slower than from one.
    """
    return [hash_stamped(path)[0] for path in paths]

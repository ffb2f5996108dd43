"""Remembered digests of files: one that was not touched since it was hashed is not read again.

A digest is trusted only while size, mtime, ctime, inode and device all equal what they were when the file was
hashed, and only if the file system's clock had moved on by then: a file hashed within the tick in which it was last
written could be written once more without its stat telling, so such a digest is not kept at all. Anything else, a
clock set back included, means reading again. Forgetting is always safe, so a damaged memory is written anew.

The memory is one file of frames (see mrp.cache.frames). What is new is appended as a frame of its own, so that an edit
costs what was edited, and processes that write at the same time keep each other's; later records win.
"""

import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from stat import S_IXUSR
from types import TracebackType
from typing import TypeVar

from mrp.cache.digest import Digest
from mrp.cache.frames import append_frame, read_frames, rewrite_frames
from mrp.cache.hashing import hash_status

PathLike = TypeVar("PathLike", str, Path)

_KIND = b"mrp-files-2\n"
"""Begins each frame. A memory that another version wrote is written anew."""

_Record = tuple[int, int, int, int, int, bytes]
"""size, mtime_ns, ctime_ns, inode, device, digest."""

_RECORD = struct.Struct("<QqqQQ32s")
_COUNT = struct.Struct("<Q")
_FLUSH_SIZE = 5000
_MAX_UNUSED = 100_000
_SLACK = 10_000
"""Records that a memory may hold beyond twice those that are in force, before it is written anew."""

_TICK_NS = 20_000_000
"""The kernel's clock moves on at least this often."""

_WHOLE_SECONDS_NS = 2_000_000_000
"""The coarsest clock of a file system that keeps no fractions of a second."""

_EARLIEST = -(2**63)


class FileDigests:
    """The memory of one workspace, in one file. For one thread; many processes may share the file.

    `files_read` counts the files that had to be read.
    """

    def __init__(self, path: Path) -> None:
        self.files_read = 0
        self._path = path
        self._records: dict[str, _Record] | None = None
        self._written = 0
        self._damaged = False
        self._used: set[str] = set()
        self._new: dict[str, _Record] = {}

    @classmethod
    def open(cls, path: Path) -> "FileDigests":
        """The memory in the file `path`, which is made with its folder when the first digest is kept.

        Never fails: a memory that cannot be read or written only means that files are read again.
        """
        return cls(path)

    def digest(self, path: Path | str) -> Digest:
        """The digest of a file, symlinks followed. Raises OSError and ChangedWhileRead."""
        name = os.fspath(path)
        return self._look("", [name])[name][0]

    def digest_many(self, paths: Iterable[PathLike]) -> dict[PathLike, Digest]:
        """The digests of many files, by the paths given. Raises as `digest` does, for the first that fails."""
        names = {path: os.fspath(path) for path in paths}
        found = self._look("", names.values())
        return {path: found[name][0] for path, name in names.items()}

    def sources(self, root: Path | str, paths: Iterable[str]) -> dict[str, tuple[Digest, bool]]:
        """The digest of each file, and whether its owner may execute it, by path relative to the folder `root`.

        Raises as `digest` does, for the first that fails.
        """
        return self._look(os.fspath(root).rstrip("/") + "/", paths)

    def flush(self) -> None:
        """Write what is new; what cannot be written is forgotten."""
        new, self._new = self._new, {}
        if not new:
            return
        records = self._load()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            unused = len(records) - len(self._used)
            if self._damaged or unused > _MAX_UNUSED or self._written > 2 * len(records) + _SLACK:
                kept = records if unused <= _MAX_UNUSED else {path: records[path] for path in self._used}
                rewrite_frames(self._path, _KIND, [_packed(kept)])
                self._damaged, self._written = False, len(kept)
            else:
                append_frame(self._path, _KIND, _packed(new))
                self._written += len(new)
        except OSError:
            return

    def close(self) -> None:
        """Flush. Idempotent."""
        self.flush()

    def __enter__(self) -> "FileDigests":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _look(self, prefix: str, names: Iterable[str]) -> dict[str, tuple[Digest, bool]]:
        """The digest of each `prefix` + name, and whether its owner may execute it."""
        records, look, used = self._load(), os.stat, self._used
        # Read before the first file is: an older time is the safer one.
        now: int | None = None
        found: dict[str, tuple[Digest, bool]] = {}
        for name in names:
            path = prefix + name
            record = records.get(path)
            if record is not None:
                status = look(path)
                if (
                    record[2] == status.st_ctime_ns
                    and record[1] == status.st_mtime_ns
                    and record[3] == status.st_ino
                    and record[0] == status.st_size
                    and record[4] == status.st_dev
                ):
                    used.add(path)
                    found[name] = Digest(record[5].hex()), status.st_mode & S_IXUSR != 0
                    continue
            if now is None:
                now = self._now()
            self.files_read += 1
            digest, status = hash_status(path)
            self._keep(path, status, now, digest)
            found[name] = digest, status.st_mode & S_IXUSR != 0
        return found

    def _keep(self, path: str, status: os.stat_result, now: int, digest: Digest) -> None:
        mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
        margin = _WHOLE_SECONDS_NS if ctime % 1_000_000_000 == 0 else _TICK_NS
        if not (mtime + margin < now and ctime + margin < now and mtime >= _EARLIEST):
            return
        record = (status.st_size, mtime, ctime, status.st_ino, status.st_dev, bytes.fromhex(digest))
        self._load()[path] = self._new[path] = record
        self._used.add(path)
        if len(self._new) >= _FLUSH_SIZE:
            self.flush()

    def _now(self) -> int:
        """The time by the clock of the file system that holds the memory, which is the workspace's own.

        0, which lets nothing be trusted, when nothing can be written there.
        """
        probe = self._path.with_name(self._path.name + ".clock")
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.utime(descriptor)
                return os.fstat(descriptor).st_mtime_ns
            finally:
                os.close(descriptor)
        except OSError:
            return 0

    def _load(self) -> dict[str, _Record]:
        if self._records is None:
            self._records = {}
            bodies, whole = read_frames(self._path, _KIND)
            for body in bodies:
                (count,) = _COUNT.unpack_from(body)
                end = _COUNT.size + count * _RECORD.size
                rows = _RECORD.iter_unpack(memoryview(body)[_COUNT.size : end])
                paths = os.fsdecode(body[end:]).split("\0")
                self._records.update(zip(paths, rows, strict=True))
                self._written += count
            self._damaged = not whole
        return self._records


def _packed(records: Mapping[str, _Record]) -> bytes:
    """The body of a frame: how many records, the records, and their paths with NULs between."""
    pack = _RECORD.pack
    rows = [pack(*record) for record in records.values()]
    return b"".join([_COUNT.pack(len(rows)), *rows, os.fsencode("\0".join(records))])

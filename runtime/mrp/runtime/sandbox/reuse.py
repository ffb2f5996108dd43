"""Folders that the jobs of one stage get one after the other, instead of new ones each: making and removing a folder
costs more than looking whether one is as it was when it was new."""

import array
import errno
import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mrp.cache.checkout import CHECKOUT_TIME
from mrp.runtime.sandbox.scratch import remove_folder

_GET_FLAGS = 0x80086601
_TIMES = (CHECKOUT_TIME, CHECKOUT_TIME)
_NO_FLAGS = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class _State:
    """All of an empty folder that a process can change and a later one could see, but for times that follow clocks."""

    mode: int
    owner: int
    group: int
    size: int
    flags: int
    attributes: tuple[str, ...]


_SMALL, _ALL = 2**20, 2**28
_DISCARDED = "discarded"


class ReusedFolders:
    """The folders in `place`, by name. Each user gives them back with `take_back`.

    What little a user left in them is put aside, and removed with many others: a file system that has just removed many
    files is slow to make new ones (ext4 keeps away from their inodes for five seconds, and looks at each of them).
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._known: dict[str, tuple[int, _State]] = {}
        self._discarded = self._discarded_bytes = 0
        self._aside = -1

    def get(self, name: str) -> Path:
        """An empty folder as a new one is, with mode 0755 and the time of a checkout."""
        path = self._place / name
        if name not in self._known:
            os.mkdir(path)
            os.chmod(path, 0o755)
            os.utime(path, _TIMES)
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._known[name] = (descriptor, _state(descriptor))
        return path

    def take_back(self, names: Iterable[str], left: int | None) -> None:
        """Keep those that are as they were when new, times aside, and remove the others with all that they hold.

        `left` is what they hold, by mrp.cache.folders.ENTRY_BYTES; None for what must be gone at once.
        """
        for name in names:
            descriptor, new = self._known[name]
            try:
                if left is not None and left <= _SMALL:
                    self._put_aside(descriptor)
                if not os.listdir(descriptor) and _state(descriptor) == new and _is_at(self._place / name, descriptor):
                    os.utime(descriptor, _TIMES)
                    continue
            except OSError:
                pass
            self._forget(name)
            remove_folder(self._place / name)
        self._discarded_bytes += left or 0
        if self._discarded_bytes > _ALL:
            self._empty()

    def _put_aside(self, descriptor: int) -> None:
        for name in os.listdir(descriptor):
            if self._aside < 0:
                os.mkdir(self._place / _DISCARDED)
                self._aside = os.open(self._place / _DISCARDED, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._discarded += 1
            os.rename(name, str(self._discarded), src_dir_fd=descriptor, dst_dir_fd=self._aside)

    def _empty(self) -> None:
        if self._aside >= 0:
            os.close(self._aside)
            self._aside = -1
            remove_folder(self._place / _DISCARDED)
        self._discarded_bytes = 0

    def close(self) -> None:
        """Let go of them; they are not removed."""
        for name in list(self._known):
            self._forget(name)
        if self._aside >= 0:
            os.close(self._aside)
            self._aside = -1

    def _forget(self, name: str) -> None:
        os.close(self._known.pop(name)[0])


def _state(descriptor: int) -> _State:
    status = os.fstat(descriptor)
    flags = array.array("l", [0])
    try:
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
    except OSError as error:
        if error.errno not in _NO_FLAGS:
            raise
    try:
        attributes = tuple(os.listxattr(descriptor))
    except OSError as error:
        if error.errno not in _NO_FLAGS:
            raise
        attributes = ()
    return _State(status.st_mode, status.st_uid, status.st_gid, status.st_size, flags[0], attributes)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the folder still has its name."""
    return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))

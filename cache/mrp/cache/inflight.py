"""Locks on action keys, so that several builds on one cache do the same work once.

One file holds them all: a key is one byte of it, at an offset taken from the key. Open-file-description locks belong
to the open file and are released by the kernel when the process ends, however it ends. A process that forks without
exec shares them with its child; start such helpers before the first lock or with exec.
"""

import errno
import fcntl
import os
import struct
import threading
from pathlib import Path

from mrp.cache.digest import ActionKey
from mrp.cache.errors import CacheError, explained
from mrp.cache.layout import Layout

_FLOCK = struct.Struct("@hhqqi0q")


class InFlight:
    """The locks of one cache, as this process holds them. Safe to use from many threads."""

    def __init__(self, root: Path) -> None:
        """Open the lock file of the cache in `root`. Raises CacheError."""
        self._root = root
        with explained(root):
            self._descriptor = Layout(root).open_lock(root / "inflight")
        self._lock = threading.Lock()
        self._held: set[ActionKey] = set()

    def try_acquire(self, key: ActionKey) -> bool:
        """Take the lock on `key`; False when this or another process has it. Raises CacheError."""
        with self._lock:
            if key in self._held:
                return False
            try:
                self._set(fcntl.F_WRLCK, key)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
                raise CacheError(
                    f"The cache {self._root} cannot be locked ({error}); set MRP_CACHE to a local folder."
                ) from error
            self._held.add(key)
            return True

    def release(self, key: ActionKey) -> None:
        """Give the lock back; one that is not held is left alone."""
        with self._lock:
            if key in self._held:
                self._held.discard(key)
                self._set(fcntl.F_UNLCK, key)

    def close(self) -> None:
        """Give all locks back. Idempotent."""
        with self._lock:
            self._held.clear()
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _set(self, kind: int, key: ActionKey) -> None:
        # 62 bits: two keys on one byte would only wait for each other.
        offset = int(key[:16], 16) >> 2
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))

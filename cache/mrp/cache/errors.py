"""What can go wrong in the store, as types.

CacheError                says what a person must do
  MissingBlob             a blob or tree is not there, or was found corrupt and put aside
  ChangedWhileRead        a file changed while it was being read, so it has no one content
  TreeError               a folder cannot be kept as a tree, or a tree object is no tree; also a ValueError
    TreeTooLarge          a folder holds more bytes or entries than the caller allows
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrp.cache.digest import Digest

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


class CacheError(Exception):
    """The cache cannot do what was asked; the text is one sentence and a next step."""


class MissingBlob(CacheError):
    """The blob or tree `digest` is not in the store, or was found corrupt and moved to quarantine/."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        super().__init__(f"{digest} is not in the cache, or was found corrupt there; build again to make it anew.")

    def __reduce__(self) -> tuple[type["MissingBlob"], tuple[Digest]]:
        return MissingBlob, (self.digest,)


class ChangedWhileRead(CacheError):
    """The file `path` changed each time that it was read."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"{path} changed while it was being read; stop what writes to it, then build again.")


class TreeError(CacheError, ValueError):
    """A folder cannot be kept as a tree, or a stored object is no tree."""


class TreeTooLarge(TreeError):
    """The folder has more than `limit` of `what` ("bytes" or "files")."""

    def __init__(self, folder: str, what: str, limit: int) -> None:
        self.what = what
        self.limit = limit
        super().__init__(f"{folder} holds more than {limit} {what}, which is all that may be kept of it.")


def disk_full(root: Path) -> CacheError:
    """The error for a full disk or a used-up quota."""
    return CacheError(
        f"The disk that holds the cache {root} is full; free some space there (`mrp cache gc` drops what no build "
        "needs), or set MRP_CACHE to a folder on another disk."
    )


def not_writable(root: Path, place: str | os.PathLike[str]) -> CacheError:
    """The error for a cache that this user may not write to."""
    return CacheError(
        f"The cache {root} cannot be written to ({place}); make it writable for this user, or set MRP_CACHE to "
        "another folder."
    )


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn the OSErrors of work on the cache `root` into CacheErrors with a next step."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise disk_full(root) from error
        if error.errno in _NO_PERMISSION:
            raise not_writable(root, error.filename or root) from error
        raise CacheError(
            f"The cache {root} failed: {error}; check that disk, or set MRP_CACHE to another folder."
        ) from error

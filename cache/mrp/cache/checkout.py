"""Laying a tree out as a folder, with bytes, modes and times that depend on nothing but the tree.

Every file is a copy (or a reflink, which is one until it is written to), hashed as it is copied. Files and folders
are made relative to the folder that holds them and must not exist yet, so that no symlink can lead outside.
"""

import os
import stat
from pathlib import Path

from mrp.cache.blobs import Blobs
from mrp.cache.digest import Digest
from mrp.cache.errors import CacheError
from mrp.cache.folders import ENTRY_BYTES
from mrp.cache.trees import GetBytes, Node, decode_node

CHECKOUT_TIME = 946684800
"""The mtime of everything laid out, in seconds: 2000-01-01T00:00:00Z, which archives and tools all can hold."""

_TIMES = (CHECKOUT_TIME * 1_000_000_000, CHECKOUT_TIME * 1_000_000_000)
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Checkout:
    """One laying out. `writable` chooses modes 0644 and 0755, else 0444 and 0555.

    `counted` is the sum of what was laid out, see mrp.cache.folders.ENTRY_BYTES.
    """

    def __init__(self, blobs: Blobs, get_tree: GetBytes, *, writable: bool) -> None:
        self._blobs = blobs
        self._get_tree = get_tree
        self.counted = 0
        self._file_mode = 0o644 if writable else 0o444
        self._folder_mode = 0o755 if writable else 0o555

    def run(self, tree: Digest, folder: Path) -> None:
        """Lay `tree` out in `folder`, which is made when it is not there.

        Raises MissingBlob (nothing is then promised of the folder), TreeError, and CacheError when a name is taken.
        """
        try:
            descriptor = os.open(folder, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        try:
            self._fill(descriptor, tree)
        except FileExistsError as error:
            raise CacheError(
                f"{folder} already holds {error.filename!r}, which is to be laid out there; use an empty folder."
            ) from error
        finally:
            os.close(descriptor)

    def _fill(self, descriptor: int, tree: Digest) -> None:
        node = decode_node(self._get_tree(tree), tree)
        self._files(descriptor, node)
        for name, entry in node.items():
            if entry.kind not in ("f", "x"):
                self.counted += ENTRY_BYTES
            if entry.kind == "t" and entry.digest is not None:
                os.mkdir(name, 0o700, dir_fd=descriptor)
                child = os.open(name, _FOLDER_FLAGS, dir_fd=descriptor)
                try:
                    self._fill(child, entry.digest)
                finally:
                    os.close(child)
            elif entry.kind == "l" and entry.target is not None:
                os.symlink(entry.target, name, dir_fd=descriptor)
                os.utime(name, ns=_TIMES, dir_fd=descriptor, follow_symlinks=False)
        os.fchmod(descriptor, self._folder_mode)
        os.utime(descriptor, ns=_TIMES)

    def _files(self, descriptor: int, node: Node) -> None:
        names = [name for name, entry in node.items() if entry.kind in ("f", "x")]
        if not names:
            return
        for start in range(0, len(names), 256):
            piece = [(name, node[name]) for name in names[start : start + 256]]
            small = self._blobs.get_small([entry.digest for _, entry in piece if entry.digest is not None])
            for name, (kind, digest, _) in piece:
                assert digest is not None
                file = os.open(name, _FILE_FLAGS, 0o600, dir_fd=descriptor)
                try:
                    content = small.get(digest)
                    self._blobs.copy_out(digest, file, content)
                    size = len(content) if content is not None else os.fstat(file).st_size
                    self.counted += max(size, ENTRY_BYTES)
                    os.fchmod(file, self._file_mode | 0o111 if kind == "x" else self._file_mode)
                    os.utime(file, ns=_TIMES)
                finally:
                    os.close(file)


def remove_checkout(folder: Path) -> None:
    """Delete a laid-out folder, read-only parts included, following no symlink. One that is gone is fine."""
    try:
        is_folder = stat.S_ISDIR(folder.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_folder:
        folder.unlink()
        return
    folder.chmod(0o700)
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            remove_checkout(Path(entry.path))
        else:
            Path(entry.path).unlink()
    folder.rmdir()

"""Reading a folder into the store: names, bytes, the executable bit and symlinks, never what a symlink points to.

Every folder and file is opened relative to its parent and without following symlinks, so that a folder that changes
underneath cannot make anything outside of it be read. Pipes, sockets and devices are left out.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.errors import ChangedWhileRead, TreeError, TreeTooLarge
from mrp.cache.trees import MAX_DEPTH, Entry, Node, PutBytes, encode_node

_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


ENTRY_BYTES = 4096
"""What a file counts at least, and a folder, a symlink or anything else counts, in the sum of what a folder holds."""


@dataclass
class FolderReader:
    """One reading of a folder. `skipped` names what is neither file, folder nor symlink, by path within the folder.

    `counted` is the sum of what it holds, see ENTRY_BYTES.
    """

    put_bytes: PutBytes
    put_descriptor: Callable[[int, str], Digest]
    max_bytes: int | None = None
    max_files: int | None = None
    skipped: list[str] = field(default_factory=list)
    counted: int = 0
    _bytes: int = 0
    _files: int = 0
    _root: str = ""

    def read(self, path: Path) -> Digest:
        """The digest of the folder's tree, whose objects and files are now in the store.

        Raises TreeTooLarge beyond the limits, TreeError for names that are not UTF-8 and for too deep folders,
        ChangedWhileRead, and OSError when something cannot be read.
        """
        self._root = str(path)
        # Only the folder itself may be reached through a symlink: that is the caller's choice.
        descriptor = os.open(path, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        try:
            return self._folder(descriptor, "", 0)
        finally:
            os.close(descriptor)

    def _folder(self, descriptor: int, prefix: str, depth: int) -> Digest:
        if depth > MAX_DEPTH:
            raise TreeError(f"{self._root} is deeper than {MAX_DEPTH} folders; nothing so deep can be kept.")
        node: Node = {}
        with os.scandir(descriptor) as listing:
            names = [
                (entry.name, entry.is_file(follow_symlinks=False), entry.is_dir(follow_symlinks=False))
                for entry in listing
            ]
        for name, is_file, is_folder in names:
            self._check_utf8(name, prefix)
            self._count_file()
            if not is_file:
                self.counted += ENTRY_BYTES
            try:
                if is_file:
                    node[name] = self._file(descriptor, name, prefix)
                elif not is_folder and stat.S_ISLNK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                    target = os.readlink(name, dir_fd=descriptor)
                    self._check_utf8(target, prefix)
                    node[name] = Entry("l", target=target)
                elif is_folder:
                    child = os.open(name, _FOLDER_FLAGS, dir_fd=descriptor)
                    try:
                        node[name] = Entry("t", self._folder(child, f"{prefix}{name}/", depth + 1))
                    finally:
                        os.close(child)
                else:
                    self.skipped.append(prefix + name)
            except (FileNotFoundError, NotADirectoryError) as error:
                # Listed a moment ago: it went away or became something else.
                raise ChangedWhileRead(f"{self._root}/{prefix}{name}") from error
            except OSError as error:
                # Opened relative to its folder, the error knows only the last part of the path.
                if error.filename == name:
                    error.filename = f"{self._root}/{prefix}{name}"
                raise
        return self.put_bytes(encode_node(node))

    def _file(self, folder: int, name: str, prefix: str) -> Entry:
        descriptor = os.open(name, _FILE_FLAGS, dir_fd=folder)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ChangedWhileRead(f"{self._root}/{prefix}{name}")
            self.counted += max(status.st_size, ENTRY_BYTES)
            self._count_bytes(status.st_size)
            digest = self.put_descriptor(descriptor, f"{self._root}/{prefix}{name}")
            return Entry("x" if status.st_mode & stat.S_IXUSR else "f", digest)
        finally:
            os.close(descriptor)

    def _count_file(self) -> None:
        self._files += 1
        if self.max_files is not None and self._files > self.max_files:
            raise TreeTooLarge(self._root, "files", self.max_files)

    def _count_bytes(self, size: int) -> None:
        self._bytes += size
        if self.max_bytes is not None and self._bytes > self.max_bytes:
            raise TreeTooLarge(self._root, "bytes", self.max_bytes)

    def _check_utf8(self, text: str, prefix: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TreeError(
                f"{self._root} holds a name or symlink target that is not UTF-8: {prefix}{os.fsencode(text)!r}; "
                "rename or remove it."
            ) from error

"""The cache's folder: where each kind of file lies, which format it has, and how files get there durably.

docs/cache-format.md is the specification. A file is written under tmp/ and renamed into place; what is found damaged
is renamed into quarantine/; nothing stored is edited.
"""

import fcntl
import itertools
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrp.cache.digest import Digest, parse_digest
from mrp.cache.errors import CacheError, explained, not_writable

FORMAT_VERSION = 1

_OURS = frozenset({"format", "index.sqlite", "blobs", "lock"})


class Layout:
    """The paths below a cache's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.format = root / "format"
        self.index = root / "index.sqlite"
        self.blobs = root / "blobs"
        self.tmp = root / "tmp"
        self.quarantine = root / "quarantine"
        self.memo = root / "memo"
        self.lock = root / "lock"
        self._numbers = itertools.count()
        self._prefix = f"{self.blobs}{os.sep}"

    def blob(self, digest: Digest) -> str:
        """Where the file of a large blob lies, whether or not it is there."""
        return f"{self._prefix}{digest[:2]}{os.sep}{digest}"

    def prepare(self) -> bool:
        """Make the folders, or check those that are there; whether the format file says that they are ours.

        Raises CacheError for a newer format, for a folder that holds something else, and for one that this user
        cannot write to. Nothing is written before the format is known to be ours.
        """
        with explained(self.root):
            try:
                names = {path.name for path in self.root.iterdir()}
            except FileNotFoundError:
                names = set()
            except NotADirectoryError as error:
                raise CacheError(f"{self.root} is a file, no folder; set MRP_CACHE to a folder.") from error
            if names and not names & _OURS:
                raise CacheError(
                    f"{self.root} holds other files and is no mrp cache; set MRP_CACHE to an empty or a new folder."
                )
            known = self._check_format()
            for folder in (self.root, self.blobs, self.tmp, self.quarantine):
                self._folder(folder)
        return known

    def write_format(self) -> None:
        """Say which format this cache has; the last step of making one, and of mending one that lost this file."""
        with explained(self.root):
            self.write_file(self.format, json.dumps({"version": FORMAT_VERSION}).encode() + b"\n")

    def _check_format(self) -> bool:
        try:
            data = self.format.read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return False
        try:
            version = json.loads(data)["version"]
        except (ValueError, KeyError, TypeError):
            return False
        if type(version) is not int or version < 1:
            return False
        if version > FORMAT_VERSION:
            raise newer_format(self.root, version)
        return True

    def _folder(self, folder: Path) -> None:
        try:
            is_folder = stat.S_ISDIR(os.lstat(folder).st_mode) or (folder.is_symlink() and folder.is_dir())
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)
            return
        if not is_folder:
            in_the_way = folder.rename(self.root / f"{folder.name}.in-the-way")
            folder.mkdir(parents=True, exist_ok=True)
            self.put_aside(in_the_way)
        elif not os.access(folder, os.W_OK | os.X_OK):
            raise not_writable(self.root, folder)

    def temporary(self) -> tuple[int, str]:
        """A new empty file under tmp/: an open descriptor and its path."""
        path = f"{self.tmp}{os.sep}{os.getpid()}-{next(self._numbers)}-{time.time_ns()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600), path
        except FileNotFoundError:
            self.tmp.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags, 0o600), path

    def place(self, temporary: str, path: str) -> None:
        """Rename `temporary` to `path`; whatever stands in the way is put aside."""
        for last in (False, True):
            try:
                Path(temporary).rename(path)
                return
            except FileNotFoundError:
                if last:
                    raise
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            except IsADirectoryError:
                if last:
                    raise
                self.put_aside(Path(path))
            except (NotADirectoryError, FileExistsError):
                if last:
                    raise
                parent = Path(path).parent
                self.put_aside(parent)
                parent.mkdir(parents=True, exist_ok=True)

    def write_file(self, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Write a small file durably: temp, fsync, rename, fsync of the folder."""
        descriptor, temporary = self.temporary()
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            self.place(temporary, str(path))
        except BaseException:
            remove_file(temporary)
            raise
        sync_folder(path.parent)

    def put_aside(self, path: Path) -> bool:
        """Move a damaged file or folder into quarantine/; False when it is gone already."""
        self.quarantine.mkdir(parents=True, exist_ok=True)
        try:
            path.rename(self.quarantine / f"{path.name}.{time.time_ns()}-{os.getpid()}")
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the cache's lock file: for creation, recovery and gc, never for reading, putting or committing."""
        descriptor = self.open_lock(self.lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def open_lock(self, path: Path) -> int:
        """Open a file that is only locked, never read; what is no plain file in its place is put aside."""
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):
                self.put_aside(path)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def is_digest_name(name: str) -> bool:
    """Whether a file name is that of a large blob."""
    try:
        parse_digest(name)
    except ValueError:
        return False
    return True


def newer_format(root: Path, version: int) -> CacheError:
    """The error for a cache that a newer mrp has written."""
    return CacheError(
        f"The cache {root} has format version {version}, and this mrp knows version {FORMAT_VERSION}; use a newer mrp, "
        "or set MRP_CACHE to another folder."
    )


def sync_folder(folder: Path | str) -> None:
    """Make renames in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_file(path: str) -> None:
    """Delete a file that may be gone already."""
    Path(path).unlink(missing_ok=True)

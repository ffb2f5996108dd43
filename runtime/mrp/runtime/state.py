"""A workspace's own files, under `.mrp`: what stands in their way is put aside, and what fails there gets a next step.

All of `.mrp` but the audits may be forgotten, so mending it is never wrong. What was in the way is kept under
`.mrp/damaged/`, for a person to look at.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrp.specs.errors import InfraError

FOLDER = ".mrp"

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def state_folder(root: Path) -> Path:
    """`.mrp` of a workspace."""
    return root / FOLDER


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the OSErrors of work on `path` into InfraErrors with a next step."""
    try:
        yield
    except OSError as error:
        raise unwritable(Path(error.filename or path), error) from error


def owner_of(state: Path) -> str:
    """The word that stands for this workspace on what services keep for it. Raises InfraError.

    It is made of something random, and of the file that holds that: a copy of a workspace is another one.
    """
    from hashlib import blake2b

    place = state / "owner"
    with explained(place):
        if not place.exists():
            fresh = place.with_name(f"owner.{os.getpid()}")
            fresh.write_text(os.urandom(8).hex(), encoding="ascii")
            with suppress(FileExistsError):
                os.link(fresh, place)
            fresh.unlink()
        return blake2b(b"%d %s" % (place.stat().st_ino, place.read_bytes()), digest_size=8).hexdigest()


def unwritable(path: Path, error: OSError) -> InfraError:
    """The error for a file or folder of ours that could not be read or written."""
    step = "check that disk and build again"
    if error.errno in _NO_SPACE:
        step = "free some space on that disk and build again; what was finished is kept"
    elif error.errno in _NO_PERMISSION:
        step = "make it readable and writable for this user and build again"
    elif error.errno in _IN_THE_WAY:
        step = "move away what stands there and build again"
    return InfraError(f"cannot use {path}: {(error.strerror or str(error)).lower()}; {step}", retryable=False)


def make_folder(path: Path) -> None:
    """Make a folder below `.mrp` and those above it; what stands in its place is put aside. Raises OSError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError):
        if path.name == FOLDER or FOLDER not in (parent.name for parent in path.parents):
            raise
        make_folder(path.parent)
        if not path.is_dir():
            put_aside(path)
        path.mkdir(exist_ok=True)


def put_aside(path: Path) -> None:
    """Move what stands at `path`, below `.mrp`, to `.mrp/damaged/`; gone already is fine. Raises OSError."""
    state = next(parent for parent in path.parents if parent.name == FOLDER)
    damaged = state / "damaged"
    damaged.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        path.rename(damaged / f"{path.name}.{time.time_ns()}-{os.getpid()}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which is made with its folder; the kernel frees it when this process dies."""
    with explained(path):
        descriptor = _open_lock(path)
    try:
        with explained(path):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    make_folder(path.parent)
    for last in (False, True):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            if last or error.errno not in (errno.EISDIR, errno.ELOOP, errno.ENXIO):
                raise
        else:
            if last or stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
        put_aside(path)
    raise AssertionError("the second attempt returns or raises")

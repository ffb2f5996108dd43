"""Roots: trees of whole images laid out in the cache, which one build leaves to the next.

    <cache>/roots/<tree>/root   the tree, read-only
    <cache>/roots/<tree>/seal   what all of it looked like to stat when it was made, and in which boot that was
    <cache>/roots/<tree>/lock   locked, shared, by each user; its mtime is the last use

A root that does not look as its seal says is made anew. One that cannot be made there is laid out for this build alone.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.runtime.sandbox.materials import Materials
from mrp.runtime.sandbox.scratch import remove_folder

_REMOVED = ".removed-"
_UNUSED_SECONDS = 14 * 24 * 3600


def roots_folder(store: Store) -> Path:
    """Where the roots of a cache lie."""
    return store.root / "roots"


@contextmanager
def laid_out_root(tree: Digest, store: Store, materials: Materials) -> Iterator[Path]:
    """A folder with the tree that stays as it is while the context is open. Raises what Store.checkout does."""
    lock = _hold(roots_folder(store) / tree, tree, store)
    if lock is None:
        with materials.tree(tree, store) as folder:
            yield folder
        return
    try:
        yield roots_folder(store) / tree / "root"
    finally:
        os.close(lock)


def sweep_roots(folder: Path, unused_for: float = _UNUSED_SECONDS) -> int:
    """Remove roots that nobody uses now or used for so many seconds; gives how many. For `cache gc`."""
    removed = 0
    for place in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            if place.name.startswith(_REMOVED):
                remove_folder(place)
            elif _take_away(place, unused_for):
                removed += 1
    return removed


def _take_away(place: Path, unused_for: float) -> bool:
    """Remove a root that nobody uses; under another name, so that one made there meanwhile stays whole."""
    lock = _open_lock(place)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_lock_of(lock, place) or os.fstat(lock).st_mtime + unused_for > time.time():
            return False
        removed = place.with_name(f"{_REMOVED}{os.urandom(8).hex()}")
        place.rename(removed)
    finally:
        os.close(lock)
    remove_folder(removed)
    return True


def _hold(place: Path, tree: Digest, store: Store) -> int | None:
    """The lock of a root that is as it should be; None when there can be none."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = _open_lock(place)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not _is_held(lock, place):
            _make(place, lock, tree, store)
        if _is_held(lock, place):
            os.utime(lock)
            return lock
    except OSError:
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _make(place: Path, lock: int, tree: Digest, store: Store) -> None:
    """Lay the tree out and seal it, unless others use what is there; the lock is shared before and after."""
    # Who else holds it either makes it at this moment, or trusts what we do not.
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_lock_of(lock, place) and not _is_sound(place):
            sweep_roots(place.parent)
            _lay_out(place, tree, store)
    fcntl.flock(lock, fcntl.LOCK_SH)


def _lay_out(place: Path, tree: Digest, store: Store) -> None:
    (place / "seal").unlink(missing_ok=True)
    remove_folder(place / "root")
    try:
        store.checkout(tree, place / "root", writable=False)
        (place / "seal").write_text(_seal(place / "root"), encoding="utf-8")
    except BaseException:
        # What fills a disk must not stay there.
        remove_folder(place / "root")
        raise


def _is_held(lock: int, place: Path) -> bool:
    """Whether a sound root is there, and the lock its own: in a moment without one it may have been removed."""
    return _is_lock_of(lock, place) and _is_sound(place)


def _is_lock_of(lock: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(place / "lock"))
    except OSError:
        return False


def _is_sound(place: Path) -> bool:
    try:
        return (place / "seal").read_text(encoding="utf-8") == _seal(place / "root")
    except (OSError, UnicodeDecodeError):
        return False


def _open_lock(place: Path) -> int:
    return os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def _seal(root: Path) -> str:
    """What changes when anything below `root` does, and with each boot: bytes may not have been on disk before it."""
    hasher = hashlib.blake2b(_boot())
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                status = entry.stat(follow_symlinks=False)
                facts = (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                hasher.update(f"{entry.path}\0{facts}\n".encode())
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return hasher.hexdigest()


def _boot() -> bytes:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return os.urandom(16)

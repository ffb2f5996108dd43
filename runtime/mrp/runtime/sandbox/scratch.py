"""Scratch space: a folder of one backend's own, which the next start removes when its owner was killed.

The owner holds a lock on a file in it for as long as it lives, which also tells about owners in other containers,
whose process ids mean nothing here. Control groups carry the folder's name, so that they are found by it.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from pathlib import Path

from mrp.runtime.sandbox.cgroups import Hierarchy, find_hierarchy
from mrp.runtime.state import unwritable

_PREFIX = "mrp-"
_LOCK = "lock"
_ABANDONED_SECONDS = 600


class Scratch:
    """A new folder below `root`, held until `close`. Raises InfraError when it cannot be made."""

    def __init__(self, root: Path) -> None:
        self.name = f"{_PREFIX}{os.urandom(6).hex()}"
        self.folder = root.absolute() / self.name
        unlocked = root.absolute() / f".{self.name}"
        try:
            unlocked.mkdir(parents=True, mode=0o700)
            self._lock = os.open(unlocked / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # Under its own name it is locked from the start, so that no sweep can take it for a dead one.
            unlocked.rename(self.folder)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def close(self) -> None:
        """Remove the folder."""
        remove_folder(self.folder)
        os.close(self._lock)


def sweep(root: Path) -> list[str]:
    """Kill and remove what dead owners left below `root` and in control groups; returns the names of the folders.

    Sandboxes die with their owner by themselves; this finds what a crash at the wrong moment left.
    """
    swept = []
    hierarchy = find_hierarchy()
    for folder in sorted(root.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for group in hierarchy.find(folder.name) if hierarchy is not None else []:
                    group.remove()
                remove_folder(folder)
                swept.append(folder.name)
            except BlockingIOError:
                continue
            finally:
                os.close(lock)
    _sweep_abandoned(root, hierarchy)
    return swept


def _sweep_abandoned(root: Path, hierarchy: Hierarchy | None) -> None:
    """Remove what no lock tells about: folders that never got theirs, and empty groups whose folder is gone."""
    oldest = time.time() - _ABANDONED_SECONDS
    for unlocked in root.glob(f".{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if unlocked.stat().st_mtime < oldest:
                remove_folder(unlocked)
    for group in hierarchy.find(_PREFIX) if hierarchy is not None else []:
        for folder in group.folders.values():
            # A group with processes in it cannot be removed, and a living owner's is empty for milliseconds only.
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < oldest:
                    folder.rmdir()


def remove_folder(folder: Path) -> None:
    """Remove a folder whatever stands in it: no permissions, names that are no text, folders nested without end."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except (OSError, RecursionError):
        unlock(folder)
        subprocess.run(["rm", "-rf", "--", str(folder)], check=False, stderr=subprocess.DEVNULL)


def unlock(folder: Path) -> None:
    """Give the owner back the permissions on folders and files that a process took away."""
    waiting = [str(folder)]
    while waiting:
        place = waiting.pop()
        with contextlib.suppress(OSError):
            os.chmod(place, 0o755)
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file(follow_symlinks=False) and not entry.stat().st_mode & 0o400:
                        os.chmod(entry.path, 0o644 | (entry.stat().st_mode & 0o111))

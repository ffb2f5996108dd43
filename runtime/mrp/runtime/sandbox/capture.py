"""What is kept of a process: its logs and the folders that it wrote, without any secret value."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.errors import TreeError, TreeTooLarge
from mrp.cache.folders import FolderReader
from mrp.cache.store import Store
from mrp.runtime.sandbox.scratch import unlock
from mrp.runtime.sandbox.supervise import folder_bytes
from mrp.specs.work import LOG_BYTES

MIN_SECRET = 4
"""Shorter values are not redacted: they would be found everywhere."""

_MAX_DEPTH = 300


class Redactor:
    """Replaces exact secret values by `[secret NAME]`; longer values first, so that no part of one is left."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        values = [(value.encode(), f"[secret {name}]".encode()) for name, value in secrets.items()]
        self._values = sorted(
            (pair for pair in values if len(pair[0]) >= MIN_SECRET), key=lambda pair: (-len(pair[0]), pair)
        )
        self.margin = max((len(value) for value, _ in self._values), default=0)

    def __call__(self, data: bytes) -> bytes:
        for value, marker in self._values:
            data = data.replace(value, marker)
        return data

    def clean_folder(self, folder: Path) -> None:
        """Redact the contents and names of files and the targets of symlinks in `folder`."""
        if not self._values:
            return
        for parent, folders, files in os.walk(os.fsencode(folder), topdown=False):
            for name in [*files, *folders]:
                path = os.path.join(parent, name)
                if os.path.islink(path):
                    target = os.readlink(path)
                    if self(target) != target:
                        os.unlink(path)
                        os.symlink(self(target), path)
                elif os.path.isfile(path):
                    self._clean_file(path)
                if self(name) != name:
                    with contextlib.suppress(OSError):
                        os.rename(path, os.path.join(parent, self(name)))

    def _clean_file(self, path: bytes) -> None:
        with open(path, "rb") as file:
            data = file.read()
        clean = self(data)
        if clean == data:
            return
        mode = os.stat(path).st_mode
        # A hard link would show the old bytes under another name; a new file ends what this name shared.
        os.unlink(path)
        with open(path, "wb") as file:
            file.write(clean)
            os.fchmod(file.fileno(), mode & 0o777)


def keep_log(data: bytes, redact: Redactor, store: Store, note: str = "") -> Digest:
    """The blob of a log, redacted, and cut at LOG_BYTES with a line that says so; `note` is added in any case."""
    clean = redact(data)
    if len(data) > LOG_BYTES:
        clean = clean[:LOG_BYTES]
        note = f"[mrp: the log was cut here, at {LOG_BYTES} bytes]\n{note}"
    if note:
        clean += (b"" if not clean or clean.endswith(b"\n") else b"\n") + note.encode()
    return store.put_bytes(clean)


@dataclass(frozen=True)
class Kept:
    """What came of reading a folder that a process wrote.

    notes: sentences about what no tree can hold and was left out. too_large: it held more than was allowed, and the
    tree is empty. counted: what it held, see mrp.cache.folders.ENTRY_BYTES.
    """

    tree: Digest
    notes: Sequence[str]
    too_large: bool
    counted: int


def keep_folder(folder: Path, max_bytes: int, redact: Redactor, store: Store) -> Kept:
    """Keep the tree of a folder that a process wrote; nothing may write to it any more."""
    notes: list[str] = []
    counted = folder_bytes([folder]) if redact.margin else None
    redact.clean_folder(folder)
    for attempt in (1, 2, 3):
        reader = FolderReader(store.put_bytes, store.blobs.put_descriptor, max_bytes)
        try:
            tree = reader.read(folder)
            notes += [f"{name} is no file, folder or symlink" for name in sorted(reader.skipped)]
            counted = reader.counted if counted is None else counted
            return Kept(tree, notes, False, counted)
        except TreeTooLarge:
            return Kept(store.put_tree({}), notes, True, folder_bytes([folder]) if counted is None else counted)
        except PermissionError:
            if attempt == 3:
                raise
            unlock(folder)
        except (TreeError, RecursionError, OSError):
            if attempt == 3:
                raise
            counted = folder_bytes([folder]) if counted is None else counted
            notes += _leave_out(folder)
    raise AssertionError("the third attempt returns or raises")


def _leave_out(folder: Path) -> list[str]:
    """Remove what no tree can hold: names and targets that are not UTF-8, and folders that are nested too deep."""
    from mrp.runtime.sandbox.scratch import remove_folder

    notes = []
    root = os.fsencode(folder)
    for parent, folders, files in os.walk(root):
        depth = parent.count(b"/") - root.count(b"/")
        for name in [*folders, *files]:
            path = os.path.join(parent, name)
            reason = ""
            if not _is_text(name):
                reason = "its name is not UTF-8"
            elif os.path.islink(path) and not _is_text(os.readlink(path)):
                reason = "its target is not UTF-8"
            elif name in folders and depth >= _MAX_DEPTH:
                reason = f"it is nested deeper than {_MAX_DEPTH} folders"
            if not reason:
                continue
            notes.append(f"{path[len(root) + 1 :][:200]!r} was left out: {reason}")
            if name in folders and not os.path.islink(path):
                folders.remove(name)
                remove_folder(Path(os.fsdecode(path)))
            else:
                os.unlink(path)
    return notes


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True

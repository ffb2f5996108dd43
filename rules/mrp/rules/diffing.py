"""What a trial changed: the difference of two folders as text, for people."""

import difflib
import io
from collections.abc import Iterator

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store

MAX_TEXT = 256 * 2**10
"""Bytes of a file beyond which its content is not shown."""

MAX_LINES = 2000
"""Lines of a changed file beyond which its lines are not compared, since that takes too long."""

MAX_DIFF = 2**20
"""Bytes of a difference beyond which it is cut."""

_CUT = "[mrp: the difference was cut here]\n"


def tree_diff(before: Digest, after: Digest, store: Store) -> Digest | None:
    """The blob of a unified diff from one tree to another, by path; None when they are the same."""
    if before == after:
        return None
    old, new = store.read_tree(before), store.read_tree(after)
    parts: list[str] = []
    room = MAX_DIFF
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) == new.get(path):
            continue
        for line in _changes(path, old.get(path), new.get(path), store):
            parts.append(line)
            room -= len(line)
        if room < 0:
            parts = ["".join(parts)[:MAX_DIFF], "\n", _CUT]
            break
    return store.put_bytes("".join(parts).encode())


def _changes(path: str, old: Entry | None, new: Entry | None, store: Store) -> Iterator[str]:
    before, after = _lines(old, store), _lines(new, store)
    names = (f"a/{path}" if old is not None else "/dev/null", f"b/{path}" if new is not None else "/dev/null")
    if old is not None and new is not None and old.kind != new.kind:
        yield f"# {path}: {_described(old)}, now {_described(new)}\n"
    if before is None or after is None or (before and after and max(len(before), len(after)) > MAX_LINES):
        yield f"# {path} differs; it is no text, or too large to compare\n"
        return
    if not before and not after and (old is None or new is None):
        yield f"# {path}: {_described(new)} was added\n" if new is not None else f"# {path} was removed\n"
        return
    for line in difflib.unified_diff(before, after, *names):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(entry: Entry | None, store: Store) -> list[str] | None:
    """The lines of a file's text or a symlink's target, none for folders and what is absent; None for other bytes."""
    if entry is None or entry.kind == "d":
        return []
    if entry.digest is None:
        return [f"{entry.target}\n"]
    if store.size(entry.digest) > MAX_TEXT:
        return None
    data = store.get_bytes(entry.digest)
    try:
        return None if b"\0" in data else list(io.StringIO(data.decode()))
    except UnicodeDecodeError:
        return None


def _described(entry: Entry) -> str:
    return {"f": "a file", "x": "an executable file", "l": "a symlink", "d": "an empty folder"}[entry.kind]

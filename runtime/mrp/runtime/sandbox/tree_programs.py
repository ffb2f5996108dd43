"""Programs of an image that is only stored: found along PATH, as the kernel would, without laying the image out."""

import posixpath
from collections.abc import Sequence

from mrp.cache.digest import Digest
from mrp.cache.store import Store

_MAX_LINKS = 40


def find_program(layers: Sequence[Digest], name: str, search_path: str, store: Store) -> str | None:
    """Where along `search_path` an image with these layers has the executable file `name`; None where it has none."""
    tree = store.merge_trees(layers)
    paths = (posixpath.join(folder, name) for folder in search_path.split(":") if folder)
    return next((path for path in paths if _is_program(tree, path, store)), None)


def _is_program(tree: Digest, path: str, store: Store) -> bool:
    waiting = [part for part in reversed(path.split("/")) if part]
    done: list[str] = []
    links = 0
    while waiting:
        part = waiting.pop()
        if part in (".", ".."):
            done = done[:-1] if part == ".." else done
            continue
        entry = store.subtree(tree, "/".join([*done, part]))
        if entry is None:
            return False
        if entry.kind != "l":
            done.append(part)
            if entry.kind != "t":
                return entry.kind == "x" and not waiting
            continue
        links += 1
        if links > _MAX_LINKS or entry.target is None:
            return False
        done = [] if entry.target.startswith("/") else done
        waiting += [part for part in reversed(entry.target.split("/")) if part]
    return False

"""The root of a portable image, seen from this machine: its files belong to the image, so that no symlink in it is
followed but within the root, and nothing is ever mounted through one."""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.runtime.sandbox.steps import Step
from mrp.specs.errors import InfraError

_MADE = ("/dev", "/proc", "/run", "/sys", "/tmp")
"""Folders that each sandbox gets anew; what an image has in them is not shown."""

_MAX_LINKS = 40


def guest_root(layers: Sequence[Digest], etc: Mapping[str, str], store: Store) -> Digest:
    """The tree of a root: `layers` with the files `etc` over them, by name, and room for the machine's resolv.conf."""
    own = {f"etc/{name}": Entry("f", store.put_bytes(text.encode())) for name, text in etc.items()}
    own["etc/resolv.conf"] = Entry("f", store.put_bytes(b""))
    own["var/tmp"] = Entry("l", target="/tmp")
    return store.merge_trees([*layers, store.put_tree(own)])


def guest_steps(root: Path, points: set[str], folders: Iterable[str]) -> list[Step]:
    """The steps that show a root, in pieces where one of `points` will be mounted within it.

    `folders` are made when it has none of that name. Raises InfraError when a symlink or a file lies in the way of a
    point.
    """
    shown = _shown(root, "", points)
    present = {step.path for step in shown}
    return [*shown, *(Step("dir", path) for path in folders if path not in present)]


def _shown(folder: Path, guest: str, points: set[str]) -> list[Step]:
    steps = []
    for name in sorted(os.listdir(folder)):
        path, source = f"{guest}/{name}", folder / name
        if path in _MADE:
            continue
        outer = any(point.startswith(f"{path}/") for point in points)
        kind = source.lstat().st_mode
        if (outer or path in points) and not stat.S_ISDIR(kind):
            raise in_the_way(path)
        if outer:
            steps.append(Step("dir", path))
            steps += _shown(source, path, points)
        elif path in points:
            steps.append(Step("dir", path))
        elif stat.S_ISLNK(kind):
            steps.append(Step("link", path, str(source.readlink())))
        else:
            steps.append(Step("bind", path, str(source)))
    return steps


def in_the_way(path: str) -> InfraError:
    """For what is no folder where one is needed: a symlink there would have the sandbox made outside of its root."""
    return InfraError(
        f"the image has no folder at {path}, where folders of the sandbox belong; take {path} out of the image",
        retryable=False,
    )


def guest_program(root: Path, name: str, search_path: str) -> str | None:
    """The guest path of a program on the search path of an image; None when it has none."""
    for folder in search_path.split(":"):
        place = guest_file(root, f"{folder}/{name}") if folder.startswith("/") else None
        if place is not None and stat.S_ISREG(place.lstat().st_mode) and place.lstat().st_mode & 0o111:
            return f"{folder}/{name}"
    return None


def guest_file(root: Path, path: str) -> Path | None:
    """Where on this machine the absolute guest path leads, symlinks followed within the root; None when nowhere."""
    place, parts = root, path.split("/")
    for _ in range(len(parts) + _MAX_LINKS * 16):
        if not parts:
            return place
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            place = place.parent if place != root else root
            continue
        place = place / part
        try:
            target = os.readlink(place) if stat.S_ISLNK(place.lstat().st_mode) else None
        except (OSError, ValueError):
            return None
        if target is not None:
            place = root if target.startswith("/") else place.parent
            parts = [*target.split("/"), *parts]
    return None

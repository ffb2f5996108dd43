"""Images that others built, as trees: their layers in order, with what a layer removes taken out of those below."""

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.runtime.archives import content_at_fault, open_tar
from mrp.runtime.images.members import read_members, without_empty_parents
from mrp.specs.errors import BuildFailed

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"

OpenLayer = Callable[[], IO[bytes]]


@dataclass(frozen=True)
class UnpackedImage:
    """Trees, lowest first, and the variables of the image's configuration."""

    layers: tuple[Digest, ...]
    env: Mapping[str, str]


def unpack_image(config: bytes, layers: Sequence[OpenLayer], name: str, store: Store) -> UnpackedImage:
    """The image with this configuration, whose layers are tar archives, packed or not. Raises BuildFailed.

    A layer that removes files is joined with all below it, since a tree cannot say what is not there.
    """
    trees: list[Digest] = []
    for open_layer in layers:
        entries, removed, emptied = _read_layer(open_layer, name, store)
        if trees and (removed or emptied):
            below = store.read_tree(store.merge_trees(trees))
            entries = {**_kept(below, entries, removed, emptied), **entries}
            trees = []
        with content_at_fault(f"a layer of {name} is no tar archive that can be read"):
            trees.append(store.put_tree(without_empty_parents(entries)))
    return UnpackedImage(tuple(trees), _environment(config, name))


def _read_layer(open_layer: OpenLayer, name: str, store: Store) -> tuple[dict[str, Entry], set[str], set[str]]:
    """A layer's entries, the paths that it removes, and the folders that it empties first."""
    entries: dict[str, Entry] = {}
    removed: set[str] = set()
    emptied: set[str] = set()
    with (
        content_at_fault(f"a layer of {name} is no tar archive that can be read"),
        open_layer() as stream,
        open_tar(stream, "r|*") as archive,
    ):
        for path, entry in read_members(archive, f"a layer of {name}", store, devices=True):
            folder, base = posixpath.split(path)
            if base == _OPAQUE:
                emptied.add(folder)
            elif base.startswith(_WHITEOUT):
                removed.add(posixpath.join(folder, base.removeprefix(_WHITEOUT)))
            elif entry.kind != "d" or path not in entries:
                entries[path] = entry
    return entries, removed, emptied


def _kept(
    below: Mapping[str, Entry], entries: Mapping[str, Entry], removed: set[str], emptied: set[str]
) -> dict[str, Entry]:
    """What is left of `below`: nothing that was removed, or that stands where a layer has something of another kind."""
    replaced = removed | {path for path, entry in entries.items() if entry.kind != "d"}
    folders = {parent for path in entries for parent in _parents(path)}
    folders |= {path for path, entry in entries.items() if entry.kind == "d"}

    def stays(path: str, entry: Entry) -> bool:
        above = _parents(path)
        if path in replaced or any(parent in replaced or parent in emptied for parent in above):
            return False
        return "" not in emptied and not (entry.kind != "d" and path in folders)

    kept = {path: entry for path, entry in below.items() if stays(path, entry)}
    # Folders that lose all that they hold stay, and no entry of a tree says so yet.
    left = {parent for path in below.keys() - kept.keys() for parent in _parents(path)}
    return {**{path: Entry("d") for path in left if path not in entries and stays(path, Entry("d"))}, **kept}


def _parents(path: str) -> list[str]:
    found = []
    while path := posixpath.dirname(path):
        found.append(path)
    return found


def _environment(config: bytes, name: str) -> dict[str, str]:
    try:
        document: Any = json.loads(config)
        listed: list[str] = (document.get("config") or {}).get("Env") or []
        return dict(map(_variable, listed))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BuildFailed(f"the configuration of {name} cannot be read: {error}") from error


def _variable(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or "\0" in text or not text.encode():
        raise ValueError(f"{text!r} is no variable")
    return name, value

"""A folder of files, from a tree in the store or from what a producer wrote."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG

from mrp.cache.canonical import canonical_digest
from mrp.cache.digest import Digest, digest_bytes
from mrp.cache.hashing import hash_file
from mrp.cache.store import Store
from mrp.rules.writes import written_files
from mrp.runtime.sinks.durable import make_folders, replace_folder, sync_folder, write_new
from mrp.runtime.sinks.protocol import Content, Staged
from mrp.specs.errors import BuildFailed
from mrp.specs.results import Ref

Listing = dict[str, tuple[str, str]]
"""Path -> (kind, digest or symlink target): f a file, x an executable one, l a symlink, d an empty folder."""

_MAX_LINKS = 40


@dataclass(frozen=True)
class FilesSink:
    """A folder. In mode replace it holds exactly the content; in mode append, files are added and none is changed.

    `shown` is the path as the workspace writes it, for messages.
    """

    path: Path
    shown: str
    mode: str
    label: str
    store: Store

    def digest(self) -> Digest | None:
        if self.path.exists() and not self.path.is_dir():
            raise BuildFailed(f"the sink's path {self.shown} is a file; name a folder")
        return listing_digest(read_listing(self.path)) if self.path.exists() else None

    def stage(self, content: Content) -> Staged:
        wanted, read = self._wanted(content)
        held = read_listing(self.path)
        if self.mode == "append":
            wanted = self._joined(held, wanted)
        elif self.mode == "create" and held not in ({}, wanted):
            raise BuildFailed(
                f"{self.shown} exists with other content, and the sink's mode is create;"
                " move it away or use mode replace"
            )
        new = sorted(set(wanted) - set(held)) if self.mode == "append" else sorted(wanted)
        for path in new:
            _check_place(path, wanted, self.label)
        if self.mode == "append":
            return Staged(listing_digest(wanted), lambda: self._add(new, wanted, read))
        return Staged(listing_digest(wanted), lambda: self._replace(wanted, read))

    def _wanted(self, content: Content) -> tuple[Listing, Callable[[str], bytes]]:
        """What the content is, and how to get the bytes of a file in it."""
        if isinstance(content, Ref):
            if content.kind != "tree":
                raise BuildFailed(f"{self.label} gives one blob, and a files sink takes a folder")
            tree = self.store.read_tree(content.digest)
            listing: Listing = {path: (entry.kind, entry.digest or entry.target or "") for path, entry in tree.items()}
            return listing, lambda path: self.store.get_bytes(Digest(listing[path][1]))
        files = written_files(content, self.label)
        return {path: ("f", digest_bytes(data)) for path, data in files.items()}, files.__getitem__

    def _joined(self, held: Listing, wanted: Listing) -> Listing:
        for path, entry in wanted.items():
            if held.get(path, entry) != entry:
                raise BuildFailed(
                    f"{self.shown}/{path} exists with other content, and the sink's mode is append; move it away or use"
                    " mode replace"
                )
        folders = {path[:end] for path in wanted for end in range(len(path)) if path[end] == "/"}
        return {**{path: entry for path, entry in held.items() if path not in folders or entry[0] != "d"}, **wanted}

    def _replace(self, wanted: Listing, read: Callable[[str], bytes]) -> None:
        prepared = self.path.with_name(f".{self.path.name}.mrp-new")
        if prepared.exists():
            shutil.rmtree(prepared)
        make_folders(prepared)
        folders = {prepared}
        for path, (kind, value) in wanted.items():
            folders |= _put(prepared / path, kind, value, read, path)
        for folder in folders:
            sync_folder(folder)
        replace_folder(self.path, prepared)

    def _add(self, paths: list[str], wanted: Listing, read: Callable[[str], bytes]) -> None:
        make_folders(self.path)
        for path in paths:
            kind, value = wanted[path]
            place = self.path / path
            if kind == "d":
                make_folders(place)
                continue
            make_folders(place.parent)
            temporary = place.with_name(f".{place.name}.mrp-new")
            temporary.unlink(missing_ok=True)
            _put(temporary, kind, value, read, path)
            temporary.rename(place)
            sync_folder(place.parent)


def read_listing(folder: Path) -> Listing:
    """What a folder holds, without following symlinks; {} when it is not there. Temporary files of mrp are left out."""
    listing: Listing = {}
    if folder.is_dir():
        _read_folder(folder, "", listing)
    return listing


def listing_digest(listing: Listing) -> Digest:
    """The digest of names, kinds and contents."""
    return canonical_digest({path: list(entry) for path, entry in listing.items()})


EMPTY = listing_digest({})
"""The digest of a folder that holds nothing."""


def _read_folder(folder: Path, prefix: str, listing: Listing) -> None:
    names = [path.name for path in sorted(folder.iterdir()) if not path.match(".*.mrp-new")]
    if not names and prefix:
        listing[prefix[:-1]] = ("d", "")
    for name in names:
        place, path = folder / name, f"{prefix}{name}"
        status = place.lstat()
        if S_ISDIR(status.st_mode):
            _read_folder(place, f"{path}/", listing)
        elif S_ISLNK(status.st_mode):
            listing[path] = ("l", str(place.readlink()))
        elif S_ISREG(status.st_mode):
            listing[path] = ("x" if status.st_mode & 0o100 else "f", hash_file(place))
        else:
            raise BuildFailed(f"{place} is neither file, folder nor symlink; a files sink cannot hold it, move it away")


def _put(place: Path, kind: str, value: str, read: Callable[[str], bytes], path: str) -> set[Path]:
    """Make one entry of a new folder; returns the folders that must be synced for it."""
    folder = place if kind == "d" else place.parent
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "l":
        place.symlink_to(value)
    elif kind != "d":
        write_new(place, read(path), 0o755 if kind == "x" else 0o644)
    return {folder, folder.parent}


def _check_place(path: str, listing: Listing, label: str) -> None:
    """Refuse an entry below a symlink or a file, and a symlink that leads out of the folder."""
    for end in range(len(path)):
        if path[end] == "/" and path[:end] in listing and listing[path[:end]][0] != "d":
            raise BuildFailed(f"{label} cannot write {path}: {path[:end]} is no folder in the sink; move it away")
    kind, target = listing[path]
    if kind == "l" and _leaves(path.rpartition("/")[0], target, listing, _MAX_LINKS):
        raise BuildFailed(f"{label} holds the symlink {path} to {target}, which leads out of the sink; leave it out")


def _leaves(folder: str, target: str, listing: Listing, budget: int) -> bool:
    """Whether following `target` from `folder` ever goes above the listing's root, links on the way included."""
    if target.startswith("/"):
        return True
    current = [part for part in folder.split("/") if part]
    pending = target.split("/")[::-1]
    while pending:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not current:
                return True
            current.pop()
            continue
        current.append(part)
        kind, value = listing.get("/".join(current), ("", ""))
        if kind == "l":
            budget -= 1
            if budget < 0 or value.startswith("/"):
                return True
            current.pop()
            pending.extend(value.split("/")[::-1])
    return False

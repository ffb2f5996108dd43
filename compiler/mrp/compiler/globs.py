"""Patterns become files: the same files, in the same order, on every machine.

A pattern is relative to its package's folder. `*`, `?` and `[abc]` match within one name, `**` any number of folders;
a pattern without them names one file, or a folder, which stands for all files below it. Wildcards pass over hidden
names, `mrp-out`, `node_modules` and `__pycache__` unless the pattern spells them out, and what is taken "all below"
a folder stops at the next package. No pattern leaves its package upwards, and no symlink leaves the workspace.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fnmatch import translate
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from posixpath import join

BUILD_FILE = "BUILD.yaml"

PASSED_OVER = frozenset({"mrp-out", "node_modules", "__pycache__"})
"""Names that are treated as hidden, although no dot starts them."""

_WILD = re.compile(r"[*?\[]")
_SHOWN_NAMES = 4


class GlobError(ValueError):
    """A pattern that cannot be expanded: one sentence, and a hint that may be empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = message, hint
        super().__init__(message)


class EntryKind(Enum):
    FILE = "file"
    FOLDER = "folder"
    LINK = "symlink"
    OTHER = "special file"


@dataclass(frozen=True)
class Expansion:
    """What a pattern stands for, as workspace-relative paths sorted by code point.

    `roots`: the folders that it names itself. `listed`: the folders whose entries were read to know; a file that
    comes or goes anywhere else cannot change the answer.
    """

    files: tuple[str, ...]
    roots: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()


class WorkspaceTree:
    """The folders below a workspace's root, each read from the disk at most once; forget it to see changes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._entries: dict[str, dict[str, EntryKind]] = {}

    @property
    def listed(self) -> list[str]:
        """Every folder that was read so far, sorted; the root is the empty text."""
        return sorted(self._entries)

    def entries(self, folder: str) -> dict[str, EntryKind]:
        """Names in `folder` and what they are, sorted; empty when there is no such folder."""
        known = self._entries.get(folder)
        if known is None:
            known = self._entries[folder] = self._read(folder)
        return known

    def _read(self, folder: str) -> dict[str, EntryKind]:
        try:
            with os.scandir(self._root / folder) as found:
                return dict(sorted([(entry.name, _kind(entry)) for entry in found], key=_name))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise GlobError(f"the folder {folder or '.'} cannot be read: {error.strerror}") from error

    def file_behind(self, path: str, name: str) -> None:
        """Checks that the symlink `path` leads to a plain file of this workspace; GlobError names it otherwise."""
        target = Path(os.path.realpath(self._root / path))
        literal = path == name or path.endswith(f"/{name}")
        link = f"`{name}` is a symlink" if literal else f"`{name}` takes {path}, a symlink"
        if not target.is_relative_to(os.path.realpath(self._root)):
            raise GlobError(f"{link} that leads out of the workspace", "copy the file into the workspace")
        if not target.exists():
            raise GlobError(f"{link} that leads nowhere", "point it at a file, or delete it")
        if not target.is_file():
            raise GlobError(f"`{name}` names {path}, a symlink to a folder", "symlinked folders are not read")

    def leads_to_folder(self, path: str) -> bool:
        """Whether the symlink `path` ends at a folder."""
        return (self._root / path).is_dir()


def visible(name: str) -> bool:
    """Whether wildcards and the search for packages see `name` at all."""
    return not name.startswith(".") and name not in PASSED_OVER


def expand(tree: WorkspaceTree, package: str, pattern: str, *, folders: bool = False) -> Expansion:
    """The files that `pattern` of `package` stands for; with `folders`, wildcards match folders, taken whole.

    Raises GlobError when the pattern is malformed, leaves the package, or matches nothing.
    """
    parts = _parts(pattern)
    walk = _Walk(tree, pattern, folders)
    walk.step(package, parts)
    if not walk.files and not (folders and walk.roots):
        raise _nothing(tree, package, pattern, parts, folders)
    return Expansion(tuple(sorted(walk.files)), tuple(sorted(walk.roots)), tuple(sorted(walk.listed)))


def expand_file(tree: WorkspaceTree, package: str, path: str) -> str:
    """The workspace-relative path of one literal file of `package`; GlobError when it is anything else."""
    if _WILD.search(path):
        raise GlobError(f"`{path}` must name one file, without wildcards", "write the file's name")
    expansion = expand(tree, package, path)
    if expansion.roots:
        raise GlobError(f"`{path}` is a folder where a file is expected", "name a file in it")
    return expansion.files[0]


def literal_prefix(pattern: str) -> str:
    """The leading folders of `pattern` before its first wildcard: `start/**` has `start`, `*.py` has none."""
    parts = pattern.split("/")
    wild = next((index for index, part in enumerate(parts) if _WILD.search(part)), len(parts))
    return "/".join(parts[: min(wild, len(parts) - 1)])


def is_literal(pattern: str) -> bool:
    """Whether `pattern` has no wildcard, so that it names one file or folder."""
    return _WILD.search(pattern) is None


_name = itemgetter(0)


def _kind(entry: os.DirEntry[str]) -> EntryKind:
    # Nearly all entries are files.
    if entry.is_file(follow_symlinks=False):
        return EntryKind.FILE
    if entry.is_dir(follow_symlinks=False):
        return EntryKind.FOLDER
    return EntryKind.LINK if entry.is_symlink() else EntryKind.OTHER


def _parts(pattern: str) -> list[str]:
    if not pattern:
        raise GlobError("an empty pattern matches nothing", "write `**` for all files of the package")
    if pattern.startswith("/"):
        raise GlobError(f"`{pattern}` is an absolute path", "write a path relative to the package's folder")
    if "\\" in pattern or "\0" in pattern:
        raise GlobError(f"`{pattern}` holds a backslash or a NUL", "folders are separated by `/`")
    parts = [part for part in pattern.removesuffix("/").split("/") if part != "."]
    if ".." in parts:
        raise GlobError(f"`{pattern}` leaves its package with `..`", "take other packages' files through their targets")
    if "" in parts or not parts:
        raise GlobError(f"`{pattern}` has an empty name between slashes", "write one `/` between two names")
    for part in parts:
        if "**" in part and part != "**":
            raise GlobError(f"`{pattern}` has `**` inside a name", "`**` stands alone between slashes")
        if "[" in part and "]" not in part[part.index("[") + 2 :]:
            raise GlobError(f"`{pattern}` has a `[` that is not closed", "write `[[]` for a plain `[`")
    if pattern.endswith("/") and _WILD.search(parts[-1]) and parts[-1] != "**":
        parts.append("**")
    return parts


class _Walk:
    """One expansion under way: it gathers files, roots and the folders that were read."""

    def __init__(self, tree: WorkspaceTree, pattern: str, folders: bool) -> None:
        self._tree, self._pattern, self._folders = tree, pattern, folders
        self.files: set[str] = set()
        self.roots: set[str] = set()
        self.listed: set[str] = set()

    def step(self, folder: str, parts: list[str]) -> None:
        head, rest = parts[0], parts[1:]
        if head == "**":
            self._any_depth(folder, rest)
        elif _WILD.search(head):
            self._wild(folder, head, rest)
        else:
            self._literal(folder, head, rest)

    def _entries(self, folder: str) -> dict[str, EntryKind]:
        self.listed.add(folder)
        return self._tree.entries(folder)

    def _any_depth(self, folder: str, rest: list[str]) -> None:
        if not rest and self._folders:
            raise GlobError(f"`{self._pattern}` ends in `**`", "name the records' folders, as in `tasks/*`")
        if not rest:
            self._all_below(folder)
            return
        self.step(folder, rest)
        for name, kind in self._entries(folder).items():
            path = join(folder, name)
            if kind is EntryKind.FOLDER and visible(_text(folder, name)) and not self._is_package(path):
                self._any_depth(path, rest)

    def _wild(self, folder: str, head: str, rest: list[str]) -> None:
        matches = _matcher(head)
        hidden = "\0" if head.startswith(".") else "."
        prefix = f"{folder}/" if folder else ""
        for name, kind in self._entries(folder).items():
            if name.startswith(hidden) or name in PASSED_OVER or not matches(_text(folder, name)):
                continue
            path = prefix + name
            if rest:
                if kind is EntryKind.FOLDER:
                    self.step(path, rest)
            elif self._folders:
                if kind is EntryKind.FOLDER:
                    self._root(path)
            elif kind is not EntryKind.FOLDER:
                self._take(path, kind, wild=True)

    def _literal(self, folder: str, head: str, rest: list[str]) -> None:
        kind = self._entries(folder).get(head)
        path = join(folder, head)
        if kind is None:
            return
        if kind is EntryKind.LINK and (rest or self._tree.leads_to_folder(path)):
            raise GlobError(f"`{self._pattern}` names {path}, a symlink to a folder", "symlinked folders are not read")
        if rest:
            if kind is EntryKind.FOLDER:
                self.step(path, rest)
        elif kind is EntryKind.FOLDER:
            self._root(path)
        elif self._folders:
            message = f"`{self._pattern}` is a file, but the records of this format are folders"
            raise GlobError(message, "name the records' folders, as in `tasks/*`")
        else:
            self._take(path, kind, wild=False)

    def _root(self, path: str) -> None:
        self.roots.add(path)
        self._all_below(path)

    def _all_below(self, folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        for name, kind in self._entries(folder).items():
            if not visible(_text(folder, name)):
                continue
            path = prefix + name
            if kind is EntryKind.FILE:
                self.files.add(path)
            elif kind is not EntryKind.FOLDER:
                self._take(path, kind, wild=True)
            elif not self._is_package(path):
                self._all_below(path)

    def _take(self, path: str, kind: EntryKind, *, wild: bool) -> None:
        if kind is EntryKind.OTHER:
            message = f"`{self._pattern}` takes {path}, which is neither a file nor a folder"
            raise GlobError(message, "delete it, or narrow the pattern")
        if kind is EntryKind.LINK:
            if wild and self._tree.leads_to_folder(path):
                return
            self._tree.file_behind(path, self._pattern)
        self.files.add(path)

    def _is_package(self, path: str) -> bool:
        return BUILD_FILE in self._entries(path)


def _text(folder: str, name: str) -> str:
    """`name`, or GlobError when its bytes are no UTF-8, so that no spelling of it is the same everywhere."""
    if name.isascii():
        return name
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        message = f"the folder {folder or '.'} holds a file whose name is not UTF-8: {shown}"
        raise GlobError(message, "rename the file") from None
    return name


@lru_cache(maxsize=512)
def _matcher(part: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(translate(part)).match


def _nothing(tree: WorkspaceTree, package: str, pattern: str, parts: list[str], folders: bool) -> GlobError:
    """Why a pattern takes nothing, with the nearest name, or with what is there instead."""
    from mrp.specs.suggest import nearest

    folder, found = package, list[str]()
    for part in parts:
        names = [name for name in tree.entries(folder) if visible(name)]
        if _WILD.search(part):
            there = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
            hint = f"the folder {folder or '.'} holds {there or 'nothing'}"
            return GlobError(f"`{pattern}` matches no {'folder' if folders else 'file'}", hint)
        if part not in tree.entries(folder):
            near = nearest(part, names)
            hint = f"did you mean `{'/'.join([*found, near])}`?" if near is not None else ""
            return GlobError(f"there is no {join(folder, part)}", hint)
        folder = join(folder, part)
        found.append(part)
    return GlobError(f"the folder {folder} holds no file", "name one that does")

"""Trees: folders as Merkle objects, one canonical JSON object per folder, stored as blobs.

    {"README.md":["f","<digest>"],"bin":["t","<digest>"],"latest":["l","bin/run"]}

Kinds: f a file, x an executable file, l a symlink with its target, t a sub-folder. An object that is not exactly what
we would write, or that names anything outside its folder, is refused when it is read and when it is written.
"""

import json
import operator
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from mrp.cache.digest import Digest, digest_bytes, parse_digest
from mrp.cache.errors import MissingBlob, TreeError

Kind: TypeAlias = Literal["f", "x", "l", "d", "t"]

MAX_DEPTH = 400
"""Folders within folders; deeper trees are refused."""

MAX_ENTRIES = 20_000_000
"""Entries in the flat view of one tree; a small object may name the same sub-tree many times over."""


class Entry(NamedTuple):
    """One name in a tree. Files (f, x) and sub-trees (t) have a digest, symlinks (l) a target.

    The flat view that is read names every file by its path; there d is an empty folder, and t does not occur.
    """

    kind: Kind
    digest: Digest | None = None
    target: str | None = None


Node: TypeAlias = dict[str, Entry]
"""One folder: name to entry of kind f, x, l or t."""

GetBytes: TypeAlias = Callable[[Digest], bytes]
PutBytes: TypeAlias = Callable[[bytes], Digest]

EMPTY_FOLDER = Entry("d")

EMPTY_TREE = digest_bytes(b"{}")
"""The folder with nothing in it, which many are."""

_RESERVED = frozenset((".", ".."))

_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False).encode


def encode_node(node: Mapping[str, Entry]) -> bytes:
    """The tree object of one folder. Raises TreeError for names and entries that no folder can have."""
    for name, entry in node.items():
        _check_name(name)
        _check_entry(name, entry)
    text = _encode(
        {name: [entry.kind, entry.target if entry.kind == "l" else entry.digest] for name, entry in node.items()}
    )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TreeError(
            f"A name or symlink target is not UTF-8: {text[error.start - 40 : error.end + 40]!r}."
        ) from error


# A folder without symlinks, whose names are spelled in one way only; in most folders there is nothing else.
_PLAIN_ENTRY = r'"([^"\\/\x00-\x1f]+)":\["([fxt])","([0-9a-f]{64})"\]'
_PLAIN_NODE = re.compile(rf"\{{{_PLAIN_ENTRY}(?:,{_PLAIN_ENTRY})*\}}")
_PLAIN_ENTRIES = re.compile(_PLAIN_ENTRY)


def decode_node(data: bytes, digest: Digest) -> Node:
    """The folder that a tree object describes; raises TreeError when it is not one that encode_node writes."""
    try:
        text = data.decode()
        if _PLAIN_NODE.fullmatch(text):
            found = _PLAIN_ENTRIES.findall(text)
            names = [name for name, _, _ in found]
            # Sorted, and each once: so it is what encode_node writes.
            if all(map(operator.lt, names, names[1:])) and not _RESERVED.intersection(names):
                return {name: Entry(kind, digest) for name, kind, digest in found}
        items = json.loads(text)
        node = {name: _decode_entry(kind, value) for name, (kind, value) in items.items()}
        if encode_node(node) == data:
            return node
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    raise TreeError(f"{digest} is not a tree: its bytes are no folder in canonical form.")


# Who looks for one name in a folder often looks for others, and nobody changes what was found.
_decoded = lru_cache(64)(decode_node)


def _decode_entry(kind: Kind, value: str) -> Entry:
    return Entry("l", target=value) if kind == "l" else Entry(kind, Digest(value))


def _check_name(name: str) -> None:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise TreeError(f"{name!r} cannot be a name in a tree; names are not empty, . or .., and hold no / and no NUL.")


def _check_entry(name: str, entry: Entry) -> None:
    kind, digest, target = entry
    if kind == "l":
        if type(target) is not str or not target or "\0" in target:
            raise TreeError(f"The symlink {name!r} needs a target, which is text and holds no NUL.")
    elif kind in ("f", "x", "t"):
        try:
            parse_digest(digest)  # type: ignore[arg-type]
        except (ValueError, TypeError) as error:
            raise TreeError(f"The entry {name!r} has no digest: {digest!r}.") from error
    else:
        raise TreeError(f"The entry {name!r} has the kind {kind!r}; a tree holds only f, x, l and t.")


_EMPTY = encode_node({})


def put_flat(entries: Mapping[str, Entry], put: PutBytes) -> Digest:
    """Store the tree objects of a flat view and give the root's digest.

    Folders that a path needs need no entry of their own; a path of kind t is a whole tree that is stored already.
    Raises TreeError for bad paths and for a path that is a folder and something else, or a folder twice.
    """
    if not entries:
        return put(_EMPTY)
    folders: dict[tuple[str, ...], Node] = {(): {}}
    for path, entry in entries.items():
        *parents, name = path.split("/")
        if len(parents) >= MAX_DEPTH:
            raise TreeError(f"{path[:80]!r}... lies deeper than {MAX_DEPTH} folders.")
        if entry.kind == "d":
            folders.setdefault((*parents, name), {})
            _make_parents(folders, (*parents, name))
        else:
            folder = tuple(parents)
            if folder not in folders:
                folders[folder] = {}
                _make_parents(folders, folder)
            folders[folder][name] = entry
    for folder in sorted(folders, key=len, reverse=True):
        digest = put(encode_node(folders[folder]))
        if not folder:
            return digest
        parent = folders[folder[:-1]]
        if folder[-1] in parent:
            raise TreeError(f"{'/'.join(folder)!r} is both a folder and something else.")
        parent[folder[-1]] = Entry("t", digest)
    raise AssertionError("the root sorts last")


def _make_parents(folders: dict[tuple[str, ...], Node], folder: tuple[str, ...]) -> None:
    while folder:
        folder = folder[:-1]
        if folder in folders:
            return
        folders[folder] = {}


def read_flat(root: Digest, get: GetBytes) -> dict[str, Entry]:
    """The flat view of a tree, sorted by path. Raises MissingBlob and TreeError."""
    found: dict[str, Entry] = {}
    for path, node in walk(root, get):
        prefix = f"{path}/" if path else ""
        if not node and path:
            found[path] = EMPTY_FOLDER
        for name, entry in node.items():
            if entry.kind != "t":
                found[prefix + name] = entry
        if len(found) > MAX_ENTRIES:
            raise TreeError(f"{root} holds more than {MAX_ENTRIES} entries.")
    return dict(sorted(found.items()))


def walk(root: Digest, get: GetBytes) -> Iterator[tuple[str, Node]]:
    """Each folder of a tree with its path, parents before children. Raises MissingBlob and TreeError."""
    nodes: dict[Digest, Node] = {}
    stack = [("", root, 0)]
    while stack:
        path, digest, depth = stack.pop()
        node = nodes.get(digest)
        if node is None:
            node = nodes[digest] = decode_node(get(digest), digest)
        if depth > MAX_DEPTH:
            raise TreeError(f"{root} is deeper than {MAX_DEPTH} folders.")
        yield path, node
        prefix = f"{path}/" if path else ""
        stack += [
            (prefix + name, entry.digest, depth + 1)
            for name, entry in node.items()
            if entry.kind == "t" and entry.digest is not None
        ]


def merge(digests: Sequence[Digest], get: GetBytes, put: PutBytes) -> Digest:
    """The tree with the names of all; where several have a name the last wins, and folders are merged."""
    if not digests:
        return put(encode_node({}))
    merged = digests[0]
    for digest in digests[1:]:
        merged = _merge_two(merged, digest, get, put)
    return merged


def _merge_two(below: Digest, above: Digest, get: GetBytes, put: PutBytes) -> Digest:
    if below == above:
        return below
    node, over = decode_node(get(below), below), decode_node(get(above), above)
    if not over:
        return below
    if not node:
        return above
    for name, entry in over.items():
        present = node.get(name)
        if present is not None and present.kind == entry.kind == "t":
            assert present.digest is not None and entry.digest is not None
            entry = Entry("t", _merge_two(present.digest, entry.digest, get, put))
        node[name] = entry
    return put(encode_node(node))


def find(root: Digest, path: str, get: GetBytes) -> Entry | None:
    """What lies at `path`: an entry of kind f, x or l, or t for a folder; "" is the root. None when nothing does."""
    entry = Entry("t", root)
    if root == EMPTY_TREE and path:
        return None
    for name in path.split("/") if path else ():
        if entry.kind != "t" or entry.digest is None:
            return None
        found = _decoded(get(entry.digest), entry.digest).get(name)
        if found is None:
            return None
        entry = found
    return entry


def closure(
    trees: Iterable[Digest],
    get_many: Callable[[set[Digest]], dict[Digest, bytes]],
    *,
    skip: Container[Digest] = (),
) -> tuple[set[Digest], set[Digest], set[Digest]]:
    """Everything that trees need: (tree objects, blobs, tree objects that are missing or no trees).

    Each object is read once, and the objects of one depth are read together. Sub-trees in `skip` are not looked into.
    """
    seen: set[Digest] = set()
    blobs: set[Digest] = set()
    missing: set[Digest] = set()
    level = set(trees)
    while level:
        seen |= level
        found = get_many(level)
        deeper: set[Digest] = set()
        for digest in level:
            try:
                if digest not in found:
                    raise MissingBlob(digest)
                node = decode_node(found[digest], digest)
            except (MissingBlob, TreeError):
                missing.add(digest)
                continue
            for entry in node.values():
                if entry.digest is not None:
                    (deeper if entry.kind == "t" else blobs).add(entry.digest)
        level = {digest for digest in deeper - seen if digest not in skip}
    return seen, blobs, missing

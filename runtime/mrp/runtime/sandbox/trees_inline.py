"""Small trees as bytes: what a slot's first process lays out and hands back, made of stored trees and made into them.

See mrp.runtime.sandbox.slot_folders for the form.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.cache.trees import Node, decode_node, encode_node
from mrp.runtime.sandbox.slot_folders import MAX_DEPTH, counted

MAX_BYTES = 256 * 1024
"""A tree with more bytes is not handed over inline."""

_KEPT_BYTES = 16 * 2**20
_KEPT_TREES = 4096

_PLAIN = re.compile(r"[\w-][\w.-]*", re.ASCII)
"""Names that stand in JSON as they are."""


class Inline(NamedTuple):
    """A tree's list and the bytes of its files; `used` is what it counts towards the disk limit."""

    tree: list[Any]
    data: bytes
    used: int


class InlineTrees:
    """Trees of one store, those of late kept. Safe from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: OrderedDict[Digest, Inline | None] = OrderedDict()
        self._bytes = 0

    def load(self, digests: Iterable[Digest]) -> dict[Digest, Inline | None]:
        """Each tree; None for one that is large, deep, damaged or not there. All are read together."""
        wanted = set(digests)
        with self._lock:
            found = {digest: self._known[digest] for digest in wanted if digest in self._known}
        fresh = wanted - found.keys()
        if not fresh:
            return found
        nodes = self._nodes(fresh)
        files = {
            entry.digest
            for node in nodes.values()
            for entry in node.values()
            if entry.kind in "fx" and entry.digest is not None
        }
        blobs = self._store.blobs.get_small(files)
        for digest in fresh:
            data: list[bytes] = []
            tree = _listed(digest, nodes, blobs, data, 0)
            joined = b"".join(data)
            small = tree is not None and len(joined) <= MAX_BYTES
            found[digest] = Inline(tree, joined, counted(tree)) if tree is not None and small else None
        with self._lock:
            for digest in fresh:
                self._keep(digest, found[digest])
        return found

    def put(self, tree: Sequence[Any], data: bytes) -> tuple[Digest, bytes]:
        """Store a tree whose files' bytes `data` begins with; gives its digest and the rest of `data`."""
        if all(kind in "fx" and _PLAIN.fullmatch(name) for name, kind, _ in tree):
            # The very object that encode_node makes, since the names are sorted.
            spelled = []
            for name, kind, size in tree:
                spelled.append(f'"{name}":["{kind}","{self._store.put_bytes(data[:size])}"]')
                data = data[size:]
            return self._store.put_bytes(f"{{{','.join(spelled)}}}".encode()), data
        node: Node = {}
        for name, kind, value in tree:
            if kind == "d":
                digest, data = self.put(value, data)
                node[name] = Entry("t", digest)
            elif kind == "l":
                node[name] = Entry("l", target=value)
            else:
                node[name] = Entry("x" if kind == "x" else "f", self._store.put_bytes(data[:value]))
                data = data[value:]
        return self._store.put_bytes(encode_node(node)), data

    def _keep(self, digest: Digest, tree: Inline | None) -> None:
        if tree is None or digest in self._known:
            return
        self._known[digest] = tree
        self._bytes += len(tree.data)
        while self._bytes > _KEPT_BYTES or len(self._known) > _KEPT_TREES:
            _, old = self._known.popitem(last=False)
            self._bytes -= len(old.data) if old is not None else 0

    def _nodes(self, roots: Iterable[Digest]) -> dict[Digest, Node]:
        nodes: dict[Digest, Node] = {}
        level = set(roots)
        for _ in range(MAX_DEPTH):
            deeper: set[Digest] = set()
            for digest, data in self._store.blobs.get_small(level).items():
                nodes[digest] = node = decode_node(data, digest)
                deeper.update(entry.digest for entry in node.values() if entry.kind == "t" and entry.digest is not None)
            level = deeper - nodes.keys()
            if not level:
                break
        return nodes


def _listed(
    digest: Digest, nodes: dict[Digest, Node], blobs: dict[Digest, bytes], data: list[bytes], depth: int
) -> list[Any] | None:
    node = nodes.get(digest)
    if node is None or depth > MAX_DEPTH:
        return None
    tree: list[Any] = []
    for name, entry in sorted(node.items()):
        if entry.kind == "t" and entry.digest is not None:
            inner = _listed(entry.digest, nodes, blobs, data, depth + 1)
            if inner is None:
                return None
            tree.append([name, "d", inner])
        elif entry.kind == "l":
            tree.append([name, "l", entry.target])
        elif entry.digest in blobs:
            data.append(blobs[entry.digest])
            tree.append([name, entry.kind, len(data[-1])])
        else:
            return None
    return tree

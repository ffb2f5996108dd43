"""Blobs between the store of the build and that of a worker which does not see its folder.

A worker asks for what its own store lacks, by digest, and gives back what its processes made. Everything is hashed
where it arrives.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from mrp.cache import trees
from mrp.cache.blobs import INLINE_LIMIT
from mrp.cache.canonical import parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.errors import MissingBlob
from mrp.cache.store import Store
from mrp.runtime.engine.ray_job import Piece
from mrp.specs.work import Completed, Process

PIECE = 4 * 2**20
"""Bytes that travel in one message."""

Fetch = Callable[[Iterable[Digest]], tuple[Mapping[Digest, bytes], Mapping[Digest, int]]]
"""Blobs by digest: the bytes of as many as fit in a message, and the sizes of those too large for that."""

FetchPiece = Callable[[Digest, int], bytes]
"""PIECE bytes of a large blob, from an offset."""


def serve(store: Store, wanted: Iterable[Digest]) -> tuple[dict[Digest, bytes], dict[Digest, int]]:
    """The answer to a Fetch. What the store lacks is left out; what no longer fits is to be asked for again."""
    found: dict[Digest, bytes] = {}
    large: dict[Digest, int] = {}
    room = PIECE
    for digest in wanted:
        with suppress(MissingBlob):
            size = store.size(digest)
            if size > PIECE:
                large[digest] = size
            elif not found or size <= room:
                found[digest] = store.get_bytes(digest)
                room -= size
    return found, large


def serve_piece(store: Store, digest: Digest, offset: int) -> bytes:
    """The answer to a FetchPiece. Raises MissingBlob."""
    with store.open_blob(digest) as file:
        file.seek(offset)
        return file.read(PIECE)


class Puller:
    """Makes a worker's store hold what processes need. `given`: digests that the build's store has for certain."""

    def __init__(self, store: Store, fetch: Fetch, fetch_piece: FetchPiece) -> None:
        self._store, self._fetch, self._fetch_piece = store, fetch, fetch_piece
        self._whole: set[tuple[str, Digest]] = set()
        self.given: set[Digest] = set()

    def pull(self, process: Process) -> frozenset[Digest]:
        """Pull what is missing for a process; gives what the build's store lacks as well."""
        missing = self._pull({("blob", process.box.image)})
        if missing:
            return missing
        layers = parse_canonical(self._store.get_bytes(process.box.image))["layers"]
        roots = {("tree", Digest(layer)) for layer in layers} | {("tree", mount.tree) for mount in process.mounts}
        return self._pull(roots)

    def _pull(self, refs: set[tuple[str, Digest]]) -> frozenset[Digest]:
        refs = refs - self._whole
        if not refs:
            return frozenset()
        while missing := self._store.missing_deep(refs):
            lost = self._pull_these(missing)
            if lost:
                return lost
        self._whole |= refs
        self._store.commit([])
        _, held, _ = trees.closure({digest for kind, digest in refs if kind == "tree"}, self._store.get_many)
        self.given |= held
        return frozenset()

    def _pull_these(self, wanted: set[Digest]) -> frozenset[Digest]:
        while wanted:
            found, large = self._fetch(wanted)
            for data in found.values():
                self._store.put_bytes(data)
            for digest, size in large.items():
                with tempfile.TemporaryFile(dir=self._store.root) as file:
                    for offset in range(0, size, PIECE):
                        file.write(self._fetch_piece(digest, offset))
                    file.flush()
                    self._store.put_file(f"/proc/self/fd/{file.fileno()}", digest=digest)
            if not found and not large:
                break
            wanted = wanted - found.keys() - large.keys()
        return frozenset(wanted)


def large_blobs(completed: Completed, store: Store, given: set[Digest]) -> Iterator[Piece]:
    """What a process made that does not travel as a small blob, in pieces; what was `given` before is left out.

    What the worker's store has no longer are small blobs that an earlier process made too, and that were taken then.
    """
    _, held, _ = trees.closure(completed.outputs.values(), store.get_many)
    for digest in sorted((held | {completed.stdout, completed.stderr}) - given):
        try:
            left = store.size(digest)
        except MissingBlob:
            continue
        if left <= INLINE_LIMIT:
            continue
        with store.open_blob(digest) as file:
            while data := file.read(PIECE):
                left -= len(data)
                yield Piece(digest, data, left <= 0)
        given.add(digest)


class Receiver:
    """Puts the pieces of large blobs together in the build's store, one blob after the other."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._file: IO[bytes] | None = None

    def take(self, piece: Piece) -> None:
        """Keep a piece; the blob is in the store after its last one. Raises ChangedWhileRead when it is another one."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        self._file.write(piece.data)
        if piece.is_last:
            self._file.flush()
            self._store.put_file(f"/proc/self/fd/{self._file.fileno()}", digest=piece.digest)
            self.close()

    def close(self) -> None:
        """Drop what is not whole. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

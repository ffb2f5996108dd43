"""Blobs between a build's store and a worker's: only what is missing travels, and what is wrong is not kept."""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import pytest

from mrp.cache.canonical import canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.errors import ChangedWhileRead
from mrp.cache.store import Entry, Store
from mrp.runtime.engine.blob_exchange import PIECE, Puller, Receiver, large_blobs, serve, serve_piece
from mrp.runtime.engine.ray_job import Piece
from mrp.specs.work import WORK, Box, Completed, Mount, Process

LARGE = bytes(range(256)) * (PIECE // 256 + 10)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    with Store.open(tmp_path / "build") as build, Store.open(tmp_path / "worker") as worker:
        yield build, worker


class Asked:
    """A Puller of `worker` from `build`, and the digests that were asked for."""

    def __init__(self, build: Store, worker: Store) -> None:
        self.digests: list[Digest] = []

        def fetch(wanted: Iterable[Digest]) -> tuple[Mapping[Digest, bytes], Mapping[Digest, int]]:
            asked = sorted(wanted)
            self.digests += asked
            return serve(build, asked)

        self.puller = Puller(worker, fetch, lambda digest, offset: serve_piece(build, digest, offset))


def tree(store: Store, files: Mapping[str, bytes]) -> Digest:
    return store.put_tree({path: Entry("f", store.put_bytes(data)) for path, data in files.items()})


def process(store: Store, inputs: Digest) -> Process:
    layer = tree(store, {"etc/motd": b"hello"})
    image = store.put_bytes(canonical_bytes({"base": {}, "env": {}, "layers": [layer], "user": "1:1"}))
    return Process(Box(image), argv=("true",), mounts=(Mount(WORK, inputs, True),))


def test_all_that_a_process_needs_is_pulled_once(stores: tuple[Store, Store]) -> None:
    build, worker = stores
    asked = Asked(build, worker)
    wanted = process(build, tree(build, {"a/small": b"s", "large": LARGE}))
    assert asked.puller.pull(wanted) == frozenset()
    refs = [("tree", mount.tree) for mount in wanted.mounts] + [("blob", wanted.box.image)]
    assert worker.missing_deep(refs) == set()
    assert len(asked.digests) == len(set(asked.digests))
    before = len(asked.digests)
    other = process(build, tree(build, {"a/small": b"s", "large": LARGE, "more": b"m"}))
    assert asked.puller.pull(other) == frozenset()
    assert len(asked.digests) - before == 2, "the new root and the new file"


def test_what_the_build_has_lost_is_named(stores: tuple[Store, Store]) -> None:
    build, worker = stores
    elsewhere = worker.put_bytes(b"never in the build's store")
    worker.blobs.take_small()
    wanted = process(build, build.put_tree({"lost": Entry("f", elsewhere)}))
    assert Asked(build, worker).puller.pull(wanted) == {elsewhere}


def test_large_outputs_travel_in_pieces_unless_the_build_gave_them(stores: tuple[Store, Store]) -> None:
    build, worker = stores
    empty = worker.put_bytes(b"")
    outputs = {WORK: tree(worker, {"large": LARGE, "small": b"s"})}
    completed = Completed(0, None, empty, empty, outputs, Decimal(0), Decimal(0), 0, "namespaces")
    receiver = Receiver(build, build.root)
    pieces = list(large_blobs(completed, worker, set()))
    assert [len(piece.data) for piece in pieces] == [PIECE, len(LARGE) - PIECE]
    for piece in pieces:
        receiver.take(piece)
    assert build.get_bytes(pieces[0].digest) == LARGE
    assert list(large_blobs(completed, worker, {pieces[0].digest})) == []


def test_a_blob_that_arrives_changed_is_not_kept(stores: tuple[Store, Store]) -> None:
    build, worker = stores
    digest = worker.put_bytes(LARGE)
    with pytest.raises(ChangedWhileRead):
        Receiver(build, build.root).take(Piece(digest, LARGE[:-1] + b"x", True))
    assert build.missing([digest]) == {digest}


def test_small_blobs_that_are_taken_belong_to_another_store(stores: tuple[Store, Store]) -> None:
    _, worker = stores
    digest = worker.put_bytes(b"result")
    assert worker.blobs.take_small() == {digest: b"result"}
    worker.commit([])
    assert worker.missing([digest]) == {digest}

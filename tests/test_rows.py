"""Rows pass one at a time from the store and into it, and damage on the way is found."""

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.trials import trial

from mrp.cache.canonical import Json, canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.errors import MissingBlob
from mrp.cache.store import Store
from mrp.rules.reduction import RunBuiltinReducer
from mrp.rules.rows import Rows, put_rows, read_rows, trials_tree


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


def trials(count: int) -> Iterator[dict[str, Json]]:
    """Trials of `count` records, whose names fill some hundred bytes."""
    return (trial(f"{number:06d}-{'x' * 300}", number % 2) for number in range(count))


def peak(work: object, *arguments: object) -> int:
    assert callable(work)
    tracemalloc.start()
    try:
        work(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_rows_that_were_put_come_back(store: Store) -> None:
    for count in (0, 1, 20_000):
        blob = put_rows(trials(count), store)
        assert store.get_bytes(blob) == b"".join(canonical_bytes(row) + b"\n" for row in trials(count))
        assert sum(1 for _ in read_rows((Rows("trials", "//:solve", blob),), store)) == count


def test_memory_does_not_grow_with_the_number_of_rows(store: Store) -> None:
    def through(count: int) -> None:
        blob = put_rows(trials(count), store)
        store.commit([])
        assert sum(1 for _ in read_rows((Rows("trials", "//:solve", blob),), store)) == count

    size = store.size(put_rows(trials(40_000), store))
    assert peak(through, 40_000) < size


def test_a_reducer_of_ones_own_is_given_the_chosen_rows_and_their_trees(store: Store) -> None:
    tree = store.put_tree({})
    rows = [trial("a", 1, tree=tree), trial("b", 0, tree=tree), trial("c", 1, tree=None)]
    inputs = tuple(Rows("trials", "//:solve", put_rows([row], store)) for row in rows)
    folder = trials_tree(inputs, "rewards.reward == 1", store)
    assert list(store.read_tree(folder)) == [f"trees/{tree}", "trials.jsonl"]
    entry = store.subtree(folder, "trials.jsonl")
    assert entry is not None and entry.digest is not None
    assert store.get_bytes(entry.digest) == b"".join(canonical_bytes(rows[place]) + b"\n" for place in (0, 2))


@pytest.mark.parametrize("damage", [b'"ok"', b"{"])
def test_damaged_trials_are_never_reduced(store: Store, damage: bytes) -> None:
    blob = put_rows(trials(5000), store)
    store.commit([])
    file = store.blob_path(blob)
    data = file.read_bytes()
    file.chmod(0o644)
    # The same size, and valid JSON lines in the first case.
    place = data.rindex(damage)
    other = data[:place] + (b'"no"' if damage == b'"ok"' else b"[") + data[place + len(damage) :]
    stat = file.stat()
    file.write_bytes(other)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    work = RunBuiltinReducer("stats", (Rows("trials", "//:solve", blob),), {}, (), None)
    with pytest.raises(MissingBlob):
        work.perform(store)


def test_a_missing_blob_of_rows_is_said(store: Store) -> None:
    with pytest.raises(MissingBlob):
        list(read_rows((Rows("trials", "//:solve", Digest("0" * 64)),), store))

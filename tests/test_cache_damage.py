"""Damage: every stored file, in every way, one at a time. Right bytes or a miss, never wrong ones."""

import dataclasses
import os
import random
import shutil

import pytest
from support.stores import LARGE, SMALL, entry_of, settle

from mrp.cache.canonical import action_key
from mrp.cache.layout import FORMAT_VERSION
from mrp.cache.store import CacheError, MissingBlob, Store


def make(root):
    """A small store, and what must be in it."""
    with Store.open(root) as store:
        entry = entry_of(store, "one")
        store.commit([entry, entry_of(store, "two", small=b"other", large=LARGE[::-1])])
        store.blob_path(entry.blobs[0])
        settle()
        store.missing(entry.blobs)
    return entry


def use(root, entry):
    """Read everything: it is right, or not there. Then build it anew: it is right."""
    warnings: list[str] = []
    with Store.open(root, on_warning=warnings.append) as store:
        read_all(store, entry)
        again = entry_of(store, "one")
        assert again.trees == entry.trees
        store.commit([again])
        assert store.missing_deep(entry.refs()) == set()
    with Store.open(root) as store:
        read_all(store, entry)
        assert store.lookup([entry.key]) == {entry.key: dataclasses.replace(entry, preimage=b"")}
        assert store.preimage(entry.key) == entry.preimage
        assert store.get_many(entry.blobs) == {entry.blobs[0]: SMALL, entry.blobs[1]: LARGE}
        assert store.missing_deep(entry.refs()) == set()
    return warnings


def read_all(store, entry):
    found = store.lookup([entry.key])
    assert found in ({}, {entry.key: dataclasses.replace(entry, preimage=b"")})
    assert store.preimage(entry.key) in (None, entry.preimage)
    missing = store.missing_deep(entry.refs())
    for digest, data in zip(entry.blobs, (SMALL, LARGE), strict=True):
        for read in (store.get_bytes, lambda digest: store.blob_path(digest).read_bytes(), read_stream(store)):
            try:
                assert read(digest) == data
            except MissingBlob:
                continue
        if digest in missing:
            with pytest.raises(MissingBlob):
                store.get_bytes(digest)
    try:
        assert set(store.read_tree(entry.trees[0])) == {"bin/run", "notes.txt", "empty"}
        place = store.root.parent / f"place-{random.random()}"
        store.checkout(entry.trees[0], place, writable=True)
        assert (place / "bin/run").read_bytes() == LARGE
        assert (place / "notes.txt").read_bytes() == SMALL
    except MissingBlob:
        pass


def read_stream(store):
    def read(digest):
        with store.open_blob(digest) as stream:
            return stream.read()

    return read


def flip(path, offset):
    data = bytearray(path.read_bytes() or b"\0")
    data[max(offset, 0)] ^= 1 << (offset % 8)
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)


def cut(path, size):
    path.chmod(0o644)
    os.truncate(path, size)


def into_folder(path):
    path.unlink()
    path.mkdir()
    (path / "something").write_bytes(b"")


def forbid(path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path.chmod(0)


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: cut(path, 0),
    "cut short": lambda path: cut(path, path.stat().st_size // 2),
    "first bit": lambda path: flip(path, 0),
    "middle bit": lambda path: flip(path, path.stat().st_size // 2),
    "last bit": lambda path: flip(path, path.stat().st_size - 1),
    "a folder": into_folder,
    "forbidden": forbid,
}


def stored_files(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_the_store_that_is_damaged_holds_one_of_everything(tmp_path):
    make(tmp_path / "cache")
    names = {path.relative_to(tmp_path / "cache").parts[0] for path in stored_files(tmp_path / "cache")}
    assert names == {"blobs", "format", "index.sqlite", "lock"}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("number", range(6))
def test_a_damaged_file_is_never_believed(tmp_path, damage, number):
    root = tmp_path / "cache"
    entry = make(root)
    files = stored_files(root)
    assert len(files) == 6
    path = files[number]
    DAMAGES[damage](path)
    try:
        use(root, entry)
    except CacheError as error:
        # Only what the code cannot repair by itself may need a person, and then it is told what to do.
        assert damage == "forbidden" or (path.name == "format" and "newer mrp" in str(error))
        assert "MRP_CACHE" in str(error)


@pytest.mark.parametrize("seed", range(60))
def test_random_bits_of_the_index(tmp_path, seed):
    root = tmp_path / "cache"
    entry = make(root)
    path = root / "index.sqlite"
    chance = random.Random(seed)
    size = path.stat().st_size
    for _ in range(chance.choice([1, 1, 10])):
        flip(path, chance.randrange(100 if seed % 3 == 0 else size))
    use(root, entry)


@pytest.mark.parametrize("seed", range(10))
def test_damage_while_the_store_is_open(tmp_path, seed):
    root = tmp_path / "cache"
    entry = make(root)
    with Store.open(root) as store:
        flip(root / "index.sqlite", random.Random(seed).randrange((root / "index.sqlite").stat().st_size))
        flip(root / "blobs" / entry.blobs[1][:2] / entry.blobs[1], seed)
        read_all(store, entry)
        store.commit([entry_of(store, "one")])
        read_all(store, entry)
    use(root, entry)


@pytest.mark.parametrize("name", ["blobs", "tmp", "quarantine", "."])
def test_folders_that_vanish(tmp_path, name):
    root = tmp_path / "cache"
    entry = make(root)
    shutil.rmtree(root / name)
    use(root, entry)


@pytest.mark.parametrize("name", ["blobs", "tmp", "quarantine"])
def test_files_where_folders_belong(tmp_path, name):
    root = tmp_path / "cache"
    entry = make(root)
    shutil.rmtree(root / name)
    (root / name).write_bytes(b"in the way")
    use(root, entry)


def test_a_file_where_the_folder_of_a_blob_belongs(tmp_path):
    root = tmp_path / "cache"
    entry = make(root)
    folder = root / "blobs" / entry.blobs[1][:2]
    shutil.rmtree(folder)
    folder.write_bytes(b"in the way")
    use(root, entry)


def test_a_garbled_index_is_put_aside_and_said_so(tmp_path):
    root = tmp_path / "cache"
    entry = make(root)
    (root / "index.sqlite").write_bytes(b"garbage" * 10_000)
    warnings = use(root, entry)
    assert len(warnings) == 1
    assert "was damaged" in warnings[0]
    assert any(path.name.startswith("index.sqlite.") for path in (root / "quarantine").iterdir())


def test_an_index_that_another_process_replaced_is_opened_anew(tmp_path):
    root = tmp_path / "cache"
    entry = make(root)
    with Store.open(root) as store:
        for path in root.glob("index.sqlite*"):
            path.unlink()
        store.commit([entry_of(store, "one")])
        with Store.open(root) as other:
            read_all(other, entry)
            assert other.lookup([entry.key]).keys() == {entry.key}


def test_a_log_that_lost_its_end_loses_no_more_than_that(tmp_path):
    root = tmp_path / "cache"
    entry = make(root)
    with Store.open(root) as store:
        store.commit([entry_of(store, "three")])
        shutil.copytree(root, tmp_path / "copy")
    cut(tmp_path / "copy" / "index.sqlite-wal", (tmp_path / "copy" / "index.sqlite-wal").stat().st_size - 100)
    with Store.open(tmp_path / "copy") as store:
        three, _ = action_key({"name": "three"})
        assert store.lookup([entry.key, three]).keys() == {entry.key}
    use(tmp_path / "copy", entry)


@pytest.mark.parametrize("place", ["format", "index"])
def test_a_newer_format_is_left_alone(tmp_path, place):
    root = tmp_path / "cache"
    make(root)
    newer = FORMAT_VERSION + 41
    if place == "format":
        (root / "format").write_text(f'{{"version": {newer}}}')
    else:
        with Store.open(root) as store:
            store.index.transact(lambda connection: connection.execute(f"PRAGMA user_version={newer}"))
        (root / "format").unlink()
    before = {path: path.read_bytes() for path in stored_files(root)}
    with pytest.raises(
        CacheError, match=f"version {newer}, and this mrp knows version 1; use a newer mrp, or set MRP_CACHE"
    ):
        Store.open(root)
    assert {path: path.read_bytes() for path in stored_files(root)} == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_bytes(b"")
    with pytest.raises(CacheError, match="is no mrp cache; set MRP_CACHE"):
        Store.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(CacheError, match="is a file, no folder"):
        Store.open(tmp_path / "thesis.txt")

"""Blobs: what is put can be read, is verified, and is kept for good after a commit."""

import os
import threading

import pytest
from support.stores import LARGE, SMALL, settle

from mrp.cache.blobs import INLINE_LIMIT, MAX_PENDING_BLOBS
from mrp.cache.digest import Digest, digest_bytes
from mrp.cache.hashing import THREADED, hash_file, hash_files
from mrp.cache.store import ChangedWhileRead, MissingBlob, Store

SIZES = [0, 1, INLINE_LIMIT, INLINE_LIMIT + 1, 1_000_000]


def content(size: int) -> bytes:
    return (b"%d bytes of this " % size * (size // 10 + 1))[:size]


@pytest.mark.parametrize("size", SIZES)
def test_bytes_are_readable_at_once_and_after_a_commit(tmp_path, size):
    data = content(size)
    with Store.open(tmp_path) as store:
        digest = store.put_bytes(data)
        assert digest == digest_bytes(data)
        assert store.get_bytes(digest) == data
        store.commit([])
    with Store.open(tmp_path) as store:
        assert store.get_bytes(digest) == data
        assert store.get_many([digest]) == {digest: data}
        assert store.size(digest) == size
        assert store.missing([digest]) == set()
        with store.open_blob(digest) as stream:
            assert stream.read() == data
        assert store.blob_path(digest).read_bytes() == data


def test_small_blobs_take_no_file_and_large_ones_a_read_only_one(tmp_path):
    with Store.open(tmp_path) as store:
        small, large = store.put_bytes(SMALL), store.put_bytes(LARGE)
        store.commit([])
    files = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert [path.name for path in files] == [large]
    assert files[0].stat().st_mode & 0o777 == 0o444
    assert small != large
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_blob_that_was_never_put_is_missing(tmp_path):
    nothing = Digest("0" * 64)
    with Store.open(tmp_path) as store:
        here = store.put_bytes(SMALL)
        assert store.missing([nothing, here]) == {nothing}
        for read in (store.get_bytes, store.open_blob, store.blob_path, store.size):
            with pytest.raises(MissingBlob) as caught:
                read(nothing)
            assert caught.value.digest == nothing


def test_many_digests_are_asked_for_at_once(tmp_path):
    with Store.open(tmp_path) as store:
        here = {store.put_bytes(b"%d" % number) for number in range(3000)}
        store.commit([])
        gone = {digest_bytes(b"never %d" % number) for number in range(3000)}
        assert store.missing(here | gone) == gone
        assert store.get_many(here | gone).keys() == here


@pytest.mark.parametrize("size", [*SIZES, THREADED + 17])
def test_a_file_is_copied_in_and_later_changes_of_it_do_no_harm(tmp_path, size):
    file = tmp_path / "file"
    file.write_bytes(content(size))
    with Store.open(tmp_path / "cache") as store:
        digest = store.put_file(file)
        assert digest == hash_file(file) == hash_files([file])[0]
        file.write_bytes(b"something else")
        assert store.get_bytes(digest) == content(size)
        assert (
            not store.layout.blobs.joinpath(digest[:2], digest).exists() or store.blob_path(digest).stat().st_nlink == 1
        )


def test_a_file_whose_digest_is_known_and_stored_is_not_read(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(SMALL)
    with Store.open(tmp_path / "cache") as store:
        digest = store.put_file(file)
        file.unlink()
        assert store.put_file(file, digest=digest) == digest


def test_a_file_that_no_longer_has_its_digest_is_an_error(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"new")
    with Store.open(tmp_path / "cache") as store, pytest.raises(ChangedWhileRead, match=str(file)):
        store.put_file(file, digest=digest_bytes(b"old"))


def test_folders_and_pipes_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with Store.open(tmp_path / "cache") as store:
        for path in (tmp_path, tmp_path / "pipe"):
            with pytest.raises(IsADirectoryError):
                store.put_file(path)


def test_a_large_blob_is_hashed_once_and_then_trusted_by_its_stat(tmp_path):
    with Store.open(tmp_path) as store:
        digest = store.put_bytes(LARGE)
        settle()
        store.missing([digest])
        store.blob_path(digest)
        store.commit([])
        assert store.blobs.files.files_hashed == 1
    with Store.open(tmp_path) as store:
        assert store.missing([digest]) == set()
        store.blob_path(digest)
        assert store.put_bytes(LARGE) == digest
        assert store.blobs.files.files_hashed == 0


def test_a_touched_large_blob_is_hashed_again(tmp_path):
    with Store.open(tmp_path) as store:
        digest = store.put_bytes(LARGE)
        settle()
        os.utime(store.blob_path(digest))
        settle()
        before = store.blobs.files.files_hashed
        assert store.missing([digest]) == set()
        assert store.blobs.files.files_hashed == before + 1


@pytest.mark.parametrize("keep_times", [False, True])
def test_changed_bytes_of_the_same_length_are_never_served(tmp_path, keep_times):
    with Store.open(tmp_path) as store:
        digest = store.put_bytes(LARGE)
        settle()
        path = store.blob_path(digest)
        times = path.stat()
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(b"!")
        if keep_times:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert store.missing([digest]) == {digest}
        with pytest.raises(MissingBlob):
            store.get_bytes(digest)
        assert [kept.name.split(".")[0] for kept in (tmp_path / "quarantine").iterdir()] == [digest]
        assert store.put_bytes(LARGE) == digest
        assert store.get_bytes(digest) == LARGE


def test_a_change_in_the_very_moment_of_writing_is_seen(tmp_path):
    with Store.open(tmp_path) as store:
        for number in range(20):
            data = LARGE + b"%d" % number
            digest = store.put_bytes(data)
            path = tmp_path / "blobs" / digest[:2] / digest
            path.chmod(0o644)
            with path.open("r+b") as file:
                file.write(b"!")
            assert store.missing([digest]) == {digest}


def test_more_small_blobs_than_memory_should_hold_are_written_before_the_commit(tmp_path):
    with Store.open(tmp_path) as store:
        digests = [store.put_bytes(b"%d" % number) for number in range(MAX_PENDING_BLOBS + 2)]
        with Store.open(tmp_path) as other:
            assert len(other.missing(digests)) == 1
        assert store.missing(digests) == set()


def test_many_threads_put_and_one_commits(tmp_path):
    with Store.open(tmp_path) as store:
        digests: list[Digest] = []

        def put(worker: int) -> None:
            for number in range(300):
                digests.append(store.put_bytes(b"%d %d" % (worker, number)))
                if number % 100 == 0:
                    digests.append(store.put_bytes(b"%d %d" % (worker, number) * 10_000))

        threads = [threading.Thread(target=put, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            store.commit([])
        store.commit([])
        with Store.open(tmp_path) as other:
            assert len(set(digests)) == 4 * 303
            assert other.missing(digests) == set()

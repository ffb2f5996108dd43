"""Hashing large files: read beside hashing, with whatever others do to them meanwhile."""

import os
import threading
from contextlib import suppress

import pytest

from mrp.cache.digest import digest_bytes
from mrp.cache.errors import ChangedWhileRead
from mrp.cache.hashing import THREADED, hash_copied, hash_descriptor, hash_file

LARGE = THREADED + 4 * 2**20


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(os.urandom(2**20) * (LARGE // 2**20))
    return path


@pytest.mark.parametrize("size", [0, 1, THREADED - 1, THREADED, THREADED + 1, LARGE - 1, LARGE, LARGE + 1])
def test_a_digest_is_that_of_the_bytes_however_they_are_read(tmp_path, size):
    data = (os.urandom(997) * (size // 997 + 1))[:size]
    path = tmp_path / "file"
    path.write_bytes(data)
    assert hash_file(path) == digest_bytes(data)


def test_copying_gives_the_digest_of_what_was_copied(tmp_path, large):
    copy = tmp_path / "copy"
    with large.open("rb") as source, copy.open("wb") as target:
        digest = hash_copied(source.fileno(), target.fileno())
    assert copy.read_bytes() == large.read_bytes()
    assert digest == digest_bytes(copy.read_bytes())


def test_a_copy_of_a_file_that_never_stands_still_has_the_digest_of_the_copy(tmp_path, large):
    done = threading.Event()

    def keep_writing() -> None:
        with large.open("r+b", buffering=0) as file:
            while not done.is_set():
                file.seek(0)
                for _ in range(LARGE // 2**16):
                    file.write(os.urandom(16) * 2**12)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for number in range(5):
            copy = tmp_path / str(number)
            with large.open("rb") as source, copy.open("wb") as target:
                assert hash_copied(source.fileno(), target.fileno()) == digest_bytes(copy.read_bytes())
    finally:
        done.set()
        writer.join()


def test_a_file_that_is_cut_short_under_the_reader_harms_nobody(large):
    done = threading.Event()

    def keep_cutting() -> None:
        while not done.is_set():
            os.truncate(large, 10)
            os.truncate(large, LARGE)

    cutter = threading.Thread(target=keep_cutting)
    cutter.start()
    try:
        for _ in range(20):
            with suppress(ChangedWhileRead):
                assert len(hash_file(large)) == 64
    finally:
        done.set()
        cutter.join()


def test_what_cannot_be_read_or_written_is_an_error_and_leaves_no_thread(tmp_path, large):
    before = threading.active_count()
    with (tmp_path / "only written").open("wb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        hash_descriptor(file.fileno(), LARGE)
    full = os.open("/dev/full", os.O_WRONLY)
    with large.open("rb") as source, pytest.raises(OSError, match="No space left"):
        hash_copied(source.fileno(), full)
    os.close(full)
    assert threading.active_count() == before

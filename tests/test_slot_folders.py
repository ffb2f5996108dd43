"""The folders of a slot: laid out, read back, emptied, and known to be empty where that is certain."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrp.runtime.sandbox import slot_folders
from mrp.runtime.sandbox.slot import Folder

TREE = [["a.txt", "f", 3], ["bin", "d", [["run", "x", 2]]], ["link", "l", "a.txt"]]
DATA = b"onego"


@pytest.fixture
def memory() -> Iterator[Path]:
    import tempfile

    if not os.path.ismount("/dev/shm"):
        pytest.skip("this machine has no folder in memory at /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_what_was_laid_out_is_read_back_and_removed_by_name(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    slot_folders.lay(folder, TREE, memoryview(DATA), writable=True)
    pieces: list[bytes] = []
    assert slot_folders.take(folder, 2**20, pieces) == TREE
    assert b"".join(pieces) == DATA
    slot_folders.unlay(folder, TREE)
    assert os.listdir(folder) == []
    os.close(folder)


def test_a_folder_in_memory_tells_by_its_size_that_it_is_empty(memory: Path) -> None:
    folder = Folder.open(str(memory))
    assert folder.size_when_empty is not None
    assert folder.is_empty()
    (memory / "a").mkdir()
    assert not folder.is_empty()
    (memory / "a").rmdir()
    assert folder.is_empty()


def test_where_size_says_nothing_a_folder_is_never_taken_for_empty(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))._replace(size_when_empty=None)
    assert not folder.is_empty()
    folder.clear(())
    assert list(tmp_path.iterdir()) == []


def test_what_appears_beside_what_was_seen_is_removed_as_well(memory: Path) -> None:
    folder = Folder.open(str(memory))
    slot_folders.lay(folder.descriptor, TREE, memoryview(DATA), writable=True)
    (memory / "later.txt").write_text("by a process that an item left running")
    (memory / "a.txt").unlink()
    folder.clear(TREE)
    assert list(memory.iterdir()) == []


def test_a_pipe_is_not_plain(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(slot_folders.NotPlain):
        slot_folders.take(folder, 2**20, [])
    os.close(folder)

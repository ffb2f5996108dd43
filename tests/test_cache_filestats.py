"""Remembered digests of files: untouched ones are not read, and changed ones always are."""

import os
import subprocess
import sys

import pytest
from support.stores import settle

from mrp.cache.digest import digest_bytes
from mrp.cache.filestats import FileDigests
from mrp.cache.hashing import hash_descriptor, hash_file
from mrp.cache.store import ChangedWhileRead


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    paths = [folder / f"{number}.txt" for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(b"content %d" % number)
    settle()
    return paths


@pytest.fixture
def memory(tmp_path):
    return tmp_path / ".mrp" / "files.digests"


def read(memory, files):
    """The digests, and how many files had to be read for them."""
    with FileDigests.open(memory) as digests:
        return digests.digest_many(files), digests.files_read


def test_untouched_files_are_not_read_again(memory, files):
    expected = {path: digest_bytes(path.read_bytes()) for path in files}
    assert read(memory, files) == (expected, 20)
    assert read(memory, files) == (expected, 0)


def test_only_what_was_touched_is_read_again(memory, files):
    before, _ = read(memory, files)
    files[3].write_bytes(b"changed")
    os.utime(files[4])
    settle()
    after, count = read(memory, files)
    assert count == 2
    assert after == before | {files[3]: digest_bytes(b"changed")}
    assert read(memory, files) == (after, 0)


def test_one_digest_at_a_time(memory, files):
    with FileDigests.open(memory) as digests:
        assert digests.digest(files[0]) == digests.digest(str(files[0])) == hash_file(files[0])
        assert digests.files_read == 1


@pytest.mark.parametrize("seconds", [-1, -3600, 3600, 10**9])
def test_a_change_of_the_same_length_with_any_other_time_is_seen(memory, files, seconds):
    read(memory, files)
    status = files[0].stat()
    files[0].write_bytes(files[0].read_bytes()[::-1])
    moved = status.st_mtime_ns + seconds * 10**9
    os.utime(files[0], ns=(moved, moved))
    digests, _ = read(memory, files)
    assert digests[files[0]] == hash_file(files[0])


def test_a_change_whose_time_was_put_back_is_seen(memory, files):
    read(memory, files)
    status = files[0].stat()
    files[0].write_bytes(files[0].read_bytes()[::-1])
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert files[0].stat().st_mtime_ns == status.st_mtime_ns
    digests, count = read(memory, files)
    assert count == 1
    assert digests[files[0]] == hash_file(files[0])


def test_another_file_moved_into_place_is_seen(memory, files):
    read(memory, files)
    status = files[0].stat()
    other = files[0].with_name("other")
    other.write_bytes(files[0].read_bytes()[::-1])
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(files[0])
    digests, _ = read(memory, files)
    assert digests[files[0]] == hash_file(files[0])


def test_a_file_written_twice_in_one_tick_is_seen(memory, tmp_path):
    path = tmp_path / "racy"
    with FileDigests.open(memory) as digests:
        for number in range(200):
            path.write_bytes(b"%04d" % number)
            assert digests.digest(path) == digest_bytes(b"%04d" % number)


def test_files_from_the_future_are_read_each_time(memory, files):
    future = 4_000_000_000
    os.utime(files[0], (future, future))
    settle()
    read(memory, files)
    assert read(memory, files)[1] == 1


def test_a_clock_that_was_set_back_only_means_reading_again(memory, files):
    # The records are from a time that, by the clock of now, is yet to come.
    expected, _ = read(memory, files)
    for path in files:
        status = path.stat()
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 3600 * 10**9))
    settle()
    assert read(memory, files) == (expected, 20)
    assert read(memory, files) == (expected, 0)


@pytest.mark.parametrize("damage", ["garbage", "empty", "folder", "another version"])
def test_a_damaged_memory_only_means_reading_again(memory, files, damage):
    expected, _ = read(memory, files)
    data = memory.read_bytes()
    memory.unlink()
    if damage == "folder":
        (memory / "inside").mkdir(parents=True)
    elif damage == "another version":
        memory.write_bytes(data.replace(b"mrp-files-2", b"mrp-files-3"))
    else:
        memory.write_bytes(b"garbage" * 1000 if damage == "garbage" else b"")
    assert read(memory, files) == (expected, 20)
    assert read(memory, files) == (expected, 20 if damage == "folder" else 0)


def test_no_flipped_bit_of_the_memory_is_believed(memory, files):
    expected, _ = read(memory, files)
    data = memory.read_bytes()
    for place in range(0, len(data), 7):
        memory.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        assert read(memory, files) == (expected, 20)
    assert read(memory, files) == (expected, 0)


def test_a_memory_that_breaks_off_keeps_what_stands_before(memory, files):
    read(memory, files[:10])
    first = memory.stat().st_size
    expected, _ = read(memory, files)
    with memory.open("r+b") as file:
        file.truncate((first + memory.stat().st_size) // 2)
    assert read(memory, files) == (expected, 10)
    assert read(memory, files) == (expected, 0)


def test_an_edit_writes_what_was_edited(memory, files):
    read(memory, files)
    before = memory.read_bytes()
    files[3].write_bytes(b"changed")
    settle()
    read(memory, files)
    assert memory.read_bytes().startswith(before)
    assert memory.stat().st_size - len(before) < len(before) / 5


def test_a_memory_does_not_grow_with_every_edit(memory, files, monkeypatch):
    monkeypatch.setattr("mrp.cache.filestats._SLACK", 10)
    sizes = []
    for number in range(60):
        files[0].write_bytes(b"%d" % number)
        settle()
        assert read(memory, files)[1] == (20 if number == 0 else 1)
        sizes.append(memory.stat().st_size)
    assert max(sizes) < 4 * sizes[0]
    assert read(memory, files)[1] == 0


def test_what_nobody_asks_for_any_more_is_dropped(memory, files, monkeypatch):
    monkeypatch.setattr("mrp.cache.filestats._MAX_UNUSED", 15)
    read(memory, files)
    files[0].write_bytes(b"changed")
    settle()
    read(memory, files[:2])
    assert read(memory, files[:2])[1] == 0
    assert read(memory, files)[1] == 18


def test_sources_are_named_as_they_are_asked_for(memory, files, tmp_path):
    files[4].chmod(0o755)
    settle()
    names = [f"src/{path.name}" for path in files]
    expected = {name: (hash_file(tmp_path / name), name == "src/4.txt") for name in names}
    for count in (20, 0):
        with FileDigests.open(memory) as digests:
            assert digests.sources(tmp_path, names) == expected
            assert digests.files_read == count
    assert read(memory, files)[1] == 0


def test_two_memories_of_one_file_do_no_harm(memory, files):
    with FileDigests.open(memory) as one, FileDigests.open(memory) as two:
        assert one.digest_many(files[:15]) | two.digest_many(files[5:]) == {path: hash_file(path) for path in files}
    assert read(memory, files)[1] == 0


def test_processes_that_write_at_once_keep_what_each_other_wrote(memory, files):
    script = (
        "import sys; from pathlib import Path; from mrp.cache.filestats import FileDigests\n"
        "for path in sys.argv[2:]:\n"
        "    with FileDigests.open(Path(sys.argv[1])) as digests: digests.digest(path)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, memory, *files[start::4]], stdout=subprocess.DEVNULL)
        for start in range(4)
    ]
    assert [process.wait(300) for process in running] == [0, 0, 0, 0]
    assert read(memory, files)[1] == 0


def test_what_is_no_readable_file_is_an_os_error(memory, tmp_path):
    with FileDigests.open(memory) as digests:
        with pytest.raises(FileNotFoundError):
            digests.digest(tmp_path / "nothing")
        with pytest.raises(IsADirectoryError):
            digests.digest(tmp_path)


def test_a_file_that_never_stands_still_is_an_error(memory, tmp_path, monkeypatch):
    path = tmp_path / "busy"
    path.write_bytes(b"first")

    def written_once_it_was_read(descriptor, size):
        digest = hash_descriptor(descriptor, size)
        settle()
        path.write_bytes(b"other")
        return digest

    monkeypatch.setattr("mrp.cache.hashing.hash_descriptor", written_once_it_was_read)
    with FileDigests.open(memory) as digests, pytest.raises(ChangedWhileRead, match="busy changed while it was"):
        digests.digest(path)
    monkeypatch.undo()
    assert read(memory, [path]) == ({path: digest_bytes(b"other")}, 1)

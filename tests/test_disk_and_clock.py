"""Full and read-only disks, caches of a newer mrp, clocks that jump: clear errors, nothing lost, every edit noticed."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.damage import FILES, built, place_in, served, settle
from support.places import Place
from support.stores import run_on_disk_of, run_on_readonly

from mrp.cache.layout import FORMAT_VERSION
from mrp.runtime.runs import find_run, list_runs

DAY = 24 * 3600

# -- full disks --------------------------------------------------------------------------------------------------

PRELUDE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from support.damage import *
from support.places import Place

disk, clean = Path(sys.argv[1]), Path(sys.argv[2])
built(place_in(clean))
right = served(place_in(clean))
ballast = disk / "ballast"

def fill(left):
    state = os.statvfs(disk)
    ballast.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - left * 1024)))

def finished(place):
    # The folder of the cache is opened for it, which needs some space.
    return place.committed_keys()

def after(place, code, reason, words):
    assert code == 4, (code, reason)
    assert any(word in reason for word in words), reason
    ballast.unlink()
    known = finished(place)
    assert outcome(place) == (0, "")
    assert served(place) == right
    begun = place.started_keys(max((place.folder / ".mrp" / "runs").iterdir()))
    assert not begun & known, "what was finished before the disk was full ran again"
    return len(known)
"""

CACHE = """
kept = []
for left in map(int, sys.argv[4:]):
    place = Place(clean / f"{left}" / "ws", disk / "cache").write(FILES)
    fill(left)
    code, reason = outcome(place)
    said = f"The disk that holds the cache {disk / 'cache'} is full; free some space there"
    kept.append(after(place, code, reason, [said]))
    shutil.rmtree(disk / "cache")
print(kept)
"""


def test_a_full_cache_says_so_and_keeps_what_was_finished(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    disk, clean = tmp_path / "disk", tmp_path / "clean"
    disk.mkdir()
    tests = request.config.rootpath / "tests"
    kept = eval(run_on_disk_of("2m", disk, PRELUDE + CACHE, disk, clean, tests, *"0 60 120 180 240".split()))
    assert kept[0] == 0
    assert kept[-1] > 0, "the last build came some way before the disk was full"


WORKSPACE = """
for left in map(int, sys.argv[4:]):
    place = Place(disk / f"{left}" / "ws", clean / f"{left}-cache").write(FILES)
    fill(left)
    code, reason = outcome(place)
    after(place, code, reason, ["no space left on device; free some space", "is full, with less than 64 MiB left; free",
                                "make room and access"])
    shutil.rmtree(place.folder)
"""


def test_a_full_workspace_says_so_and_believes_nothing_made_on_it(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One of the commands passes over write errors, so its exit code 0 says nothing while the disk is full."""
    disk, clean = tmp_path / "disk", tmp_path / "clean"
    disk.mkdir()
    left = "0 8 20 28 64 8000 60000".split()
    run_on_disk_of("80m", disk, PRELUDE + WORKSPACE, disk, clean, request.config.rootpath / "tests", *left)


NAMES = """
def use_up(left):
    ballast.mkdir()
    count = os.statvfs(disk).f_favail
    for number in range(max(0, count - left)):
        (ballast / f"{number}").touch()

codes = []
for left in map(int, sys.argv[4:]):
    place = Place(disk / f"{left}" / "ws", clean / f"{left}-cache").write(FILES)
    built(place)
    shutil.rmtree(place.folder / "mrp-out")
    use_up(left)
    code, reason = outcome(place)
    codes.append(code)
    assert code == 0 or (code == 4 and "no space left on device; free some space" in reason), (code, reason)
    shutil.rmtree(ballast)
    assert outcome(place) == (0, "")
    assert served(place) == right
    shutil.rmtree(place.folder)
print(codes)
"""


def test_a_disk_without_names_left_says_so_when_outputs_are_linked(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    disk, clean = tmp_path / "disk", tmp_path / "clean"
    disk.mkdir()
    tests, left = request.config.rootpath / "tests", "0 3 6 9 12 15 18 21 24 60".split()
    codes = eval(run_on_disk_of("200m,nr_inodes=400", disk, PRELUDE + NAMES, disk, clean, tests, *left))
    assert codes[0] == 4
    assert codes[-1] == 0


# -- read-only disks, newer caches -------------------------------------------------------------------------------

READ_ONLY = """
import sys
sys.path.insert(0, sys.argv[3])
from support.damage import *
from support.places import Place
print(*outcome(Place(Path(sys.argv[1]), Path(sys.argv[2]))))
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("ws-cache", "4 The cache {0} cannot be written to ({0}); make it writable for this user, or set MRP_CACHE"),
        ("ws", "4 cannot use {0}/.mrp/runs/"),
    ],
)
def test_a_read_only_disk_is_named_and_left_as_it_was(
    tmp_path: Path, request: pytest.FixtureRequest, what: str, said: str
) -> None:
    place = place_in(tmp_path)
    built(place)
    right = served(place)
    folder = tmp_path / what
    tests = request.config.rootpath / "tests"
    answer = run_on_readonly(folder, READ_ONLY, place.folder, place.cache, tests)
    assert answer.startswith(said.format(folder)), answer
    assert "for this user" in answer
    assert served(place) == right
    assert built(place).executed == 0, "nothing was lost"


def test_a_cache_of_a_newer_mrp_is_left_alone(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    built(place)
    right = served(place)
    (place.cache / "format").write_text(f'{{"version": {FORMAT_VERSION + 1}}}\n')
    before = {path: path.read_bytes() for path in place.cache.rglob("*") if path.is_file()}
    done = place.mrp("build", "//:eval")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"error: The cache {place.cache} has format version {FORMAT_VERSION + 1}, and this mrp knows version "
        f"{FORMAT_VERSION}; use a newer mrp, or set MRP_CACHE to another folder.\n"
    )
    assert {path: path.read_bytes() for path in place.cache.rglob("*") if path.is_file()} == before
    other = Place(place.folder, tmp_path / "another-cache")
    built(other)
    assert served(other) == right


# -- edits that hide ---------------------------------------------------------------------------------------------


def overwrite(path: Path, text: str) -> None:
    """Other bytes of the same length, with the mtime as it was."""
    status = path.stat()
    assert status.st_size == len(text)
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_rename(path: Path, text: str) -> None:
    """Another file of the same size and mtime in its place."""
    status = path.stat()
    assert status.st_size == len(text)
    other = path.with_name("other")
    other.write_text(text)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def swap_folders(path: Path, text: str) -> None:
    """The folder of the file changes places with one that looks the same."""
    status = path.stat()
    assert status.st_size == len(text)
    twin = path.parent.with_name("twin")
    shutil.copytree(path.parent, twin)
    (twin / path.name).write_text(text)
    os.utime(twin / path.name, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.parent.rename(path.parent.with_name("away"))
    twin.rename(path.parent)
    shutil.rmtree(path.parent.with_name("away"))


def in_the_future(path: Path, text: str) -> None:
    """Both the old and the new content carry one mtime, a year from now."""
    later = time.time_ns() + 365 * DAY * 10**9
    path.write_text(text)
    os.utime(path, ns=(later, later // DAY * DAY))


def words_place(folder: Path) -> Place:
    """The words of the command lie in a folder of their own."""
    build = str(FILES["BUILD.yaml"]).replace("words.txt", "words/list.txt")
    files = {**FILES, "BUILD.yaml": build, "words/list.txt": "good bad"}
    files["make.py"] = str(FILES["make.py"]).replace("words.txt", "words/list.txt")
    del files["words.txt"]
    return Place(folder / "ws").write(files)


HIDDEN: dict[str, Callable[[Path, str], None]] = {
    "overwritten": overwrite,
    "replaced by rename": replace_by_rename,
    "its folder swapped": swap_folders,
    "a time in the future": in_the_future,
}


@pytest.mark.parametrize("way", HIDDEN)
def test_an_edit_that_keeps_size_and_time_is_noticed(tmp_path: Path, way: str) -> None:
    place = words_place(tmp_path)
    path = place.folder / "words" / "list.txt"
    HIDDEN[way](path, "good bad")
    built(place)
    settle()
    assert built(place).executed == 0
    for text in ("bad good", "bad nice", "good bad"):
        before = path.stat()
        HIDDEN[way](path, text)
        assert path.stat().st_size == before.st_size
        built(place)
        rows = (place.folder / "mrp-out" / "rows" / "rows.jsonl").read_text()
        assert [line.split('"')[-2] for line in rows.splitlines()] == text.split()


def test_an_edit_right_after_a_build_is_noticed(tmp_path: Path) -> None:
    """The file system's clock may not have moved on since the file was read, so its stat alone would not tell."""
    place = words_place(tmp_path)
    path = place.folder / "words" / "list.txt"
    for number in range(12):
        overwrite(path, f"word {number:03d}")
        built(place, "//:rows")
        rows = (place.folder / "mrp-out" / "rows" / "rows.jsonl").read_text()
        assert f'"text": "{number:03d}"' in rows


def test_times_alone_execute_nothing(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    built(place)
    for moment in (0, time.time() + 3650 * DAY, time.time() - 1):
        for path in place.folder.iterdir():
            if path.is_file():
                os.utime(path, (moment, moment))
        assert built(place).executed == 0


# -- clocks that jump --------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets this process's clock off by seconds; that of the file system goes on."""
    real, real_ns = time.time, time.time_ns

    def jump(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(seconds * 10**9))

    return jump


def test_a_clock_that_jumps_hides_no_edit_and_loses_nothing(tmp_path: Path, clock: Callable[[float], None]) -> None:
    place = words_place(tmp_path)
    path = place.folder / "words" / "list.txt"
    for number, jump in enumerate([0, -DAY, 3650 * DAY, -30 * DAY, 1]):
        clock(jump)
        overwrite(path, f"word {number:03d}")
        assert built(place).status == "ok"
        rows = (place.folder / "mrp-out" / "rows" / "rows.jsonl").read_text()
        assert f'"text": "{number:03d}"' in rows
        assert built(place).executed == 0
    overwrite(path, "word 001")
    clock(-DAY)
    assert built(place).executed == 0, "what was made a day ahead of now is still known"


def test_runs_stay_in_order_when_the_clock_jumps_back(tmp_path: Path, clock: Callable[[float], None]) -> None:
    place = place_in(tmp_path)
    ids = []
    for jump in (0, -DAY, -3650 * DAY, DAY):
        clock(jump)
        ids.append(built(place, "//:rows").run_id)
    state = place.folder / ".mrp"
    assert list_runs(state) == ids
    assert find_run(state, "last").name == ids[-1]
    assert find_run(state, "last~2").name == ids[1]

"""Damage, seen from whole builds: every stored file, in every way, one at a time. Nothing wrong is ever served."""

import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from support.damage import (
    FILES,
    TARGETS,
    WAYS,
    build_with_logs_left,
    built,
    copy,
    cut,
    databases,
    flip,
    into_folder,
    outcome,
    place_in,
    rot,
    served,
    settle,
    stored,
)
from support.places import Place

from mrp.runtime.events import Event, ItemFinished, Warned
from mrp.runtime.ledger import Ledger, Past
from mrp.runtime.runs import find_run, read_digests, read_record
from mrp.specs.errors import UsageError


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The workspace after a build and a build with nothing to do."""
    place = place_in(tmp_path_factory.mktemp("undamaged"))
    built(place)
    settle()
    assert built(place).executed == 0
    return place


@pytest.fixture(scope="module")
def right(undamaged: Place) -> dict[str, bytes]:
    """What every build of it must give."""
    return served(undamaged)


@pytest.fixture
def place(undamaged: Place, tmp_path: Path) -> Place:
    """A copy to damage, built once so that it remembers the stats of its own files."""
    place = copy(undamaged, tmp_path)
    built(place)
    settle()
    return place


def large_blobs(place: Place) -> list[Path]:
    """The files that trials left and that the index does not hold: a word ten thousand times."""
    files = (path for path in (place.cache / "blobs").rglob("*") if path.is_file())
    return sorted(path for path in files if path.stat().st_size > 16384 and path.stat().st_size % 10_000 == 0)


def ran(events: list[Event]) -> Counter[str]:
    """How many actions of each kind were executed with success."""
    return Counter(e.kind for e in events if isinstance(e, ItemFinished) and not e.cached and e.outcome == "ok")


# -- between two builds ------------------------------------------------------------------------------------------


def test_one_of_everything_is_stored(undamaged: Place) -> None:
    cache = {
        path.relative_to(undamaged.cache).parts[0] for path in stored(undamaged) if undamaged.cache in path.parents
    }
    assert cache == {"blobs", "format", "index.sqlite", "inflight", "lock"}
    state = undamaged.folder / ".mrp"
    assert {path.relative_to(state).parts[0] for path in stored(undamaged) if state in path.parents} == {
        "audit",
        "files.digests",
        "files.digests.clock",
        "ledger.sqlite",
        "ledger.sqlite.lock",
        "publish.lock",
        "runs",
    }
    assert len(large_blobs(undamaged)) == 2


@pytest.mark.parametrize("way", WAYS)
def test_any_stored_file_may_be_damaged(place: Place, right: dict[str, bytes], way: str) -> None:
    for path in list(stored(place)):
        if not path.exists():
            continue
        audit = path.parent.name == "audit" and path.suffix == ".jsonl"
        kept = path.read_bytes()
        WAYS[way](path)
        code, reason = outcome(place)
        if audit and code != 0:
            # Of an audit nothing is mended: that would hide what it is there to show.
            assert code == 1
            assert f"{path}:1: the audit was changed here" in reason
            assert "move it away to begin a new one" in reason
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            path.write_bytes(kept)
            continue
        assert (code, reason) == (0, ""), path
        assert served(place) == right, path


def test_only_what_made_a_lost_blob_runs_again(place: Place, right: dict[str, bytes]) -> None:
    for blob in large_blobs(place):
        blob.unlink()
        events: list[Event] = []
        built(place, on_event=events.append)
        made = ran(events)
        assert made["trial"] >= 1
        assert set(made) == {"trial"}, "the trial leaves the same bytes, so nothing after it runs"
        assert served(place) == right


def test_small_blobs_are_made_again_in_a_second_pass(right: dict[str, bytes], tmp_path: Path) -> None:
    """Whether they are there is seen at once, their damage only when they are read, and no file holds them as well."""
    whole = place_in(tmp_path)
    built(whole, "//:publish")
    settle()
    built(whole, "//:publish")
    passes = 0
    for row in _small_blobs(whole):
        place = copy(whole, tmp_path / str(row))
        with closing(sqlite3.connect(place.cache / "index.sqlite")) as database, database:
            database.execute("UPDATE blobs SET data = CAST(data || x'00' AS BLOB) WHERE id = ?", (row,))
        events: list[Event] = []
        assert built(place, on_event=events.append).status == "ok"
        passes += any(isinstance(event, Warned) for event in events)
        assert served(place) == right
        shutil.rmtree(place.folder.parent)
    assert passes >= 3


def _small_blobs(place: Place) -> list[int]:
    with closing(sqlite3.connect(place.cache / "index.sqlite")) as database:
        return [row for (row,) in database.execute("SELECT id FROM blobs")]


@pytest.mark.parametrize("seed", range(9))
def test_random_bits_of_the_databases(place: Place, right: dict[str, bytes], seed: int) -> None:
    chance = random.Random(seed)
    for path in databases(place):
        for _ in range(chance.choice([1, 1, 10])):
            flip(path, chance.randrange(100 if seed % 3 == 0 else path.stat().st_size))
        assert outcome(place) == (0, "")
        assert served(place) == right


@pytest.mark.parametrize("way", ["deleted", "emptied", "cut short", "middle bit", "random bit", "a folder"])
def test_logs_that_a_crash_left_may_be_damaged(
    undamaged: Place, right: dict[str, bytes], tmp_path: Path, way: str
) -> None:
    """The write-ahead log holds the newest transactions; what it loses is made again, or found to be there."""
    for name in [*(f"{path.name}-wal" for path in databases(undamaged)), "index.sqlite-shm", "ledger.sqlite-shm"]:
        place = copy(undamaged, tmp_path / name)
        place.edit("plain.jsonl", "bad", "worse")
        build_with_logs_left(place)
        (path,) = [path for path in stored(place) if path.name == name]
        WAYS.get(way, _flip_somewhere)(path)
        place.edit("plain.jsonl", "worse", "bad")
        assert outcome(place) == (0, ""), name
        assert served(place) == right, name


def _flip_somewhere(path: Path) -> None:
    flip(path, random.Random(path.name).randrange(path.stat().st_size))


# -- without a trace ---------------------------------------------------------------------------------------------


def test_a_rotten_input_is_found_when_it_is_used(undamaged: Place, tmp_path: Path) -> None:
    """The stat of the file is the one on record; its bytes are not. The grader is the first to read them."""
    edited = str(FILES["BUILD.yaml"]).replace('"-q"', '"-qe"').replace('"stats"', '"stats",\n"min_success": 0')
    clean = place_in(tmp_path / "clean").write({"BUILD.yaml": edited})
    built(clean)
    for number in range(len(large_blobs(undamaged))):
        place = copy(undamaged, tmp_path / str(number))
        rot(place, large_blobs(place)[number])
        place.write({"BUILD.yaml": edited})
        events: list[Event] = []
        assert built(place, on_event=events.append).status == "ok"
        warned = [event.text for event in events if isinstance(event, Warned)]
        assert warned == ["stored data was lost or damaged; what depends on it is made again"]
        made = ran(events)
        assert (made["trial"], made["grade"]) in ((2, 5), (3, 5))
        assert made["produce"] == 0, "nothing was made of the grades that were left, and the sink held the rest"
        assert served(place) == served(clean)


def test_verify_finds_what_only_reading_finds(place: Place, right: dict[str, bytes]) -> None:
    for blob in sorted(path for path in (place.cache / "blobs").rglob("*") if path.is_file()):
        rot(place, blob)
    assert place.mrp("cache", "verify").returncode == 1
    assert outcome(place) == (0, "")
    assert served(place) == right
    assert place.mrp("cache", "verify").returncode == 0


# -- in the middle of a build ------------------------------------------------------------------------------------

MOMENTS = ["RunStarted", "ItemStarted", "ItemFinished"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_damage_in_the_middle_of_a_build(undamaged: Place, tmp_path: Path, moment: str) -> None:
    """Some of it is noticed by this build and some by the next; neither gives anything wrong."""
    clean = place_in(tmp_path / "clean")
    clean.edit("plain.jsonl", "bad", "worse")
    built(clean)
    right = served(clean)
    ways: dict[str, Callable[[Path], None]] = {
        "cut short": lambda path: cut(path, path.stat().st_size // 2),
        "middle bit": lambda path: flip(path, path.stat().st_size // 2),
        "a folder": into_folder,
    }
    relative = [path.relative_to(undamaged.cache) for path in large_blobs(undamaged)[:1]]
    for name in [Path("index.sqlite"), Path("index.sqlite-wal"), *relative]:
        for way, damage in ways.items():
            place = copy(undamaged, tmp_path / f"{name.name}-{way}")
            place.edit("plain.jsonl", "bad", "worse")
            waiting = [place.cache / name]

            def strike(event: Event, waiting: list[Path] = waiting, damage: Callable[[Path], None] = damage) -> None:
                if type(event).__name__ == moment and waiting and waiting[0].is_file():
                    damage(waiting.pop())

            code, reason = outcome(place, on_event=strike)
            assert not waiting, "it was damaged"
            if code == 0:
                assert served(place) == right
            else:
                assert code == 4
                assert "build again" in reason or "MRP_CACHE" in reason
            assert outcome(place) == (0, ""), (name, way)
            assert served(place) == right, (name, way)


# -- outputs and state -------------------------------------------------------------------------------------------


def _links(place: Place) -> list[Path]:
    return sorted(path for path in (place.folder / "mrp-out").rglob("*") if path.is_symlink())


def _delete_all(place: Place) -> None:
    shutil.rmtree(place.folder / "mrp-out")


def _delete_links(place: Place) -> None:
    for link in _links(place):
        link.unlink()


def _replace_by_files(place: Place) -> None:
    for link in _links(place):
        link.unlink()
        link.write_bytes(b"{}")


def _replace_by_folders(place: Place) -> None:
    for link in _links(place):
        into_folder(link)


def _lead_elsewhere(place: Place) -> None:
    for link in _links(place):
        link.unlink()
        link.symlink_to(place.folder / "words.txt")


def _edit_through_links(place: Place) -> None:
    for link in _links(place):
        link.resolve().chmod(0o644)
        link.write_bytes(b"{}")


def _append_through_links(place: Place) -> None:
    for link in _links(place):
        link.resolve().chmod(0o644)
        with link.open("ab") as file:
            file.write(b" ")


def _replace_folder_by_file(place: Place) -> None:
    shutil.rmtree(place.folder / "mrp-out" / "eval")
    (place.folder / "mrp-out" / "eval").write_bytes(b"")


def _add_strangers(place: Place) -> None:
    (place.folder / "mrp-out" / "eval" / "old.json").write_bytes(b"")
    (place.folder / "mrp-out" / "eval" / "older.json").symlink_to("old.json")
    (place.folder / "mrp-out" / "eval" / "old").mkdir()
    (place.folder / "mrp-out" / "eval" / "old" / "result.json").write_bytes(b"")


OUTPUTS: dict[str, Callable[[Place], None]] = {
    "all deleted": _delete_all,
    "links deleted": _delete_links,
    "links replaced by files": _replace_by_files,
    "links replaced by folders": _replace_by_folders,
    "links lead elsewhere": _lead_elsewhere,
    "edited through a link": _edit_through_links,
    "appended to through a link": _append_through_links,
    "a folder replaced by a file": _replace_folder_by_file,
    "more files in it": _add_strangers,
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_outputs_are_put_right(place: Place, right: dict[str, bytes], what: str) -> None:
    OUTPUTS[what](place)
    assert served(place) != right
    assert built(place).status == "ok"
    assert served(place) == right


def test_an_output_folder_that_leads_elsewhere_is_not_followed(place: Place, right: dict[str, bytes]) -> None:
    own = place.folder / "own"
    own.mkdir()
    (own / "thesis.txt").write_bytes(b"")
    shutil.rmtree(place.folder / "mrp-out" / "eval")
    (place.folder / "mrp-out" / "eval").symlink_to(own)
    built(place)
    assert served(place) == right
    assert [path.name for path in own.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["mrp-out", ".mrp"])
def test_a_file_in_the_place_of_a_folder_of_mrps_is_left_alone(
    place: Place, right: dict[str, bytes], name: str
) -> None:
    shutil.rmtree(place.folder / name)
    (place.folder / name).write_bytes(b"somebody's own")
    code, reason = outcome(place)
    assert code == 4
    assert f"cannot use {place.folder / name}: file exists; move away what stands there and build again" in reason
    assert (place.folder / name).read_bytes() == b"somebody's own"
    (place.folder / name).unlink()
    assert outcome(place) == (0, "")
    assert served(place) == right


@pytest.mark.parametrize("name", ["runs", "tmp", "audit", "damaged", "runs/.DS_Store", "runs/notes", "tmp/notes"])
def test_strange_files_in_the_state_are_no_hindrance(place: Place, right: dict[str, bytes], name: str) -> None:
    path = place.folder / ".mrp" / name
    if path.is_dir():
        shutil.rmtree(path)
    path.write_bytes(b"")
    assert outcome(place) == (0, "")
    assert served(place) == right


def test_a_lost_state_is_made_again_and_publishes_nothing_twice(place: Place, right: dict[str, bytes]) -> None:
    shutil.rmtree(place.folder / ".mrp")
    board = (place.folder / "board.json").stat()
    built(place)
    assert served(place) == right
    after = (place.folder / "board.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (board.st_ino, board.st_mtime_ns)


# -- the past ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.json", "digests.jsonl"])
def test_a_damaged_record_is_said_to_be_damaged(undamaged: Place, tmp_path: Path, name: str) -> None:
    whole = max((undamaged.folder / ".mrp" / "runs").iterdir())
    assert read_record(whole)["status"] == "ok"
    assert len(list(read_digests(whole))) == 13
    for way, damage in WAYS.items():
        folder = shutil.copytree(whole, tmp_path / way)
        damage(folder / name)
        with pytest.raises(UsageError) as error:
            read_record(folder), list(read_digests(folder))
        said = str(error.value)
        assert f"run {way}" in said
        assert "is damaged, so what it says is not shown" in said or "was cut off before it wrote" in said


def test_the_commands_that_read_the_past_say_which_run_is_damaged(place: Place) -> None:
    newest = find_run(place.folder / ".mrp", "last")
    flip(newest / "run.json", 40)
    done = place.mrp("inspect")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: run.json of run {newest.name} is damaged, so what it says is not shown; choose another run\n",
    )
    listed = place.mrp("log").stdout
    assert listed.splitlines()[0] == f"{newest.name}  damaged"
    assert "ok" in listed.splitlines()[1]
    assert place.mrp("inspect", "last~1").returncode == 0


def test_a_damaged_ledger_forgets_and_tells_nothing_wrong(undamaged: Place, tmp_path: Path) -> None:
    whole = (undamaged.folder / ".mrp" / "ledger.sqlite").read_bytes()
    told = []
    for seed in range(60):
        path = tmp_path / f"{seed}.mrp" / ".mrp" / "ledger.sqlite"
        path.parent.mkdir(parents=True)
        path.write_bytes(whole)
        before = _told(path)
        chance = random.Random(seed)
        for _ in range(chance.choice([1, 30])):
            flip(path, chance.randrange(path.stat().st_size))
        told.append(len(_told(path)))
        assert _told(path) <= before
    assert len(before) == 13, "one for each action"
    assert min(told) == 0, "some were damaged as a whole"
    assert any(0 < some < len(before) for some in told), "some lost single rows"


def _told(path: Path) -> set[Past]:
    ledger = Ledger(path)
    try:
        labels = [f"//:{name}" for name in ("rows", "made", "solve", "again", "eval", "publish")]
        pairs = [(label, *identity) for label in labels for identity in ledger.identities(label)]
        return {past for pair in pairs for past in ledger.history(*pair)}
    finally:
        ledger.close()


# -- what this user may not read ---------------------------------------------------------------------------------

FORBIDDEN = """
import shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.damage import *
from support.places import Place

whole, right, told = Place(Path(sys.argv[1]) / "ws"), None, 0
built(whole)
right = served(whole)
state = Path("ws/.mrp")
folders = [state, state / "runs", state / "tmp", state / "audit"]
folders += [Path("ws/mrp-out"), Path("ws-cache"), Path("ws-cache/blobs")]
names = [path.relative_to(whole.folder.parent) for path in stored(whole)]
newest = max((whole.folder / ".mrp" / "runs").iterdir()).name
for name in [*folders, *(name for name in names if "runs" not in name.parts or newest in name.parts)]:
    place = copy(whole, Path(sys.argv[1]) / "copy")
    path = place.folder.parent / name
    path.chmod(0)
    code, reason = outcome(place)
    if code:
        told += 1
        assert code == 4, (name, code, reason)
        assert ("for this user" in reason or "make room or access" in reason), (name, reason)
        path.chmod(0o755)
        code, reason = outcome(place)
    assert (code, reason) == (0, ""), (name, reason)
    assert served(place) == right, name
    for path in place.folder.parent.rglob("*"):
        path.is_symlink() or path.chmod(0o755)
    shutil.rmtree(place.folder.parent)
assert told > 5
print("right", told)
"""


def test_files_that_this_user_may_not_read(undamaged: Place, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Either the build is right all the same, or it says what to make readable, and is right afterwards."""
    prefix: list[str] = []
    if _reads_everything(tmp_path):
        without = "-dac_override,-dac_read_search"
        prefix = ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}"]
        if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip("this user may read everything, and there is no setpriv to give that up")
    copy(undamaged, tmp_path / "whole")
    done = subprocess.run(
        [*prefix, sys.executable, "-c", FORBIDDEN, tmp_path / "whole", request.config.rootpath / "tests"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("right")


def _reads_everything(folder: Path) -> bool:
    path = folder / "probe"
    path.write_bytes(b"")
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        return False
    return True


def test_all_targets_are_in_what_is_compared(right: dict[str, bytes]) -> None:
    names = {name.split("/")[1] for name in right if name.startswith("mrp-out/")}
    assert names == {"rows", "made", "tasks", "solve", "again", "eval"}
    assert TARGETS == ("//...", "//:publish")
    assert b'"label":"//:publish"' in right["digests.jsonl"]
    assert right["board.json"].startswith(b"[\n")

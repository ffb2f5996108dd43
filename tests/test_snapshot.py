"""A build with nothing to do answers from stats alone, an edit opens only what it reaches; neither is ever stale."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.places import Place, QuickPlace

from mrp.cache.store import Store
from mrp.runtime import snapshot
from mrp.runtime.recorded_plan import read_plan
from mrp.runtime.runs import read_digests, read_record

WORKSPACE = {
    "mrp.yaml": "mrp: 1\nname: small\n",
    "BUILD.yaml": """mrp: 1
targets:
  left: {kind: command, srcs: [left.txt], outs: [l.txt], command: [sh, -c, "cat left.txt > l.txt"]}
  right: {kind: command, srcs: [right.txt], outs: [r.txt], command: [sh, -c, "cat right.txt > r.txt"]}
  both: {kind: command, srcs: [":left", ":right"], outs: [b.txt], command: [sh, -c, "cat l.txt r.txt > b.txt"]}
  all: {kind: command, srcs: [":both", "parts/*"], outs: [all.txt], command: [sh, -c, "cat b.txt parts/* > all.txt"]}
""",
    "left.txt": "left 1\n",
    "right.txt": "right 1\n",
    "parts/a.txt": "part a\n",
}
ACTIONS = 4


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A built workspace whose files are old enough for their times to be trusted."""
    place = QuickPlace(tmp_path / "w").write(dict(WORKSPACE))
    let_time_pass()
    assert place.build("//:all")["executed"] == ACTIONS
    return place


def let_time_pass() -> None:
    """Longer than a tick of the file system's clock."""
    time.sleep(0.05)


def opened(place: Place) -> list[str]:
    """The tasks that the last build looked at; the answer from the snapshot looks at none."""
    lines = (place.runs()[-1] / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return sorted(event["label"] for event in events if event["type"] == "TaskStarted")


def answer(place: Place) -> str:
    return (place.folder / "mrp-out" / "all" / "all.txt").read_text()


def wanted(place: Place) -> str:
    """What the sources of now make."""
    names = [
        "left.txt",
        "right.txt",
        *sorted(str(p.relative_to(place.folder)) for p in place.folder.glob("parts/*.txt")),
    ]
    return "".join((place.folder / name).read_text() for name in names)


def check_fresh(place: Place, executed: int) -> None:
    """The next build executes this many actions, shows what the sources make, and the one after it does nothing."""
    report = place.build("//:all")
    assert (report["executed"], report["executed"] + report["cached"]) == (executed, ACTIONS)
    assert answer(place) == wanted(place)
    clean = QuickPlace(place.folder.with_name("clean"), place.folder.with_name(f"clean-{time.time_ns()}"))
    shutil.copytree(
        place.folder, clean.folder, ignore=shutil.ignore_patterns(".mrp", "mrp-out"), symlinks=True, dirs_exist_ok=True
    )
    clean.build("//:all")
    assert place.digests() == clean.digests()
    shutil.rmtree(clean.folder)
    assert place.build("//:all")["executed"] == 0
    assert opened(place) == []


# -- nothing to do -------------------------------------------------------------------------------------------------


def test_a_build_with_nothing_to_do_opens_no_task_and_reports_the_same(place: Place) -> None:
    first = json.loads((place.runs()[-1] / "run.json").read_text())
    again = place.build("//:all")
    assert opened(place) == []
    assert (again["executed"], again["cached"], again["failed"], again["status"]) == (0, ACTIONS, 0, "ok")
    assert again["targets"] == first["targets"]
    assert again["run_id"] == place.runs()[-1].name
    assert place.mrp("log", "--json").returncode == 0
    assert place.mrp("diff", "last~1", "last").returncode == 0


def test_it_prints_what_a_build_prints(place: Place) -> None:
    answered = place.mrp("build", "//:all")
    shutil.rmtree(place.folder / ".mrp" / "snapshots")
    built = place.mrp("build", "//:all")
    assert (answered.stdout, answered.stderr, answered.returncode) == (built.stdout, built.stderr, built.returncode)
    assert "4 actions: 0 executed, 4 cached, 0 failed" in answered.stdout


def test_the_json_document_has_the_same_fields(place: Place) -> None:
    answered = place.build("//:all")
    shutil.rmtree(place.folder / ".mrp" / "snapshots")
    built = place.build("//:all")
    same = answered.keys() - {"run_id", "wall_s"}
    assert answered.keys() == built.keys()
    assert {name: answered[name] for name in same} == {name: built[name] for name in same}


def test_the_record_of_such_a_run_is_whole(place: Place) -> None:
    place.build("//:all")
    folder = place.runs()[-1]
    assert read_record(folder)["cached"] == ACTIONS
    assert len(list(read_digests(folder))) == ACTIONS


HEAVY = ("pydantic", "lark", "yaml", "networkx", "sqlite3", "asyncio", "json", "re", "pathlib", "typing", "dataclasses")


def loaded(place: Place, *words: str) -> set[str]:
    """The modules that a call has imported at its end, in a Python that starts with none of its own."""
    code = "import sys; from mrp.cli.main import main; main(); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, "-C", str(place.folder), *words],
        env=place.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


def test_it_imports_nothing_heavy(place: Place) -> None:
    assert loaded(place, "build", "//:all") & set(HEAVY) == set()
    (place.folder / "BUILD.yaml").write_text(WORKSPACE["BUILD.yaml"].replace("left.txt > l", "left.txt left.txt > l"))
    assert loaded(place, "build", "//:all") >= {"pydantic", "yaml", "sqlite3", "json"}


# -- an edit -------------------------------------------------------------------------------------------------------


def test_an_edit_opens_only_what_it_reaches(place: Place) -> None:
    (place.folder / "left.txt").write_text("left 2\n")
    check_fresh(place, executed=3)
    assert sorted(json.loads(line)["label"] for line in place.digests().splitlines()) == [
        "//:all",
        "//:both",
        "//:left",
        "//:right",
    ]


def test_an_edit_patches_the_plan_that_is_kept_for_replay(place: Place) -> None:
    (place.folder / "left.txt").write_text("left 2\n")
    place.build("//:all")
    assert opened(place) == ["//:all", "//:both", "//:left"]
    edited = place.runs()[-1].name
    shutil.rmtree(place.folder / ".mrp" / "snapshots")
    place.build("//:all")
    folders = [place.folder / ".mrp" / "runs" / edited, place.runs()[-1]]
    with Store.open(place.cache) as store:
        plans = [read_plan(read_record(folder)["plan"], store) for folder in folders]
    assert plans[0] == plans[1]
    assert place.mrp("replay", edited).returncode == 0


def test_edits_one_after_the_other(place: Place) -> None:
    for number in range(3):
        for name in ("left.txt", "right.txt", "parts/a.txt"):
            (place.folder / name).write_text(f"{name} {number}\n")
            place.build("//:all")
            assert answer(place) == wanted(place)
            assert len(opened(place)) == (1 if name.startswith("parts") else 3)


def test_a_touch_executes_and_opens_nothing(place: Place) -> None:
    os.utime(place.folder / "left.txt")
    assert place.build("//:all")["executed"] == 0
    assert opened(place) == []
    check_fresh(place, executed=0)


def test_a_revert_executes_nothing(place: Place) -> None:
    (place.folder / "left.txt").write_text("left 2\n")
    place.build("//:all")
    (place.folder / "left.txt").write_text("left 1\n")
    check_fresh(place, executed=0)


def test_a_failing_edit_is_tried_again_and_mended(place: Place) -> None:
    (place.folder / "BUILD.yaml").write_text(
        WORKSPACE["BUILD.yaml"].replace("cat left.txt >", "grep -v bad left.txt >")
    )
    let_time_pass()
    place.build("//:all")
    (place.folder / "left.txt").write_text("bad\n")
    for _ in range(2):
        assert place.build("//:all", code=1)["status"] == "failed"
    (place.folder / "left.txt").write_text("good\n")
    assert place.build("//:all")["status"] == "ok"
    assert answer(place) == wanted(place)


def test_an_edit_of_yaml_compiles_anew(place: Place) -> None:
    place.edit("BUILD.yaml", "cat left.txt >", "cat  left.txt >")
    check_fresh(place, executed=1)


def test_the_other_cells_of_a_build_keep_their_snapshots(place: Place) -> None:
    place.build("//:left")
    place.build("//:all")
    assert opened(place) == []
    place.build("//:left")
    assert opened(place) == []


# -- what must never be answered from memory -----------------------------------------------------------------------


def keep_times(path: Path, change: "object") -> None:
    """Call `change`, then give the file the times that it had."""
    before = path.stat()
    change()  # type: ignore[operator]
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_other_bytes_of_the_same_size_and_mtime(place: Place) -> None:
    path = place.folder / "left.txt"
    keep_times(path, lambda: path.write_text("left X\n"))
    check_fresh(place, executed=3)


def test_another_file_with_the_same_size_and_mtime(place: Place) -> None:
    path, other = place.folder / "left.txt", place.folder / ".other"
    other.write_text("left Y\n")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    let_time_pass()
    keep_times(path, lambda: other.rename(path))
    check_fresh(place, executed=3)


def test_a_swapped_folder(place: Place) -> None:
    parts = place.folder / "parts"
    other = place.folder.with_name("other")
    shutil.copytree(parts, other)
    (other / "a.txt").write_text("part Z\n")
    for path in (other / "a.txt", other):
        before = (parts / path.name if path != other else parts).stat()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    keep_times(place.folder, lambda: (parts.rename(place.folder.with_name("aside")), other.rename(parts)))
    check_fresh(place, executed=1)


def test_a_restored_backup(place: Place) -> None:
    """A backup brings back old bytes with their old times and size; only the inode and the ctime tell."""
    backup = place.folder.with_name("backup.txt")
    shutil.copy2(place.folder / "left.txt", backup)
    (place.folder / "left.txt").write_text("left 2\n")
    let_time_pass()
    place.build("//:all")
    (place.folder / "left.txt").unlink()
    shutil.copy2(backup, place.folder / "left.txt")
    check_fresh(place, executed=0)


def test_a_clock_set_back(place: Place) -> None:
    """What is written while the clock is behind bears times before the build that it follows."""
    path = place.folder / "left.txt"
    path.write_text("left 2\n")
    os.utime(path, ns=(0, 0))
    check_fresh(place, executed=3)


def test_a_file_from_the_future_is_never_trusted(place: Place) -> None:
    path = place.folder / "left.txt"
    ahead = time.time_ns() + 3600 * 10**9
    path.write_text("left 2\n")
    os.utime(path, ns=(ahead, ahead))
    check_fresh(place, executed=3)
    keep_times(path, lambda: path.write_text("left 3\n"))
    check_fresh(place, executed=3)


def test_edits_within_one_tick_of_the_clock(place: Place) -> None:
    for number in range(10):
        (place.folder / "left.txt").write_text(f"left {number}\n")
        place.build("//:all")
        assert answer(place) == wanted(place)


def test_files_that_come_and_go(place: Place) -> None:
    (place.folder / "parts" / "b.txt").write_text("part b\n")
    check_fresh(place, executed=1)
    (place.folder / "parts" / "a.txt").unlink()
    check_fresh(place, executed=1)
    (place.folder / "parts" / "b.txt").rename(place.folder / "parts" / "c.txt")
    check_fresh(place, executed=1)


def test_a_new_package_is_found(place: Place) -> None:
    (place.folder / "parts" / "BUILD.yaml").write_text("mrp: 1\ntargets: {x: {kind: job, of: [':missing']}}\n")
    assert "missing" in place.mrp("build", "//:all").stderr


def test_a_file_that_becomes_a_link_or_a_folder(place: Place) -> None:
    path = place.folder / "left.txt"
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert place.mrp("build", "//:all").returncode == 2
    path.unlink()
    path.mkdir()
    assert place.mrp("build", "//:all").returncode == 2


def test_a_changed_mode(place: Place) -> None:
    (place.folder / "left.txt").chmod(0o755)
    place.build("//:all")
    assert opened(place) == ["//:all", "//:both", "//:left"]


def test_a_hidden_file_changes_nothing(place: Place) -> None:
    (place.folder / "parts" / ".a.txt.swp").write_text("an editor's")
    assert place.build("//:all")["executed"] == 0
    assert opened(place) == []


def test_outputs_that_were_removed_are_shown_again(place: Place) -> None:
    shutil.rmtree(place.folder / "mrp-out")
    check_fresh(place, executed=0)
    (place.folder / "mrp-out" / "all" / "all.txt").unlink()
    check_fresh(place, executed=0)
    (place.folder / "mrp-out" / "all" / "all.txt").unlink()
    (place.folder / "mrp-out" / "all" / "all.txt").symlink_to("/etc/hostname")
    check_fresh(place, executed=0)


def published(place: Place) -> Path:
    return (place.folder / "mrp-out" / "all" / "all.txt").resolve()


def test_a_published_blob_that_is_gone_or_damaged(place: Place) -> None:
    published(place).unlink()
    assert place.build("//:all")["status"] == "ok"
    assert answer(place) == wanted(place)
    let_time_pass()
    place.build("//:all")
    blob = published(place)
    blob.chmod(0o644)
    blob.write_bytes(b"X" * blob.stat().st_size)
    assert place.build("//:all")["status"] == "ok"
    assert answer(place) == wanted(place)


def test_another_cache(place: Place, tmp_path: Path) -> None:
    other = QuickPlace(place.folder, tmp_path / "other-cache")
    assert other.build("//:all")["executed"] == ACTIONS
    assert place.build("//:all")["executed"] == 0


def test_a_cache_that_is_gone(place: Place) -> None:
    shutil.rmtree(place.cache)
    check_fresh(place, executed=ACTIONS)


def test_a_changed_tool(tmp_path: Path) -> None:
    """A program of a toolchain is a part of what was looked at."""
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho one\n")
    tool.chmod(0o755)
    image = f"kind: image, base: host, toolchain: [sh, {tool}]"
    place = QuickPlace(tmp_path / "w").write(
        {
            "mrp.yaml": "mrp: 1\nname: tool\n",
            "BUILD.yaml": f"mrp: 1\ntargets:\n  image: {{{image}}}\n  box: {{kind: sandbox, image: ':image'}}\n"
            f"  all: {{kind: command, outs: [o.txt], sandbox: ':box', command: [sh, -c, 'echo made > o.txt']}}\n",
        }
    )
    let_time_pass()
    place.build("//:all")
    place.build("//:all")
    assert opened(place) == []
    stat = tool.stat()
    tool.write_text("#!/bin/sh\necho two\n")
    os.utime(tool, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert place.build("//:all")["executed"] == 2, "the image is another one, and so is the command's key"


def test_another_python_compiles_anew(place: Place) -> None:
    path = next((place.folder / ".mrp" / "snapshots").glob("*.stat"))
    kept = snapshot.read(str(path))
    kept.head["circumstances"]["python"][0] += 1
    path.write_bytes(kept.pack())
    place.build("//:all")
    assert "//:right" in opened(place)


@pytest.mark.parametrize("suffix", ["stat", "plan"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_snapshot_is_forgotten(place: Place, suffix: str, damage: str) -> None:
    path = next((place.folder / ".mrp" / "snapshots").glob(f"*.{suffix}"))
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"cut": data[:middle], "flip": flipped, "empty": b"", "other": b"mrp-snapshot-9\n"}[damage])
    (place.folder / "left.txt").write_text("left 2\n")
    check_fresh(place, executed=3)


def test_a_part_of_a_build_is_never_remembered(place: Place) -> None:
    for words in (["--rebuild", "//:left"], ["--param", "//:all:x=1"], ["--limit", "1"], ["-v"]):
        before = set((place.folder / ".mrp" / "snapshots").iterdir())
        place.mrp("build", "//:all", *words)
        assert set((place.folder / ".mrp" / "snapshots").iterdir()) == before


def test_a_blob_that_stands_but_was_lost_is_made_again(place: Place) -> None:
    """An edit needs the output of a target that it does not reach, and the cache has lost it."""
    with Store.open(place.cache) as store:
        lost = store.put_bytes(b"right 1\n")
        store.index.transact(
            lambda connection: connection.execute("DELETE FROM blobs WHERE digest = ?", (bytes.fromhex(lost),))
        )
    (place.folder / "left.txt").write_text("left 2\n")
    report = place.build("//:all")
    assert (report["status"], answer(place)) == ("ok", wanted(place))
    assert len(place.runs()) == 2, "the run that was given up for a whole one leaves nothing"


def test_a_target_that_an_earlier_edit_reached_is_reported_as_it_is_now(place: Place) -> None:
    """Two targets are asked for; each edit reaches one of them."""
    place.build("//:left", "//:right")
    (place.folder / "left.txt").write_text("left 2\n")
    left = place.build("//:left", "//:right")["targets"]["//:left"]
    (place.folder / "right.txt").write_text("right 2\n")
    both = place.build("//:left", "//:right")["targets"]
    assert opened(place) == ["//:right"]
    assert both["//:left"] == left
    shutil.rmtree(place.folder / ".mrp" / "snapshots")
    assert place.build("//:left", "//:right")["targets"] == both

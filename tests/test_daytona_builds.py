"""Whole builds with `--sandbox daytona`, against the emulator: the same digests, whatever the service does."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daytona import require_emulator
from support.daytona_emulator import Emulator, Fault, emulated
from support.howto import follow, require_packages
from support.kinds import Targets, shell, trials
from support.places import Place, kill_group
from support.portable import Rooted

pytestmark = pytest.mark.backend

ODD = r"""
import json, os
text = json.load(open('/task/record.json'))['text']
open('answer', 'w').write(text.upper())
os.symlink('/etc/passwd', 'far'); os.link('answer', 'again'); os.makedirs('a/b/empty'); os.mkfifo('pipe')
open(b'bad\xff', 'w').close(); open('run', 'w').write('r'); os.chmod('run', 0o755)
os.write(1, b'out \xff\x00 no newline'); os.write(2, b'err\n' * 20000)
"""
ROWS = "".join(f'{{"id": "r{number}", "text": "text {number}"}}\n' for number in range(3))


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    require_emulator()
    with emulated() as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def fresh(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in emulator.environment().items():
        monkeypatch.setenv(name, value)
    yield
    emulator.faults.clear()
    for box in emulator.running():
        emulator.vanish(box.id)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Rooted:
    return Rooted(tmp_path_factory.mktemp("root"))


def place_of(folder: Path, root: Rooted, script: str, **solve: Any) -> Place:
    targets: Targets = {
        "tasks": {"kind": "dataset", "srcs": ["rows.jsonl"], "id": "id"},
        "box": {"kind": "sandbox", "image": ":py", "limits": {"memory": "256MiB", "disk": "64MiB", "wall": "60s"}},
        "agent": shell(script=script, srcs=["odd.py"]),
        "solve": {
            "kind": "rollout",
            "over": ":tasks",
            "agent": ":agent",
            "sandbox": ":box",
            "grade": {"command": ["sh", "-c", "test -s answer"]},
            **solve,
        },
        "eval": {"kind": "reduction", "of": ["solve"], "reducer": "stats"},
    }
    return root.workspace(folder, targets, {"odd.py": ODD, "rows.jsonl": ROWS})


def test_the_same_digests_as_on_this_machine(tmp_path: Path, root: Rooted, emulator: Emulator) -> None:
    place = place_of(tmp_path, root, "python3 /opt/mrp/operator/odd.py")
    here = place_of(tmp_path / "here", root, "python3 /opt/mrp/operator/odd.py")
    report = place.build("//:solve", "//:eval", "--sandbox", "daytona")
    assert report["failed"] == 0
    assert emulator.running() == []
    assert {trial["outcome"] for trial in trials(place)} == {"ok"}
    here.build("//:solve", "//:eval")
    assert here.digests() == place.digests()
    assert place.build("//:eval")["executed"] == 0


def test_a_build_begun_here_and_finished_there(tmp_path: Path, root: Rooted) -> None:
    place = place_of(tmp_path, root, "python3 /opt/mrp/operator/odd.py")
    place.build("//:solve", "--items", "r[01]")
    place.build("//:solve", "//:eval", "--sandbox", "daytona")
    executed = [item for kind, label, item in place.executed() if label == "//:solve"]
    assert sorted(set(executed)) == ["r2"]


def test_what_the_service_does_wrong_is_in_no_digest(tmp_path: Path, root: Rooted, emulator: Emulator) -> None:
    place = place_of(tmp_path, root, "python3 /opt/mrp/operator/odd.py")
    here = place_of(tmp_path / "here", root, "python3 /opt/mrp/operator/odd.py")
    emulator.faults += [
        Fault("process/execute", status=502, times=3, skip=2),
        Fault("files/bulk-upload", times=2, skip=3, after=True),
        Fault("POST /api/sandbox", status=429, times=2, retry_after="0.2"),
        Fault("files/bulk-download", status=500, times=2),
        Fault("DELETE /api/sandbox", status=500, times=2),
    ]
    place.build("//:solve", "//:eval", "--sandbox", "daytona")
    assert [fault.times for fault in emulator.faults] == [0, 0, 0, 0, 0]
    assert emulator.running() == []
    here.build("//:solve", "//:eval")
    assert here.digests() == place.digests()


def test_a_sandbox_that_vanishes_is_replaced(tmp_path: Path, root: Rooted, emulator: Emulator) -> None:
    script = "test -e /work/x; echo x > answer; sleep 1"
    place = place_of(tmp_path, root, script)
    building = place.start("build", "//:solve", "//:eval", "--sandbox", "daytona", "-j", "1")
    first = wait_for(emulator, 1)[0]
    emulator.vanish(first)
    assert building.wait(120) == 0
    assert {trial["outcome"] for trial in trials(place)} == {"ok"}
    assert first not in emulator.boxes


def test_a_service_that_is_down_is_no_failure_of_a_task(tmp_path: Path, root: Rooted, emulator: Emulator) -> None:
    place = place_of(tmp_path, root, "echo x > answer", retries=1)
    emulator.faults.append(Fault("POST /api/sandbox", status=503, times=10**6, retry_after="600"))
    done = place.mrp("build", "//:solve", "//:eval", "--sandbox", "daytona")
    assert done.returncode == 4, done.stderr
    assert "Daytona could not create a sandbox" in done.stderr
    emulator.faults.clear()
    place.build("//:solve", "//:eval", "--sandbox", "daytona")
    assert len(trials(place)) == 3


def test_what_a_killed_build_leaves_is_swept_by_the_next(tmp_path: Path, root: Rooted, emulator: Emulator) -> None:
    place = place_of(tmp_path, root, "sleep 3; echo x > answer")
    building = place.start("build", "//:solve", "//:eval", "--sandbox", "daytona", "-j", "2")
    left = wait_for(emulator, 2)
    kill_group(building)
    assert {box.id for box in emulator.running()} == set(left)
    place.build("//:solve", "//:eval", "--sandbox", "daytona")
    assert emulator.running() == []
    assert {trial["outcome"] for trial in trials(place)} == {"ok"}


def test_two_workspaces_leave_each_others_sandboxes_alone(tmp_path: Path, root: Rooted, emulator: Emulator) -> None:
    slow = place_of(tmp_path / "slow", root, "until test -e /tmp/go; do sleep 0.1; done; echo x > answer")
    building = slow.start("build", "//:solve", "--items", "r0", "--sandbox", "daytona")
    (theirs,) = wait_for(emulator, 1)
    quick = place_of(tmp_path / "quick", root, "echo x > answer")
    quick.build("//:solve", "--items", "r0", "--sandbox", "daytona")
    machine = emulator.boxes[theirs].machine
    assert machine is not None
    machine.path("/tmp/go").touch()
    assert building.wait(120) == 0
    assert {trial["outcome"] for trial in trials(slow)} == {"ok"}
    assert emulator.running() == []


def test_a_host_image_is_refused_before_anything_runs(tmp_path: Path, root: Rooted) -> None:
    place = place_of(tmp_path, root, "true")
    place.edit("BUILD.yaml", '"base": "scratch"', '"base": "host"')
    done = place.mrp("build", "//:solve", "//:eval", "--sandbox", "daytona")
    assert done.returncode == 2
    assert "daytona" in done.stderr


def test_the_page_is_true(tmp_path: Path) -> None:
    place = Place(tmp_path / "page")
    require_packages("daytona", place)
    assert len(follow("daytona", place)) == 3


def wait_for(emulator: Emulator, number: int) -> list[str]:
    """The ids of sandboxes in which a command was started, once there are so many."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        machines = {box.id: box.machine for box in emulator.running() if box.machine is not None}
        # The first job unpacks what the second, the command, works on.
        begun = {identity: list(machine.path("/.mrp").glob("*/begun")) for identity, machine in machines.items()}
        busy = [identity for identity, jobs in begun.items() if len(jobs) > 1]
        if len(busy) >= number:
            return busy
        time.sleep(0.05)
    raise AssertionError(f"there were never {number} sandboxes at once")

"""Runs seen through the command line: building, reading the past, comparing, replaying, stopping."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.places import Place, QuickPlace

from mrp.cache.store import Store
from mrp.runtime.sandbox.supervise import descendants

SLOW = """\
mrp: 1
targets:
  tasks: {kind: dataset, generate: {range: 4}}
  box: {kind: sandbox, limits: {wall: 600s}}
  wait: {kind: agent, version: "1", command: [sh, -c, "case $MRP_RECORD_ID in WHICH) sleep 600; esac; true"]}
  solve: {kind: rollout, over: ":tasks", agent: ":wait", sandbox: ":box"}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The workspace of `mrp init`, built twice: before and after an edit of one solution."""
    place = QuickPlace(tmp_path_factory.mktemp("built") / "demo")
    assert place.mrp("init").returncode == 0
    place.build("//:eval")
    place.edit("tasks.jsonl", "return a + b", "return b + a")
    place.build("//:eval")
    return place


def slow(folder: Path, which: str = "0") -> Place:
    """Four items, of which some wait to be let go."""
    place = Place(folder / "slow")
    return place.write({"mrp.yaml": "mrp: 1\nname: slow\n", "BUILD.yaml": SLOW.replace("WHICH", which)})


def let_go(process: "subprocess.Popen[Any]", items: int = 1) -> None:
    """End the waiting of so many items of a build, well."""
    waiting: list[int] = []
    deadline = time.monotonic() + 120
    while len(waiting) < items:
        assert time.monotonic() < deadline and process.poll() is None, "no item waits"
        time.sleep(0.02)
        waiting = [pid for pid in descendants(process.pid) if comm(pid) == "sleep"]
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)


def comm(pid: int) -> str:
    """The name of a process that may be gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


# -- building ----------------------------------------------------------------------------------------------------


def test_build_ends_with_its_line_and_shows_the_table(built: Place) -> None:
    done = built.mrp("build", "//:eval")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[-1] == "13 actions: 0 executed, 13 cached, 0 failed"
    assert "| builtin:oracle | 3 | 3 | 1 ± 0 |" in lines
    assert "//:eval -> mrp-out/eval/" in lines
    assert done.stderr == ""


def test_quiet_prints_the_last_line_alone(built: Place) -> None:
    assert built.mrp("build", "//:eval", "-q").stdout == "13 actions: 0 executed, 13 cached, 0 failed\n"


def test_json_is_one_document_and_the_rest_goes_to_stderr(built: Place) -> None:
    done = built.mrp("build", "//:eval", "--json")
    document = json.loads(done.stdout)
    assert (document["status"], document["executed"], document["cached"], document["failed"]) == ("ok", 0, 13, 0)
    assert document["targets"]["//:eval"]["outputs"].keys() >= {"result.json", "result.md"}
    assert document["cost"].keys() == {"usd", "estimate_usd"}
    assert "13 actions" in done.stderr


def test_a_failed_command_exits_1_and_says_why(tmp_path: Path) -> None:
    place = QuickPlace(tmp_path / "bad")
    place.write(
        {
            "mrp.yaml": "mrp: 1\nname: bad\n",
            "BUILD.yaml": "mrp: 1\ntargets:\n"
            "  bad: {kind: command, outs: [out], command: [sh, -c, 'echo no; exit 3']}\n",
        }
    )
    done = place.mrp("build", "//:bad")
    assert done.returncode == 1
    assert "exit code 3: no" in done.stderr
    assert done.stdout.splitlines()[-1] == "1 action: 1 executed, 0 cached, 1 failed"


def test_a_compiled_plan_runs_without_yaml(built: Place, tmp_path: Path) -> None:
    assert built.mrp("compile", "//:eval", "-o", str(tmp_path / "plan")).returncode == 0
    bare = QuickPlace(tmp_path / "bare", cache=built.cache)
    report = json.loads(bare.mrp("run", str(tmp_path / "plan"), "--json").stdout)
    assert (report["status"], report["executed"], report["cached"]) == ("ok", 0, 13)


# -- the past ----------------------------------------------------------------------------------------------------


def test_log_lists_the_newest_run_first_and_inspect_takes_starts_of_ids(built: Place) -> None:
    runs = json.loads(built.mrp("log", "--json").stdout)
    assert [run["executed"] for run in runs][-2:] == [3, 13]
    first = runs[-1]["run_id"]
    assert json.loads(built.mrp("inspect", first[:-1], "--json").stdout)["executed"] == 13
    assert built.mrp("inspect", "nothing").returncode == 2


def test_inspect_shows_all_that_is_known_of_an_item(built: Place) -> None:
    found = json.loads(built.mrp("inspect", "//:solve@agent=builtin:nop[last]", "--json").stdout)
    trial, grade = found["actions"]
    assert (trial["kind"], trial["outcome"], grade["values"]) == ("trial", "ok", {"reward": 0})
    assert trial["outputs"]["work"]["files"] == ["main.py"]
    assert grade["inputs"]["work"] == trial["outputs"]["work"]["tree"]
    assert grade["attempts"][-1]["exit_code"] == 1
    shown = built.mrp("inspect", "last", "//:solve@agent=builtin:nop[last]").stdout
    assert "AssertionError" in shown


def test_inspect_suggests_the_item_that_was_meant(built: Place) -> None:
    done = built.mrp("inspect", "//:solve[duoble]")
    assert done.returncode == 2
    assert "did you mean `double`?" in done.stderr


def test_log_shows_what_an_item_printed(built: Place) -> None:
    assert "AssertionError" in built.mrp("log", "//:solve@agent=builtin:nop[last]", "--stderr").stdout


def test_report_is_markdown_with_the_tables(built: Place) -> None:
    text = built.mrp("report").stdout
    assert text.startswith("# Run ")
    assert "| builtin:oracle | 3 | 3 | 1 ± 0 |" in text


def test_why_names_the_row_and_follows_the_reduction_to_it(built: Place) -> None:
    run = json.loads(built.mrp("log", "--json").stdout)[-2]["run_id"]
    found = json.loads(built.mrp("why", "//:eval", "--run", run, "--json").stdout)
    (root,) = found["roots"]
    assert root.startswith("tasks.jsonl row add changed: field solution: ")
    shown = built.mrp("why", "//:solve", "--run", run).stdout
    assert shown.startswith(f"1 of 6 reran in run {run}: tasks.jsonl row add changed: ")


def test_why_before_a_build_tells_what_would_run(built: Place) -> None:
    built.edit("tasks.jsonl", "last([1, 2, 3]) == 3", "last([1, 2, 4]) == 4")
    try:
        found = json.loads(built.mrp("why", "//:solve", "--json").stdout)
        plan = json.loads(built.mrp("plan", "//:eval", "--json").stdout)
    finally:
        built.edit("tasks.jsonl", "last([1, 2, 4]) == 4", "last([1, 2, 3]) == 3")
    assert {(change["item"], change["kind"]) for change in found["changed"]} == {("last", "grade")}
    (root,) = found["roots"]
    assert root.startswith("tasks.jsonl row last changed: field tests: ")
    assert (plan["miss"], plan["hit"], plan["unknown"]) == (2, 10, 1)


def test_why_of_what_was_never_built_says_so(built: Place) -> None:
    done = built.mrp("why", "//:solve[nobody]")
    assert done.returncode == 2
    assert "was never built" in done.stderr


def test_queries_ask_the_past(built: Place) -> None:
    assert "//:eval" in built.mrp("query", "cached(//:eval)").stdout
    assert built.mrp("query", "stale(//:eval) + failed(//:eval)").stdout == ""


# -- comparing ---------------------------------------------------------------------------------------------------


def test_diff_names_the_first_action_and_its_root(built: Place) -> None:
    runs = [run["run_id"] for run in json.loads(built.mrp("log", "--json").stdout)][:-3:-1]
    done = built.mrp("diff", *runs, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert (found["first"]["item"], found["first"]["kind"], found["first"]["what"]) == ("add", "trial", "key")
    assert found["roots"][0].startswith("tasks.jsonl row add changed")
    assert found["counts"]["bytes"] == 0
    assert built.mrp("diff", runs[0], runs[0]).returncode == 0


def test_replay_makes_the_same_bytes_even_when_the_workspace_moved_on(built: Place) -> None:
    oldest = json.loads(built.mrp("log", "--json").stdout)[-1]["run_id"]
    runs_before = len(built.runs())
    done = built.mrp("replay", oldest, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["same"] == 13
    assert len(built.runs()) == runs_before, "a replay leaves nothing in the workspace"
    assert (built.folder / "mrp-out/eval/result.json").exists()


def test_check_passes_what_is_reproducible(built: Place) -> None:
    done = built.mrp("check", "//:eval", "--runs", "2")
    assert done.returncode == 0, done.stderr
    assert "the same bytes in run 1 and run 2: 13 actions" in done.stdout


def test_check_names_the_culprit(tmp_path: Path) -> None:
    place = QuickPlace(tmp_path / "noisy")
    command = "[sh, -c, 'head -c 8 /dev/urandom > noise']"
    place.write(
        {
            "mrp.yaml": "mrp: 1\nname: noisy\n",
            "BUILD.yaml": "mrp: 1\ntargets:\n"
            f"  noise: {{kind: command, outs: [noise], command: {command}}}\n"
            '  after: {kind: command, srcs: [":noise"], outs: [copy], command: [cp, noise, copy]}\n',
        }
    )
    done = place.mrp("check", "//:after")
    assert done.returncode == 1
    assert "culprit: //:noise command: same key, other bytes: it is not reproducible" in done.stdout
    assert not (place.folder / "mrp-out").exists()


# -- stopping and watching ---------------------------------------------------------------------------------------


def wait_for(process: "subprocess.Popen[str]", text: str) -> None:
    """Read stderr until a line holds `text`."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never printed")


@pytest.fixture
def start(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A verbose build of four items, one at a time; its first item runs when the test gets it, and waits."""
    place = slow(tmp_path)
    process = subprocess.Popen(
        [*place.command, "-C", str(place.folder), "build", "//:solve", "-j1", "-v"],
        env=place.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    events = place.folder / ".mrp" / "runs"
    deadline = time.monotonic() + 120
    while not any(
        '"ItemStarted"' in log.read_text() and '"trial"' in log.read_text() for log in events.glob("*/events.jsonl")
    ):
        assert time.monotonic() < deadline and process.poll() is None, "no trial was started"
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_the_first_interrupt_finishes_what_runs(start: "subprocess.Popen[str]", tmp_path: Path) -> None:
    start.send_signal(signal.SIGINT)
    wait_for(start, "finishing 1 running item; press Ctrl-C again to kill")
    let_go(start)
    wait_for(start, "//:solve[0] trial ok")
    assert start.wait(120) == 130
    place = slow(tmp_path)
    assert place.executed() == [("trial", "//:solve", "0")]
    report = place.build("//:solve", "-j4")
    assert (report["executed"], report["cached"]) == (3, 1), "the first trial was kept"


def test_the_second_interrupt_kills(start: "subprocess.Popen[str]", tmp_path: Path) -> None:
    start.send_signal(signal.SIGTERM)
    wait_for(start, "finishing 1 running item")
    start.send_signal(signal.SIGINT)
    wait_for(start, "killing 1 running item")
    assert start.wait(120) == 130
    place = slow(tmp_path)
    assert '"trial"' not in (place.runs()[-1] / "digests.jsonl").read_text()
    with Store.open(place.cache) as store:
        assert ("trial",) not in store.index.read("SELECT kind FROM actions")


def test_a_terminal_shows_a_live_block_with_what_runs(tmp_path: Path) -> None:
    place = slow(tmp_path, "[01]")
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [*place.command, "-C", str(place.folder), "build", "//:solve", "-j2"],
        env=place.environment(TERM="xterm", COLUMNS="100", LINES="30"),
        stdout=subprocess.DEVNULL,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    shown, waits = b"", True
    while True:
        try:
            data = os.read(outer, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
        if waits and b"2 running" in shown:
            waits = False
            let_go(process, 2)
    os.close(outer)
    assert process.wait(120) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "//:solve[0] trial" in text
    assert not waits
    assert re.search(r"[024]/4 trials", text)

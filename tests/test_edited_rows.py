"""One edited row of a dataset makes one trial: rows of records that stayed are kept, and nothing else changes."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from support.places import Place, QuickPlace

WORKSPACE = {
    "mrp.yaml": "mrp: 1\nname: rows\n",
    "BUILD.yaml": """mrp: 1
targets:
  tasks: {kind: dataset, srcs: [rows.jsonl], id: id, private: [answer]}
  writer:
    kind: agent
    version: "1"
    command: [sh, -c, "cat /task/record.json > said.txt; echo $MRP_SAMPLE >> said.txt"]
  solve:
    kind: rollout
    over: ":tasks"
    agent: ":writer"
    samples: 2
    grade: {command: [sh, -c, "grep -q yes /task/record.json"]}
  eval: {kind: reduction, of: [":solve"], reducer: stats}
  board: {kind: sink, type: json, path: board.json}
  publish: {kind: produce, of: ":eval", rows: results, sink: ":board"}
""",
}

Row = dict[str, Any]


def rows(count: int) -> list[Row]:
    return [
        {"id": f"r{number:02}", "ask": f"{number}", "answer": "yes" if number % 3 else "no"} for number in range(count)
    ]


def write(place: Place, found: list[Row]) -> None:
    (place.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = QuickPlace(tmp_path / "w").write(dict(WORKSPACE))
    write(place, rows(12))
    time.sleep(0.05)
    assert place.build("//:eval")["executed"] == 12 * 2 * 2 + 1
    return place


def opened(place: Place) -> list[str]:
    lines = (place.runs()[-1] / "events.jsonl").read_text().splitlines()
    return sorted(event["label"] for event in map(json.loads, lines) if event["type"] == "TaskStarted")


def check(place: Place, executed: int) -> None:
    """The next build executes this many actions and comes to what a clean one comes to."""
    report = place.build("//:eval")
    assert report["executed"] == executed
    clean = QuickPlace(place.folder.with_name(f"clean-{time.time_ns()}"))
    hidden = shutil.ignore_patterns(".mrp", "mrp-out")
    shutil.copytree(place.folder, clean.folder, ignore=hidden, dirs_exist_ok=True)
    again = clean.build("//:eval")
    assert report["executed"] + report["cached"] == again["executed"]
    assert report["targets"] == again["targets"]
    assert place.digests() == clean.digests()
    assert place.output("eval/result.json") == clean.output("eval/result.json")


def test_one_edited_row(place: Place) -> None:
    found = rows(12)
    found[5]["ask"] = "another"
    write(place, found)
    check(place, executed=2 * 2 + 1)
    assert opened(place) == ["//:eval", "//:solve", "//:tasks"]
    started = {kind_and_item[2].partition("#")[0] for kind_and_item in place.executed()}
    assert started == {"", "r05"}


def test_what_only_the_grader_sees_runs_no_agent(place: Place) -> None:
    found = rows(12)
    found[4]["answer"] = "yes!"
    write(place, found)
    check(place, executed=2 + 0)
    assert {kind for kind, _, _ in place.executed()} == {"grade"}


def test_rows_that_come_go_and_change_places(place: Place) -> None:
    found = rows(14)
    write(place, found)
    check(place, executed=2 * 2 * 2 + 1)
    del found[3], found[0]
    write(place, found)
    check(place, executed=1)
    random.Random(3).shuffle(found)
    write(place, found)
    check(place, executed=0)
    found.append({"id": "a first one", "ask": "é", "answer": "yes"})
    write(place, found)
    check(place, executed=2 * 2 + 1)
    write(place, rows(12))
    check(place, executed=0)


def test_a_broken_row_refuses_the_build_and_leaves_nothing(place: Place) -> None:
    before = place.runs()
    with (place.folder / "rows.jsonl").open("a") as file:
        file.write('{"id": "r03", "ask": "twice"}\n')
    done = place.mrp("build", "//:eval")
    assert done.returncode == 2
    assert "r03" in done.stderr
    assert place.runs() == before
    write(place, rows(12))
    check(place, executed=0)


def test_a_trial_that_never_came_to_an_outcome_is_run_again(place: Place) -> None:
    """What was kept is whole: a rollout with an open trial is looked at as a whole."""
    found = rows(12)
    found[7]["ask"] = "x"
    write(place, found)
    killed = place.start("build", "//:eval")
    time.sleep(0.25)
    killed.kill()
    killed.wait()
    report = place.build("//:eval")
    assert report["status"] == "ok"
    assert report["executed"] + report["cached"] == 49


def test_many_random_edits(place: Place) -> None:
    chance = random.Random(11)
    found = rows(12)
    for number in range(6):
        for _ in range(chance.randrange(1, 4)):
            row = chance.choice(found)
            row["ask"] = f"{number} {chance.random()}"
        if chance.random() < 0.5:
            found.remove(chance.choice(found))
        if chance.random() < 0.5:
            found.insert(0, {"id": f"new {number}", "ask": "?", "answer": "yes"})
        write(place, found)
        place.build("//:eval")
    check(place, executed=0)


def test_a_publication_asks_its_sink_each_time(place: Place) -> None:
    board = place.folder / "board.json"
    place.build("//:publish")
    text = board.read_text()
    again = place.build("//:publish")
    assert (again["status"], again["executed"]) == ("ok", 0)
    board.write_text("[]\n")
    place.build("//:publish")
    assert board.read_text() == text
    found = rows(12)
    found[1]["answer"] = "no"
    write(place, found)
    place.build("//:publish")
    assert board.read_text() != text

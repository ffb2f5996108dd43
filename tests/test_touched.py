"""Targets of many items and what changed of them: all are counted, and the first few are named and explained."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.places import Place
from support.recorded import line, many

from mrp.cli.why import MOST_EXPLAINED
from mrp.runtime.touched import TargetLedger

CELLS = ["//:solve", "//:solve@agent=a"]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[TargetLedger]:
    """Two runs: everything, then one trial with another key and one with another result alone."""
    opened = TargetLedger(tmp_path / ".mrp" / "ledger.sqlite")
    first = [*many(300), *many(2, "//:solve@agent=a"), line("//:eval", "", "reduction", "k")]
    opened.record("00001", [(one, True) for one in first])
    changed = line("//:solve", "task-000007", "trial", "other")
    unstable = line("//:solve", "task-000009", "trial", "k-task-000009-trial", "another result")
    opened.record("00002", [(one, False) for one in [*first[20:], changed, unstable]])
    yield opened
    opened.close()


def test_the_first_run_touched_everything_and_names_some(ledger: TargetLedger) -> None:
    touched = ledger.touched(CELLS, "00001", 5)
    assert (touched.actions, touched.items, touched.executed) == (604, 302, True)
    assert [identity[1:] for identity in touched.first[:3]] == [
        ("task-000000", "grade"),
        ("task-000000", "trial"),
        ("task-000001", "grade"),
    ]
    assert len(touched.first) == 5


def test_a_later_run_touched_what_has_another_key(ledger: TargetLedger) -> None:
    touched = ledger.touched(CELLS, "00002", 5)
    assert touched.first == (("//:solve", "task-000007", "trial"),)
    assert (touched.actions, touched.items, touched.executed) == (1, 1, False)


def test_an_item_is_asked_for_alone(ledger: TargetLedger) -> None:
    assert ledger.touched(CELLS, "00001", 5, "task-000001").actions == 4
    assert ledger.items(CELLS) == 302
    assert ledger.items(CELLS, "task-000001") == 2
    assert ledger.runs(CELLS) == {"00001", "00002"}
    assert ledger.runs(CELLS, "task-000007") == {"00001", "00002"}
    assert ledger.runs(CELLS, "task-000008") == {"00001"}
    assert ledger.runs(["//:nothing"]) == set()


WORKSPACE = """\
mrp: 1
targets:
  tasks: {kind: dataset, generate: {range: COUNT}}
  box: {kind: sandbox, limits: {wall: 60s}}
  solve: {kind: rollout, over: ":tasks", agent: "builtin:nop", sandbox: ":box"}
"""


def test_why_explains_the_first_of_many_and_counts_the_others(tmp_path: Path) -> None:
    count = MOST_EXPLAINED + 50
    place = Place(tmp_path / "many")
    place.write({"mrp.yaml": "mrp: 1\nname: many\n", "BUILD.yaml": WORKSPACE.replace("COUNT", str(count))})
    place.build("//:solve", "--limit", "1")
    found = json.loads(place.mrp("why", "//:solve", "--json").stdout)
    assert (found["items"], len(found["changed"]), found["not_explained"]) == (count, MOST_EXPLAINED, 49)
    shown = place.mrp("why", "//:solve").stdout
    assert shown.startswith(f"{count - 1} of {count} would run")
    assert "49 further actions changed" in shown
    one = json.loads(place.mrp("why", "//:solve[0]", "--json").stdout)
    assert (one["items"], one["not_explained"]) == (1, 0)

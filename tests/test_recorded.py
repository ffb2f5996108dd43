"""The actions of a large run, asked for one by one: what is parsed grows with what is asked for, not with the run."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from support.places import Place as Workplace
from support.recorded import line, many, recorded

from mrp.cache.canonical import canonical_text
from mrp.runtime.events import AttemptFailed, Event, EventLog, ItemFinished, ItemStarted, RunStarted
from mrp.runtime.recorded import Place, Recorded, recorded_actions
from mrp.runtime.runlog import RunLog
from mrp.specs.errors import UsageError

FEW = 60
"""More lines than a bisection of the largest run here needs, and far fewer than it has."""

LINES = [
    line("//:eval", "", "reduction", "k"),
    *many(2000),
    line("//:solve-more", "a", "trial", "k"),
    *many(3, "//:solve@agent=a"),
    *many(3, "//:solve@agent=b"),
    line("//:solver", "a", "trial", "k"),
]


@pytest.fixture
def actions(tmp_path: Path) -> Iterator[Recorded]:
    with recorded(tmp_path / "digests.jsonl", LINES) as opened:
        yield opened


def test_all_lines_come_back_in_order(actions: Recorded) -> None:
    assert list(actions) == sorted(LINES, key=lambda one: one[:3])


def test_one_action_is_found_without_reading_the_others(actions: Recorded) -> None:
    for wanted in (LINES[0], LINES[1], LINES[2345], LINES[-1]):
        actions.parsed = 0
        assert actions.find(*wanted[:3]) == wanted
        assert actions.parsed < FEW


@pytest.mark.parametrize("place", [("//:a", "", "x"), ("//:solve", "task-000001", "x"), ("//:zzz", "", "x")])
def test_what_is_not_there_is_not_found(actions: Recorded, place: tuple[str, str, str]) -> None:
    assert actions.find(*place) is None


def test_a_target_has_its_cells_and_no_other_target_of_a_similar_name(actions: Recorded) -> None:
    assert actions.labels("//:solve") == ["//:solve", "//:solve@agent=a", "//:solve@agent=b"]
    assert actions.labels("//:nothing") == []
    assert actions.parsed < 4 * FEW
    assert len(actions.labels()) == 6
    assert sum(1 for _ in actions.of("//:solve")) == 4012


def test_an_item_is_found_in_all_cells_its_trial_before_its_grade(actions: Recorded) -> None:
    found = [(one.label, one.kind) for one in actions.of("//:solve", "task-000002")]
    labels = ("//:solve", "//:solve@agent=a", "//:solve@agent=b")
    assert found == [(label, kind) for label in labels for kind in ("trial", "grade")]
    assert actions.parsed < 12 * FEW
    assert not actions.has("//:solve", "task-1")
    assert actions.has("//:eval", "")


def test_items_that_stand_near_are_suggested_from(actions: Recorded) -> None:
    assert "task-001234" in actions.items_around("//:solve", "task-0012345")


def test_an_empty_run_has_nothing(tmp_path: Path) -> None:
    with recorded(tmp_path / "digests.jsonl", []) as actions:
        assert (list(actions), actions.find("//:a", "", "trial"), actions.labels()) == ([], None, [])


def test_names_that_need_escapes_sort_as_text(tmp_path: Path) -> None:
    odd = [line("//:a", item, "trial", "k") for item in ('"', "!", "\\", "#", "ä", "\t", "é", "zz")]
    with recorded(tmp_path / "digests.jsonl", odd) as actions:
        assert [actions.find(*one[:3]) for one in odd] == odd


def test_a_run_whose_digests_are_not_those_that_it_wrote_is_refused(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path / "demo")
    assert workplace.mrp("init").returncode == 0
    workplace.build("//:eval")
    run = workplace.runs()[-1]
    with recorded_actions(run) as actions:
        assert len(list(actions)) == 13
    file = run / "digests.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"ok"', b'"OK"', 1))
    with pytest.raises(UsageError, match="is damaged"):
        recorded_actions(run)
    file.unlink()
    with pytest.raises(UsageError, match="was cut off"):
        recorded_actions(run)


# -- the log -----------------------------------------------------------------------------------------------------


def write(path: Path, *events: Event) -> RunLog:
    log = EventLog(path)
    for event in events:
        log.emit(event)
    log.close()
    return RunLog(path)


def test_what_was_executed_is_read_from_the_log(tmp_path: Path) -> None:
    finished = [
        ItemFinished("//:solve", f"item-{n}", "trial", "ok", n % 2 == 1, wall_s=Decimal("0.5")) for n in range(9)
    ]
    odd = ItemFinished("//:solve", 'an "odd" one', "trial", "failed", False, reason='it said "no"\n')
    log = write(tmp_path / "events.jsonl", RunStarted("r", ("//:solve",), 1), *finished, odd)
    executed = log.executed()
    assert len(executed) == 6
    assert Place(b"//:solve", b"item-2", b"trial") in executed
    assert Place(b"//:solve", b"item-1", b"trial") not in executed
    assert Place(b"//:solve", b'an "odd" one', b"trial") in executed
    assert len(log.executed("//:solve", "item-4")) == 1
    assert len(log.executed("//:other")) == 0


def test_only_events_that_are_asked_for_are_parsed(tmp_path: Path) -> None:
    events: list[Event] = [RunStarted("r", ("//:solve",), 1)]
    for number in range(500):
        events.append(ItemStarted("//:solve", f"item-{number}", "trial"))
        events.append(ItemFinished("//:solve", f"item-{number}", "trial", "ok", False))
    events.append(AttemptFailed("//:solve", "item-7", "trial", 1, "no room"))
    log = write(tmp_path / "events.jsonl", *events)
    assert log.started() is not None
    assert [event["reason"] for event in log.failed_attempts()] == ["no room"]
    assert len(log.executed("//:solve", "item-7")) == 1
    assert log.parsed < 10
    assert len(log.executed()) == 500
    assert log.parsed < 520


def test_lines_that_are_no_events_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    good = {"at": 1, "cached": False, "item": "a", "kind": "trial", "label": "//:a", "type": "ItemFinished"}
    bad = ["", "{", "[1]", '"type":"ItemFinished"', '{"type":"ItemFinished"}']
    path.write_text("\n".join([*bad, canonical_text(good), canonical_text({**good, "item": "cut off"})[:-4]]))
    log = RunLog(path)
    assert len(log.executed()) == 1
    assert log.started() == 1
    assert (RunLog(tmp_path / "none").started(), len(RunLog(tmp_path / "none").executed())) == (None, 0)

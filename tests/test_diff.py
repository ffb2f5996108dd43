"""Two runs compared: what differs, how, and where it starts."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.recorded import line, many, recorded

from mrp.runtime.diff import DiffReport, Kind, diff_runs
from mrp.runtime.runs import DigestLine

ORDER = ["//:tasks", "//:solve", "//:eval"]

Diff = Callable[..., DiffReport]


@pytest.fixture
def diff(tmp_path: Path) -> Iterator[Diff]:
    """Two lists of actions written down and compared."""
    with ExitStack() as opened:

        def compare(old: list[DigestLine], new: list[DigestLine], leave_out: tuple[str, ...] = ()) -> DiffReport:
            before = opened.enter_context(recorded(tmp_path / "old", old))
            after = opened.enter_context(recorded(tmp_path / "new", new))
            return diff_runs(before, after, ORDER, leave_out)

        yield compare


OLD = [
    line("//:eval", "", "reduction", "k5", "r5"),
    line("//:solve", "a", "grade", "k3", "r3"),
    line("//:solve", "a", "trial", "k1", "r1"),
    line("//:solve", "b", "grade", "k4", "r4"),
    line("//:solve", "b", "trial", "k2", "r2"),
]


def changed(**results: tuple[str, str]) -> list[DigestLine]:
    """OLD with other (key, result) for actions named label_item_kind."""
    new = []
    for old in OLD:
        name = f"{old.label[3:]}_{old.item}_{old.kind}"
        key, result = results.get(name, (old.key, old.result))
        new.append(line(old.label, old.item, old.kind, key, result))
    return new


def test_equal_runs_have_no_difference(diff: Diff) -> None:
    report = diff(OLD, changed())
    assert report.first is None
    assert report.same == len(OLD)


def test_the_first_difference_is_the_one_that_is_built_first(diff: Diff) -> None:
    new = changed(solve_b_trial=("k2", "x2"), solve_b_grade=("x4", "x4"), eval__reduction=("x5", "x5"))
    report = diff(OLD, new)
    assert [divergence.identity for divergence in report.divergences()] == [
        ("//:solve", "b", "trial"),
        ("//:solve", "b", "grade"),
        ("//:eval", "", "reduction"),
    ]


def test_the_same_key_with_other_bytes_is_told_from_another_key(diff: Diff) -> None:
    report = diff(OLD, changed(solve_a_trial=("k1", "x1"), solve_a_grade=("x3", "x3"), solve_b_trial=("x2", "r2")))
    kinds = {divergence.identity[1:]: divergence.kind for divergence in report.divergences()}
    assert kinds == {("a", "trial"): Kind.BYTES, ("a", "grade"): Kind.KEY, ("b", "trial"): Kind.CUTOFF}


def test_actions_of_one_run_alone_are_named(diff: Diff) -> None:
    more = line("//:solve", "c", "trial", "k6", "r6")
    report = diff(OLD[1:], [*OLD, more])
    assert [(d.kind, d.identity) for d in report.divergences()] == [
        (Kind.ONLY_NEW, ("//:solve", "c", "trial")),
        (Kind.ONLY_NEW, ("//:eval", "", "reduction")),
    ]
    back = diff([*OLD, more], OLD)
    assert [d.kind for d in back.divergences()] == [Kind.ONLY_OLD]


def test_labels_outside_of_the_plan_come_last(diff: Diff) -> None:
    report = diff([], [line("//:aaa", "", "command", "k", "r"), OLD[0]])
    assert [d.identity[0] for d in report.divergences()] == ["//:eval", "//:aaa"]


def test_the_report_counts_each_way_of_differing(diff: Diff) -> None:
    counts = diff(OLD, changed(solve_a_trial=("k1", "x1"))).to_json()["counts"]
    assert counts == {"bytes": 1, "key": 0, "cutoff": 0, "only_old": 0, "only_new": 0}


def test_kinds_that_are_left_out_are_no_difference(diff: Diff) -> None:
    published = line("//:publish", "", "produce", "k6", "r6")
    assert diff([*OLD, published], OLD).first is not None
    report = diff([*OLD, published], OLD, leave_out=("produce",))
    assert (report.first, report.same) == (None, len(OLD))


def test_items_whose_names_are_escaped_are_paired_as_well(diff: Diff) -> None:
    odd = [line("//:solve", item, "trial", f"k-{item}") for item in ('say "a"', "back\\slash", "ü", "plain")]
    other = [one if one.item != "ü" else line(*one[:3], "other") for one in odd]
    report = diff(odd, other)
    assert [divergence.identity[1] for divergence in report.divergences()] == ["ü"]
    assert report.same == 3


def test_lines_that_are_equal_are_not_parsed(diff: Diff) -> None:
    old = many(5000)
    new = [one if one.item != "task-002500" or one.kind != "trial" else line(*one[:3], "other") for one in old]
    report = diff(old, [*new, line("//:solve", "task-002500x", "trial", "k")])
    assert [(d.kind, d.identity[1]) for d in report.divergences()] == [
        (Kind.CUTOFF, "task-002500"),
        (Kind.ONLY_NEW, "task-002500x"),
    ]
    assert report.same == 9999
    assert report.old.parsed + report.new.parsed < 12


def test_the_divergences_of_a_large_run_can_be_asked_for_again(diff: Diff) -> None:
    report = diff(many(500), many(500, key="other"))
    assert report.counts[Kind.CUTOFF] == 1000
    first = [divergence.identity for divergence in report.divergences()]
    assert first == [divergence.identity for divergence in report.divergences()]
    assert first[:3] == [
        ("//:solve", "task-000000", "trial"),
        ("//:solve", "task-000000", "grade"),
        ("//:solve", "task-000001", "trial"),
    ]
    document = report.to_json()
    assert len([json.dumps(one) for one in document["divergences"]]) == 1000

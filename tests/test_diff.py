"""Two runs compared: what differs, how, and where it starts."""

from mrp.runtime.diff import DiffReport, Kind, diff_runs
from mrp.runtime.runs import DigestLine

ORDER = ["//:tasks", "//:solve", "//:eval"]


def line(label: str, item: str, kind: str, key: str, result: str) -> DigestLine:
    return DigestLine(label, item, kind, key, result, "ok", True)


OLD = [
    line("//:eval", "", "reduction", "k5", "r5"),
    line("//:solve", "a", "grade", "k3", "r3"),
    line("//:solve", "a", "trial", "k1", "r1"),
    line("//:solve", "b", "grade", "k4", "r4"),
    line("//:solve", "b", "trial", "k2", "r2"),
]


def changed(**results: tuple[str, str]) -> DiffReport:
    """OLD against itself with other (key, result) for actions named label_item_kind."""
    new = []
    for old in OLD:
        name = f"{old.label[3:]}_{old.item}_{old.kind}"
        key, result = results.get(name, (old.key, old.result))
        new.append(line(old.label, old.item, old.kind, key, result))
    return diff_runs(OLD, new, ORDER)


def test_equal_runs_have_no_difference() -> None:
    report = changed()
    assert report.first is None
    assert report.same == len(OLD)


def test_the_first_difference_is_the_one_that_is_built_first() -> None:
    report = changed(solve_b_trial=("k2", "x2"), solve_b_grade=("x4", "x4"), eval__reduction=("x5", "x5"))
    assert [divergence.identity for divergence in report.divergences] == [
        ("//:solve", "b", "trial"),
        ("//:solve", "b", "grade"),
        ("//:eval", "", "reduction"),
    ]


def test_the_same_key_with_other_bytes_is_told_from_another_key() -> None:
    report = changed(solve_a_trial=("k1", "x1"), solve_a_grade=("x3", "x3"), solve_b_trial=("x2", "r2"))
    kinds = {divergence.identity[1:]: divergence.kind for divergence in report.divergences}
    assert kinds == {("a", "trial"): Kind.BYTES, ("a", "grade"): Kind.KEY, ("b", "trial"): Kind.CUTOFF}


def test_actions_of_one_run_alone_are_named() -> None:
    more = line("//:solve", "c", "trial", "k6", "r6")
    report = diff_runs(OLD[1:], [*OLD, more], ORDER)
    assert [(d.kind, d.identity) for d in report.divergences] == [
        (Kind.ONLY_NEW, ("//:solve", "c", "trial")),
        (Kind.ONLY_NEW, ("//:eval", "", "reduction")),
    ]
    back = diff_runs([*OLD, more], OLD, ORDER)
    assert [d.kind for d in back.divergences] == [Kind.ONLY_OLD]


def test_labels_outside_of_the_plan_come_last() -> None:
    report = diff_runs([], [line("//:aaa", "", "command", "k", "r"), OLD[0]], ORDER)
    assert [d.identity[0] for d in report.divergences] == ["//:eval", "//:aaa"]


def test_the_report_counts_each_way_of_differing() -> None:
    counts = changed(solve_a_trial=("k1", "x1")).to_json()["counts"]
    assert counts == {"bytes": 1, "key": 0, "cutoff": 0, "only_old": 0, "only_new": 0}

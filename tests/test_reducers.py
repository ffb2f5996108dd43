"""The built-in reducers: documents against hand-computed values, `statistics`, and brute force over fractions."""

import json
import random
import statistics
import tracemalloc
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.trials import trial

from mrp.cache.canonical import canonical_bytes, parse_canonical
from mrp.rules.numerics import DIGITS, exact_sum, median, rounded, square_root, standard_error
from mrp.rules.reducers import REDUCERS, ReducerError, render_markdown, run_reducer
from mrp.rules.tables import flatten, to_parquet

DOCS = Path(__file__).parents[1] / "docs" / "reducers.md"

NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-1000, max_value=1000, places=6),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda number: Decimal(repr(number))),
)
ROWS = st.lists(
    st.builds(
        trial,
        st.sampled_from("abcd"),
        st.one_of(
            st.none(), NUMBERS, st.sampled_from([0, 1]), st.fixed_dictionaries({"reward": NUMBERS, "t": NUMBERS})
        ),
        outcome=st.sampled_from(["ok", "failed", "limit", "infra_error"]),
        agent=st.sampled_from(["//a:one", "//a:two"]),
        matrix=st.fixed_dictionaries({"temperature": st.sampled_from([None, True, "0.7", Decimal("0.7"), 1])}),
    ),
    max_size=25,
)


def stats(rows: list[dict[str, Any]], **params: Any) -> dict[str, Any]:
    return run_reducer("stats", rows, params=params, group_by=())


# -- stats --------------------------------------------------------------------------------------------------------


def test_stats_by_hand() -> None:
    rows = [
        trial("a", 1),
        trial("a", 0, sample=1, outcome="failed"),
        trial("b", 1),
        trial("b", 1, sample=1, outcome="limit", limit="wall"),
        trial("c", None),
        trial("c", None, sample=1, outcome="infra_error", tree=None),
    ]
    # Per-record means are 1/2 and 1: their mean 3/4, their deviation sqrt(1/8), over sqrt(2) records 1/4.
    assert stats(rows) == {
        "n": 6,
        "records": 3,
        "outcomes": {"ok": 2, "failed": 1, "limit": 1, "unscored": 2},
        "reward": {
            "n": 4,
            "sum": Decimal(3),
            "mean": Decimal("0.75"),
            "se": Decimal("0.25"),
            "median": Decimal(1),
            "min": Decimal(0),
            "max": Decimal(1),
        },
        "groups": [],
    }


def test_one_record_has_no_standard_error() -> None:
    assert stats([trial("a", 1), trial("a", 0, sample=1)])["reward"]["se"] is None


def test_no_rows_give_counts_and_nothing_else() -> None:
    assert stats([]) == {
        "n": 0,
        "records": 0,
        "outcomes": {"ok": 0, "failed": 0, "limit": 0, "unscored": 0},
        "groups": [],
    }


def test_a_rollout_without_a_grade_is_counted_by_outcome_and_not_as_unscored() -> None:
    rows = [trial("a", None), trial("b", None, outcome="failed"), trial("c", None, outcome="infra_error")]
    assert stats(rows)["outcomes"] == {"ok": 1, "failed": 1, "limit": 0, "unscored": 1}
    assert stats([*rows, trial("d", 1)])["outcomes"] == {"ok": 1, "failed": 0, "limit": 0, "unscored": 3}


def test_an_ungraded_group_is_unscored_when_another_group_is_graded() -> None:
    rows = [trial("a", 1, agent="//a:one"), trial("a", None, agent="//a:two")]
    groups = run_reducer("stats", rows, params={}, group_by=["agent"])["groups"]
    assert [group["outcomes"]["unscored"] for group in groups] == [0, 1]


def test_reward_comes_first_and_other_numbers_by_name() -> None:
    document = stats([trial("a", {"zeta": 1, "reward": 1, "alpha": 1})])
    assert list(document) == ["n", "records", "outcomes", "reward", "alpha", "zeta", "groups"]


def test_a_number_that_only_some_trials_have_is_averaged_over_those() -> None:
    document = stats([trial("a", {"reward": 1, "tests": 4}), trial("b", 0)])
    assert (document["reward"]["n"], document["tests"]["n"], document["tests"]["mean"]) == (2, 1, 4)


def test_groups_are_sorted_by_value_numbers_by_size_and_null_first() -> None:
    values = [Decimal(10), Decimal("9.5"), "b", None, True, "a", False]
    rows = [trial("x", 1, matrix={"t": value}) for value in values]
    groups = run_reducer("stats", rows, params={}, group_by=["t", "agent"])["groups"]
    expected = [None, False, True, Decimal("9.5"), 10, "a", "b"]
    assert [group["by"] for group in groups] == [{"t": value, "agent": "//jobs:oracle"} for value in expected]
    assert all(group["reward"]["n"] == 1 for group in groups)


def test_a_group_key_that_a_trial_lacks_is_null() -> None:
    rows = [trial("x", 1, matrix={"t": 1}), trial("y", 1)]
    groups = run_reducer("stats", rows, params={}, group_by=["t"])["groups"]
    assert [group["by"]["t"] for group in groups] == [None, 1]


def test_records_of_a_dataset_are_counted_whatever_their_fields_are_called() -> None:
    records = [
        {"id": "a", "target": "//d:tasks", "outcome": "win", "rewards": "none"},
        {"id": "b", "target": "//d:tasks"},
    ]
    document = run_reducer("count", records, params={}, group_by=["target"])
    assert (document["n"], document["records"]) == (2, 2)
    assert document["outcomes"] == {"ok": 0, "failed": 0, "limit": 0, "unscored": 0}
    assert document["groups"][0]["by"] == {"target": "//d:tasks"}


@given(st.lists(st.tuples(st.sampled_from("abcde"), NUMBERS), min_size=1, max_size=30))
def test_stats_agree_with_the_statistics_module_on_exact_fractions(values: list[tuple[str, Any]]) -> None:
    number = stats([trial(id, value) for id, value in values])["reward"]
    exact = [Fraction(value) for _, value in values]
    means = [statistics.mean([Fraction(v) for i, v in values if i == id]) for id in sorted({id for id, _ in values})]
    assert number["sum"] == sum(exact)
    assert number["mean"] == rounded(statistics.mean(exact))
    assert number["median"] == statistics.median(exact)
    assert (number["min"], number["max"]) == (min(exact), max(exact))
    if len(means) == 1:
        assert number["se"] is None
    else:
        squared = statistics.variance(means) / len(means)
        error = Fraction(number["se"])
        # Within one unit of the last of 17 digits of the true root: (se - unit)^2 < squared < (se + unit)^2.
        unit = Fraction(10) ** (number["se"].adjusted() - DIGITS + 1) if error else Fraction(0)
        assert (error - unit) ** 2 <= squared <= (error + unit) ** 2


@given(ROWS, st.randoms(use_true_random=False))
def test_every_reducer_gives_the_same_bytes_in_whatever_order_the_trials_come(
    rows: list[dict[str, Any]], shuffler: random.Random
) -> None:
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    for name in ("count", "stats", "pass_at_k", "table"):
        first, second = (
            run_reducer(name, given_rows, params={}, group_by=["temperature", "agent"])
            for given_rows in (rows, shuffled)
        )
        assert canonical_bytes(first) == canonical_bytes(second)
        assert render_markdown(first) == render_markdown(second)


@given(ROWS)
def test_groups_partition_the_whole(rows: list[dict[str, Any]]) -> None:
    document = run_reducer("stats", rows, params={}, group_by=["agent"])
    assert sum(group["n"] for group in document["groups"]) == document["n"] == len(rows)
    for outcome, number in document["outcomes"].items():
        assert sum(group["outcomes"][outcome] for group in document["groups"]) == number
    assert sum(document["outcomes"].values()) == len(rows)
    total = sum((Fraction(group["reward"]["sum"]) for group in document["groups"] if "reward" in group), Fraction(0))
    assert total == Fraction(document.get("reward", {}).get("sum", 0))


def test_stats_keep_no_rows() -> None:
    def rows(count: int) -> Any:
        for number in range(count):
            yield trial(f"r{number % 50}", number % 2, sample=number // 50, params={"padding": "x" * 1000})

    def peak(count: int) -> int:
        tracemalloc.start()
        run_reducer("stats", rows(count), params={}, group_by=["agent"])
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak_bytes

    peak(100)
    assert peak(8000) < 2 * peak(500)


# -- numerics -----------------------------------------------------------------------------------------------------


def test_sums_of_doubles_are_exact_where_floats_are_not() -> None:
    values = [1e308, 1.0, -1e308, 5e-324, 0.1, 0.2]
    total = Decimal(0)
    for value in values:
        total = exact_sum(total, Decimal(repr(value)))
    assert Fraction(total) == sum(Fraction(Decimal(repr(value))) for value in values)
    assert sum(values) != total


def test_a_sum_that_needs_too_many_digits_is_refused_not_rounded() -> None:
    with pytest.raises(
        ReducerError, match=r"the reducer stats cannot compute: the sum with .* needs more than 2000 digits"
    ):
        stats([trial("a", Decimal("1e3000")), trial("b", 1)])


def test_means_are_rounded_once_half_to_even() -> None:
    assert rounded(Fraction(1, 3)) == Decimal("0.33333333333333333")
    assert rounded(Fraction(2, 3)) == Decimal("0.66666666666666667")
    assert rounded(Fraction(100000000000000005, 10)) == Decimal("10000000000000000")
    assert rounded(Fraction(100000000000000015, 10)) == Decimal("10000000000000002")


def test_square_roots_medians_and_errors_by_hand() -> None:
    assert square_root(Fraction(2)) == Decimal("1.4142135623730950")
    assert square_root(Fraction(9, 4)) == Decimal("1.5")
    assert median([(Decimal(3), 1), (Decimal(1), 2), (Decimal("0.1"), 1)]) == 1
    assert median([(Decimal("0.1"), 2), (Decimal("0.2"), 2)]) == Decimal("0.15")
    assert standard_error([(1, 1, 1)]) is None
    assert standard_error([(2, 1, 1), (8, 2, 1), (18, 3, 1)]) == square_root(Fraction(4, 3))
    assert standard_error([(1, 1, 2), (0, 1, 2)]) == square_root(Fraction(1, 12))


# -- pass_at_k ----------------------------------------------------------------------------------------------------


def test_pass_at_k_by_hand() -> None:
    # a: 1 of 4 right, so pass@2 is 1 - C(3,2)/C(4,2) = 1/2. b: 4 of 4, 1. c: 0 of 4, 0.
    rewards = {"a": [0, 1, 0, Decimal("0.99")], "b": [1, 1, Decimal("1.0"), 1], "c": [0, 0, 0, 0]}
    rows = [trial(id, reward, sample=i) for id, values in rewards.items() for i, reward in enumerate(values)]
    document = run_reducer("pass_at_k", rows, params={"k": [2, 1]}, group_by=())
    assert document["pass_at_1"] == {
        "records": 3,
        "mean": rounded(Fraction(5, 12)),
        "se": square_root(Fraction(13, 144)),
    }
    assert document["pass_at_2"] == {"records": 3, "mean": Decimal("0.5"), "se": square_root(Fraction(1, 12))}
    assert stats(rows, k=[1, 2])["pass_at_2"] == document["pass_at_2"]


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_sample(right: list[bool], size: int) -> None:
    rows = [trial("a", int(value), sample=number) for number, value in enumerate(right)]
    estimate = run_reducer("pass_at_k", rows, params={"k": size}, group_by=())[f"pass_at_{size}"]
    draws = [any(draw) for draw in combinations(right, size)]
    if not draws:
        assert estimate["mean"] is None
        assert estimate["note"] == f"1 of 1 records have fewer than {size} scored samples"
    else:
        assert estimate["mean"] == rounded(Fraction(sum(draws), len(draws)))


def test_records_with_too_few_scored_samples_are_left_out_and_counted() -> None:
    rows = [trial("a", 1), trial("a", 1, sample=1), trial("b", 0), trial("b", None, sample=1)]
    estimate = run_reducer("pass_at_k", rows, params={"k": 2}, group_by=())["pass_at_2"]
    assert estimate == {
        "records": 1,
        "mean": 1,
        "se": None,
        "note": "1 of 2 records have fewer than 2 scored samples",
    }


@pytest.mark.parametrize("size", [0, -1, True, "2", Decimal("1.5"), [1, None]])
def test_sizes_that_are_no_whole_numbers_are_refused(size: Any) -> None:
    with pytest.raises(ReducerError, match=r"params\.k of the reducer pass_at_k holds .*; write whole numbers from 1"):
        run_reducer("pass_at_k", [], params={"k": size}, group_by=())


# -- the others ---------------------------------------------------------------------------------------------------


def test_concat_keeps_rows_as_they_are() -> None:
    rows = [trial("a", Decimal("0.10")), {"id": "b", "target": "//d:tasks"}]
    assert run_reducer("concat", iter(rows), params={}, group_by=()) == {"n": 2, "rows": rows}


def test_a_table_has_a_row_a_group_with_n_mean_and_se() -> None:
    rows = [trial(id, reward, agent=agent) for agent, reward in (("//a:b", 1), ("//a:a", 0)) for id in ("x", "y")]
    document = run_reducer("table", rows, params={}, group_by=["agent"])
    assert document["reward"] == {"n": 4, "mean": Decimal("0.5"), "se": 0}
    assert [(row["by"], row["reward"]) for row in document["rows"]] == [
        ({"agent": "//a:a"}, {"n": 2, "mean": 0, "se": 0}),
        ({"agent": "//a:b"}, {"n": 2, "mean": 1, "se": 0}),
    ]


@pytest.mark.parametrize("name", sorted(REDUCERS))
def test_an_unknown_param_is_refused(name: str) -> None:
    with pytest.raises(ReducerError, match=f"the reducer {name} has no param 'kk'; remove it"):
        run_reducer(name, [], params={"kk": 1}, group_by=())


@pytest.mark.parametrize("name", ["n", "groups", "pass_at_1"])
def test_a_number_with_a_name_of_the_document_is_refused(name: str) -> None:
    with pytest.raises(ReducerError, match=f"a grader wrote a number called '{name}'"):
        stats([trial("a", {name: 1})])


# -- Markdown and Parquet -----------------------------------------------------------------------------------------


def test_markdown_has_a_line_a_group_and_one_for_all() -> None:
    rows = [
        trial(id, {"reward": reward, "tokens": 12345 + reward}, agent=agent)
        for agent, rewards in (("//a:one", (1, 1, 0)), ("//a:t|wo", (0, 0, 0)))
        for id, reward in zip("xyz", rewards, strict=True)
    ]
    document = run_reducer("stats", [*rows, trial("x", None)], params={"k": [2]}, group_by=["agent"])
    assert render_markdown(document) == (
        "| agent | n | ok | unscored | reward | pass_at_2 | tokens |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| //a:one | 3 | 3 | 0 | 0.6667 ± 0.3333 |  | 12346 ± 0.3333 |\n"
        "| //a:t\\|wo | 3 | 3 | 0 | 0 ± 0 |  | 12345 ± 0 |\n"
        "| //jobs:oracle | 1 | 0 | 1 |  |  |  |\n"
        "| all | 7 | 6 | 1 | 0.3333 ± 0.1667 | 0.6667 ± 0.3333 | 12345 ± 0.1667 |\n"
    )


def test_markdown_of_other_documents_is_their_json() -> None:
    assert (
        render_markdown({"b": Decimal("0.10"), "a": ["é"]})
        == '```json\n{\n  "a": [\n    "é"\n  ],\n  "b": 0.1\n}\n```\n'
    )


def test_markdown_of_concat_is_a_table_of_rows() -> None:
    rows = [{"id": "a\nb", "rewards": {"reward": 1}}, {"id": "c", "rewards": None}]
    assert render_markdown({"n": 2, "rows": rows}) == (
        "| id | rewards.reward |\n| --- | --- |\n| a b | 1 |\n| c |  |\n"
    )


def test_parquet_has_typed_columns_of_dotted_names_and_the_same_bytes_each_time() -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        trial("a", Decimal("0.5"), matrix={"t": 1, "big": 2**70}, tags=["x"], mixed=1, flag=True),
        trial("b", None, matrix={"t": 2, "big": 1}, tags=[], mixed="one", flag=None),
    ]
    data = to_parquet(rows)
    assert data == to_parquet(iter(rows))
    table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    assert {field.name: str(field.type) for field in table.schema} == {
        "agent": "string",
        "flag": "bool",
        "id": "string",
        "limit": "string",
        "matrix.big": "double",
        "matrix.t": "int64",
        "mixed": "string",
        "model": "string",
        "outcome": "string",
        "rewards.reward": "double",
        "sample": "int64",
        "tags": "string",
        "target": "string",
        "tree": "string",
    }
    first, second = table.to_pylist()
    assert (first["rewards.reward"], first["mixed"], first["tags"], first["matrix.big"]) == (0.5, "1", '["x"]', 2.0**70)
    assert (second["rewards.reward"], second["mixed"], second["tags"]) == (None, '"one"', "[]")


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"two columns are called a\.b; rename one"):
        flatten({"a": {"b": 1}, "a.b": 2})


# -- docs/reducers.md ---------------------------------------------------------------------------------------------


def test_the_documents_in_the_docs_are_what_the_reducers_give() -> None:
    text = DOCS.read_text()
    blocks = [part.split("```")[0] for part in text.split("```json\n")[1:]]
    rows = [parse_canonical(line) for line in blocks[0].splitlines()]
    shown = [json.loads(block, parse_float=Decimal) for block in blocks[1:]]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("concat", {}),
        ("count", {}),
        ("stats", {}),
        ("pass_at_k", {"k": [1, 2]}),
        ("table", {}),
    ]
    assert len(shown) == len(calls) == len(REDUCERS)
    for (name, params), document in zip(calls, shown, strict=True):
        given_rows = rows[:1] if name == "concat" else rows
        group_by = [] if name == "concat" else ["agent"]
        assert canonical_bytes(run_reducer(name, given_rows, params=params, group_by=group_by)) == canonical_bytes(
            document
        )
    page = text.split("```markdown\n")[1].split("```")[0]
    assert page == render_markdown(shown[-1])

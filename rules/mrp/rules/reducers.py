"""The built-in reducers: from rows in canonical order to the document that is written as result.json.

A row is a trial: {id, sample, target, agent, model, matrix, params, outcome, limit, sees, graded, rewards, tree}, where
`rewards` is an object of numbers or null. Records of a dataset ({id, target, and their fields}) and documents are rows
too, and are counted. docs/reducers.md fixes each document; every number follows mrp.rules.numerics.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from math import comb

from mrp.cache.canonical import Json, canonical_text
from mrp.rules.numerics import exact_sum, mean, median, rounded, standard_error
from mrp.rules.tables import render_markdown as render_markdown

OUTCOMES = ("ok", "failed", "limit", "unscored")

_TRIAL_KEYS = ("agent", "model", "target")
_SELF_REPORTED = "reported its own reward"
_RESERVED = {"n", "records", "outcomes", "groups", "rows", "by", "notes"}


class ReducerError(ValueError):
    """Params that a reducer does not take, or rows that it cannot reduce; the text says what to change."""


def run_reducer(
    reducer: str, rows: Iterable[Mapping[str, Json]], *, params: Mapping[str, Json], group_by: Sequence[str]
) -> dict[str, Json]:
    """The document of the built-in `reducer` (concat, count, stats, pass_at_k, table).

    Rows are read once. Raises ReducerError when the params do not fit or a number cannot be added exactly.
    """
    builtin = REDUCERS[reducer]
    unknown = sorted(set(params) - builtin.params)
    if unknown:
        raise ReducerError(f"the reducer {reducer} has no param {unknown[0]!r}; remove it")
    try:
        return builtin.reduce(rows, params, tuple(group_by))
    except OverflowError as error:
        raise ReducerError(
            f"the reducer {reducer} cannot compute: {error}; let the grader write smaller ones"
        ) from None


def concat(
    rows: Iterable[Mapping[str, Json]], params: Mapping[str, Json], group_by: tuple[str, ...]
) -> dict[str, Json]:
    """All rows, as they are: {n, rows}."""
    notes = _Notes()
    found = [dict(notes.add(row)) for row in rows]
    return {"n": len(found), **notes.document(), "rows": found}


def count(rows: Iterable[Mapping[str, Json]], params: Mapping[str, Json], group_by: tuple[str, ...]) -> dict[str, Json]:
    """How many trials, records and outcomes: {n, records, outcomes, groups}."""
    return _grouped(rows, group_by, "groups", lambda tally, document: document)


def stats(rows: Iterable[Mapping[str, Json]], params: Mapping[str, Json], group_by: tuple[str, ...]) -> dict[str, Json]:
    """What `count` gives, and n, sum, mean, se, median, min, max of every number; with params.k also pass_at_k."""
    sizes = _sizes(params.get("k", ()), "stats")

    def numbers(tally: _Tally, document: dict[str, Json]) -> dict[str, Json]:
        for name in tally.names():
            document[name] = tally.numbers[name].all()
        return _with_estimates(tally, document, sizes)

    return _grouped(rows, group_by, "groups", numbers)


def pass_at_k(
    rows: Iterable[Mapping[str, Json]], params: Mapping[str, Json], group_by: tuple[str, ...]
) -> dict[str, Json]:
    """What `count` gives, and for each k of the params the unbiased estimate that one of k samples has reward 1."""
    sizes = _sizes(params.get("k", (1,)), "pass_at_k")
    return _grouped(rows, group_by, "groups", lambda tally, document: _with_estimates(tally, document, sizes))


def table(rows: Iterable[Mapping[str, Json]], params: Mapping[str, Json], group_by: tuple[str, ...]) -> dict[str, Json]:
    """One row a group with n, mean and se of every number: {n, records, outcomes, <numbers>, rows}."""

    def numbers(tally: _Tally, document: dict[str, Json]) -> dict[str, Json]:
        for name in tally.names():
            document[name] = tally.numbers[name].short()
        return document

    return _grouped(rows, group_by, "rows", numbers)


@dataclass(frozen=True)
class Builtin:
    """A built-in reducer. `version` is part of the key of its reductions, raised when a document changes for the
    same rows; `params` are the names that it takes.
    """

    reduce: Callable[[Iterable[Mapping[str, Json]], Mapping[str, Json], tuple[str, ...]], dict[str, Json]]
    params: frozenset[str] = frozenset()
    version: str = "1"


REDUCERS = {
    "concat": Builtin(concat),
    "count": Builtin(count),
    "stats": Builtin(stats, frozenset({"k"})),
    "pass_at_k": Builtin(pass_at_k, frozenset({"k"})),
    "table": Builtin(table),
}
"""Every built-in reducer, by name."""


@dataclass(slots=True)
class _PerRecord:
    """One number over one record's trials."""

    n: int = 0
    total: Decimal = Decimal(0)
    ones: int = 0


@dataclass(slots=True)
class _Number:
    """One number over many trials; its size grows with records and distinct values, not with trials."""

    n: int = 0
    total: Decimal = Decimal(0)
    values: dict[Decimal, int] = field(default_factory=dict)
    records: dict[str, _PerRecord] = field(default_factory=dict)

    def add(self, record: str, value: Json) -> None:
        number = Decimal(value)
        self.n += 1
        self.total = exact_sum(self.total, number)
        self.values[number] = self.values.get(number, 0) + 1
        one = self.records.setdefault(record, _PerRecord())
        one.n += 1
        one.total = exact_sum(one.total, number)
        one.ones += number == 1

    def short(self) -> dict[str, Json]:
        return {"n": self.n, "mean": mean(self.total, self.n), "se": self._error()}

    def all(self) -> dict[str, Json]:
        return {
            "n": self.n,
            "sum": self.total,
            "mean": mean(self.total, self.n),
            "se": self._error(),
            "median": median(self.values.items()),
            "min": min(self.values),
            "max": max(self.values),
        }

    def _error(self) -> Decimal | None:
        means = ((*one.total.as_integer_ratio(), one.n) for one in self.records.values())
        return standard_error((numerator, denominator * n, 1) for numerator, denominator, n in means)


@dataclass(slots=True)
class _Tally:
    """What is known of one group. `bare` counts the outcomes of trials that have no number at all."""

    n: int = 0
    records: set[str] = field(default_factory=set)
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    bare: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, _Number] = field(default_factory=dict)

    def add(self, row: Mapping[str, Json]) -> None:
        self.n += 1
        if "id" in row:
            self.records.add(str(row["id"]))
        if not _is_trial(row):
            return
        outcome, rewards = row["outcome"], row["rewards"] or {}
        if outcome not in ("ok", "failed", "limit"):
            self.outcomes["unscored"] += 1
            return
        if not rewards:
            self.bare[outcome] = self.bare.get(outcome, 0) + 1
            return
        self.outcomes[outcome] += 1
        for name, value in rewards.items():
            if name in _RESERVED or name.startswith("pass_at_"):
                raise ReducerError(f"a grader wrote a number called {name!r}, which reducers use themselves; rename it")
            self.numbers.setdefault(name, _Number()).add(str(row["id"]), value)

    def names(self) -> list[str]:
        """Names of the numbers, `reward` first."""
        return sorted(self.numbers, key=lambda name: (name != "reward", name))

    def document(self, graded: bool) -> dict[str, Json]:
        """The counts. A trial without a number is unscored, unless no trial of the whole reduction has one."""
        outcomes = dict(self.outcomes)
        for outcome, number in self.bare.items():
            outcomes["unscored" if graded else outcome] += number
        return {"n": self.n, "records": len(self.records), "outcomes": outcomes}


@dataclass(slots=True)
class _Notes:
    """What readers must know about where numbers come from: how many trials of which agent were helped."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Take note of a row; gives it back."""
        if _is_trial(row):
            for noted, sentence in ((("sees", "solution"), "saw the solution"), (("graded", "self"), _SELF_REPORTED)):
                if row.get(noted[0]) == noted[1]:
                    key = (str(row.get("agent")), sentence)
                    self.counts[key] = self.counts.get(key, 0) + 1
        return row

    def document(self) -> dict[str, Json]:
        """{notes} with a sentence for each agent, or nothing."""
        notes: list[Json] = [
            f"{agent} {sentence} in {number} trial{'' if number == 1 else 's'}"
            for (agent, sentence), number in sorted(self.counts.items())
        ]
        return {"notes": notes} if notes else {}


def _grouped(
    rows: Iterable[Mapping[str, Json]],
    group_by: tuple[str, ...],
    plural: str,
    fill: Callable[[_Tally, dict[str, Json]], dict[str, Json]],
) -> dict[str, Json]:
    """The document over all rows, with those of its groups under `plural`, sorted by their keys."""
    total, notes = _Tally(), _Notes()
    groups: dict[str, tuple[dict[str, Json], _Tally]] = {}
    for row in rows:
        total.add(notes.add(row))
        if group_by:
            by = {key: _group_value(row, key) for key in group_by}
            groups.setdefault(canonical_text(by), (by, _Tally()))[1].add(row)
    graded = bool(total.numbers)
    document = fill(total, {**total.document(graded), **notes.document()})
    ordered = sorted(groups.values(), key=lambda group: [_order(value) for value in group[0].values()])
    document[plural] = [fill(tally, {"by": by, **tally.document(graded)}) for by, tally in ordered]
    return document


def _is_trial(row: Mapping[str, Json]) -> bool:
    """False for records of a dataset, whatever their fields are called, and for documents."""
    return all(key in row for key in ("id", "sample", "outcome", "rewards", "tree"))


def _group_value(row: Mapping[str, Json], key: str) -> Json:
    if key in _TRIAL_KEYS:
        return row.get(key)
    return (row.get("matrix") or {}).get(key)


def _order(value: Json) -> tuple[int, Decimal, str]:
    """Null before false, true, numbers by size, then text."""
    if value is None or isinstance(value, bool):
        return (0 if value is None else 1 + value, Decimal(0), "")
    if isinstance(value, int | Decimal):
        return (3, Decimal(value), "")
    return (4, Decimal(0), value if isinstance(value, str) else canonical_text(value))


def _sizes(value: Json, reducer: str) -> tuple[int, ...]:
    given = value if isinstance(value, list | tuple) else (value,)
    for size in given:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ReducerError(
                f"params.k of the reducer {reducer} holds {size!r}; write whole numbers from 1, like [1, 2]"
            )
    return tuple(sorted(set(given)))


def _with_estimates(tally: _Tally, document: dict[str, Json], sizes: tuple[int, ...]) -> dict[str, Json]:
    reward = tally.numbers.get("reward", _Number())
    samples = Counter((one.n, one.ones) for one in reward.records.values())
    for size in sizes:
        document[f"pass_at_{size}"] = _estimate(samples, size)
    return document


def _estimate(samples: Counter[tuple[int, int]], size: int) -> dict[str, Json]:
    """Mean and se over records of 1 - C(n-c, k) / C(n, k), for `samples` as how many records have which (n, c).

    Records with fewer samples than k are left out.
    """
    chances = [
        (1 - Fraction(comb(n - ones, size), comb(n, size)), count) for (n, ones), count in samples.items() if n >= size
    ]
    records = sum(count for _, count in chances)
    error = standard_error((*chance.as_integer_ratio(), count) for chance, count in chances)
    estimate: dict[str, Json] = {"records": records, "mean": None, "se": error}
    if records:
        estimate["mean"] = rounded(sum((chance * count for chance, count in chances), Fraction(0)) / records)
    left_out = samples.total() - records
    if left_out:
        estimate["note"] = f"{left_out} of {samples.total()} records have fewer than {size} scored samples"
    return estimate

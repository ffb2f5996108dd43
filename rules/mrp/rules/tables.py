"""How results are shown and exported: a document as Markdown, rows as Parquet."""

import json
from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

from mrp.cache.canonical import Json, canonical_text, number_text
from mrp.specs.errors import InfraError

_SHOWN_DIGITS = 4
_INT64 = 2**63


def render_markdown(document: Mapping[str, Json]) -> str:
    """`document` as the result.md beside its result.json.

    Documents of the built-in reducers become one table: a line a group, a last line for all, and `mean ± se` for each
    number. Rows of `concat` become a table of trials. Anything else is shown as JSON.
    """
    rows = document.get("rows")
    if "outcomes" in document and "n" in document:
        return _summary(document)
    if isinstance(rows, list | tuple) and all(isinstance(row, Mapping) for row in rows):
        return _listing([flatten(row) for row in rows]) + _notes(document.get("notes"))
    return render_json(document)


def render_json(document: Mapping[str, Json]) -> str:
    """`document` as indented JSON."""
    text = json.dumps(json.loads(canonical_text(document)), indent=2, ensure_ascii=False)
    return f"```json\n{text}\n```\n"


def flatten(row: Mapping[str, Json]) -> dict[str, Json]:
    """`row` with the objects in it as columns of dotted names: {"rewards": {"reward": 1}} has `rewards.reward`.

    Raises ValueError when two columns would have one name.
    """
    columns: dict[str, Json] = {}
    _flatten("", row, columns)
    return columns


def to_parquet(rows: Iterable[Mapping[str, Json]]) -> bytes:
    """Flattened rows as a Parquet file, columns sorted by name.

    A column is bool, int64, double or string when all its values are; else each value is its canonical JSON text.
    The same rows give the same bytes under the same pyarrow, which writes its own version into the file. Raises
    InfraError when pyarrow is not installed.
    """
    arrow, parquet = load_pyarrow()
    flat = [flatten(row) for row in rows]
    names = sorted(_columns(flat))
    arrays = [_column(arrow, [row.get(name) for row in flat]) for name in names]
    sink = arrow.BufferOutputStream()
    table = arrow.Table.from_arrays(arrays, names=names)
    parquet.write_table(table, sink, compression="zstd", store_schema=False)
    return bytes(sink.getvalue().to_pybytes())


def load_pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet; raises InfraError that names the extra to install."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InfraError("Parquet needs pyarrow; install mrp-build[parquet]", retryable=False) from None
    return pyarrow, pyarrow.parquet


def _flatten(prefix: str, value: Mapping[str, Json], columns: dict[str, Json]) -> None:
    for name, item in value.items():
        if isinstance(item, Mapping):
            _flatten(f"{prefix}{name}.", item, columns)
        elif f"{prefix}{name}" in columns:
            raise ValueError(f"two columns are called {prefix}{name}; rename one")
        else:
            columns[f"{prefix}{name}"] = item


def _columns(rows: list[dict[str, Json]]) -> list[str]:
    """The columns of flattened rows, in order of appearance; null where others hold an object makes no column."""
    held: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            held[name] = held.get(name, False) or value is not None
    folders = {name[:end] for name in held for end in range(len(name)) if name[end] == "."}
    return [name for name, has_value in held.items() if has_value or name not in folders]


def _column(arrow: Any, values: list[Json]) -> Any:
    given = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in given) and given:
        return arrow.array(values, arrow.bool_())
    if all(isinstance(value, str) for value in given):
        return arrow.array(values, arrow.string())
    if not any(isinstance(value, bool) or not isinstance(value, int | Decimal) for value in given):
        if all(isinstance(value, int) and -_INT64 <= value < _INT64 for value in given):
            return arrow.array(values, arrow.int64())
        return arrow.array([None if value is None else float(value) for value in values], arrow.float64())
    return arrow.array([None if value is None else canonical_text(value) for value in values], arrow.string())


def _summary(document: Mapping[str, Json]) -> str:
    groups = document.get("groups") or document.get("rows") or ()
    keys = list(groups[0]["by"]) if groups else []
    outcomes = [name for name, number in document["outcomes"].items() if number or name == "ok"]
    numbers = [name for name, value in document.items() if isinstance(value, Mapping) and "mean" in value]
    numbers.sort(key=lambda name: (name != "reward", name))
    header = [*keys, "n", *outcomes, *numbers]
    lines = [
        [*(_text(group["by"][key]) for key in keys), *_counts(group, outcomes), *(_mean(group.get(n)) for n in numbers)]
        for group in groups
    ]
    if len(groups) != 1:
        label = ["all", *("" for _ in keys[1:])] if keys else []
        lines.append([*label, *_counts(document, outcomes), *(_mean(document[name]) for name in numbers)])
    notes = [f"{name}: {document[name]['note']}" for name in numbers if document[name].get("note")]
    aligned = [*("---" for _ in keys), *("---:" for _ in header[len(keys) :])]
    return _table(header, aligned, lines) + _notes(notes) + _notes(document.get("notes"))


def _notes(notes: Json) -> str:
    return "".join(f"\n{_text(note)}.\n" for note in notes) if isinstance(notes, list) else ""


def _counts(part: Mapping[str, Json], outcomes: list[str]) -> list[str]:
    return [str(part["n"]), *(str(part["outcomes"][name]) for name in outcomes)]


def _mean(value: Json) -> str:
    if not isinstance(value, Mapping) or value["mean"] is None:
        return ""
    shown = _short(value["mean"])
    return shown if value["se"] is None else f"{shown} ± {_short(value['se'])}"


def _short(value: int | Decimal) -> str:
    """Four significant digits, and never fewer than all before the point."""
    number = Decimal(value)
    digits = max(_SHOWN_DIGITS, number.adjusted() + 1)
    return number_text(Context(prec=digits, rounding=ROUND_HALF_EVEN).plus(number))


def _listing(rows: list[dict[str, Json]]) -> str:
    names = _columns(rows)
    lines = [[_text(row.get(name)) for name in names] for row in rows]
    return _table(names, ["---" for _ in names], lines) if names else ""


def _text(value: Json) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else canonical_text(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", " ").replace("\n", " ")


def _table(header: list[str], aligned: list[str], lines: list[list[str]]) -> str:
    shown = [[_text(name) for name in header], aligned, *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in shown)

import gzip
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.datasets import dataset, put_files

from mrp.cache.store import Store
from mrp.rules import formats
from mrp.rules.folders import read_folders
from mrp.rules.formats import read_rows
from mrp.specs.errors import BuildFailed
from mrp.specs.ir import FetchSpec


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("cache")) as opened:
        yield opened


def read(store: Store, format: str, content: str | bytes, path: str | None = None) -> list[tuple[str, Any]]:
    """(place, fields) of each row; fails when anything is wrong."""
    rows, faults = read_rows(dataset(format), put_files(store, {path or f"a.{format}": content}), store)
    assert faults == []
    return [(row.origin, dict(row.fields)) for row in rows]


def faults(store: Store, format: str, content: str | bytes, path: str | None = None) -> list[str]:
    """The first line of each fault."""
    _, found = read_rows(dataset(format), put_files(store, {path or f"a.{format}": content}), store)
    return [f"{fault.span}: {fault.message}" for fault in found]


# -- JSON lines and JSON -----------------------------------------------------------------------------------------


def test_jsonl_has_a_record_a_line_and_skips_blank_lines(store: Store) -> None:
    assert read(store, "jsonl", '{"n": 1}\n\n  \t\r\n {"n": 2} \r\n{"n": 3}') == [
        ("a.jsonl:1", {"n": 1}),
        ("a.jsonl:4", {"n": 2}),
        ("a.jsonl:5", {"n": 3}),
    ]


def test_only_a_line_feed_ends_a_line(store: Store) -> None:
    assert read(store, "jsonl", '{"n": "a\u2028b\u0085c"}\n{"n": 2}') == [
        ("a.jsonl:1", {"n": "a\u2028b\u0085c"}),
        ("a.jsonl:2", {"n": 2}),
    ]


def test_numbers_are_exact_decimals(store: Store) -> None:
    text = '{"a": 0.1, "b": 1.0, "c": 12345678901234567890, "d": 0.1234567890123456789, "e": 1e400}'
    ((_, fields),) = read(store, "jsonl", text)
    assert fields == {
        "a": Decimal("0.1"),
        "b": 1,
        "c": 12345678901234567890,
        "d": Decimal("0.1234567890123456789"),
        "e": Decimal("1e400"),
    }
    assert not any(isinstance(value, float) for value in fields.values())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": NaN}', "7: NaN is not a JSON number; write null, or a finite number"),
        ('{"a": [Infinity]}', "8: Infinity is not a JSON number; write null, or a finite number"),
        ('{"a": -Infinity}', "7: -Infinity is not a JSON number; write null, or a finite number"),
        ('{"a": 1, "b": 2, "a": 3}', "1: the key 'a' stands twice in one object"),
        ('{"x": {"a": 1, "a": 1}}', "1: the key 'a' stands twice in one object"),
        ("[1]", "1: a record must be a JSON object, not a list"),
        ("null", "1: a record must be a JSON object, not null"),
        ("true", "1: a record must be a JSON object, not true"),
        ("3", "1: a record must be a JSON object, not a number"),
        ('"x"', "1: a record must be a JSON object, not text"),
        ('{"a": 1} {"a": 2}', "10: more follows the JSON value; write one record a line"),
        ('{"a": 1', "8: is not valid JSON: Expecting ',' delimiter"),
        ("{a: 1}", "2: is not valid JSON: Expecting property name enclosed in double quotes"),
        ("oops", "1: is not valid JSON: Expecting value"),
        ('{"a": "b', "7: is not valid JSON: Unterminated string starting at"),
        ('{"a": 1e99999999999999999999}', "1: holds a number whose exponent is too large"),
    ],
)
def test_a_broken_line_is_refused_with_its_place(store: Store, line: str, message: str) -> None:
    assert faults(store, "jsonl", f'{{"ok": 1}}\n{line}\n') == [f"a.jsonl:2:{message}"]


def test_a_number_or_nesting_beyond_reason_is_refused(store: Store) -> None:
    (fault,) = faults(store, "jsonl", '{"a": ' + "1" * 5000 + "}")
    assert fault.startswith("a.jsonl:1:1: holds a number that is too long")
    assert faults(store, "jsonl", '{"a": ' + "[" * 200_000) == ["a.jsonl:1:1: is nested too deeply"]


def test_all_broken_lines_are_found_at_once(store: Store) -> None:
    found = faults(store, "jsonl", 'x\n{"a": 1}\n[]\n{"a": NaN}\n')
    assert [fault.split(": ")[0] for fault in found] == ["a.jsonl:1:1", "a.jsonl:3:1", "a.jsonl:4:7"]


def test_bytes_that_are_no_utf8_are_refused_with_their_place(store: Store) -> None:
    data = '{"a": 1}\n{"ä": "'.encode() + b'\xff"}\n'
    assert faults(store, "jsonl", data) == ["a.jsonl:2:8: byte 0xff is not UTF-8"]
    assert faults(store, "csv", b"a,b\n1,\xe9\n") == ["a.csv:2:3: byte 0xe9 is not UTF-8"]


def test_a_byte_order_mark_is_no_content(store: Store) -> None:
    assert read(store, "jsonl", '\ufeff{"a": 1}') == [("a.jsonl:1", {"a": 1})]
    assert read(store, "csv", "\ufeffa\n1\n") == [("a.csv:2", {"a": "1"})]


def test_a_line_of_a_megabyte_is_a_line(store: Store) -> None:
    long = "x" * 2**20
    assert read(store, "jsonl", json.dumps({"a": long})) == [("a.jsonl:1", {"a": long})]
    assert read(store, "csv", f"a\n{long}\n") == [("a.csv:2", {"a": long})]


def test_json_is_a_list_of_objects_each_with_its_line(store: Store) -> None:
    text = '\n[ {"a": 1},\n  {"a":\n 2},\n\n {"a": 3}\n]\n'
    assert read(store, "json", text) == [("a.json:2", {"a": 1}), ("a.json:3", {"a": 2}), ("a.json:6", {"a": 3})]
    assert read(store, "json", "[]") == []


def test_json_may_be_an_object_of_ids(store: Store) -> None:
    rows, found = read_rows(dataset("json"), put_files(store, {"a.json": '{"x/1": {"a": 1},\n "y": {}}'}), store)
    assert found == []
    assert [(row.natural_id, row.origin, dict(row.fields)) for row in rows] == [
        ("x/1", "a.json:1", {"a": 1}),
        ("y", "a.json:2", {}),
    ]
    assert read(store, "json", "{}") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1:1: a list of objects is expected, or an object of id -> object"),
        ("3", "1:1: a list of objects is expected, or an object of id -> object"),
        ('[{"a": 1},\n 2,\n {"a": 1, "a": 2}]', "2:1: a record must be a JSON object, not a number"),
        ('{"name": "x"}', "1:1: a record must be a JSON object, not text"),
        ("[{}\n{}]", "2:1: is not valid JSON: ',' is expected"),
        ("[{},\n]", "2:1: is not valid JSON: Expecting value"),
        ("[{}] x", "1:6: more follows the JSON value"),
        ("{1: {}}", "1:2: a record's id in double quotes is expected"),
        ('{"a" {}}', "1:6: is not valid JSON: ':' is expected"),
        ('[{"a": NaN}]', "1:8: NaN is not a JSON number; write null, or a finite number"),
        ("[{}", "1:4: is not valid JSON: ',' is expected"),
    ],
)
def test_broken_json_is_refused_with_its_place(store: Store, text: str, message: str) -> None:
    assert faults(store, "json", text)[0] == f"a.json:{message}"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), _json, max_size=4), max_size=5))
def test_jsonl_and_json_read_what_was_written(store: Store, records: list[dict[str, Any]]) -> None:
    from mrp.cache.canonical import canonical_text

    lines = [canonical_text(record) for record in records]
    assert [fields for _, fields in read(store, "jsonl", "\n".join(lines))] == records
    assert [fields for _, fields in read(store, "json", "[" + ",\n".join(lines) + "]")] == records


# -- text and CSV ------------------------------------------------------------------------------------------------


def test_text_has_a_record_a_line(store: Store) -> None:
    assert read(store, "text", "one\r\n\n  two \n") == [("a.text:1", {"text": "one"}), ("a.text:3", {"text": "  two "})]


def test_csv_names_fields_in_its_first_row_and_holds_text(store: Store) -> None:
    text = 'id,prompt\r\n\r\n007,"a ""b""\nc"\r\n8,\r\n'
    assert read(store, "csv", text) == [
        ("a.csv:3", {"id": "007", "prompt": 'a "b"\nc'}),
        ("a.csv:5", {"id": "8", "prompt": ""}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "3:1: the header names 2 fields, and this row has 1"),
        ('a,b\n"x\ny",2\n1,2,3\n', "4:1: the header names 2 fields, and this row has 3"),
        ("a,a\n", "1:1: the header names 'a' twice"),
        ("a,\n", "1:1: the header has a field without a name"),
        ("", "1:1: has no header row; the first row must name the fields"),
        ('a\n"x"y\n', "2:1: is not valid CSV: ',' expected after '\"'"),
        ('a\n"x\n', "2:1: is not valid CSV: unexpected end of data"),
    ],
)
def test_broken_csv_is_refused_with_its_place(store: Store, text: str, message: str) -> None:
    assert faults(store, "csv", text) == [f"a.csv:{message}"]


# -- packed files ------------------------------------------------------------------------------------------------


def test_gz_and_zst_are_read_through(store: Store) -> None:
    zstandard = pytest.importorskip("zstandard")
    text = b'{"a": 1}\n{"a": 2}\n'
    rows = [{"a": 1}, {"a": 2}]
    two_members = gzip.compress(text[:9]) + gzip.compress(text[9:])
    two_frames = zstandard.ZstdCompressor().compress(text[:9]) + zstandard.ZstdCompressor().compress(text[9:])
    assert [fields for _, fields in read(store, "jsonl", two_members, "a.jsonl.gz")] == rows
    assert [fields for _, fields in read(store, "jsonl", two_frames, "a.jsonl.zst")] == rows


def test_a_damaged_packed_file_is_refused(store: Store) -> None:
    zstandard = pytest.importorskip("zstandard")
    text = b'{"a": 1}\n' * 100
    for name, packed in (("gz", gzip.compress(text)), ("zst", zstandard.ZstdCompressor().compress(text))):
        for data in (packed[:-3], packed[:5], packed + b"x", b"no " + packed):
            (fault,) = faults(store, "jsonl", data, f"a.jsonl.{name}")
            assert fault.startswith(f"a.jsonl.{name}:1:1: cannot be unpacked: ")
        assert faults(store, "jsonl", b"", f"a.jsonl.{name}") == [
            f"a.jsonl.{name}:1:1: is empty, which no packed file is"
        ]


def test_a_file_that_unpacks_to_too_much_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_FILE", 1000)
    (fault,) = faults(store, "jsonl", gzip.compress(b"\n" * 1001), "a.jsonl.gz")
    assert fault == "a.jsonl.gz:1:1: is larger than 1000 bytes; split it into several files"
    assert faults(store, "jsonl", gzip.compress(b"\n" * 1000), "a.jsonl.gz") == []


# -- Parquet -----------------------------------------------------------------------------------------------------


def parquet(columns: dict[str, Any]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    out = io.BytesIO()
    writer.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def test_parquet_gives_text_numbers_lists_and_objects(store: Store) -> None:
    from datetime import UTC, date, datetime

    data = parquet(
        {
            "id": ["a", "b"],
            "n": [1, None],
            "x": [0.1, 2.0],
            "d": [Decimal("1.50"), Decimal("2.25")],
            "tests": [["t1"], []],
            "meta": [{"level": 0.5}, {"level": None}],
            "day": [date(2024, 1, 2), date(2024, 1, 3)],
            "at": [datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)] * 2,
        }
    )
    first, second = read(store, "parquet", data)
    assert first == (
        "a.parquet:1",
        {
            "id": "a",
            "n": 1,
            "x": Decimal("0.1"),
            "d": Decimal("1.50"),
            "tests": ["t1"],
            "meta": {"level": Decimal("0.5")},
            "day": "2024-01-02",
            "at": "2024-01-02T03:04:05+00:00",
        },
    )
    assert second[1]["n"] is None
    assert second[1]["tests"] == []


def test_parquet_refuses_what_json_cannot_hold(store: Store) -> None:
    assert faults(store, "parquet", parquet({"x": [1.0, float("nan")]})) == [
        "a.parquet:2:1: NaN in column 'x' is not a finite number"
    ]
    assert faults(store, "parquet", parquet({"x": [b"\0\1"]})) == [
        "a.parquet:1:1: column 'x' holds bytes, which has no JSON form"
    ]
    (fault,) = faults(store, "parquet", b"PAR1 no")
    assert fault.startswith("a.parquet:1:1: cannot be read as parquet: ")


# -- several files, and downloads --------------------------------------------------------------------------------


def test_files_are_read_in_order_of_their_paths(store: Store) -> None:
    files = {"b.jsonl": '{"n": 2}', "a.jsonl": '{"n": 1}', "a/z.jsonl": '{"n": 3}'}
    rows, _ = read_rows(dataset(), put_files(store, files), store)
    assert [row.origin for row in rows] == ["a.jsonl:1", "a/z.jsonl:1", "b.jsonl:1"]


def test_of_a_download_only_files_of_the_format_are_read(store: Store) -> None:
    task = dataset("jsonl", fetch=FetchSpec(git="https://example.org/x.git", rev="0" * 40))
    files = {"README.md": "# x", "data/a.jsonl": '{"n": 1}', "data/b.ndjson.gz": gzip.compress(b'{"n": 2}')}
    rows, found = read_rows(task, put_files(store, files), store)
    assert [row.fields["n"] for row in rows] == [1, 2] and found == []
    with pytest.raises(BuildFailed, match=r"the download of //p:tasks has no jsonl file \(\.jsonl, \.ndjson\)"):
        read_rows(task, put_files(store, {"README.md": "# x", "LICENSE": ""}), store)
    rows, _ = read_rows(task, put_files(store, {"download": '{"n": 1}'}), store)
    assert len(rows) == 1


# -- folders -----------------------------------------------------------------------------------------------------


def test_folders_are_records_with_their_own_fields(store: Store) -> None:
    files = {
        "tasks/a/record.json": '{"level": 0.5}',
        "tasks/a/src/m.py": "",
        "tasks/b/run.sh": "",
    }
    rows, found = read_folders(dataset("dir"), put_files(store, files), store, ("tasks/a", "tasks/b"))
    assert found == []
    assert [(row.natural_id, row.origin, dict(row.fields), sorted(row.files)) for row in rows] == [
        ("a", "tasks/a", {"level": Decimal("0.5")}, ["record.json", "src/m.py"]),
        ("b", "tasks/b", {}, ["run.sh"]),
    ]
    assert rows[1].files["run.sh"][1] is True


def test_files_outside_all_record_folders_are_refused_unless_downloaded(store: Store) -> None:
    files = {"tasks/a/x": "", "tasks/README.md": ""}
    _, found = read_folders(dataset("dir"), put_files(store, files), store, ("tasks/a",))
    assert [str(fault.span) + " " + fault.message for fault in found] == [
        "tasks/README.md:1:1 belongs to no record folder"
    ]
    rows, found = read_folders(dataset("dir"), put_files(store, {"README.md": "", "a/x": "", "b/y/z": ""}), store, ())
    assert [row.path for row in rows] == ["a", "b"] and found == []


HARBOR = {
    "t/hello/instruction.md": "Say hello.\n",
    "t/hello/task.toml": 'version = "1.0"\n[metadata]\ndifficulty = "easy"\n[agent]\ntimeout_sec = 120.5\n',
    "t/hello/environment/Dockerfile": "FROM scratch\n",
    "t/hello/tests/test.sh": "exit 0\n",
    "t/hello/solution/solve.sh": "echo hello\n",
}


def test_harbor_folders_bring_their_instruction_and_settings(store: Store) -> None:
    rows, found = read_folders(dataset("harbor"), put_files(store, {**HARBOR, "t/README.md": ""}), store, ())
    assert found == []
    (row,) = rows
    assert (row.path, row.natural_id) == ("t/hello", "hello")
    assert row.fields == {
        "version": "1.0",
        "metadata": {"difficulty": "easy"},
        "agent": {"timeout_sec": Decimal("120.5")},
        "instruction": "Say hello.\n",
    }


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("t/hello/task.toml", "x = ", "t/hello/task.toml:1:1: is not valid TOML: "),
        ("t/hello/task.toml", "x = nan", "t/hello/task.toml:1:1: cannot be read: nan is not a finite number"),
        ("t/hello/instruction.md", None, "t/hello/instruction.md:1:1: is missing; a harbor record needs"),
        ("t/hello/instruction.md", b"\xff", "t/hello/instruction.md:1:1: byte 0xff is not UTF-8"),
        ("t/hello/record.json", "[]", "t/hello/record.json:1:1: a JSON object is expected, not a list"),
        ("t/hello/record.json", '{"a": 1,\n "a": 1}', "t/hello/record.json:1:1: the key 'a' stands twice"),
    ],
)
def test_a_broken_harbor_folder_is_refused(store: Store, path: str, content: Any, message: str) -> None:
    files = {**HARBOR, path: content}
    given = {name: text for name, text in files.items() if text is not None}
    _, found = read_folders(dataset("harbor"), put_files(store, given), store, ("t/hello",))
    assert len(found) == 1
    assert f"{found[0].span}: {found[0].message}".startswith(message)


def test_the_extras_that_are_missing_are_named(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("zstandard", "pyarrow"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    _, found = read_rows(dataset("jsonl"), put_files(store, {"a.jsonl.zst": b"x"}), store)
    assert (found[0].message, found[0].hint) == ("reading .zst needs zstandard", "pip install 'mrp-build[zstd]'")
    _, found = read_rows(dataset("parquet"), put_files(store, {"a.parquet": b"x"}), store)
    assert (found[0].message, found[0].hint) == ("reading parquet needs pyarrow", "pip install 'mrp-build[parquet]'")

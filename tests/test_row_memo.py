"""Rows that were read before: the records are the same as when every row is read, whatever changed since."""

import json
import os
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.datasets import dataset, put_files, rows_text

from mrp.cache.store import Store
from mrp.rules import row_memo, rowwise
from mrp.rules.records import Record, index_records
from mrp.specs.errors import SpecError
from mrp.specs.ir import DatasetTask


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture(autouse=True)
def remember_small_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_memo, "FEWEST_ROWS", 1)


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{number}", "text": f"do {number}", "tests": f"{number} == {number}"} for number in range(count)]


TASK = dataset(id="id", private=["tests"], starter={"files": {"main.py": "${record.text}"}})


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that were parsed."""
    lines: list[str] = []
    parse = rowwise.line_fields

    def counted(line: str) -> dict[str, Any]:
        lines.append(line)
        return parse(line)

    monkeypatch.setattr(rowwise, "line_fields", counted)
    return lines


def index(
    store: Store, text: str, task: DatasetTask = TASK, *, remember: bool = True, thorough: bool = True
) -> tuple[Record, ...]:
    sources = put_files(store, {"a.jsonl": text})
    return index_records(task, sources, store, remember=remember, thorough=thorough)


def memo_files(store: Store) -> list[Path]:
    return sorted((store.layout.memo / "rows").iterdir())


# -- what is read again ------------------------------------------------------------------------------------------


def test_of_many_rows_only_the_one_that_was_edited_is_parsed(store: Store, parsed: list[str]) -> None:
    rows = rows_of(500)
    before = index(store, rows_text(*rows))
    assert len(parsed) == 500
    rows[250]["text"] = "do something else"
    parsed.clear()
    after = index(store, rows_text(*rows))
    assert [json.loads(line)["id"] for line in parsed] == ["r250"]
    assert [record.id for old, record in zip(before, after, strict=True) if old != record] == ["r250"]
    assert after == index(store, rows_text(*rows), remember=False)


def test_moved_rows_are_not_parsed_and_are_found_where_they_stand(store: Store, parsed: list[str]) -> None:
    rows = rows_of(20)
    index(store, rows_text(*rows))
    parsed.clear()
    records = index(store, "\n" + rows_text(*reversed(rows)).replace("\n", " \r\n"))
    assert parsed == []
    assert {record.id: record.origin for record in records} == {f"r{n}": f"a.jsonl:{21 - n}" for n in range(20)}


def test_the_rows_of_another_store_or_of_another_task_are_parsed(
    store: Store, tmp_path: Path, parsed: list[str]
) -> None:
    text = rows_text(*rows_of(20))
    index(store, text)
    parsed.clear()
    index(store, text, dataset(id="id"))
    assert len(parsed) == 20
    with Store.open(tmp_path / "other") as other:
        index(other, text)
    assert len(parsed) == 40
    index(store, text)
    assert len(parsed) == 40


def test_trees_that_the_store_lost_are_made_again(store: Store, parsed: list[str]) -> None:
    rows = rows_of(20)
    records = index(store, rows_text(*rows))
    lost = [(bytes.fromhex(tree),) for tree in (records[3].grader, records[4].starter)]
    with Store.open(store.root) as other:
        other.index.transact(lambda connection: connection.executemany("DELETE FROM blobs WHERE digest = ?", lost))
        parsed.clear()
        # Who asks for no thorough look gets the same records, and notices when a tree is read.
        assert index(other, rows_text(*rows), thorough=False) == records
        assert parsed == []
        assert other.missing_deep([("tree", records[3].grader)])
        assert index(other, rows_text(*rows)) == records
        assert len(parsed) == 2
        assert not other.missing_deep([("tree", tree) for record in records for tree in record.trees()])


def test_a_row_with_a_fault_is_told_as_if_nothing_were_remembered(store: Store) -> None:
    rows = rows_of(20)
    index(store, rows_text(*rows))
    text = rows_text(*rows, rows[3])
    with pytest.raises(SpecError, match=r"a\.jsonl:21:1: error: the id 'r3' is already that of a\.jsonl:4"):
        index(store, text)
    with pytest.raises(SpecError, match=r"a\.jsonl:21:1: error: is not valid JSON"):
        index(store, rows_text(*rows) + "oops\n")
    with pytest.raises(SpecError, match="`private` names the field 'tests', which no record has"):
        index(store, rows_text({"id": "x", "text": "y"}))


# -- the file ----------------------------------------------------------------------------------------------------


def test_no_flipped_bit_of_a_memo_is_believed(store: Store) -> None:
    text = rows_text(*rows_of(10))
    records = index(store, text)
    (path,) = memo_files(store)
    data = path.read_bytes()
    for place in range(0, len(data), 13):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        assert index(store, text) == records


def test_a_memo_does_not_grow_with_every_edit(store: Store) -> None:
    rows = rows_of(30)
    index(store, rows_text(*rows))
    size = memo_files(store)[0].stat().st_size
    for number in range(100):
        rows[7]["text"] = f"edit {number}"
        assert index(store, rows_text(*rows)) == index(store, rows_text(*rows), remember=False)
    (path,) = memo_files(store)
    assert path.stat().st_size < 3 * size


def test_processes_that_write_at_once_do_not_mix_up_their_fields(tmp_path: Path) -> None:
    empty = row_memo.EMPTY_TREE
    one, two = row_memo.RowMemo(tmp_path / "memo"), row_memo.RowMemo(tmp_path / "memo")
    for memo, name in ((one, "a"), (two, "b")):
        row = row_memo.KnownRow(name, memo.shape([name]), True, bytes(16), (empty,) * 5, (empty,))
        memo.put(row_memo.row_key(name.encode()), row)
        memo.save()
    again = row_memo.RowMemo(tmp_path / "memo")
    found = [again.get(row_memo.row_key(name)) for name in (b"a", b"b")]
    assert found[0] is not None
    assert all(again.shapes[row.shape] == (row.identity,) for row in found if row is not None)


def test_small_datasets_and_folders_have_no_memo(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_memo, "FEWEST_ROWS", 100)
    index(store, rows_text(*rows_of(99)))
    index_records(dataset("csv", id="id"), put_files(store, {"a.csv": "id\n" + "\n".join(map(str, range(200)))}), store)
    assert not (store.layout.memo / "rows").exists()
    index(store, rows_text(*rows_of(100)))
    assert len(memo_files(store)) == 1


def test_the_oldest_memos_go_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_memo, "MOST_FILES", 3)
    found: list[set[Path]] = []
    for number in range(5):
        index(store, rows_text(*rows_of(10)), dataset(id="id", where=f"id != 'x{number}'"))
        for path in memo_files(store):
            age = 10 if not found or path in found[0] else 5
            os.utime(path, (1_000_000_000 - age * (10 - number), 1_000_000_000 - age * (10 - number)))
        found.append(set(memo_files(store)))
    assert [len(paths) for paths in found] == [1, 2, 3, 3, 3]
    assert not found[0] & found[4]


def test_a_memo_that_cannot_be_written_is_done_without(store: Store, parsed: list[str]) -> None:
    store.layout.memo.write_bytes(b"in the way")
    text = rows_text(*rows_of(10))
    assert index(store, text) == index(store, text)
    assert len(parsed) == 20


# -- with and without --------------------------------------------------------------------------------------------

GOOD = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["one", "two", "three", "four", 5, 6.0, *"abcdefghijklm"]),
        "a": st.integers(0, 2),
        "b": st.sampled_from(["x", "y", None, [1, {"z": "é"}]]),
        "hidden": st.sampled_from(["", "p", None]),
    },
    optional={"more": st.integers()},
).map(json.dumps)
ODD = st.sampled_from(
    ["", "   ", "\r", "{}", "[1]", '{"id": "one", "id": "one"}', '{"id": "\\ud800"}', "{", "\ufeff", '{"id": "nul"}']
)
LINES = st.one_of(GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD, ODD)
"""Lines that make a dataset, with now and then one that does not."""

TASKS = st.builds(
    dataset,
    id=st.sampled_from(["id", "id", "id", "id", None]),
    where=st.sampled_from([None, None, "a != 1", "id != 'one' and b != null"]),
    dedupe=st.sampled_from([(), (), ("a",), ("b", "hidden")]),
    private=st.sampled_from([[], ["hidden"], {"fields": ["b"], "files": {"t/x.txt": "${record.a} ${record.b}"}}]),
    solution=st.sampled_from([[], [], ["a"]]),
    split=st.just({"test": Decimal("0.4"), "train": Decimal("0.6")}),
    take=st.sampled_from([None, None, "train"]),
    starter=st.sampled_from([{}, {"files": {"m.py": "${record.id}"}}]),
)


def outcome(store: Store, task: DatasetTask, text: bytes, *, remember: bool = True) -> Any:
    """The records with all that is in their trees, or the faults."""
    try:
        records = index_records(task, put_files(store, {"a.jsonl": text}), store, remember=remember)
    except SpecError as error:
        return str(error)
    assert not store.missing_deep([("tree", tree) for record in records for tree in record.trees()])
    return [(record, record.origin, dict(record.public)) for record in records]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(TASKS, st.lists(LINES, max_size=6), st.data())
def test_edits_come_to_the_same_with_a_memo_without_and_by_the_way_of_all_formats(
    task: DatasetTask, lines: list[str], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder)) as store:
        for _ in range(data.draw(st.integers(2, 4))):
            text = "\n".join(lines).encode("utf-8", "surrogatepass")
            with pytest.MonkeyPatch.context() as patched:
                expected = outcome(store, task, text, remember=False)
                patched.setattr("mrp.rules.records.read_rowwise", _never)
                assert outcome(store, task, text) == expected
            assert outcome(store, task, text) == expected
            assert outcome(store, task, text) == expected
            edit = data.draw(st.sampled_from(["add", "drop", "replace", "move"]))
            place = data.draw(st.integers(0, max(len(lines) - 1, 0)))
            if edit in ("drop", "replace", "move") and lines:
                moved = lines.pop(place)
                if edit == "move":
                    lines.append(moved)
            if edit in ("add", "replace"):
                lines.insert(place, data.draw(LINES))


def _never(*arguments: object, **named: object) -> None:
    raise rowwise.Unusual

import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import all_bytes, dataset, files_of, index, put_files, rows_text

from mrp.cache.store import Entry, Store
from mrp.cache.trees import closure
from mrp.rules.record import TreeWriter
from mrp.rules.records import (
    Record,
    concat_records,
    dataset_meta,
    index_records,
    part_of,
    read_index,
    write_index,
)
from mrp.rules.views import RecordViews
from mrp.specs.errors import SpecError
from mrp.specs.ir import DatasetTask, FetchSpec, GenerateSpec, SourceFile, ViewSpec


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("cache")) as opened:
        yield opened


def refusal(store: Store, task: DatasetTask, files: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        index(store, task, files)
    return str(caught.value)


# -- ids ---------------------------------------------------------------------------------------------------------


def test_records_are_sorted_by_id_in_order_of_code_points(store: Store) -> None:
    text = rows_text({"k": "b"}, {"k": "a"}, {"k": 10}, {"k": 9}, {"k": "Z"}, {"k": "é"}, {"k": "a b/[x]"})
    assert list(index(store, dataset(id="k"), {"a.jsonl": text})) == ["10", "9", "Z", "a", "a b/[x]", "b", "é"]


def test_whole_numbers_are_ids_however_they_are_written(store: Store) -> None:
    assert list(index(store, dataset(id="k"), {"a.jsonl": '{"k": 7.0}\n{"k": 1e3}\n{"k": -0}'})) == ["0", "1000", "7"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('""', "the id is empty"),
        ("null", "the id null must be text or a whole number"),
        ("true", "the id true must be text or a whole number"),
        ("1.5", "the id 1.5 must be text or a whole number"),
        ("1e999999999", "the id 1e999999999 must be text or a whole number"),
        ('["x"]', 'the id ["x"] must be text or a whole number'),
        ('"a\\u0000"', "the id 'a\\x00' holds a control character"),
        ('"a\\nb"', "the id 'a\\nb' holds a control character"),
        ('"\\ud800"', "holds half of a surrogate pair, which is no text"),
        (f'"{"x" * 201}"', f"the id '{'x' * 40}'... has 201 characters, and may have 200"),
    ],
)
def test_a_bad_id_is_refused(store: Store, value: str, message: str) -> None:
    text = f'{{"id": "ok"}}\n{{"id": {value}}}\n'
    assert refusal(store, dataset(id="id"), {"a.jsonl": text}) == f"a.jsonl:2:1: error: {message}"


def test_a_row_without_its_id_field_is_refused(store: Store) -> None:
    text = rows_text({"id": "a"}, {"name": "b"})
    assert refusal(store, dataset(id="id"), {"a.jsonl": text}) == (
        "a.jsonl:2:1: error: has no field 'id', which `id` of //p:tasks names"
    )


def test_two_records_of_one_id_are_refused_with_both_places(store: Store) -> None:
    files = {"a.jsonl": rows_text({"id": 1}, {"id": "x"}), "b.jsonl": rows_text({"id": "x"}, {"id": "1"})}
    assert refusal(store, dataset(id="id"), files) == (
        "b.jsonl:1:1: error: the id 'x' is already that of a.jsonl:2\n  make every id its own\n"
        "b.jsonl:2:1: error: the id '1' is already that of a.jsonl:1\n  make every id its own"
    )
    folders = {"a/t/x": "", "b/t/x": ""}
    assert "b/t:1:1: error: the id 't' is already that of a/t" in refusal(
        store, dataset("dir", roots=("a/t", "b/t")), folders
    )


def test_without_an_id_field_a_records_id_is_the_digest_of_its_public_part(store: Store) -> None:
    task = dataset(private=["tests"])
    ((first, before),) = index(store, task, {"a.jsonl": rows_text({"p": 1, "tests": "x"})}).items()
    ((second, after),) = index(store, task, {"a.jsonl": rows_text({"p": 1, "tests": "y"})}).items()
    assert len(first) == 16
    assert (first, before.task) == (second, after.task)
    assert before.grader != after.grader
    assert first not in index(store, task, {"a.jsonl": rows_text({"p": 2, "tests": "x"})})


def test_equal_rows_without_ids_are_refused_unless_deduplicated(store: Store) -> None:
    files = {"a.jsonl": rows_text({"p": 1, "q": 1}, {"q": 1, "p": 1})}
    message = refusal(store, dataset(), files)
    assert message.startswith("a.jsonl:2:1: error: agents see the same here as at a.jsonl:1, so both records have")
    assert len(index(store, dataset(dedupe=("p",)), files)) == 1


def test_the_keys_of_a_json_object_and_the_names_of_folders_are_ids(store: Store) -> None:
    assert list(index(store, dataset("json"), {"a.json": '{"b": {}, "a": {}}'})) == ["a", "b"]
    assert list(index(store, dataset("dir", roots=("t/b", "t/a")), {"t/a/x": "", "t/b/x": ""})) == ["a", "b"]
    files = {"t/a/record.json": '{"key": "one"}'}
    assert list(index(store, dataset("dir", roots=("t/a",), id="key"), files)) == ["one"]


def test_a_range_has_numbers_as_ids(store: Store) -> None:
    task = dataset(generate=GenerateSpec(range=2))
    text = rows_text({"id": "0", "n": 0}, {"id": "1", "n": 1})
    assert list(index(store, task, {"range.jsonl": text})) == ["0", "1"]


# -- refusals ----------------------------------------------------------------------------------------------------


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_stored(tmp_path: Path) -> None:
    text = 'oops\n{"id": ""}\n{"id": "a", "n": 1}\n{"id": "a", "n": "x"}\n'
    with Store.open(tmp_path) as store:
        schema = store.put_bytes(b'{"properties": {"n": {"type": "integer"}}}')
        task = dataset(id="id", schema=SourceFile("s.json", schema))
        sources = put_files(store, {"a.jsonl": text})
        store.commit([])
        with pytest.raises(SpecError) as caught:
            index_records(task, sources, store)
        assert not store.blobs.has_waiting()
    assert [(d.span.line, d.message) for d in caught.value.diagnostics] == [
        (1, "is not valid JSON: Expecting value"),
        (2, "the id is empty"),
        (4, "n: 'x' is not of type 'integer'"),
        (4, "the id 'a' is already that of a.jsonl:3"),
    ]


def test_many_faults_are_counted_and_some_shown(store: Store) -> None:
    with pytest.raises(SpecError) as caught:
        index(store, dataset(), {"a.jsonl": "x\n" * 120})
    assert len(caught.value.diagnostics) == 50
    assert caught.value.diagnostics[-1].hint == "and 70 more faults in //p:tasks"


def test_text_that_is_no_text_is_refused_wherever_it_stands(store: Store) -> None:
    text = '{"id": "a", "x": ["\\udfff"]}'
    assert refusal(store, dataset(id="id"), {"a.jsonl": text}) == (
        "a.jsonl:1:1: error: holds half of a surrogate pair, which is no text"
    )


# -- schema ------------------------------------------------------------------------------------------------------


def with_schema(store: Store, schema: str, **fields: Any) -> DatasetTask:
    return dataset(schema=SourceFile("p/s.json", store.put_bytes(schema.encode())), **fields)


def test_each_record_is_held_against_the_schema_with_exact_numbers(store: Store) -> None:
    task = with_schema(
        store,
        '{"required": ["n"], "properties": {"n": {"type": "integer"}, "x": {"multipleOf": 0.01, "maximum": 1.1}}}',
        id="id",
    )
    good = '{"id": 1, "n": 2.0, "x": 1.1}\n{"id": 2, "n": 12345678901234567890, "x": 0.07}\n'
    assert list(index(store, task, {"a.jsonl": good})) == ["1", "2"]
    bad = '{"id": 1}\n{"id": 2, "n": 1.5}\n{"id": 3, "n": true}\n{"id": 4, "n": 1, "x": 1.11}\n'
    message = refusal(store, task, {"a.jsonl": bad})
    assert message.splitlines()[::2] == [
        "a.jsonl:1:1: error: 'n' is a required property",
        "a.jsonl:2:1: error: n: 1.5 is not of type 'integer'",
        "a.jsonl:3:1: error: n: True is not of type 'integer'",
        "a.jsonl:4:1: error: x: 1.11 is greater than the maximum of 1.1",
    ]
    assert set(message.splitlines()[1::2]) == {"  the schema is p/s.json"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "p/s.json:1:2: error: is not valid JSON"),
        ("[]", "p/s.json:1:1: error: a JSON object is expected, not a list"),
        ('{"type": "strnig"}', "p/s.json:1:1: error: is no JSON Schema: type: 'strnig' is not valid"),
        (
            '{"$ref": "https://example.org/s.json"}',
            "a.jsonl:1:1: error: the schema's $ref 'https://example.org/s.json'",
        ),
    ],
)
def test_a_schema_that_is_none_is_refused(store: Store, schema: str, message: str) -> None:
    assert refusal(store, with_schema(store, schema), {"a.jsonl": '{"a": 1}'}).startswith(message)


# -- where, dedupe, split ----------------------------------------------------------------------------------------


def test_where_sees_all_fields_and_the_id(store: Store) -> None:
    text = rows_text({"k": "a", "n": 1, "t": "x"}, {"k": "b", "n": 2, "t": "y"}, {"k": "c", "t": "y"})
    for where, kept in (("n >= 2", ["b"]), ("t == 'y'", ["b", "c"]), ("id != 'a' and n == null", ["c"])):
        task = dataset(id="k", private=["t"], where=where)
        assert list(index(store, task, {"a.jsonl": text})) == kept


def test_dedupe_keeps_the_lowest_id_and_compares_values(store: Store) -> None:
    text = '{"id": "c", "p": 1.0}\n{"id": "b", "p": 1}\n{"id": "a", "p": "1"}\n{"id": "e"}\n{"id": "d", "p": null}\n'
    assert list(index(store, dataset(id="id", dedupe=("p",)), {"a.jsonl": text})) == ["a", "b", "d"]


def test_dedupe_by_a_field_that_no_record_has_is_an_error(store: Store) -> None:
    assert "`dedupe` names the field 'prmpt', which no record has" in refusal(
        store, dataset(id="id", dedupe=("prmpt",)), {"a.jsonl": rows_text({"id": 1, "prompt": ""})}
    )


SPLIT = {"train": Decimal("0.8"), "test": Decimal("0.2")}


def test_the_parts_of_a_split_share_out_all_records(store: Store) -> None:
    text = rows_text(*({"id": n} for n in range(500)))
    parts = {name: set(index(store, dataset(id="id", split=SPLIT, take=name), {"a.jsonl": text})) for name in SPLIT}
    assert parts["train"] | parts["test"] == {str(n) for n in range(500)}
    assert not parts["train"] & parts["test"]
    assert 60 < len(parts["test"]) < 140
    assert len(index(store, dataset(id="id", split=SPLIT), {"a.jsonl": text})) == 500


def test_the_part_of_an_id_never_changes() -> None:
    assert [part_of(f"HumanEval/{n}", SPLIT) for n in range(8)] == [
        part_of(f"HumanEval/{n}", dict(reversed(SPLIT.items()))) for n in range(8)
    ]
    assert part_of("x", {"a": Decimal(0), "b": Decimal(1), "c": Decimal(0)}) == "b"


# -- datasets of datasets ----------------------------------------------------------------------------------------


def concat(store: Store, **fields: Any) -> list[str]:
    first = index(store, dataset(id="id", private=["t"]), {"a.jsonl": rows_text({"id": "b", "n": 1, "t": 5})})
    second = index(store, dataset(id="id"), {"a.jsonl": rows_text({"id": "c", "n": 1}, {"id": "a", "n": 2})})
    task = dataset(of=("//p:first", "//p:second"), **fields)
    return [record.id for record in concat_records(task, [list(first.values()), second.values()])]


def test_datasets_can_be_joined_and_thinned_by_public_fields(store: Store) -> None:
    assert concat(store) == ["a", "b", "c"]
    assert concat(store, where="n == 1") == ["b", "c"]
    assert concat(store, where="t == null") == ["a", "b", "c"]
    assert concat(store, dedupe=("n",)) == ["a", "b"]


def test_joined_datasets_must_not_share_an_id(store: Store) -> None:
    records = list(index(store, dataset(id="id"), {"a.jsonl": rows_text({"id": "a"})}).values())
    again = read_index(write_index(records, store), store)
    with pytest.raises(SpecError, match=r"the id 'a' of //p:two is already in a\.jsonl:1"):
        concat_records(dataset(of=("//p:one", "//p:two")), [records, again])


# -- the index ---------------------------------------------------------------------------------------------------


def test_an_index_gives_back_its_records(store: Store) -> None:
    task = dataset(id="id", private=["t"], solution=["s"], starter={"files": {"m": "${record.id}"}})
    records = index(store, task, {"a.jsonl": rows_text({"id": "b", "t": 1, "s": 1}, {"id": "a", "t": 0, "s": 0})})
    digest = write_index(reversed(list(records.values())), store)
    again = list(read_index(digest, store))
    assert again == list(records.values())
    assert [dict(record.public) for record in again] == [{"id": "a"}, {"id": "b"}]
    assert [record.origin for record in again] == ["", ""]
    assert b'"grader"' in store.get_bytes(digest)


def test_what_is_usual_is_left_out_of_an_index(store: Store) -> None:
    (record,) = index(store, dataset(id="id"), {"a.jsonl": rows_text({"id": "a"})}).values()
    assert store.get_bytes(write_index([record], store)).decode() == f'{{"id":"a","task":"{record.task}"}}\n'


def test_reading_an_index_reads_no_record(store: Store) -> None:
    (record,) = index(store, dataset(id="id"), {"a.jsonl": rows_text({"id": "lazy"})}).values()
    digest = write_index([record], store)
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder)) as other:
        assert other.put_bytes(store.get_bytes(digest)) == digest
        assert [again.id for again in read_index(digest, other)] == ["lazy"]


def test_meta_says_what_is_declared_and_pinned() -> None:
    fetch = FetchSpec(url="https://example.org/a.jsonl", sha256="0" * 64, downloaded_at="2024-05-01")
    assert dataset_meta(dataset(fetch=fetch, metadata={"version": "1.0", "license": "MIT"}), 3, {}) == {
        "source": "https://example.org/a.jsonl",
        "version": "1.0",
        "license": "MIT",
        "downloaded_at": "2024-05-01",
        "sha256": "0" * 64,
        "num_records": 3,
    }
    assert dataset_meta(dataset(metadata={"source": "us"}), 0, {}) == {
        "source": "us",
        "version": None,
        "license": None,
        "downloaded_at": None,
        "sha256": None,
        "num_records": 0,
    }


# -- promises ----------------------------------------------------------------------------------------------------

VIEWS = dataset(
    id="id",
    starter={"files": {"main.py": "# ${record.prompt}\n"}},
    private={"fields": ["tests"], "files": {"tests/t.py": "${record.tests}"}},
    solution={"fields": ["answer"], "files": {"main.py": "${record.answer}"}},
)
BASE = {"id": "a", "prompt": "Add.", "tests": "t", "answer": "s"}


def trees(record: Record, *names: str) -> list[str]:
    return [getattr(record, name) for name in names]


def the_record(store: Store, **changed: Any) -> Record:
    (record,) = index(store, VIEWS, {"a.jsonl": rows_text({**BASE, **changed})}).values()
    return record


def test_a_changed_test_changes_the_graders_view_alone(store: Store) -> None:
    before, after = the_record(store), the_record(store, tests="other")
    same = ("task", "starter", "solver", "solution")
    assert trees(before, *same) == trees(after, *same)
    assert before.grader != after.grader


def test_a_changed_solution_changes_the_solvers_views_alone(store: Store) -> None:
    before, after = the_record(store), the_record(store, answer="other")
    same = ("task", "starter", "grader")
    assert trees(before, *same) == trees(after, *same)
    assert before.solver != after.solver and before.solution != after.solution


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_rows = st.dictionaries(
    st.text("abcxyz/ é", min_size=1, max_size=4),
    st.fixed_dictionaries({"prompt": _text, "tests": _text, "answer": _text}, optional={"n": st.integers()}),
    max_size=6,
)


@settings(max_examples=50)
@given(_rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_files_changes_nothing(store: Store, rows: dict[str, Any], random: Any) -> None:
    lines = [{"id": identity, **fields} for identity, fields in rows.items()]
    shuffled = [dict(random.sample(list(line.items()), len(line))) for line in random.sample(lines, len(lines))]
    cut = random.randint(0, len(lines))
    files = {"z.jsonl": rows_text(*shuffled[:cut]), "a.jsonl": rows_text(*shuffled[cut:])}
    before = index(store, VIEWS, {"a.jsonl": rows_text(*lines)})
    after = index(store, VIEWS, files)
    assert write_index(before.values(), store) == write_index(after.values(), store)


@settings(max_examples=50)
@given(_rows, st.data())
def test_a_removed_row_changes_no_other(store: Store, rows: dict[str, Any], data: st.DataObject) -> None:
    task = dataset(
        id="id", split=SPLIT, take="train", private=VIEWS.private, solution=VIEWS.solution, starter=VIEWS.starter
    )
    gone = data.draw(st.sampled_from(sorted(rows))) if rows else None
    lines = [{"id": identity, **fields} for identity, fields in rows.items()]
    all_records = index(store, task, {"a.jsonl": rows_text(*lines)})
    fewer = index(store, task, {"a.jsonl": rows_text(*(line for line in lines if line["id"] != gone))})
    all_records.pop(gone or "", None)
    assert fewer == all_records


_SECRETS = {"private": "zqPRIVATEzq", "solution": "zqSOLUTIONzq"}


@settings(max_examples=40)
@given(st.data())
def test_no_hidden_value_of_a_row_reaches_those_who_must_not_see_it(store: Store, data: st.DataObject) -> None:
    fields = {f"f{n}": data.draw(st.sampled_from(["public", "private", "solution"])) for n in range(5)}
    row = {name: {"deep": [_SECRETS.get(sight, "zqPUBLICzq")]} for name, sight in fields.items()}
    allowed = {"starter": ["public"], "private": ["public", "private"], "solution": ["public", "solution"]}
    files = {}
    for view, sights in allowed.items():
        seen = sorted(name for name, sight in fields.items() if sight in sights)
        named = data.draw(st.lists(st.sampled_from(seen), max_size=2)) if seen else []
        files[view] = {f"{view}-{name}.txt": f"${{record.{name}}}" for name in named}
    hidden = {view: tuple(name for name, sight in fields.items() if sight == view) for view in ("private", "solution")}
    task = dataset(
        starter=ViewSpec(files=files["starter"]),
        private=ViewSpec(fields=hidden["private"], files=files["private"]),
        solution=ViewSpec(fields=hidden["solution"], files=files["solution"]),
    )
    (record,) = index(store, task, {"a.jsonl": rows_text(row)}).values()
    _check_secrets(store, record, hidden)


@settings(max_examples=40)
@given(st.data())
def test_no_hidden_file_of_a_folder_reaches_those_who_must_not_see_it(store: Store, data: st.DataObject) -> None:
    paths = ["a.py", "tests/t.py", "tests/sub/u.py", "solution/s.py", "start/m.py", "record.json"]
    globs = st.lists(
        st.sampled_from(["**", "*.py", "tests/**", "**/*.py", "solution/*", "start/**", "record.json", "tests/*/u.py"]),
        max_size=3,
        unique=True,
    )
    views = {view: data.draw(globs) for view in ("starter", "private", "solution")}
    sights = {}
    from mrp.rules.globs import parse_glob

    for path in paths:
        named = [view for view in ("solution", "private") if any(parse_glob(g).matches(path) for g in views[view])]
        sights[path] = named[0] if named else "public"
    files = {f"t/r/{path}": _SECRETS.get(sights[path], "zqPUBLICzq") for path in paths}
    files["t/r/record.json"] = f'{{"x": "{files["t/r/record.json"]}"}}'
    try:
        (record,) = index(store, dataset("dir", roots=("t/r",), **views), files).values()
    except SpecError as error:
        assert "would put both" in str(error) or "both a file and a folder" in str(error)
        return
    hidden = {view: [path for path, sight in sights.items() if sight == view] for view in ("private", "solution")}
    _check_secrets(store, record, hidden)


def _check_secrets(store: Store, record: Record, hidden: Any) -> None:
    """Agents find neither secret; graders no solution and solvers no tests; and each finds what is meant for it."""
    with tempfile.TemporaryDirectory() as folder:
        found = {
            view: all_bytes(store, getattr(record, view), Path(folder) / view)
            for view in ("task", "starter", "grader", "solver", "solution")
        }
    private, solution = _SECRETS["private"].encode(), _SECRETS["solution"].encode()
    for view in ("task", "starter", "solver", "solution"):
        assert private not in found[view], view
    for view in ("task", "starter", "grader"):
        assert solution not in found[view], view
    assert (private in found["grader"]) == bool(hidden["private"])
    assert (solution in found["solver"] + found["solution"]) == bool(hidden["solution"])


def test_views_that_show_the_same_are_one_tree(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        records = index(store, dataset(id="id"), {"a.jsonl": rows_text(*({"id": n} for n in range(10)))})
        assert {record.starter for record in records.values()} == {store.put_tree({})}
        assert all(record.task == record.grader == record.solver for record in records.values())
        assert files_of(store, records["3"].task) == {"record.json": '{"id":3}\n'}


NAMES = st.sampled_from(
    ["record.json", "main.py", "a/b.txt", "a/c.txt", "é", 'q"', "b\\s", "tab\t", "\x7f", "\u2028", " "]
)
FILES = st.dictionaries(NAMES, st.binary(max_size=4), max_size=4)


@settings(max_examples=100)
@given(FILES, FILES, FILES)
def test_the_trees_of_views_are_what_a_store_makes_of_the_same_files(
    store: Store, task: dict[str, bytes], starter: dict[str, bytes], grader: dict[str, bytes]
) -> None:
    writer = TreeWriter(store)
    trees = writer.views(RecordViews(task, starter, grader, solver=task, solution={}))
    expected = [
        store.put_tree({path: Entry("f", store.put_bytes(data)) for path, data in files.items()})
        for files in (task, starter, grader, task, {})
    ]
    assert list(trees) == expected
    assert not store.missing_deep([("tree", tree) for tree in trees])
    objects, blobs, _ = closure(trees, store.get_many)
    assert objects | blobs <= {*writer.written, store.put_tree({})}

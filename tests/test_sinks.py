"""The contract of sinks, run on each of the three; then what each format has of its own."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mrp.cache.store import Entry, Store
from mrp.runtime.produce import open_sink
from mrp.runtime.sinks.files import EMPTY, read_listing
from mrp.runtime.sinks.protocol import Sink
from mrp.specs.errors import BuildFailed
from mrp.specs.ir import SinkSpec
from mrp.specs.results import Ref

LABEL = "//jobs:publish"


@dataclass(frozen=True)
class Case:
    """A sink and three contents for it; `read` gives what the sink holds, as something to compare."""

    spec: SinkSpec
    one: list[Any]
    two: list[Any]
    read: Callable[[Path], Any]


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    return [{name: value for name, value in row.items() if name != "_key"} for row in rows]


def _json(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(path.read_bytes())
    return [{name: value for name, value in row.items() if name != "_key"} for row in rows]


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [{name: value for name, value in row.items() if name != "_key"} for row in rows]


def _files(path: Path) -> list[dict[str, Any]]:
    files = sorted(place for place in path.rglob("*") if place.is_file())
    return [{"path": place.relative_to(path).as_posix(), "text": place.read_text()} for place in files]


ROWS: dict[str, list[Any]] = {"one": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], "two": [{"a": 3, "b": "z"}]}
WRITES: dict[str, list[Any]] = {
    "one": [{"path": "a.txt", "text": "x"}, {"path": "sub/b.txt", "text": "y"}],
    "two": [{"path": "sub/c.txt", "text": "z"}],
}
CASES = {
    "json": Case(SinkSpec("//jobs:board", "json", "out/board.json"), **ROWS, read=_json),
    "jsonl": Case(SinkSpec("//jobs:board", "json", "out/board.jsonl"), **ROWS, read=_lines),
    "parquet": Case(SinkSpec("//jobs:board", "parquet", "out/board.parquet"), **ROWS, read=_parquet),
    "files": Case(SinkSpec("//jobs:board", "files", "out/board"), **WRITES, read=_files),
}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "cache") as store:
        yield store


def opened(case: Case, mode: str, workspace: Path, store: Store, label: str = LABEL) -> Sink:
    return open_sink(replace(case.spec, mode=mode), workspace, label, store)


# -- the contract -------------------------------------------------------------------------------------------------


def test_a_sink_that_is_not_there_holds_nothing(case: Case, workspace: Path, store: Store) -> None:
    assert opened(case, "replace", workspace, store).digest() is None


def test_staging_writes_nothing(case: Case, workspace: Path, store: Store) -> None:
    opened(case, "replace", workspace, store).stage(case.one)
    assert list(workspace.iterdir()) == []


@pytest.mark.parametrize("mode", ["create", "replace", "append"])
def test_after_apply_the_sink_holds_the_content_and_has_the_digest_that_was_told(
    case: Case, mode: str, workspace: Path, store: Store
) -> None:
    sink = opened(case, mode, workspace, store)
    staged = sink.stage(case.one)
    staged.apply()
    assert case.read(workspace / case.spec.path) == case.one
    assert opened(case, mode, workspace, store).digest() == staged.digest
    assert [path.name for path in (workspace / "out").iterdir()] == [Path(case.spec.path).name]


@pytest.mark.parametrize("mode", ["create", "replace", "append"])
def test_the_same_content_again_changes_nothing(case: Case, mode: str, workspace: Path, store: Store) -> None:
    sink = opened(case, mode, workspace, store)
    sink.stage(case.one).apply()
    before = sink.digest()
    again = sink.stage(case.one)
    assert again.digest == before
    again.apply()
    assert (sink.digest(), case.read(workspace / case.spec.path)) == (before, case.one)


def test_create_refuses_other_content_and_leaves_it(case: Case, workspace: Path, store: Store) -> None:
    sink = opened(case, "create", workspace, store)
    sink.stage(case.one).apply()
    with pytest.raises(BuildFailed, match=f"{case.spec.path} exists with other content, and the sink's mode is create"):
        sink.stage(case.two)
    assert case.read(workspace / case.spec.path) == case.one


def test_replace_leaves_only_the_new_content(case: Case, workspace: Path, store: Store) -> None:
    sink = opened(case, "replace", workspace, store)
    sink.stage(case.one).apply()
    sink.stage(case.two).apply()
    assert case.read(workspace / case.spec.path) == case.two


def test_append_adds_and_keeps(case: Case, workspace: Path, store: Store) -> None:
    sink = opened(case, "append", workspace, store)
    sink.stage(case.one).apply()
    sink.stage([*case.one, *case.two]).apply()
    sink.stage(case.two).apply()
    assert case.read(workspace / case.spec.path) == [*case.one, *case.two]


def test_no_content_is_content_too(case: Case, workspace: Path, store: Store) -> None:
    sink = opened(case, "replace", workspace, store)
    staged = sink.stage([])
    staged.apply()
    assert sink.digest() == staged.digest
    assert case.read(workspace / case.spec.path) == []


def test_a_change_by_someone_else_changes_the_digest(case: Case, workspace: Path, store: Store) -> None:
    sink = opened(case, "replace", workspace, store)
    staged = sink.stage(case.one)
    staged.apply()
    place = workspace / case.spec.path
    target = place / "a.txt" if place.is_dir() else place
    target.write_bytes(target.read_bytes() + b" ")
    assert sink.digest() != staged.digest


def test_the_wrong_thing_at_the_path_is_named(case: Case, workspace: Path, store: Store) -> None:
    place = workspace / case.spec.path
    if case.spec.type == "files":
        place.parent.mkdir(parents=True)
        place.write_text("")
    else:
        place.mkdir(parents=True)
    with pytest.raises(BuildFailed, match=f"the sink's path {case.spec.path} is a f"):
        opened(case, "replace", workspace, store).digest()


# -- rows ---------------------------------------------------------------------------------------------------------

ROW_SINKS = ["json", "jsonl", "parquet"]


@pytest.mark.parametrize("name", ROW_SINKS)
def test_equal_rows_of_one_produce_are_all_kept_and_of_another_too(name: str, workspace: Path, store: Store) -> None:
    case, twice = CASES[name], [{"a": 1}, {"a": 1}]
    for _ in range(2):
        opened(case, "append", workspace, store).stage(twice).apply()
    assert case.read(workspace / case.spec.path) == twice
    opened(case, "append", workspace, store, "//jobs:other").stage([{"a": 1}]).apply()
    assert case.read(workspace / case.spec.path) == [*twice, {"a": 1}]


@pytest.mark.parametrize("name", ROW_SINKS)
def test_append_joins_rows_that_a_person_wrote(name: str, workspace: Path, store: Store) -> None:
    case = CASES[name]
    opened(case, "replace", workspace, store).stage([{"a": 7, "b": "by hand"}]).apply()
    opened(case, "append", workspace, store).stage(case.one).apply()
    assert case.read(workspace / case.spec.path) == [{"a": 7, "b": "by hand"}, *case.one]


@pytest.mark.parametrize("name", ROW_SINKS)
@pytest.mark.parametrize(
    ("rows", "message"),
    [([1], "objects, not int"), ([{"_key": 1}], "a row has the field _key, which mode append uses itself")],
)
def test_append_refuses_rows_that_cannot_have_a_key(
    name: str, rows: list[Any], message: str, workspace: Path, store: Store
) -> None:
    with pytest.raises(BuildFailed, match=message):
        opened(CASES[name], "append", workspace, store).stage(rows)


@pytest.mark.parametrize("name", ROW_SINKS)
def test_append_to_a_file_of_another_kind_is_refused(name: str, workspace: Path, store: Store) -> None:
    case = CASES[name]
    place = workspace / case.spec.path
    place.parent.mkdir(parents=True)
    place.write_text("{not rows")
    with pytest.raises(BuildFailed, match=f"{LABEL} cannot be written to {case.spec.path}: "):
        opened(case, "append", workspace, store).stage(case.one)
    assert place.read_text() == "{not rows"


@pytest.mark.parametrize("name", ROW_SINKS)
def test_a_row_sink_takes_no_tree(name: str, workspace: Path, store: Store) -> None:
    with pytest.raises(BuildFailed, match="gives files, and this sink takes rows; use a sink of type files"):
        opened(CASES[name], "replace", workspace, store).stage(Ref("tree", store.put_tree({})))


def test_json_has_a_canonical_row_a_line(workspace: Path, store: Store) -> None:
    case = CASES["json"]
    opened(case, "replace", workspace, store).stage([{"b": Decimal("0.70"), "a": "é"}, [1], None]).apply()
    assert (workspace / case.spec.path).read_text() == '[\n{"a":"é","b":0.7},\n[1],\nnull\n]\n'
    lines = CASES["jsonl"]
    opened(lines, "replace", workspace, store).stage([{"b": 1, "a": 2}, 3]).apply()
    assert (workspace / lines.spec.path).read_text() == '{"a":2,"b":1}\n3\n'


def test_parquet_columns_keep_their_types_when_rows_are_appended(workspace: Path, store: Store) -> None:
    case = CASES["parquet"]

    def append(row: dict[str, Any]) -> list[dict[str, Any]]:
        opened(case, "append", workspace, store).stage([row]).apply()
        return _parquet(workspace / case.spec.path)

    append({"tags": ["x"], "n": 1, "r": {"reward": Decimal("0.1")}})
    rows = append({"tags": ["y"], "n": Decimal("1.5"), "r": None})
    assert [row["tags"] for row in rows] == ['["x"]', '["y"]']
    assert [row["n"] for row in rows] == [1.0, 1.5]
    assert [row["r.reward"] for row in rows] == [0.1, None]
    with pytest.raises(BuildFailed, match="its column 'n' holds numbers, and a new row holds \"text\" there"):
        append({"n": "text"})


def test_parquet_takes_objects_only(workspace: Path, store: Store) -> None:
    with pytest.raises(BuildFailed, match="rows that are objects, not list"):
        opened(CASES["parquet"], "replace", workspace, store).stage([[1]])


# -- files --------------------------------------------------------------------------------------------------------


def files(workspace: Path, store: Store, mode: str = "replace") -> Sink:
    return opened(CASES["files"], mode, workspace, store)


def test_a_tree_keeps_executables_symlinks_and_empty_folders(workspace: Path, store: Store) -> None:
    blob = store.put_bytes(b"#!/bin/sh\n")
    tree = store.put_tree(
        {
            "bin/run": Entry("x", blob),
            "doc": Entry("f", blob),
            "empty": Entry("d"),
            "link": Entry("l", None, "bin/run"),
            "sub/up": Entry("l", None, "../doc"),
        }
    )
    staged = files(workspace, store).stage(Ref("tree", tree))
    staged.apply()
    assert read_listing(workspace / "out" / "board") == {
        "bin/run": ("x", blob),
        "doc": ("f", blob),
        "empty": ("d", ""),
        "link": ("l", "bin/run"),
        "sub/up": ("l", "../doc"),
    }
    assert files(workspace, store).digest() == staged.digest


@pytest.mark.parametrize(
    "links",
    [
        {"a": "/etc/passwd"},
        {"a": "../x"},
        {"sub/a": "../../x"},
        {"loop": "loop"},
        # b leads to the folder itself, so one step up from it leaves, though the text of a seems to stay inside.
        {"deep/er/b": "../..", "a": "deep/er/b/../x"},
    ],
)
def test_symlinks_that_leave_the_folder_are_refused(links: dict[str, str], workspace: Path, store: Store) -> None:
    tree = store.put_tree({path: Entry("l", None, target) for path, target in links.items()})
    harmless = {path: Entry("l", None, "other") for path in links}
    files(workspace, store).stage(Ref("tree", store.put_tree(harmless))).apply()
    with pytest.raises(BuildFailed, match="which leads out of the sink; leave it out"):
        files(workspace, store).stage(Ref("tree", tree))
    assert {target for _, target in read_listing(workspace / "out" / "board").values()} == {"other"}


def test_append_never_writes_through_a_symlink_that_is_there(tmp_path: Path, workspace: Path, store: Store) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (workspace / "out" / "board").mkdir(parents=True)
    (workspace / "out" / "board" / "sub").symlink_to(outside)
    with pytest.raises(BuildFailed, match=r"cannot write sub/c\.txt: sub is no folder in the sink"):
        files(workspace, store, "append").stage(CASES["files"].two)
    assert list(outside.iterdir()) == []


def test_append_refuses_a_file_with_other_content(workspace: Path, store: Store) -> None:
    files(workspace, store, "append").stage([{"path": "a", "text": "1"}]).apply()
    with pytest.raises(BuildFailed, match="out/board/a exists with other content, and the sink's mode is append"):
        files(workspace, store, "append").stage([{"path": "a", "text": "2"}, {"path": "b", "text": "2"}])
    assert sorted(read_listing(workspace / "out" / "board")) == ["a"]


def test_bytes_are_written_as_they_are(workspace: Path, store: Store) -> None:
    files(workspace, store).stage([{"path": "raw", "base64": "/wA="}]).apply()
    assert (workspace / "out" / "board" / "raw").read_bytes() == b"\xff\x00"


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        ([{"a": 1}], "gives rows, and a files sink takes files; name a `producer`"),
        (["a"], "gives rows, and a files sink takes files"),
        ([{"path": "../a", "text": ""}], r"write 1 of //jobs:publish has the path '\.\./a'; use a plain relative path"),
        ([{"path": "/a", "text": ""}], "has the path '/a'"),
        ([{"path": "a//b", "text": ""}], "has the path 'a//b'"),
        ([{"path": "a", "text": ""}, {"path": "a", "text": ""}], "writes a twice"),
        ([{"path": "a/b", "text": ""}, {"path": "a", "text": ""}], "writes a as a file and as the folder of a/b"),
        ([{"path": "a"}], "has neither text nor base64"),
        ([{"path": "a", "base64": "?"}], "cannot be decoded"),
    ],
)
def test_writes_that_are_no_files_are_refused(writes: list[Any], message: str, workspace: Path, store: Store) -> None:
    with pytest.raises(BuildFailed, match=message):
        files(workspace, store).stage(writes)


def test_a_blob_is_no_folder(workspace: Path, store: Store) -> None:
    with pytest.raises(BuildFailed, match="gives one blob, and a files sink takes a folder"):
        files(workspace, store).stage(Ref("blob", store.put_bytes(b"")))


def test_an_empty_folder_has_a_digest_of_its_own(workspace: Path, store: Store) -> None:
    (workspace / "out" / "board").mkdir(parents=True)
    assert files(workspace, store).digest() == EMPTY


def test_folders_change_places_where_the_system_cannot_swap_them(
    workspace: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes

    files(workspace, store).stage(CASES["files"].one).apply()
    monkeypatch.setattr(ctypes, "CDLL", lambda *given, **named: object())
    files(workspace, store).stage(CASES["files"].two).apply()
    assert _files(workspace / "out" / "board") == CASES["files"].two
    assert [path.name for path in (workspace / "out").iterdir()] == ["board"]

"""Produce: once, whatever happens, and with an audit that shows every change of itself."""

import fcntl
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.killing import killed_at

from mrp.cache.digest import Digest, digest_bytes
from mrp.cache.store import Entry, Store
from mrp.runtime.audit import FIRST, audit_path, read_audit, verify_audit
from mrp.runtime.produce import ProduceOutcome, produce, standing
from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.ir import SinkSpec, SourceFile
from mrp.specs.results import Ref

LABEL = "//jobs:publish"
BOARD = SinkSpec("//jobs:board", "json", "board.json")
ONE, TWO = digest_bytes(b"one"), digest_bytes(b"two")
ROWS = [{"id": "a", "reward": 1}, {"id": "b", "reward": 0}]
MOMENTS = ("mrp/runtime/produce.py", "mrp/runtime/audit.py", "mrp/runtime/sinks/")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "cache") as store:
        yield store


def make(
    sink: SinkSpec, rows: Iterable[Any] | Ref, workspace: Path, store: Store, artifact: Digest = ONE, label: str = LABEL
) -> ProduceOutcome:
    return produce(sink, rows, workspace=workspace, label=label, artifact=artifact, store=store)


def held(workspace: Path, path: str = "board.json") -> list[Any]:
    rows = json.loads((workspace / path).read_bytes())
    return [{name: value for name, value in row.items() if name != "_key"} for row in rows]


def events(workspace: Path, sink: SinkSpec = BOARD) -> list[str]:
    return [line["event"] for line in read_audit(audit_path(workspace, sink.label)).lines]


# -- once ---------------------------------------------------------------------------------------------------------


def test_the_first_produce_writes_and_the_second_reads_no_row(workspace: Path, store: Store) -> None:
    first = make(BOARD, ROWS, workspace, store)
    assert (first.status, held(workspace)) == ("written", ROWS)
    before = (workspace / "board.json").stat()

    def refuse() -> Iterable[Any]:
        raise AssertionError("rows were read")
        yield

    second = make(BOARD, refuse(), workspace, store)
    assert (second.status, second.digest) == ("unchanged", first.digest)
    assert (workspace / "board.json").stat() == before
    assert events(workspace) == ["intent", "done"]


def test_standing_needs_both_the_audit_and_the_sink(workspace: Path, store: Store) -> None:
    def stands(artifact: Digest = ONE, sink: SinkSpec = BOARD, label: str = LABEL) -> Digest | None:
        return standing(sink, workspace=workspace, label=label, artifact=artifact, store=store)

    assert stands() is None
    assert list(workspace.iterdir()) == []
    written = make(BOARD, ROWS, workspace, store)
    assert stands() == written.digest
    assert stands(artifact=TWO) is None
    assert stands(label="//jobs:other") is None
    assert stands(sink=replace(BOARD, mode="append")) is None
    (workspace / "board.json").write_text("[]\n")
    assert stands() is None


def test_a_sink_that_someone_changed_or_removed_is_written_again(workspace: Path, store: Store) -> None:
    make(BOARD, ROWS, workspace, store)
    (workspace / "board.json").write_text("[]\n")
    assert make(BOARD, ROWS, workspace, store).status == "written"
    (workspace / "board.json").unlink()
    assert make(BOARD, ROWS, workspace, store).status == "written"
    assert held(workspace) == ROWS


def test_right_content_without_an_audit_is_not_trusted_but_recorded(workspace: Path, store: Store) -> None:
    digest = make(BOARD, ROWS, workspace, store).digest
    audit_path(workspace, BOARD.label).unlink()
    assert make(BOARD, ROWS, workspace, store) == ProduceOutcome("written", digest)
    assert events(workspace) == ["intent", "done"]


def test_two_targets_append_to_one_sink_and_neither_doubles(workspace: Path, store: Store) -> None:
    sink = replace(BOARD, mode="append")
    assert make(sink, ROWS, workspace, store, ONE, "//jobs:a").status == "written"
    assert make(sink, ROWS[:1], workspace, store, TWO, "//jobs:b").status == "written"
    assert make(sink, ROWS, workspace, store, ONE, "//jobs:a").status == "unchanged"
    assert make(sink, ROWS[:1], workspace, store, TWO, "//jobs:b").status == "unchanged"
    assert held(workspace) == [*ROWS, ROWS[0]]
    assert events(workspace) == ["intent", "done"] * 2


def test_many_threads_produce_one_content_once(workspace: Path, store: Store) -> None:
    outcomes: list[str] = []
    sink = replace(BOARD, mode="append")
    threads = [
        threading.Thread(target=lambda: outcomes.append(make(sink, ROWS, workspace, store).status)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["unchanged"] * 7 + ["written"]
    assert held(workspace) == ROWS
    assert verify_audit(audit_path(workspace, sink.label)) is None


# -- kill -9 ------------------------------------------------------------------------------------------------------

SINKS = {
    "json": (BOARD, ROWS, [{"id": "old"}]),
    "parquet": (SinkSpec("//jobs:board", "parquet", "board.parquet"), ROWS, [{"id": "old"}]),
    "files": (
        SinkSpec("//jobs:board", "files", "board"),
        [{"path": "a", "text": "1"}, {"path": "sub/b", "text": "2"}],
        [{"path": "old", "text": "0"}],
    ),
}


@pytest.mark.parametrize("mode", ["create", "replace", "append"])
@pytest.mark.parametrize("name", sorted(SINKS))
def test_killed_at_any_moment_the_next_produce_ends_as_a_clean_one(
    name: str, mode: str, tmp_path: Path, store: Store
) -> None:
    sink, rows, old = SINKS[name]
    sink = replace(sink, mode=mode)

    def begin(workspace: Path) -> None:
        workspace.mkdir()
        if mode != "create":
            make(sink, old, workspace, store, ONE)

    begin(tmp_path / "clean")
    expected = make(sink, rows, tmp_path / "clean", store, TWO).digest
    states = {None, standing(sink, workspace=tmp_path / "clean", label=LABEL, artifact=TWO, store=store)}
    # Every fifth line; every single one takes four times as long and found nothing more.
    moment, killed, survived = 1, 0, False
    while not survived:
        workspace = tmp_path / f"killed-{moment}"
        begin(workspace)
        survived = not killed_at(moment, MOMENTS, lambda place=workspace: make(sink, rows, place, store, TWO))
        killed += not survived
        assert standing(sink, workspace=workspace, label=LABEL, artifact=TWO, store=store) in states
        outcome = make(sink, rows, workspace, store, TWO)
        assert outcome.digest == expected
        assert make(sink, rows, workspace, store, TWO).status == "unchanged"
        assert verify_audit(audit_path(workspace, sink.label)) is None
        assert events(workspace, sink)[-1] == "done"
        assert sorted(path.name for path in workspace.iterdir()) == [".mrp", sink.path]
        moment += 5
    assert killed > 10


def test_an_audit_line_torn_at_any_byte_is_cut_off_and_written_again(workspace: Path, store: Store) -> None:
    make(BOARD, ROWS[:1], workspace, store, ONE)
    digest = make(BOARD, ROWS, workspace, store, TWO).digest
    path = audit_path(workspace, BOARD.label)
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert verify_audit(path) is None
        assert make(BOARD, ROWS, workspace, store, TWO) == ProduceOutcome("written", digest)
        assert verify_audit(path) is None
        assert events(workspace)[-2:] == ["intent", "done"]


# -- the audit ----------------------------------------------------------------------------------------------------


def test_the_audit_says_who_put_what_there(workspace: Path, store: Store) -> None:
    first = make(BOARD, ROWS, workspace, store)
    second = make(BOARD, ROWS[:1], workspace, store, TWO)
    path = audit_path(workspace, BOARD.label)
    assert path.relative_to(workspace).as_posix() == ".mrp/audit/jobs:board.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["previous"] == FIRST
    assert (lines[0]["before"], lines[0]["after"]) == (None, first.digest)
    assert (lines[3]["before"], lines[3]["after"]) == (first.digest, second.digest)
    assert {(line["sink"], line["label"], line["mode"]) for line in lines} == {(BOARD.label, LABEL, "replace")}
    assert [line["artifact"] for line in lines] == [ONE, ONE, TWO, TWO]


def test_any_change_of_a_line_breaks_the_chain_at_that_line_or_the_next(workspace: Path, store: Store) -> None:
    for artifact in (ONE, TWO, ONE):
        make(BOARD, ROWS, workspace, store, artifact)
        (workspace / "board.json").unlink()
    path = audit_path(workspace, BOARD.label)
    lines = path.read_bytes().splitlines(keepends=True)
    assert (len(lines), verify_audit(path)) == (6, None)
    for number in range(len(lines) - 1):
        changed = lines[number].replace(b'"label":"//jobs:publish"', b'"label":"//jobs:pu8lish"')
        path.write_bytes(b"".join([*lines[:number], changed, *lines[number + 1 :]]))
        assert verify_audit(path) == number + 2
        path.write_bytes(b"".join([*lines[:number], *lines[number + 1 :]]))
        assert verify_audit(path) == number + 1
        path.write_bytes(b"".join([*lines[: number + 1], *lines[number:]]))
        assert verify_audit(path) == number + 2
        path.write_bytes(b"".join([*lines[:number], b"garbage\n", *lines[number + 1 :]]))
        assert verify_audit(path) == number + 1


def test_nothing_is_produced_on_a_broken_audit(workspace: Path, store: Store) -> None:
    make(BOARD, ROWS, workspace, store)
    path = audit_path(workspace, BOARD.label)
    broken = path.read_bytes().replace(b'"seq":1', b'"seq":7')
    path.write_bytes(broken)
    with pytest.raises(BuildFailed, match=r"jobs:board\.jsonl:1: the audit was changed here"):
        make(BOARD, ROWS[:1], workspace, store, TWO)
    assert (held(workspace), path.read_bytes()) == (ROWS, broken)


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../board.json", "/tmp/board.json", "a/../../board.json", "", ".."])
def test_paths_outside_the_workspace_are_refused(path: str, workspace: Path, store: Store) -> None:
    with pytest.raises(BuildFailed, match="use a relative path inside the workspace"):
        make(replace(BOARD, path=path), ROWS, workspace, store)
    assert sorted(place.name for place in workspace.parent.iterdir()) == ["cache", "workspace"]


def test_a_folder_that_is_a_symlink_out_of_the_workspace_is_refused(
    tmp_path: Path, workspace: Path, store: Store
) -> None:
    (tmp_path / "outside").mkdir()
    (workspace / "results").symlink_to(tmp_path / "outside")
    for path in ("results/board.json", "results/deep/board.json"):
        with pytest.raises(BuildFailed, match="leads through a symlink out of the workspace; remove the symlink"):
            make(replace(BOARD, path=path), ROWS, workspace, store)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_sink_that_is_a_symlink_is_refused(tmp_path: Path, workspace: Path, store: Store) -> None:
    (workspace / "board.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BuildFailed, match=r"board\.json of //jobs:board is a symlink; remove it"):
        make(BOARD, ROWS, workspace, store)
    assert not (tmp_path / "elsewhere.json").exists()


@pytest.mark.parametrize("path", [".mrp/board.json", "mrp-out/board.json", "link/board.json"])
def test_folders_of_mrp_are_refused(path: str, workspace: Path, store: Store) -> None:
    (workspace / ".mrp").mkdir()
    (workspace / "link").symlink_to(".mrp")
    with pytest.raises(BuildFailed, match="is in a folder of mrp's own; choose another path"):
        make(replace(BOARD, path=path), ROWS, workspace, store)


def test_a_folder_of_a_persons_own_files_is_not_replaced(workspace: Path, store: Store) -> None:
    sink = SinkSpec("//jobs:board", "files", "notes")
    (workspace / "notes").mkdir()
    (workspace / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(
        BuildFailed, match="notes holds files that mrp did not write, and //jobs:board would replace them"
    ):
        make(sink, [{"path": "a", "text": "1"}], workspace, store)
    assert [path.name for path in (workspace / "notes").iterdir()] == ["diary.txt"]
    make(replace(sink, mode="append"), [{"path": "a", "text": "1"}], workspace, store)
    assert sorted(path.name for path in (workspace / "notes").iterdir()) == ["a", "diary.txt"]


def test_s3_says_what_is_missing(workspace: Path, store: Store) -> None:
    with pytest.raises(InfraError, match=r"needs mrp-build\[s3\]; that is not part of this version") as error:
        make(replace(BOARD, type="s3", path="s3://bucket/board"), ROWS, workspace, store)
    assert not error.value.retryable


def test_rows_are_held_against_the_schema_before_anything_is_written(workspace: Path, store: Store) -> None:
    schema = {"type": "object", "properties": {"reward": {"maximum": 1}}, "additionalProperties": {"type": "string"}}
    digest = store.put_bytes(json.dumps(schema).encode())
    sink = replace(BOARD, mode="append", schema=SourceFile("board.schema.json", digest))
    with pytest.raises(BuildFailed, match=r"row 2 of //jobs:publish does not fit board\.schema\.json: reward: "):
        make(sink, [ROWS[0], {"id": "b", "reward": 2}], workspace, store)
    assert not (workspace / "board.json").exists()
    assert make(sink, ROWS, workspace, store).status == "written"
    broken = replace(sink, schema=SourceFile("board.schema.json", store.put_bytes(b'{"type": "wish"}')))
    with pytest.raises(BuildFailed, match=r"board\.schema\.json is no JSON Schema"):
        make(broken, ROWS, workspace, store, TWO)


@pytest.mark.parametrize("row", [{"a": 0.5}, {"a": float("nan")}, {"a": {1, 2}}, {"a": "\ud800"}])
def test_rows_that_have_no_canonical_form_are_refused(row: Any, workspace: Path, store: Store) -> None:
    with pytest.raises(BuildFailed, match="//jobs:publish gives a row that is no JSON"):
        make(BOARD, [row], workspace, store)


def test_a_disk_that_fails_is_no_fault_of_the_content(workspace: Path, store: Store) -> None:
    (workspace / "file").write_text("")
    with pytest.raises(InfraError, match=r"//jobs:board could not be written at .*; make room or access"):
        make(replace(BOARD, path="file/board.json"), ROWS, workspace, store)
    assert events(workspace)[-1:] in ([], ["intent"])


def test_a_tree_is_published_as_files(workspace: Path, store: Store) -> None:
    tree = store.put_tree({"a/run": Entry("x", store.put_bytes(b"1"))})
    sink = SinkSpec("//jobs:pages", "files", "pages")
    assert make(sink, Ref("tree", tree), workspace, store).status == "written"
    assert os.access(workspace / "pages" / "a" / "run", os.X_OK)
    assert make(sink, Ref("tree", tree), workspace, store).status == "unchanged"


def test_a_produce_waits_for_the_lock_of_another(workspace: Path, store: Store) -> None:
    (workspace / ".mrp" / "audit").mkdir(parents=True)
    done = threading.Event()

    def work() -> None:
        make(BOARD, ROWS, workspace, store)
        done.set()

    with (workspace / ".mrp" / "audit" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=work)
        thread.start()
        assert not (workspace / "board.json").exists()
        assert not done.is_set()
    thread.join()
    assert held(workspace) == ROWS

"""Promises that are easy to break without noticing: stories of what once went wrong, or nearly did."""

import dataclasses
import json
import shutil
import subprocess
import threading
from decimal import Decimal
from pathlib import Path

import pytest
from support.kinds import TASKS, Targets, shell, trials, workspace
from support.places import Place, kill_group
from support.sandboxes import BACKENDS, WALLED, Bench

from mrp.cache.actions import ActionEntry
from mrp.cache.digest import ActionKey
from mrp.cache.inflight import InFlight
from mrp.cache.store import Store
from mrp.runtime import runs
from mrp.runtime.build import build
from mrp.runtime.ledger import Ledger
from mrp.runtime.money import Account, Money
from mrp.runtime.options import BuildOptions
from mrp.runtime.sandbox.local import LocalBackend
from mrp.runtime.sandbox.protocol import Cancelled
from mrp.specs.errors import InfraError
from mrp.specs.work import Box

MADE = {"kind": "command", "outs": ["out.txt"], "command": ["sh", "-c", "echo made > out.txt"]}


def rollout(**fields: object) -> Targets:
    return {"kind": "rollout", "over": ":tasks", "agent": ":me", **fields}


def entries(place: Place, kind: str) -> list[ActionEntry]:
    """The entries of one kind of action that are in the cache."""
    with Store.open(place.cache) as store:
        keys = [ActionKey(row[0].hex()) for row in store.index.read("SELECT key FROM actions WHERE kind = ?", (kind,))]
        return list(store.lookup(keys).values())


# -- keys --------------------------------------------------------------------------------------------------------


def test_a_grader_that_is_told_an_id_is_keyed_on_it(tmp_path: Path) -> None:
    grade = {"command": ["sh", "-c", "echo $MRP_RECORD_ID > /out/reward.txt"]}
    ws = workspace(
        tmp_path,
        {
            "tasks": {"kind": "dataset", "srcs": ["named.json"], "format": "json"},
            "me": shell(script="echo same > answer"),
            "solve": rollout(grade=grade),
        },
        {"named.json": json.dumps({"1": {"v": 1}, "2": {"v": 1}})},
    )
    ws.build("//:solve")
    assert [row["rewards"] for row in trials(ws)] == [{"reward": 1}, {"reward": 2}]


def test_rows_that_name_their_dataset_are_reduced_again_when_it_is_renamed(tmp_path: Path) -> None:
    ws = workspace(tmp_path, {**TASKS, "all": {"kind": "reduction", "of": [":tasks"], "reducer": "concat"}})
    ws.build("//:all")
    build_file = ws.folder / "BUILD.yaml"
    build_file.write_text(build_file.read_text().replace("tasks", "renamed"))
    ws.build("//:all")
    assert {row["target"] for row in ws.output("all/result.json")["rows"]} == {"//:renamed"}


def test_a_column_that_is_called_tree_is_only_a_column(tmp_path: Path) -> None:
    reducer = {
        "kind": "reducer",
        "version": "1",
        "command": ["sh", "-c", "ls /task > /out/ls; echo {} > /out/result.json"],
    }
    targets = {**TASKS, "own": reducer, "all": {"kind": "reduction", "of": [":tasks"], "reducer": ":own"}}
    ws = workspace(tmp_path, targets, {"rows.jsonl": '{"id": "a", "tree": "oak"}\n'})
    assert ws.build("//:all")["status"] == "ok"


@pytest.mark.parametrize("change", ["edited", "removed", "a folder"])
def test_a_plan_is_not_run_on_other_sources(change: str, tmp_path: Path) -> None:
    copied = {"kind": "command", "srcs": ["in.txt"], "outs": ["copy.txt"], "command": ["cp", "in.txt", "copy.txt"]}
    ws = workspace(tmp_path, {"made": MADE, "copied": copied}, {"in.txt": "compiled"})
    plan, source = str(tmp_path / "plan"), ws.folder / "in.txt"
    assert ws.mrp("compile", "//...", "-o", plan).returncode == 0
    source.unlink()
    if change == "edited":
        source.write_text("edited")
    elif change == "a folder":
        source.mkdir()
    done = ws.mrp("run", plan)
    assert done.returncode == 1
    assert "in.txt changed since it was compiled" in done.stderr
    assert ("command", "//:made", "") in ws.executed(), "what does not need it is built"


ORDERS = ({"ZEBRA": "1", "ANT": "2"}, {"ANT": "2", "ZEBRA": "1"})

LOOKER = """
import os, sys
class Looker:
    def run(self, task, ctx):
        open("seen", "w").write(f"{list(os.environ)} {sys.argv}")
"""


def test_an_operator_sees_neither_the_order_of_its_env_nor_paths_of_the_machine(tmp_path: Path) -> None:
    seen = []
    for number, env in enumerate(ORDERS):
        looker = {"kind": "agent", "version": "1", "entry": "looker:Looker", "srcs": ["looker.py"]}
        targets: Targets = {**TASKS, "me": looker, "solve": rollout(env=env)}
        ws = workspace(tmp_path / str(number), targets, {"looker.py": LOOKER})
        ws.build("//:solve")
        seen.append(trials(ws))
    assert seen[0] == seen[1]


# -- results that do not do --------------------------------------------------------------------------------------


def test_what_was_made_under_weaker_isolation_is_replaced_once(tmp_path: Path) -> None:
    ws = workspace(tmp_path, {"made": MADE})
    ws.build("//:made")
    (entry,) = entries(ws, "command")
    with Store.open(ws.cache) as store:
        preimage = store.preimage(entry.key)
        assert preimage is not None
        store.forget([entry.key])
        store.commit([dataclasses.replace(entry, preimage=preimage, isolation="none")])
    # Without its snapshot a build asks the cache, as one in another workspace does.
    shutil.rmtree(ws.folder / ".mrp" / "snapshots")
    assert [ws.build("//:made")["executed"] for _ in range(2)] == [1, 0]
    assert [found.isolation for found in entries(ws, "command")] == ["namespaces"]


def test_what_a_wall_limit_ended_is_replaced_when_it_is_tried_again(tmp_path: Path) -> None:
    slow = {"me": shell(script="sleep 20"), "solve": rollout(timeout="0.2s")}
    ws = workspace(tmp_path, {**TASKS, **slow}, {"rows.jsonl": '{"id": "a"}\n'})
    for flags in ((), ("--retry-limits",)):
        run = ws.build("//:solve", *flags)["run_id"]
        assert [entry.provenance["run"] for entry in entries(ws, "trial")] == [run]
    assert ws.build("//:solve")["executed"] == 0


@pytest.mark.parametrize("text", ["a\0--bind\0/\0/mnt", "x" * 200_000], ids=["options for the sandbox", "too long"])
def test_what_no_variable_can_hold_is_refused_and_never_an_agents_failure(text: str, tmp_path: Path) -> None:
    solve = rollout(env={"TEXT": "${record.text}"})
    ws = workspace(
        tmp_path,
        {**TASKS, "me": shell(script="ls /mnt > seen"), "solve": solve},
        {"rows.jsonl": json.dumps({"id": "a", "text": text}) + "\n"},
    )
    report = ws.build("//:solve", code=1)
    assert "//:solve[a]: the variable TEXT" in report["reason"]
    assert entries(ws, "trial") == []


@pytest.mark.parametrize("backend", WALLED)
def test_no_value_gives_options_to_a_sandbox(backend: str, tmp_path: Path) -> None:
    with Store.open(tmp_path / "cache") as store:
        bench = Bench(store, BACKENDS[backend](store, tmp_path / "scratch"), tmp_path)
        box = Box(image=bench.image(), secrets=("TOKEN",))
        with pytest.raises(InfraError):
            bench.run("ls", "/mnt", box=box, secrets={"TOKEN": "abcd\0--bind\0/\0/mnt"})
        bench.backend.close()


def test_what_a_process_says_cannot_command_the_terminal(tmp_path: Path) -> None:
    loud = {**MADE, "command": ["sh", "-c", r"printf 'so \033[2J\007sorry\r' >&2; exit 1"]}
    done = workspace(tmp_path, {"made": loud}).mrp("build", "//:made")
    assert "exit code 1: so  [2J sorry" in done.stderr


BROKEN_ACCOUNTS = {
    "half a character in a reason": r'{"status": "failed", "reason": "\ud800"}',
    "half a character in a name": r'{"metrics": {"\ud800": 1}}',
    "a hundred thousand brackets": '{"metrics": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
    "deeper than what is stored": '{"metrics": {"a": ' + "[" * 400 + "]" * 400 + "}}",
}


def test_nothing_that_an_agent_or_grader_writes_breaks_a_build(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in BROKEN_ACCOUNTS.items())
    write = "import json\nopen('/out/{}', 'w').write(json.load(open('/task/record.json'))['text'])\n"
    targets: Targets = {
        **TASKS,
        "me": {"kind": "agent", "version": "1", "command": ["python3", "agent.py"], "srcs": ["agent.py"]},
        "solve": rollout(grade={"command": ["python3", "-c", write.format("reward.json")]}),
    }
    ws = workspace(tmp_path, targets, {"rows.jsonl": rows, "agent.py": write.format("result.json")})
    assert ws.build("//:solve")["status"] == "ok"
    assert {(row["outcome"], row["rewards"]["reward"]) for row in trials(ws)} == {("failed", 0)}


@pytest.mark.parametrize("document", ["[1]", "3", "null", r'{"a": "\ud800"}'])
def test_a_result_that_is_no_document_is_the_reducers_own_failure(document: str, tmp_path: Path) -> None:
    reducer = {"kind": "reducer", "version": "1", "command": ["cp", "result", "/out/result.json"], "srcs": ["result"]}
    targets = {**TASKS, "own": reducer, "all": {"kind": "reduction", "of": [":tasks"], "reducer": ":own"}}
    report = workspace(tmp_path, targets, {"result": document}).build("//:all", code=1)
    assert "result.json" in report["reason"]
    assert report["failed"] == 1


def test_an_agents_input_file_lies_beside_what_stands_there(tmp_path: Path) -> None:
    files = {"input": "/work/given.json", "output": "/work/answer.json"}
    targets = {
        "tasks": {**TASKS["tasks"], "starter": {"files": {"main.txt": "start"}}},
        "me": shell(script="grep -q start main.txt && grep -q record given.json && echo {} > answer.json", files=files),
        "solve": rollout(),
    }
    ws = workspace(tmp_path, targets)
    ws.build("//:solve")
    assert {row["outcome"] for row in trials(ws)} == {"ok"}


# -- the coordinator ---------------------------------------------------------------------------------------------


def test_fail_fast_ends_a_build_of_which_other_targets_have_not_begun(tmp_path: Path) -> None:
    fetched = {"kind": "dataset", "fetch": {"path": "rows.jsonl", "sha256": "0" * 64}}
    targets: Targets = {
        "a_box": {"kind": "sandbox", "volumes": {"/memory": {"name": "memory"}}},
        "tasks": fetched,
        "me": shell(script="true"),
        "solve": rollout(sandbox=":a_box"),
    }
    ws = workspace(tmp_path, targets)
    process = ws.start("build", "//:solve", "--fail-fast")
    try:
        assert process.wait(timeout=120) == 4
    except subprocess.TimeoutExpired:
        kill_group(process)
        pytest.fail("the build did not end")


def test_an_item_narrows_its_rollout_only_where_nothing_else_needs_all_of_it(tmp_path: Path) -> None:
    targets = {
        **TASKS,
        "me": shell(script="true"),
        "solve": rollout(),
        "eval": {"kind": "reduction", "of": [":solve"], "reducer": "count"},
    }
    ws = workspace(tmp_path, targets)
    assert ws.build("//:solve[a]")["targets"]["//:solve"]["partial"] is True
    report = ws.build("//:solve[a]", "//:eval")
    assert {target["partial"] for target in report["targets"].values()} == {False}


def test_a_chain_of_targets_may_be_long(tmp_path: Path) -> None:
    chain: Targets = {f"d{n}": {"kind": "dataset", "of": [f":d{n - 1}"]} for n in range(1, 400)}
    ws = workspace(tmp_path, {"d0": TASKS["tasks"], **chain})
    assert ws.build("//:d399")["status"] == "ok"


def test_what_another_build_finished_a_moment_ago_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = workspace(tmp_path, {"made": MADE})
    ws.build("//:made")
    (entry,) = entries(ws, "command")
    with Store.open(ws.cache) as store:
        preimage = store.preimage(entry.key)
        assert preimage is not None
        store.forget([entry.key])
    acquire = InFlight.try_acquire

    def after_the_other(self: InFlight, key: ActionKey) -> bool:
        with Store.open(ws.cache) as other:
            other.commit([dataclasses.replace(entry, preimage=preimage)])
        return acquire(self, key)

    monkeypatch.setattr(InFlight, "try_acquire", after_the_other)
    report = build(BuildOptions(root=ws.folder, targets=("//:made",), cache=ws.cache))
    assert (report.executed, report.cached) == (0, 1)


def test_a_budget_of_tokens_is_checked_before_anything_runs() -> None:
    account = Account("//:all", tokens=100)
    money = Money([account], {"//:solve": (0,)})
    assert money.is_capped
    for _ in range(11):
        money.estimate("//:solve", Decimal(0), 10)
    assert money.estimate_refusal() == "//:all would need 110 tokens, and its budget is 100"
    account.begin_pass()
    assert money.estimate_refusal() is None


def test_no_process_starts_after_a_backend_was_cancelled(tmp_path: Path) -> None:
    with Store.open(tmp_path / "cache") as store:
        backend = LocalBackend(store, tmp_path / "scratch", require="none")
        bench = Bench(store, backend, tmp_path)
        backend.cancel()
        with pytest.raises(Cancelled):
            bench.run("true")
        backend.close()


# -- many builds at once -----------------------------------------------------------------------------------------


def at_once(work: "list[threading.Thread]") -> None:
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()


def test_a_run_that_begins_is_not_swept_by_another_that_begins(tmp_path: Path) -> None:
    state = tmp_path / ".mrp"
    state.mkdir()
    lost: list[str] = []

    def begin() -> None:
        for _ in range(25):
            runs.sweep_dead_runs(state)
            run = runs.Run(state)
            if not run.scratch.is_dir():
                lost.append(run.run_id)
            run.close()

    at_once([threading.Thread(target=begin) for _ in range(4)])
    assert not lost


def test_ledgers_can_be_begun_at_once(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def begin(path: Path) -> None:
        try:
            Ledger(path).close()
        except Exception as error:
            failures.append(error)

    for number in range(10):
        path = tmp_path / str(number) / ".mrp" / "ledger.sqlite"
        path.parent.mkdir(parents=True)
        at_once([threading.Thread(target=begin, args=(path,)) for _ in range(4)])
    assert not failures


# -- what is published -------------------------------------------------------------------------------------------


def links(place: Place) -> set[str]:
    folder = place.folder / "mrp-out"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink()}


def test_a_target_named_like_a_package_leaves_that_packages_outputs_alone(tmp_path: Path) -> None:
    ws = workspace(tmp_path, {"jobs": MADE}, jobs={"eval": MADE})
    ws.build("//:jobs", "//jobs:eval")
    ws.build("//:jobs")
    assert links(ws) == {"jobs/out.txt", "jobs/eval/out.txt"}
    ws.edit("BUILD.yaml", '"out.txt"', '"new.txt"')
    ws.edit("BUILD.yaml", "made > out.txt", "made > new.txt")
    ws.build("//:jobs")
    assert links(ws) == {"jobs/new.txt", "jobs/eval/out.txt"}


def test_cells_with_long_names_have_folders_of_their_own(tmp_path: Path) -> None:
    cells = rollout(matrix={"prompt": ["x" * 120 + "1", "x" * 120 + "2"], "other": ["y" * 120]})
    ws = workspace(tmp_path, {**TASKS, "me": shell(script="true"), "solve": cells})
    ws.build("//:solve")
    assert len({Path(link).parent for link in links(ws)}) == 2

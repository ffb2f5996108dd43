"""Stories of builds: what fails, what is kept, what is counted, what is refused."""

import json
from pathlib import Path
from typing import Any

from support.places import Place, QuickPlace

from mrp.api import Workspace

SPEC = {
    "kind": "rollout",
    "over": ":tasks",
    "agent": ":writer",
    "grade": {"command": ["grep", "-q", "good", "answer.txt"]},
}
ROWS = "".join(json.dumps({"id": f"t{n}", "text": word}) + "\n" for n, word in enumerate(["good", "bad", "good"]))
WRITER = "import json, os\nrow = json.load(open('/task/record.json'))\nopen('answer.txt', 'w').write(row['text'])\n"


def place(folder: Path, targets: dict[str, Any], **files: str) -> Place:
    """A workspace whose root package holds `targets`, beside a dataset, an agent and a rollout."""
    common = {
        "tasks": {"kind": "dataset", "srcs": ["rows.jsonl"], "id": "id"},
        "writer": {"kind": "agent", "version": "1", "command": ["python3", "writer.py"], "srcs": ["writer.py"]},
        "solve": SPEC,
    }
    build = json.dumps({"mrp": 1, "targets": {**common, **targets}}, indent=1)
    return QuickPlace(folder / "ws").write(
        {"mrp.yaml": "mrp: 1\nname: t\n", "BUILD.yaml": build, "rows.jsonl": ROWS, "writer.py": WRITER, **files}
    )


EVAL = {"eval": {"kind": "reduction", "of": [":solve"], "reducer": "stats"}}


def test_a_failed_trial_is_a_result_and_fails_no_build(tmp_path: Path) -> None:
    ws = place(tmp_path, EVAL, **{"writer.py": "raise SystemExit('no idea')\n"})
    report = ws.build("//:eval")
    assert (report["status"], report["failed"]) == ("ok", 0)
    result = ws.output("eval/result.json")
    assert result["outcomes"] == {"ok": 0, "failed": 3, "limit": 0, "unscored": 0}
    assert ws.build("//:eval")["executed"] == 0, "failures are cached like any result"


def test_a_failed_command_fails_the_build_and_is_not_cached(tmp_path: Path) -> None:
    made = {"made": {"kind": "command", "outs": ["out.txt"], "command": ["sh", "-c", "echo broken >&2; exit 3"]}}
    ws = place(tmp_path, made)
    for _ in range(2):
        report = ws.build("//:made", code=1)
        assert (report["status"], report["executed"], report["cached"], report["failed"]) == ("failed", 1, 0, 1)
        assert "exit code 3: broken" in report["reason"]


def test_a_command_must_leave_its_outs(tmp_path: Path) -> None:
    ws = place(tmp_path, {"made": {"kind": "command", "outs": ["out.txt"], "command": ["true"]}})
    assert "left no `out.txt`" in ws.build("//:made", code=1)["reason"]


def test_what_does_not_depend_on_a_failure_is_still_built(tmp_path: Path) -> None:
    ws = place(
        tmp_path,
        {
            **EVAL,
            "broken": {"kind": "command", "outs": ["x"], "command": ["false"]},
            "after": {"kind": "command", "srcs": [":broken"], "outs": ["y"], "command": ["cp", "x", "y"]},
        },
    )
    report = ws.build("//:after", "//:eval", code=1)
    assert report["targets"]["//:after"]["status"] == "skipped"
    assert report["targets"]["//:eval"]["status"] == "ok"


def test_fail_fast_starts_nothing_after_the_first_failure(tmp_path: Path) -> None:
    ws = place(tmp_path, EVAL, **{"writer.py": "raise SystemExit(1)\n"})
    ws.build("//:eval", "--fail-fast", "-j", "1", code=1)
    assert len([kind for kind, _, _ in ws.executed() if kind == "trial"]) == 1


def test_one_item_can_be_built(tmp_path: Path) -> None:
    ws = place(tmp_path, EVAL)
    report = ws.build("//:solve[t1]")
    assert ws.executed() == [("grade", "//:solve", "t1"), ("trial", "//:solve", "t1")]
    assert report["targets"]["//:solve"]["partial"] is True
    ws.build("//:eval")
    assert ("trial", "//:solve", "t1") not in ws.executed(), "the whole rollout reuses the item"


def test_partial_results_are_marked_and_never_published(tmp_path: Path) -> None:
    sink = {"board": {"kind": "sink", "type": "json", "path": "board.json"}}
    publish = {"publish": {"kind": "produce", "of": ":eval", "sink": ":board"}}
    ws = place(tmp_path, {**EVAL, **sink, **publish})
    report = ws.build("//:publish", "--limit", "1", code=1)
    assert "partial" in report["reason"]
    assert not (ws.folder / "board.json").exists()
    assert ws.build("//:eval", "--items", "t[02]")["targets"]["//:eval"]["partial"] is True
    assert ws.output("eval/result.json")["n"] == 2


def test_produce_writes_once_and_mends_what_was_changed_behind_its_back(tmp_path: Path) -> None:
    sink = {"board": {"kind": "sink", "type": "json", "path": "board.json"}}
    publish = {"publish": {"kind": "produce", "of": ":eval", "sink": ":board", "gate": "reward.mean > 0.5"}}
    ws = place(tmp_path, {**EVAL, **sink, **publish})
    ws.build("//:publish")
    first = (ws.folder / "board.json").read_bytes()
    assert ws.build("//:publish")["executed"] == 0
    (ws.folder / "board.json").write_text("[]")
    assert ws.build("//:publish")["executed"] == 1
    assert (ws.folder / "board.json").read_bytes() == first


def test_a_false_gate_holds_and_is_no_failure(tmp_path: Path) -> None:
    sink = {"board": {"kind": "sink", "type": "json", "path": "board.json"}}
    publish = {"publish": {"kind": "produce", "of": ":eval", "sink": ":board", "gate": "reward.mean > 0.9"}}
    ws = place(tmp_path, {**EVAL, **sink, **publish})
    assert ws.build("//:publish")["status"] == "held"
    assert not (ws.folder / "board.json").exists()


def test_a_false_expect_fails_the_build_and_keeps_the_result(tmp_path: Path) -> None:
    ws = place(tmp_path, {"eval": {**EVAL["eval"], "expect": "reward.mean >= 0.9"}})
    report = ws.build("//:eval", code=1)
    assert "does not meet its expect: reward.mean >= 0.9" in report["reason"]
    assert ws.output("eval/result.json")["reward"]["sum"] == 2
    ws.edit("BUILD.yaml", ">= 0.9", ">= 0.5")
    assert ws.build("//:eval")["executed"] == 0, "a bar is in no key"


def test_a_budget_is_checked_before_anything_runs(tmp_path: Path) -> None:
    job = {"all": {"kind": "job", "of": [":eval"], "budget": {"usd": 0.05}}}
    ws = place(tmp_path, {**EVAL, **job, "solve": {**SPEC, "cost": {"usd": 0.02}}})
    report = ws.build("//:all", code=3)
    assert (report["status"], report["executed"]) == ("budget", 0)
    assert "would cost 0.06 usd, and its budget is 0.05" in report["reason"]
    ws.build("//:solve[t0]")
    report = ws.build("//:all")
    assert report["cost"] == {"usd": "0.04", "estimate_usd": "0.04"}, "the estimate is net of cache hits"


def test_resampling_draws_anew_and_prints_the_line_to_commit(tmp_path: Path) -> None:
    ws = place(tmp_path, EVAL)
    ws.build("//:eval")
    done = ws.mrp("build", "//:eval", "--resample")
    assert "commit `epoch: 1`" in done.stderr + done.stdout
    assert len([kind for kind, _, _ in ws.executed() if kind == "trial"]) == 3
    assert ws.build("//:eval")["executed"] == 0, "epoch 0 is still there"


def test_rebuild_runs_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    ws = place(tmp_path, EVAL)
    ws.build("//:eval")
    ws.build("//:eval", "--rebuild", "//:solve")
    assert {label for _, label, _ in ws.executed()} == {"//:solve"}


def test_samples_have_seeds_of_their_own(tmp_path: Path) -> None:
    ws = place(tmp_path, {"solve": {**SPEC, "samples": 3}}, **{"writer.py": SEEDS})
    ws.build("//:solve")
    lines = (ws.folder / "mrp-out/solve/trials.jsonl").read_text().splitlines()
    trees = [json.loads(line)["tree"] for line in lines]
    assert len(trees) == 9 and len(set(trees)) == 9


SEEDS = "import os\nopen('answer.txt', 'w').write(os.environ['MRP_SEED'])\n"


def test_two_builds_at_once_do_each_action_once(tmp_path: Path) -> None:
    slow = WRITER + "import time\ntime.sleep(1)\n"
    ws = place(tmp_path, EVAL, **{"writer.py": slow})
    both = [ws.start("build", "//:eval", "-j", "2") for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    first, second = (ws.executed(run) for run in ws.runs())
    assert not set(first) & set(second), "an action ran in both builds"
    assert len([kind for kind, _, _ in first + second if kind == "trial"]) == 3


def test_the_same_from_python(tmp_path: Path) -> None:
    ws = place(tmp_path, EVAL)
    workspace = Workspace(ws.folder, cache=ws.cache)
    report = workspace.build(["//:eval"], {"//:solve": {"effort": "high"}})
    assert (report.status, report.exit_code) == ("ok", 0)
    assert json.loads(workspace.output("//:eval", "result.json").read_text())["reward"]["sum"] == 2
    assert workspace.build(["//:eval"]).executed > 0, "params are part of the key"


def test_each_cell_has_an_output_folder_of_its_own(tmp_path: Path) -> None:
    cells = {**SPEC, "agent": "${matrix.agent}", "matrix": {"agent": ["builtin:nop", "writer"]}}
    ws = place(tmp_path, {"solve": cells})
    ws.build("//:solve")
    folders = sorted(path.parent.name for path in (ws.folder / "mrp-out").rglob("trials.jsonl"))
    assert folders == ["solve@agent=builtin:nop", "solve@agent=writer"]


def test_a_result_page_cannot_steer_the_terminal(tmp_path: Path) -> None:
    reducer = "import json\njson.dump({'n': 1}, open('/out/result.json', 'w'))\n"
    reducer += "open('/out/result.md', 'w').write('red \\x1b[31m page\\n')\n"
    targets = {
        "page": {"kind": "reducer", "version": "1", "command": ["python3", "page.py"], "srcs": ["page.py"]},
        "eval": {"kind": "reduction", "of": [":solve"], "reducer": ":page"},
    }
    ws = place(tmp_path, targets, **{"page.py": reducer})
    done = ws.mrp("build", "//:eval")
    assert "red [31m page\n" in done.stdout
    assert "\x1b" in (ws.folder / "mrp-out/eval/result.md").read_text()


def test_an_item_that_a_made_dataset_turns_out_not_to_have_is_an_error(tmp_path: Path) -> None:
    made = {
        "rows": {"kind": "command", "srcs": ["rows.jsonl"], "outs": ["made.jsonl"], "command": COPY},
        "tasks": {"kind": "dataset", "srcs": [":rows"], "id": "id"},
    }
    ws = place(tmp_path, made)
    done = ws.mrp("build", "//:solve[nobody]")
    assert done.returncode == 2
    assert "there is no //:solve[nobody]: //:tasks has no such record" in done.stderr
    ws.build("//:solve[t1]")


COPY = ["cp", "rows.jsonl", "made.jsonl"]

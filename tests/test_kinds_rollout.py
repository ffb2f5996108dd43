"""Stories of rollouts: samples, seeds, matrices, limits, broken machines and budgets."""

import json
from pathlib import Path
from typing import Any

from support.flaky import COMMAND
from support.kinds import TASKS, Targets, shell, text, trials, workspace
from support.places import Place

RECORD = 'printf "%s " "$MRP_RECORD_ID" "$MRP_SAMPLE" "$MRP_SEED" "$MRP_TRIAL" "$A" "$B" "$C" "$D" > seen'


def rollout(**fields: Any) -> dict[str, Any]:
    return {"kind": "rollout", "over": ":tasks", "agent": ":me", **fields}


def seen(place: Place, *targets: str) -> list[list[str]]:
    """What each trial saw, as words, from a listing of what the trials left."""
    place.build(*targets)
    found: list[list[str]] = place.output("seen/result.json")["seen"]
    return found


SEEN = {
    "reader": {"kind": "reducer", "version": "1", "entry": "reader:Reader"},
    "seen": {"kind": "reduction", "of": ["solve"], "reducer": ":reader"},
}
READER = """
from mrp.sdk import Reducer

class Reader(Reducer):
    def reduce(self, trials, ctx):
        return {"seen": [(trial.tree / "seen").read_text().split() for trial in trials]}
"""


def test_samples_epochs_and_seeds_tell_trials_apart(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path, {**TASKS, **SEEN, "me": shell(script=RECORD), "solve": rollout(samples=2)}, {"reader.py": READER}
    )
    first = seen(ws, "//:seen")
    assert [words[:2] for words in first] == [["a", "0"], ["a", "1"], ["b", "0"], ["b", "1"]]
    assert len({words[2] for words in first}) == 4, "each trial has a seed of its own"
    assert all(0 <= int(words[2]) < 2**63 for words in first)
    ws.edit("BUILD.yaml", '"samples": 2', '"samples": 3')
    more = seen(ws, "//:seen")
    assert [words for words in more if words[1] != "2"] == first
    assert [item for kind, _, item in ws.executed() if kind == "trial"] == ["a#2", "b#2"]
    ws.edit("BUILD.yaml", '"samples": 3', '"samples": 3, "epoch": 1')
    anew = seen(ws, "//:seen")
    assert [words[2] for words in anew] == [words[2] for words in more], "an epoch draws anew under the same seeds"
    assert not {words[3] for words in anew} & {words[3] for words in more}, "and its trials are others"
    ws.edit("BUILD.yaml", '"epoch": 1', '"epoch": 1, "seed": 7')
    assert not {words[2] for words in seen(ws, "//:seen")} & {words[2] for words in more}


def test_a_matrix_spreads_over_params_agents_and_environments(tmp_path: Path) -> None:
    targets: Targets = {
        **TASKS,
        **SEEN,
        "me": shell(script=RECORD),
        "you": shell("2", script=RECORD),
        "solve": rollout(
            agent="${matrix.agent}",
            params={"effort": "high"},
            matrix={"agent": ["me", "you"], "temperature": [0, 0.70]},
            env={"A": "${matrix.temperature}", "B": "${params.effort}", "C": "${record.id}-${sample}", "D": "$${x}"},
        ),
        "eval": {"kind": "reduction", "of": ["solve"], "reducer": "count", "group_by": ["agent", "temperature"]},
    }
    ws = workspace(tmp_path, targets, {"reader.py": READER})
    found = seen(ws, "//:seen", "//:eval", "//:solve")
    assert len(found) == 8
    assert [words[4:] for words in found[:2]] == [["0", "high", "a-0", "${x}"], ["0", "high", "b-0", "${x}"]]
    cells = [("//:me", 0), ("//:me", 0.7), ("//:you", 0), ("//:you", 0.7)]
    by = [group["by"] for group in ws.output("eval/result.json")["groups"]]
    assert [(group["agent"], group["temperature"]) for group in by] == cells
    rows = trials(ws, "solve@agent=me,temperature=0.7")
    assert rows[0]["params"] == {"agent": "me", "effort": "high", "temperature": 0.7}
    assert ws.build("//:solve@agent=you,temperature=0.70")["executed"] == 0


def test_a_timeout_limits_the_trial_and_only_it(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            **TASKS,
            "me": shell(script="echo begun > out; test $MRP_RECORD_ID = a || sleep 60"),
            "solve": rollout(timeout="2s", grade={"command": ["grep", "-q", "begun", "out"]}),
        },
    )
    report = ws.build("//:solve")
    rows = trials(ws)
    assert [(row["outcome"], row["limit"], row["rewards"]) for row in rows] == [
        ("ok", None, {"reward": 1}),
        ("limit", "wall", {"reward": 1}),
    ]
    assert report["targets"]["//:solve"]["reproducible"] is False
    assert "Not reproducible: a wall limit had a part in it." in ws.mrp("report").stdout
    assert "mrp-out/solve/ (not reproducible)" in ws.mrp("build", "//:solve").stdout
    ws.edit("BUILD.yaml", '"2s"', '"2.1s"')
    assert ws.build("//:solve")["executed"] == 2, "a timeout is in the key of trials; the same work is not graded twice"


def test_a_machine_that_breaks_down_is_tried_again_and_every_attempt_is_kept(tmp_path: Path) -> None:
    ws = workspace(tmp_path, {**TASKS, "me": shell(script="true"), "solve": rollout(grade={"command": ["true"]})})
    ws.command = COMMAND
    done = ws.mrp("build", "//:solve", FLAKY="[a] agent=2;[b] grader=1")
    assert done.returncode == 0, done.stderr
    assert [row["rewards"] for row in trials(ws)] == [{"reward": 1}] * 2
    run = ws.runs()[-1]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    failed = [(e["item"], e["kind"], e["attempt"]) for e in events if e["type"] == "AttemptFailed"]
    assert sorted(failed) == [("a", "trial", 1), ("a", "trial", 2), ("b", "grade", 1)]
    inspected = json.loads(ws.mrp("inspect", "--json", run.name, "//:solve[a]").stdout)["actions"][0]
    assert [attempt["attempt"] for attempt in inspected["attempts"]] == [1, 2, 3]
    assert "the machine broke down" in inspected["attempts"][0]["reason"]
    assert "the machine broke down" in inspected["failed_attempts"][0]["reason"]
    assert "- //:solve[b] (grade), attempt 1: //:solve[b]: the machine broke down" in ws.mrp("report").stdout


def test_what_never_came_to_an_outcome_is_no_score(tmp_path: Path) -> None:
    targets: Targets = {
        **TASKS,
        "me": shell(script="true"),
        "solve": rollout(grade={"command": ["true"]}, retries=1),
        "strict": {"kind": "reduction", "of": ["solve"], "reducer": "stats"},
        "lenient": {"kind": "reduction", "of": ["solve"], "reducer": "stats", "min_success": 0.5},
    }
    ws = workspace(tmp_path, targets)
    ws.command = COMMAND
    done = ws.mrp("build", "--json", "//:solve", FLAKY="[a] agent=9")
    assert done.returncode == 4
    report = json.loads(done.stdout)
    assert report["targets"]["//:solve"]["status"] == "incomplete"
    assert "trial of a: //:solve[a]: the machine broke down" in report["reason"]
    assert (report["executed"], report["failed"]) == (3, 1)
    assert [(row["outcome"], row["rewards"]) for row in trials(ws)] == [("infra_error", None), ("ok", {"reward": 1})]
    strict = ws.mrp("build", "//:strict", FLAKY="[a] agent=9!")
    assert strict.returncode == 4
    assert "needs an outcome for 100% of its trials, but 1 of 2 ended without one" in strict.stderr
    assert "the machine broke down" in strict.stderr
    assert ws.mrp("build", "//:lenient", FLAKY="[a] agent=9!").returncode == 0
    result = ws.output("lenient/result.json")
    assert result["outcomes"] == {"ok": 1, "failed": 0, "limit": 0, "unscored": 1}
    assert result["reward"]["n"] == 1
    assert ws.mrp("build", "//:strict").returncode == 0
    assert [(kind, item) for kind, _, item in ws.executed()] == [("grade", "a"), ("reduction", ""), ("trial", "a")]


def test_a_grader_whose_machine_breaks_down_gives_no_reward(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path, {**TASKS, "me": shell(script="true"), "solve": rollout(grade={"command": ["true"]}, retries=0)}
    )
    ws.command = COMMAND
    done = ws.mrp("build", "--json", "//:solve", FLAKY="[a] grader=1")
    assert done.returncode == 4
    assert "grade of a: //:solve[a]: the machine broke down" in json.loads(done.stdout)["reason"]
    assert [(row["outcome"], row["rewards"]) for row in trials(ws)] == [("ok", None), ("ok", {"reward": 1})]
    assert ws.mrp("build", "//:solve").returncode == 0
    assert ws.executed() == [("grade", "//:solve", "a")], "the trial itself was kept"


def test_a_command_on_a_broken_machine_is_an_infrastructure_failure(tmp_path: Path) -> None:
    made = {"made": {"kind": "command", "outs": ["o"], "command": ["touch", "o"]}}
    ws = workspace(tmp_path, made)
    ws.command = COMMAND
    done = ws.mrp("build", "--json", "//:made", FLAKY="made=9!")
    assert done.returncode == 4
    report = json.loads(done.stdout)
    assert (report["status"], report["executed"], report["failed"]) == ("infra", 1, 1)
    assert "the machine broke down" in report["reason"]


def test_no_more_trials_run_at_once_than_asked(tmp_path: Path) -> None:
    script = "mkdir /work/x; sleep 0.3"
    targets: Targets = {
        "tasks": {"kind": "dataset", "generate": {"range": 4}},
        "me": shell(script=script),
        "solve": rollout(max_parallel=1),
    }
    ws = workspace(tmp_path, targets)
    ws.build("//:solve", "-j", "4")
    running = most = 0
    for line in (ws.runs()[-1] / "events.jsonl").read_text().splitlines():
        kind = json.loads(line)["type"]
        running += (kind == "ItemStarted") - (kind == "ItemFinished")
        most = max(most, running)
    assert most == 1


def test_budgets_of_money_tokens_and_time(tmp_path: Path) -> None:
    def job(**budget: Any) -> dict[str, Any]:
        return {"kind": "job", "of": [":solve"], "budget": budget}

    targets: Targets = {
        **TASKS,
        "me": shell(script="sleep 0.2"),
        "solve": rollout(cost={"usd": 0.02, "tokens": 100}),
        "poor": job(usd=0.03),
        "rich": job(usd=0.04, tokens=200, wall="10m"),
        "terse": job(tokens=150),
        "hasty": {"kind": "job", "of": [":slow"], "budget": {"wall": "1s"}},
        "sleeper": shell(script="sleep 60"),
        "slow": rollout(agent=":sleeper"),
    }
    ws = workspace(tmp_path, targets)
    poor = ws.build("//:poor", code=3)
    assert (poor["status"], poor["executed"]) == ("budget", 0)
    assert "//:poor would cost 0.04 usd, and its budget is 0.03" in poor["reason"]
    terse = ws.build("//:terse", code=3)
    assert (terse["status"], terse["executed"]) == ("budget", 0)
    assert "//:terse would need 200 tokens, and its budget is 150" in terse["reason"]
    assert ws.build("//:rich")["cost"] == {"usd": "0.04", "estimate_usd": "0.04"}
    hasty = ws.build("//:hasty", code=3)
    assert hasty["status"] == "budget"
    assert "wall time" in hasty["reason"]
    assert ws.build("//:poor")["executed"] == 0, "what is cached costs nothing"


def test_jobs_of_jobs_hold_what_they_name(tmp_path: Path) -> None:
    targets: Targets = {
        **TASKS,
        "me": shell(script="true"),
        "solve": rollout(matrix={"n": [1, 2]}),
        "eval": {"kind": "reduction", "of": ["solve"], "reducer": "count"},
        "inner": {"kind": "job", "of": [":eval", ":solve@n=1"]},
        "outer": {"kind": "job", "of": [":inner", ":made"]},
        "made": {"kind": "command", "outs": ["o"], "command": ["touch", "o"]},
    }
    ws = workspace(tmp_path, targets)
    report = ws.build("//:outer")
    assert set(report["targets"]) == {"//:outer", "//:inner", "//:eval", "//:solve@n=1", "//:made"}
    assert report["targets"]["//:outer"]["status"] == "ok"
    assert text(ws, "made/o") == ""


def test_a_rollout_over_harbor_records_is_refused_before_it_runs(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"h/one/task.toml": "version = '1'\n", "h/one/instruction.md": "do it\n"}
    targets: Targets = {
        "tasks": {"kind": "dataset", "srcs": ["h/*"], "format": "harbor"},
        "solve": rollout(agent="builtin:nop"),
        "list": {"kind": "reduction", "of": [":tasks"], "reducer": "concat"},
    }
    ws = workspace(tmp_path, targets, files)
    ws.build("//:list")
    assert ws.output("list/result.json")["rows"][0]["instruction"] == "do it\n"
    report = ws.build("//:solve", code=4)
    assert "whose harbor records bring images of their own" in report["reason"]
    assert report["executed"] == 0

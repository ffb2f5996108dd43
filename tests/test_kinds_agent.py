"""Stories of agents and graders: how they are started, what they say of themselves, how they are scored."""

import json
from pathlib import Path
from typing import Any

from support.kinds import TASKS, Targets, policy, shell, text, trials, workspace
from support.places import Place

OPERATORS = """
import asyncio
from mrp.sdk import Agent, Evaluator, Result

class Plain(Agent):
    def run(self, task, ctx):
        ctx.log("hello " + task.record["id"])
        (task.work / "answer.txt").write_text(task.record["text"])
        return Result(metrics={"words": len(task.record["text"].split())})

class Later(Agent):
    async def run(self, task, ctx):
        await asyncio.sleep(0)
        (task.work / "answer.txt").write_text(task.record["text"])

class Raises(Agent):
    def run(self, task, ctx):
        (task.work / "answer.txt").write_text("half")
        raise ValueError("cannot go on")

class Counts(Agent):
    seen = []
    def run(self, task, ctx):
        self.seen.append(1)
        (task.work / "answer.txt").write_text(str(len(self.seen)))

class Exact(Evaluator):
    def evaluate(self, subject, ctx):
        answer = subject.file("answer.txt").read_text()
        return {"reward": answer == ctx.task.record["text"], "length": len(answer)}
"""


def operator(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "version": "1", "entry": f"operators:{name}", "srcs": ["operators.py"], **fields}


def solve(agent: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "rollout", "over": ":tasks", "agent": agent, **fields}


def inspected(place: Place, item: str) -> list[dict[str, Any]]:
    """The actions of an item in the last run."""
    done = place.mrp("inspect", "--json", place.runs()[-1].name, item)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["actions"]
    return found


def test_python_agents_and_graders(tmp_path: Path) -> None:
    targets: Targets = {
        **TASKS,
        "exact": operator("evaluator", "Exact"),
        **{name.lower(): operator("agent", name) for name in ("Plain", "Later", "Raises", "Counts")},
        "pure": operator("agent", "Counts", pure=True),
        **{f"by-{name}": solve(f":{name}", grade={"operator": ":exact"}) for name in ("plain", "later", "raises")},
        **{f"by-{name}": solve(f":{name}", samples=3) for name in ("counts", "pure")},
    }
    ws = workspace(tmp_path, targets, {"operators.py": OPERATORS})
    ws.build("//:by-plain", "//:by-later", "//:by-raises", "//:by-counts", "//:by-pure", "-j", "1")
    for name in ("plain", "later"):
        assert [row["rewards"] for row in trials(ws, f"by-{name}")] == [{"length": 9, "reward": 1}] * 2
    raised = trials(ws, "by-raises")
    assert [(row["outcome"], row["rewards"]["reward"]) for row in raised] == [("failed", 0)] * 2
    assert len({row["tree"] for row in trials(ws, "by-counts")}) == 1, "no state passes from one item to the next"
    assert len({row["tree"] for row in trials(ws, "by-pure")}) > 1, "pure ones share a process, as they asked"
    trial, grade = inspected(ws, "//:by-plain[a]")
    attempt = trial["attempts"][0]
    assert attempt["metrics"] == {"words": 3}
    assert ws.mrp("log", "//:by-plain[a]", "--trajectory").stdout == '{"text": "hello a", "type": "log"}\n'
    assert "+text of a" in ws.mrp("log", "//:by-plain[a]", "--diff").stdout
    assert grade["values"] == {"length": 9, "reward": 1}
    (failed, _) = inspected(ws, "//:by-raises[a]")
    assert failed["attempts"][0]["reason"] == "ValueError: cannot go on"


def test_a_command_agent_has_the_whole_contract(tmp_path: Path) -> None:
    script = """
set -e
. "$MRP_OPERATOR_DIR/helper.sh"
test "$MRP_TASK_DIR$MRP_WORKSPACE$MRP_OUTPUT_DIR" = /task/work/out
test "$(pwd)" = /work
test ! -e /solution
test "$MRP_PARAMS" = '{"effort":"high"}'
echo "$MRP_RECORD_ID $MRP_SAMPLE $NAME $helped" > seen
test "$TRIAL" = "$MRP_TRIAL"
test "$MRP_SEED" -gt 0
if touch /task/x 2> /dev/null; then exit 1; fi
echo '{"status": "failed", "reason": "gave up", "metrics": {"steps": 3}}' > /out/result.json
echo '{"step": 1}' > /out/trajectory.jsonl
"""
    targets: Targets = {
        **TASKS,
        "me": {"kind": "agent", "version": "1", "command": ["sh", "run.sh"], "srcs": ["run.sh", "helper.sh"]},
        "solve": solve(
            ":me",
            params={"effort": "high"},
            env={"NAME": "${record.text}", "TRIAL": "${trial}"},
            grade={"command": ["grep", "-q", "yes", "seen"]},
        ),
    }
    ws = workspace(tmp_path, targets, {"run.sh": script, "helper.sh": "helped=yes\n"})
    ws.build("//:solve")
    assert [(row["outcome"], row["rewards"]) for row in trials(ws)] == [("failed", {"reward": 1})] * 2
    trial, _ = inspected(ws, "//:solve[a]")
    assert trial["attempts"][0]["reason"] == "gave up"
    assert trial["attempts"][0]["metrics"] == {"steps": 3}
    ws.write({"helper.sh": "helped=yes # again\n"})
    ws.build("//:solve")
    assert [kind for kind, _, _ in ws.executed()] == ["trial", "trial"], (
        "its files are in the key, and the work is the same"
    )


def test_an_agent_may_read_one_file_and_write_one_file(tmp_path: Path) -> None:
    script = """
import json
given = json.load(open("/tmp/rollout.json"))
assert sorted(given) == ["model", "params", "record", "sample", "seed"], given
json.dump({"status": "ok", "metrics": {"score": given["params"]["n"], "note": "fine"}}, open("/tmp/result.json", "w"))
open("answer", "w").write(given["record"]["text"])
"""
    files = {"input": "/tmp/rollout.json", "output": "/tmp/result.json"}
    targets: Targets = {
        **TASKS,
        "me": {"kind": "agent", "version": "1", "command": ["python3", "run.py"], "srcs": ["run.py"], "files": files},
        "other": {
            "kind": "agent",
            "version": "1",
            "command": ["sh", "-c", "cp /in/given.json /back/result.json; grep -q text /in/given.json"],
            "files": {"input": "/in/given.json", "output": "/back/result.json"},
        },
        "solve": solve(":me", params={"n": 0.5}, grade={"result": "score"}),
        "graded": solve(":me", params={"n": 0.5}, grade={"command": ["grep", "-q", "text of", "answer"]}),
        "apart": solve(":other"),
    }
    ws = workspace(tmp_path, targets, {"run.py": script})
    ws.build("//:solve", "//:graded", "//:apart")
    assert [row["rewards"] for row in trials(ws)] == [{"reward": 0.5}] * 2
    assert [row["rewards"] for row in trials(ws, "graded")] == [{"reward": 1}] * 2
    assert [row["outcome"] for row in trials(ws, "apart")] == ["ok"] * 2


def test_places_and_names_that_no_process_can_have_are_refused(tmp_path: Path) -> None:
    targets: Targets = {
        **TASKS,
        "me": shell(script="true", files={"input": "/given.json", "output": "/task/result.json"}),
        "solve": solve(":me", env={"MRP_SEED": "7", "A=B": "x"}),
    }
    refused = workspace(tmp_path, targets).mrp("build", "//:solve")
    assert refused.returncode == 2
    for message in (
        "`files.input` of //:me cannot be /given.json",
        "`files.output` of //:me cannot be /task/result.json",
        "`MRP_SEED` is a variable of mrp's own",
        "`A=B` is no name of a variable",
    ):
        assert message in refused.stderr


def test_results_say_who_saw_the_solution_and_who_graded_itself(tmp_path: Path) -> None:
    claim = shell(script='echo \'{"metrics": {"reward": 1, "note": "trust me"}}\' > /out/result.json')
    tasks = {"kind": "dataset", "srcs": ["rows.jsonl"], "id": "id", "solution": {"files": {"answer": "${record.text}"}}}
    targets: Targets = {
        "tasks": tasks,
        "claimer": claim,
        "silent": shell(script="true"),
        "claimed": solve(":claimer", grade={"result": "reward"}),
        "unclaimed": solve(":silent", grade={"result": "reward"}),
        "oracle": solve("builtin:oracle", grade={"command": ["grep", "-q", "text", "answer"]}),
        "eval": {"kind": "reduction", "of": ["claimed", "oracle"], "reducer": "stats", "group_by": ["agent"]},
        "table": {"kind": "reduction", "of": ["oracle"], "reducer": "table"},
        "none": {"kind": "reduction", "of": ["unclaimed"], "reducer": "stats", "min_success": 0},
    }
    ws = workspace(tmp_path, targets)
    ws.build("//:eval", "//:table", "//:claimed", "//:oracle", "//:none")
    assert {(row["sees"], row["graded"]) for row in trials(ws, "claimed")} == {("public", "self")}
    assert {(row["sees"], row["graded"]) for row in trials(ws, "oracle")} == {("solution", "grader")}
    notes = ["//:claimer reported its own reward in 2 trials", "builtin:oracle saw the solution in 2 trials"]
    assert ws.output("eval/result.json")["notes"] == notes
    assert all(f"{note}." in text(ws, "eval/result.md") for note in notes)
    assert ws.output("table/result.json")["notes"] == notes[1:]
    assert ws.output("none/result.json")["outcomes"]["ok"] == 2
    assert "reward" not in ws.output("none/result.json")
    policy(ws, self_reported_rewards=False)
    refused = ws.mrp("build", "//:claimed")
    assert refused.returncode == 3
    assert "agents may not report their own reward" in refused.stderr


GRADES = {
    "exit-0": ("true", {"reward": 1}),
    "exit-1": ("exit 1", {"reward": 0}),
    "json": (
        'echo \'{"reward": 0.25, "tests": 4, "all": false}\' > /out/reward.json',
        {"reward": 0.25, "tests": 4, "all": 0},
    ),
    "json-and-exit": ("echo '{\"reward\": 0.5}' > /out/reward.json; exit 3", {"reward": 0.5}),
    "text": ("echo 0.75 > /out/reward.txt", {"reward": 0.75}),
    "no-json": ("echo '{' > /out/reward.json", {"reward": 0}),
    "no-object": ("echo null > /out/reward.json", {"reward": 0}),
    "no-number": ('echo \'{"reward": "high"}\' > /out/reward.json', {"reward": 0}),
    "nan": ("echo '{\"reward\": NaN}' > /out/reward.json", {"reward": 0}),
    "no-text": ("echo good > /out/reward.txt", {"reward": 0}),
    "folder": ("mkdir /out/reward.json", {"reward": 0}),
    "slow": ("sleep 60", {"reward": 0}),
}


def test_every_way_in_which_a_grader_may_answer(tmp_path: Path) -> None:
    targets: Targets = {
        "one": {"kind": "dataset", "generate": {"range": 1}},
        **{
            name: {
                "kind": "rollout",
                "over": ":one",
                "agent": "builtin:nop",
                "grade": {"command": ["sh", "-c", script], **({"timeout": "500ms"} if name == "slow" else {})},
            }
            for name, (script, _) in GRADES.items()
        },
        "rows": {"kind": "reduction", "of": list(GRADES), "reducer": "concat"},
    }
    ws = workspace(tmp_path, targets)
    report = ws.build("//:rows", "//:no-json", "//:slow")
    rows = ws.output("rows/result.json")["rows"]
    assert {row["target"].removeprefix("//:"): row["rewards"] for row in rows} == {
        name: rewards for name, (_, rewards) in GRADES.items()
    }
    assert {row["outcome"] for row in rows} == {"ok"}, "a grader's trouble is not the trial's"
    assert report["targets"]["//:slow"]["reproducible"] is False
    _, grade = inspected(ws, "//:no-json[0]")
    assert "reward.json is not valid JSON" in grade["attempts"][0]["reason"]
    _, grade = inspected(ws, "//:slow[0]")
    assert (grade["outcome"], grade["limit"]) == ("limit", "wall")


def test_a_changed_test_grades_again_and_runs_no_agent(tmp_path: Path) -> None:
    rows = [{"id": name, "tests": "good"} for name in ("a", "b")]
    targets: Targets = {
        "tasks": {
            "kind": "dataset",
            "srcs": ["in.jsonl"],
            "id": "id",
            "private": {"fields": ["tests"], "files": {"want": "${record.tests}"}},
        },
        "me": shell(script="echo good > answer"),
        "solve": solve(":me", grade={"command": ["sh", "-c", "grep -q $(cat /task/want) answer"]}),
    }
    ws = workspace(tmp_path, targets, {"in.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    ws.build("//:solve")
    rows[1]["tests"] = "better"
    ws.write({"in.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    ws.build("//:solve")
    assert ws.executed() == [("grade", "//:solve", "b")]
    assert [row["rewards"]["reward"] for row in trials(ws)] == [1, 0]


def test_a_malformed_account_is_the_agents_failure(tmp_path: Path) -> None:
    scripts = {"text": "echo hello > /out/result.json", "list": "echo [] > /out/result.json"}
    targets: Targets = {"one": {"kind": "dataset", "generate": {"range": 1}}}
    for name, script in scripts.items():
        targets[f"agent-{name}"] = shell(script=script)
        targets[name] = {"kind": "rollout", "over": ":one", "agent": f":agent-{name}"}
    ws = workspace(tmp_path, targets)
    ws.build("//:text", "//:list")
    assert [trials(ws, name)[0]["outcome"] for name in scripts] == ["failed", "failed"]
    assert inspected(ws, "//:list[0]")[0]["attempts"][0]["reason"] == "result.json does not hold an object"


def test_an_operator_brings_its_sandbox_and_its_users_may_choose_another(tmp_path: Path) -> None:
    targets: Targets = {
        "one": {"kind": "dataset", "generate": {"range": 1}},
        "red": {"kind": "sandbox", "env": {"COLOR": "red"}},
        "blue": {"kind": "sandbox", "env": {"COLOR": "blue"}},
        "me": shell(script="echo $COLOR > color", sandbox=":red"),
        "judge": {
            "kind": "evaluator",
            "version": "1",
            "command": ["sh", "-c", "test $COLOR = blue && grep -q red color"],
            "sandbox": ":blue",
        },
        "own": {"kind": "rollout", "over": ":one", "agent": ":me", "grade": {"operator": ":judge"}},
        "other": {
            "kind": "rollout",
            "over": ":one",
            "agent": ":me",
            "sandbox": ":blue",
            "grade": {"command": ["sh", "-c", "test $COLOR = red && grep -q blue color"], "sandbox": ":red"},
        },
    }
    ws = workspace(tmp_path, targets)
    ws.build("//:own", "//:other")
    assert [trials(ws, name)[0]["rewards"] for name in ("own", "other")] == [{"reward": 1}] * 2


def test_params_must_fit_the_schema_of_their_operator(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"effort": {"enum": ["low", "high"]}}, "additionalProperties": False}
    targets: Targets = {
        **TASKS,
        "me": shell(script="true", schema="params.json"),
        "solve": solve(":me", params={"effort": "high"}),
    }
    ws = workspace(tmp_path, targets, {"params.json": json.dumps(schema)})
    ws.build("//:solve")
    refused = ws.mrp("build", "//:solve", "--param", "//:solve:effort=middling")
    assert refused.returncode == 2
    assert "the params of //:solve do not fit //:me: effort: 'middling' is not one of ['low', 'high']" in refused.stderr
    ws.edit("BUILD.yaml", '"effort": "high"', '"speed": 3')
    refused = ws.mrp("build", "//:solve")
    assert refused.returncode == 2 and "BUILD.yaml:" in refused.stderr and "'speed' was unexpected" in refused.stderr


def test_an_operator_described_apart_is_an_operator(tmp_path: Path) -> None:
    described = """
mrp: 1
kind: agent
name: helper
version: "3"
entry: "operators:Plain"
srcs: [operators.py]
resources: {memory: 512MiB}
"""
    ws = workspace(
        tmp_path,
        {**TASKS, "solve": solve("//tools:helper")},
        {"tools/operator.yaml": described, "tools/operators.py": OPERATORS},
        tools={},
    )
    ws.build("//:solve")
    assert [row["outcome"] for row in trials(ws)] == ["ok", "ok"]
    assert [row["agent"] for row in trials(ws)] == ["//tools:helper"] * 2


def test_a_session_is_planned_and_refused_before_it_runs(tmp_path: Path) -> None:
    targets: Targets = {
        "me": shell(script="true"),
        "talk": {"kind": "session", "agent": ":me", "prompts": ["one", "two"], "timeout": "5m"},
    }
    ws = workspace(tmp_path, targets)
    assert ws.mrp("compile", "//:talk", "-o", str(tmp_path / "compiled")).returncode == 0
    assert "//:me" in ws.mrp("query", "deps(//:talk)").stdout
    assert "is a session, which this version cannot run yet" in ws.mrp("plan", "//:talk").stdout
    report = ws.build("//:talk", code=4)
    assert "is a session, which this version cannot run yet" in report["reason"]
    assert report["executed"] == 0


def test_a_rollout_and_an_evaluation_with_a_model_are_planned(tmp_path: Path) -> None:
    model = {"kind": "model", "provider": "scripted", "script": "answers.jsonl", "price": {"input": 1, "output": 2}}
    targets: Targets = {
        **TASKS,
        "canned": model,
        "me": shell(script="true"),
        "judge": {"kind": "evaluator", "version": "1", "command": ["sh", "-c", "echo {} > /out/result.json"]},
        "solve": solve(":me", model=":canned", limits={"calls": 5, "tokens": 100, "usd": 0.1}),
        "judged": {"kind": "evaluation", "of": ":tasks", "evaluator": ":judge", "model": ":canned"},
    }
    ws = workspace(tmp_path, targets, {"answers.jsonl": ""})
    assert "//:canned" in ws.mrp("query", "deps(//:solve)").stdout
    assert "//:solve: 2" in ws.mrp("plan", "//:solve", "//:judged").stdout
    assert ws.build("//:solve", "//:judged")["executed"] == 3
    assert ws.build("//:solve", "//:judged")["executed"] == 0

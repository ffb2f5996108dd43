"""Stories of reductions and evaluations: built-in and own reducers, what they see, what their result is held to."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.kinds import TASKS, Targets, shell, text, workspace

ROLLOUT: Targets = {
    **TASKS,
    "me": shell(script="echo $MRP_PARAMS | tr -dc 0-9 > n"),
    "solve": {
        "kind": "rollout",
        "over": ":tasks",
        "agent": ":me",
        "samples": 2,
        "matrix": {"n": [1, 2]},
        "grade": {"operator": ":scorer"},
    },
    "scorer": {"kind": "evaluator", "version": "1", "entry": "scorer:Scorer"},
}
SCORER = """
from mrp.sdk import Evaluator

class Scorer(Evaluator):
    def evaluate(self, subject, ctx):
        n = int(subject.file("n").read_text())
        return {"reward": n % 2, "size": n}
"""
OWN = """
from mrp.sdk import Reducer, Evaluator, Producer

class Sums(Reducer):
    def reduce(self, trials, ctx):
        groups = {}
        for trial in trials:
            key = "/".join(str(getattr(trial, name, None) or trial.matrix[name]) for name in ctx.group_by)
            groups[key] = groups.get(key, 0) + int((trial.tree / "n").read_text()) * ctx.params["times"]
        return {"sums": groups}

class Judge(Evaluator):
    def evaluate(self, subject, ctx):
        names = sorted(str(path.relative_to(subject.path)) for path in subject.path.rglob("*") if path.is_file())
        shown = [name.split("/")[0] + "/..." if "/" in name else name for name in names]
        return {"names": sorted(set(shown)), "strict": ctx.params.get("strict", False)}

class Fails(Reducer):
    def reduce(self, trials, ctx):
        raise ValueError("no way to add these")
"""
FILES: dict[str, str | bytes] = {"scorer.py": SCORER, "own.py": OWN}


def operator(kind: str, name: str) -> dict[str, Any]:
    return {"kind": kind, "version": "1", "entry": f"own:{name}", "srcs": ["own.py"]}


def test_each_built_in_reducer_and_its_page(tmp_path: Path) -> None:
    def reduce(reducer: str, **fields: Any) -> dict[str, Any]:
        return {"kind": "reduction", "of": ["solve"], "reducer": reducer, **fields}

    targets: Targets = {
        **ROLLOUT,
        "stats": reduce("stats", group_by=["n"], params={"k": [1, 2]}, expect="reward.mean == 0.5 and n == 8"),
        "pass": reduce("pass_at_k", params={"k": [1, 2]}, expect="pass_at_2.mean == 1"),
        "table": reduce("table", group_by=["n", "target"]),
        "count": reduce("count", select="matrix.n == 1 and sample == 0"),
        "concat": reduce("concat", select="rewards.reward == 1"),
    }
    ws = workspace(tmp_path, targets, FILES)
    ws.build("//:stats", "//:table", "//:count", "//:concat")
    stats = ws.output("stats/result.json")
    assert [group["reward"]["mean"] for group in stats["groups"]] == [1, 0]
    assert stats["n"] == 8 and "pass_at_1" in stats
    assert text(ws, "stats/result.md").startswith("| n | n | ok | reward | pass_at_1 | pass_at_2 | size |\n")
    assert [row["by"]["n"] for row in ws.output("table/result.json")["rows"]] == [1, 2]
    assert (ws.output("count/result.json")["n"], ws.output("concat/result.json")["n"]) == (2, 4)
    report = ws.build("//:pass", code=1)
    assert "does not meet its expect: pass_at_2.mean == 1" in report["reason"]
    assert ws.output("pass/result.json")["pass_at_2"]["mean"] < 1, "the result is kept"


def test_reductions_of_datasets_and_of_reductions(tmp_path: Path) -> None:
    targets: Targets = {
        **ROLLOUT,
        "rows": {"kind": "reduction", "of": [":tasks"], "reducer": "concat", "select": "text == 'text of b'"},
        "all": {"kind": "reduction", "of": [":tasks", "solve", ":rows"], "reducer": "count", "group_by": ["target"]},
        "again": {"kind": "reduction", "of": [":all", ":rows"], "reducer": "concat", "expect": "n == 2"},
    }
    ws = workspace(tmp_path, targets, FILES)
    ws.build("//:again", "//:all", "//:rows")
    assert ws.output("rows/result.json")["rows"] == [{"id": "b", "target": "//:tasks", "text": "text of b"}]
    assert ws.output("all/result.json")["n"] == 11
    assert ws.output("again/result.json")["rows"][0]["n"] == 11


def test_a_reducer_of_ones_own(tmp_path: Path) -> None:
    script = """
set -e
test "$MRP_GROUP_BY" = '["n"]'
sed 's/.*"tree":"\\([0-9a-f]*\\)".*/\\1/' /task/trials.jsonl > /tmp/trees
for tree in $(cat /tmp/trees); do cat /task/trees/$tree/n; echo; done | grep . | sort | uniq -c > /tmp/counts
printf '{"counts": "%s"}' "$(tr -s ' \\n' ' ' < /tmp/counts)" > /out/result.json
echo '# counted' > /out/result.md
"""
    targets: Targets = {
        **ROLLOUT,
        "sums": operator("reducer", "Sums"),
        "counts": {"kind": "reducer", "version": "1", "command": ["sh", "count.sh"], "srcs": ["count.sh"]},
        "fails": operator("reducer", "Fails"),
        "summed": {
            "kind": "reduction",
            "of": ["solve"],
            "reducer": ":sums",
            "params": {"times": 10},
            "group_by": ["target", "n"],
            "expect": "sums.x == null",
        },
        "counted": {"kind": "reduction", "of": ["solve"], "reducer": ":counts", "group_by": ["n"]},
        "failed": {"kind": "reduction", "of": ["solve"], "reducer": ":fails"},
    }
    ws = workspace(tmp_path, targets, {**FILES, "count.sh": script})
    ws.build("//:summed", "//:counted")
    assert ws.output("summed/result.json") == {"sums": {"//:solve/1": 40, "//:solve/2": 80}}
    assert ws.output("counted/result.json")["counts"].split() == ["4", "1", "4", "2"]
    assert text(ws, "counted/result.md") == "# counted\n"
    report = ws.build("//:failed", code=1)
    assert "//:failed failed: exit code 1: ValueError: no way to add these" in report["reason"]
    ws.edit("BUILD.yaml", '"times": 10', '"times": 1')
    ws.build("//:summed")
    assert [label for _, label, _ in ws.executed()] == ["//:summed"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("true", "left no /out/result.json"),
        ("echo [1] > /out/result.json", "result.json does not hold an object"),
        ("echo '{\"a\": NaN}' > /out/result.json", "result.json is not valid JSON"),
    ],
)
def test_a_reducer_that_leaves_no_document_fails(tmp_path: Path, script: str, reason: str) -> None:
    targets: Targets = {
        **TASKS,
        "bad": {"kind": "reducer", "version": "1", "command": ["sh", "-c", script]},
        "eval": {"kind": "reduction", "of": [":tasks"], "reducer": ":bad"},
    }
    assert reason in workspace(tmp_path, targets).build("//:eval", code=1)["reason"]


def test_a_document_that_only_looks_like_ours_has_a_page(tmp_path: Path) -> None:
    document = json.dumps({"n": 1, "outcomes": 5, "groups": [1]})
    targets: Targets = {
        **TASKS,
        "odd": {"kind": "reducer", "version": "1", "command": ["sh", "-c", f"echo '{document}' > /out/result.json"]},
        "eval": {"kind": "reduction", "of": [":tasks"], "reducer": ":odd"},
    }
    ws = workspace(tmp_path, targets)
    ws.build("//:eval")
    assert '"outcomes": 5' in text(ws, "eval/result.md")


def test_an_evaluation_sees_its_subject_as_a_folder(tmp_path: Path) -> None:
    def judged(of: str, **fields: Any) -> dict[str, Any]:
        return {"kind": "evaluation", "of": of, "evaluator": ":judge", **fields}

    targets: Targets = {
        **ROLLOUT,
        "judge": operator("evaluator", "Judge"),
        "eval": {"kind": "reduction", "of": ["solve"], "reducer": "stats"},
        "made": {"kind": "command", "outs": ["out"], "command": ["sh", "-c", "mkdir out; echo 1 > out/a"]},
        "of-eval": judged(":eval", params={"strict": True}, expect="strict == true"),
        "of-solve": judged("solve@n=1"),
        "of-tasks": judged(":tasks"),
        "of-made": judged(":made"),
        "of-judged": judged(":of-eval"),
        "strict": judged(":eval", expect="strict == true"),
    }
    ws = workspace(tmp_path, targets, FILES)
    names = ("of-eval", "of-solve", "of-tasks", "of-made", "of-judged")
    ws.build(*(f"//:{name}" for name in names))
    found = {name: ws.output(f"{name}/result.json")["names"] for name in names}
    assert found == {
        "of-eval": ["result.json", "result.md"],
        "of-solve": ["trees/...", "trials.jsonl"],
        "of-tasks": ["_meta.json", "records.jsonl", "rows.jsonl"],
        "of-made": ["out/..."],
        "of-judged": ["result.json", "result.md"],
    }
    assert "does not meet its expect: strict == true" in ws.build("//:strict", code=1)["reason"]

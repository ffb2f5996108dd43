"""Operators: what authors write, run in the harness and as the sandbox runs them."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mrp.sdk import Agent, Artifact, Context, Evaluator, Producer, Reducer, Result, Task, Trial, Write
from mrp.sdk.builtin import Nop, Oracle
from mrp.sdk.runner import start_command
from mrp.sdk.testing import run_agent, run_evaluator, run_grader, run_producer, run_reducer
from mrp.sdk.writing import json_text

SDK = Path(__file__).parents[1] / "rules" / "mrp" / "sdk"


class Answerer(Agent):
    def run(self, task: Task, ctx: Context) -> Result:
        left, right = task.record["question"].split("*")
        (task.work / "answer.txt").write_text(str(int(left) * int(right) + ctx.params.get("offset", 0)))
        ctx.log(f"answered {task.record['id']}")
        return Result(metrics={"steps": 1})


class Sleeper(Agent):
    async def run(self, task: Task, ctx: Context) -> None:
        import asyncio

        await asyncio.sleep(0)
        (task.work / "awake").write_text("yes")


class Crasher(Agent):
    def run(self, task: Task, ctx: Context) -> None:
        ctx.log("before the crash")
        raise LookupError("no such tool")


def test_an_agent_works_on_its_record_and_what_it_leaves_is_seen(tmp_path: Path) -> None:
    outcome = run_agent(Answerer, record={"id": "a", "question": "6 * 7"}, params={"offset": 1}, tmp_path=tmp_path)
    assert (outcome.status, outcome.exit_code) == ("ok", 0)
    assert outcome.work == {"answer.txt": b"43"}
    assert outcome.result == {"status": "ok", "reason": "", "metrics": {"steps": 1}}
    assert outcome.trajectory == [{"type": "log", "text": "answered a"}]


def test_an_agent_may_be_async_and_none_means_ok(tmp_path: Path) -> None:
    outcome = run_agent(Sleeper, tmp_path=tmp_path)
    assert outcome.result == {"status": "ok", "reason": "", "metrics": {}}
    assert outcome.work == {"awake": b"yes"}


def test_an_exception_fails_the_trial_with_its_last_line_and_keeps_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_agent(Crasher, tmp_path=tmp_path)
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert outcome.reason == "LookupError: no such tool"
    assert outcome.trajectory == [{"type": "log", "text": "before the crash"}]
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "status"), [(0, "ok"), (3, "failed")])
def test_sys_exit_ends_an_agent_with_its_code(tmp_path: Path, code: int, status: str) -> None:
    class Exits(Agent):
        def run(self, task: Task, ctx: Context) -> None:
            sys.exit(code)

    outcome = run_agent(Exits, tmp_path=tmp_path)
    assert outcome.status == status
    assert outcome.reason == ("" if code == 0 else "the operator called sys.exit(3)")


def test_an_agent_that_returns_something_else_is_told_what_to_return(tmp_path: Path) -> None:
    class Wrong(Agent):
        def run(self, task: Task, ctx: Context) -> Any:
            return 7

    outcome = run_agent(Wrong, tmp_path=tmp_path)
    assert outcome.reason.endswith("run() returned int; return an mrp.sdk.Result or None")


def test_metrics_that_are_no_json_fail_with_their_place(tmp_path: Path) -> None:
    class Odd(Agent):
        def run(self, task: Task, ctx: Context) -> Result:
            return Result(metrics={"scores": [1, float("nan")]})

    outcome = run_agent(Odd, tmp_path=tmp_path)
    assert outcome.reason == "ValueError: $.metrics.scores[1] is nan, which is no JSON number"


def test_the_seed_fixes_random_and_the_harness_puts_everything_back(tmp_path: Path) -> None:
    class Draws(Agent):
        def run(self, task: Task, ctx: Context) -> Result:
            import random

            os.environ["LEFT_BEHIND"] = "1"
            return Result(metrics={"draw": random.random(), "seed": ctx.seed, "cwd": Path.cwd().name})

    before = Path.cwd()
    first, second, other = (run_agent(Draws, seed=seed, tmp_path=tmp_path).result["metrics"] for seed in (7, 7, 8))
    assert first == second != other
    assert first["cwd"] == "work"
    assert (Path.cwd(), "LEFT_BEHIND" in os.environ) == (before, False)


def test_exec_runs_in_the_working_folder_and_gives_text(tmp_path: Path) -> None:
    class Lists(Agent):
        def run(self, task: Task, ctx: Context) -> Result:
            done = ctx.exec(["sh", "-c", "ls; cat; echo problem >&2; exit 4"], input="given\n")
            return Result(metrics={"out": done.stdout, "err": done.stderr, "code": done.returncode})

    outcome = run_agent(Lists, starter={"a.py": "1"}, tmp_path=tmp_path)
    assert outcome.result["metrics"] == {"out": "a.py\ngiven\n", "err": "problem\n", "code": 4}


def test_the_solution_is_there_only_for_agents_that_see_it(tmp_path: Path) -> None:
    class Looks(Agent):
        def run(self, task: Task, ctx: Context) -> Result:
            return Result(metrics={"sees": task.solution is not None})

    assert run_agent(Looks, tmp_path=tmp_path).result["metrics"] == {"sees": False}
    assert run_agent(Looks, solution={"a": "b"}, tmp_path=tmp_path).result["metrics"] == {"sees": True}


def test_a_grader_judges_the_work_with_the_task_beside_it(tmp_path: Path) -> None:
    class Compares(Evaluator):
        def evaluate(self, subject: Artifact, ctx: Context) -> dict[str, Any]:
            assert ctx.task is not None
            expected = (ctx.task.dir / "expected.txt").read_text()
            return {"reward": (subject.path / "answer.txt").read_text() == expected, "half": Decimal("0.50")}

    graded = run_grader(Compares, work={"answer.txt": "42"}, task_files={"expected.txt": "42"}, tmp_path=tmp_path)
    assert graded.result == {"reward": 1, "half": 0.5}
    missing = run_grader(Compares, work={}, task_files={"expected.txt": "42"}, tmp_path=tmp_path)
    assert (missing.exit_code, missing.result) == (1, None)


@pytest.mark.parametrize("rewards", [{}, {"reward": "high"}, {"reward": float("inf")}, 1.0, None])
def test_a_grader_that_gives_no_numbers_leaves_no_reward(tmp_path: Path, rewards: Any) -> None:
    class Odd(Evaluator):
        def evaluate(self, subject: Artifact, ctx: Context) -> Any:
            return rewards

    outcome = run_grader(Odd, work={}, tmp_path=tmp_path)
    assert (outcome.exit_code, outcome.result) == (1, None)


def test_a_reducer_sees_trials_in_order_with_their_trees(tmp_path: Path) -> None:
    class Sizes(Reducer):
        def reduce(self, trials: Iterator[Trial], ctx: Context) -> dict[str, Any]:
            seen = [
                (t.id, t.sample, t.rewards.get("reward"), sorted(p.name for p in t.tree.iterdir()) if t.tree else None)
                for t in trials
            ]
            return {"trials": [list(row) for row in seen], "k": ctx.params["k"]}

    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "main.py").write_text("")
    trials = [Trial("b", rewards={"reward": 0.25}, tree=tree), Trial("a", 1, outcome="failed")]
    outcome = run_reducer(Sizes, trials, params={"k": 3}, tmp_path=tmp_path)
    assert outcome.result == {"trials": [["b", 0, 0.25, ["main.py"]], ["a", 1, None, None]], "k": 3}


def test_an_evaluator_reads_the_artifact_as_json(tmp_path: Path) -> None:
    class Doubles(Evaluator):
        async def evaluate(self, subject: Artifact, ctx: Context) -> dict[str, Any]:
            return {"twice": subject.json()["n"] * 2, "kind": subject.kind, "ids": [r["id"] for r in subject.rows()]}

    artifact = {"result.json": '{"n": 21}', "trials.jsonl": '{"id": "a"}\n{"id": "b"}\n'}
    outcome = run_evaluator(Doubles, artifact, tmp_path=tmp_path)
    assert outcome.result == {"twice": 42, "kind": "tree", "ids": ["a", "b"]}


def test_a_producer_says_what_to_write_text_or_bytes(tmp_path: Path) -> None:
    class Pages(Producer):
        async def produce(self, artifact: Artifact, ctx: Context) -> AsyncIterator[Write]:
            yield Write("pages/index.html", "<p>é</p>")
            yield Write("raw.bin", b"\xff\x00")

    outcome = run_producer(Pages, {"result.json": "{}"}, tmp_path=tmp_path)
    assert outcome.writes == {"pages/index.html": "<p>é</p>".encode(), "raw.bin": b"\xff\x00"}


def test_a_producer_cannot_write_a_path_twice(tmp_path: Path) -> None:
    class Twice(Producer):
        def produce(self, artifact: Artifact, ctx: Context) -> Iterator[Write]:
            yield Write("a", "1")
            yield Write("a", "2")

    outcome = run_producer(Twice, {}, tmp_path=tmp_path)
    assert (outcome.exit_code, outcome.writes) == (1, {})


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../b", "a//b", "./a", "a\\b", "a\0b"])
def test_a_write_needs_a_plain_relative_path(path: str) -> None:
    with pytest.raises(ValueError, match="plain relative path"):
        Write(path, "")


def test_values_cannot_be_changed_and_statuses_are_two() -> None:
    result = Result("failed", "because", {"a": 1})
    with pytest.raises(AttributeError, match="cannot be changed"):
        result.status = "ok"
    with pytest.raises(ValueError, match="'ok' or 'failed', not 'fine'"):
        Result("fine")
    assert result == Result("failed", "because", {"a": 1}) != Result()
    assert repr(result) == "Result(metrics={'a': 1}, reason='because', status='failed')"


def test_numbers_are_written_as_their_own_text() -> None:
    value = {"b": 0.1 + 0.2, "a": [Decimal("0.10"), 10**30, True, None, "é\n"], "c": {"x": ()}}
    assert json_text(value) == (
        '{"a": [0.10, 1000000000000000000000000000000, true, null, "\\u00e9\\n"],'
        ' "b": 0.30000000000000004, "c": {"x": []}}'
    )
    for wrong, place in (({"a": {1: 2}}, r"\$\.a has the key 1"), ({"a": {1}}, r"\$\.a is a set")):
        with pytest.raises(ValueError, match=place):
            json_text(wrong)


# -- the built-in agents ------------------------------------------------------------------------------------------


def test_nop_leaves_the_work_as_it_is(tmp_path: Path) -> None:
    outcome = run_agent(Nop, starter={"a.py": "1"}, tmp_path=tmp_path)
    assert (outcome.status, outcome.work) == ("ok", {"a.py": b"1"})


def test_oracle_lays_the_solution_over_the_work(tmp_path: Path) -> None:
    starter = {"a.py": "old", "kept.py": "kept", "sub": "a file where the solution has a folder"}
    outcome = run_agent(Oracle, starter=starter, solution={"a.py": "new", "sub/b.py": "b"}, tmp_path=tmp_path)
    assert outcome.status == "ok"
    assert outcome.work == {"a.py": b"new", "kept.py": b"kept", "sub/b.py": b"b"}


def test_oracle_keeps_the_executable_bit_and_symlinks_and_never_writes_through_them(tmp_path: Path) -> None:
    from mrp.sdk.builtin import copy_over

    outside, solution, work = (tmp_path / name for name in ("outside", "solution", "work"))
    for folder in (outside, solution, work):
        folder.mkdir()
    (outside / "precious").write_text("untouched")
    (work / "data").symlink_to(outside)
    (work / "file").symlink_to(outside / "precious")
    (solution / "data").mkdir()
    (solution / "data" / "precious").write_text("new")
    (solution / "file").write_text("new")
    (solution / "run.sh").write_text("#!/bin/sh\n")
    (solution / "run.sh").chmod(0o755)
    (solution / "link").symlink_to("file")
    copy_over(solution, work)
    assert (outside / "precious").read_text() == "untouched"
    assert (work / "data" / "precious").read_text() == (work / "file").read_text() == "new"
    assert os.access(work / "run.sh", os.X_OK)
    assert not (work / "file").stat().st_mode & 0o111
    assert (work / "link").readlink() == Path("file")


def test_oracle_runs_solve_sh_in_the_working_folder(tmp_path: Path) -> None:
    outcome = run_agent(Oracle, solution={"solve.sh": "echo done > result.txt"}, tmp_path=tmp_path)
    assert (outcome.status, outcome.work) == ("ok", {"result.txt": b"done\n"})
    failing = run_agent(Oracle, solution={"solve.sh": "exit 9"}, tmp_path=tmp_path)
    assert (failing.status, failing.reason) == ("failed", "solve.sh ended with exit code 9")


@pytest.mark.parametrize("solution", [None, {}])
def test_oracle_without_a_solution_fails(tmp_path: Path, solution: dict[str, str] | None) -> None:
    outcome = run_agent(Oracle, solution=solution, tmp_path=tmp_path)
    assert (outcome.status, outcome.reason) == (
        "failed",
        "the record has no solution; declare `solution` in its dataset",
    )


# -- as the sandbox runs them -------------------------------------------------------------------------------------


def _guest(tmp_path: Path, source: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The contract's folders with an operator in op.py; the environment, and the command that runs it."""
    for name in ("task", "work", "out", "operator"):
        (tmp_path / name).mkdir()
    (tmp_path / "operator" / "op.py").write_text(source)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "MRP_TASK_DIR": str(tmp_path / "task"),
        "MRP_WORKSPACE": str(tmp_path / "work"),
        "MRP_OUTPUT_DIR": str(tmp_path / "out"),
        "MRP_SOLUTION_DIR": str(tmp_path / "solution"),
        "MRP_RECORD_ID": "a",
        "MRP_SAMPLE": "2",
        "MRP_SEED": "11",
        "MRP_TRIAL": "0123456789abcdef",
        "MRP_PARAMS": '{"effort":"high"}',
    }
    return env, start_command(sys.executable, str(SDK.parents[1]), str(tmp_path / "operator"))


AGENT = """
import os
from mrp.sdk import Agent, Result

class Solver(Agent):
    def run(self, task, ctx):
        import random
        return Result(metrics={"sample": ctx.sample, "effort": ctx.params["effort"], "random": random.__file__})
"""


def test_a_fresh_process_runs_the_entry_of_its_environment(tmp_path: Path) -> None:
    env, command = _guest(tmp_path, AGENT)
    done = subprocess.run(
        command, env={**env, "MRP_ROLE": "agent", "MRP_ENTRY": "op:Solver"}, cwd=tmp_path / "work", check=False
    )
    result = json.loads((tmp_path / "out" / "result.json").read_bytes())
    assert (done.returncode, result["status"]) == (0, "ok")
    assert (result["metrics"]["sample"], result["metrics"]["effort"]) == (2, "high")


def test_files_of_the_working_folder_cannot_stand_in_for_modules(tmp_path: Path) -> None:
    env, command = _guest(tmp_path, AGENT)
    for name in ("random.py", "json.py", "op.py", "mrp/sdk/runner.py", "mrp/sdk/__init__.py", "mrp/__init__.py"):
        trap = tmp_path / "work" / name
        trap.parent.mkdir(parents=True, exist_ok=True)
        trap.write_text("raise SystemExit('trapped')")
    subprocess.run(
        command, env={**env, "MRP_ROLE": "agent", "MRP_ENTRY": "op:Solver"}, cwd=tmp_path / "work", check=True
    )
    result = json.loads((tmp_path / "out" / "result.json").read_bytes())
    assert not result["metrics"]["random"].startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("entry", "role", "message"),
    [
        ("op:Missing", "agent", "the module op has no class Missing"),
        ("nowhere:Solver", "agent", "No module named 'nowhere'"),
        ("op", "agent", "the entry 'op' is not of the form module:Class"),
        ("op:Solver", "reducer", "Solver has no method reduce, which a reducer needs"),
        ("op:Solver", "wizard", "there is no role 'wizard'"),
    ],
)
def test_an_entry_that_cannot_run_says_why_and_exits_1(tmp_path: Path, entry: str, role: str, message: str) -> None:
    env, command = _guest(tmp_path, AGENT)
    done = subprocess.run(
        command, env={**env, "MRP_ROLE": role, "MRP_ENTRY": entry}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert (tmp_path / "out" / "result.json").exists() == (role == "agent")


def test_a_warm_process_forks_and_runs_an_entry_without_exec(tmp_path: Path) -> None:
    env, _ = _guest(tmp_path, AGENT)
    child = f"""
import os, sys
sys.path[0:1] = [{str(SDK.parents[1])!r}, {str(tmp_path / "operator")!r}]
from mrp.sdk.runner import load, run_entry
load("op:Solver")
pid = os.fork()
if pid == 0:
    os._exit(run_entry({ {**env, "MRP_ROLE": "agent", "MRP_ENTRY": "op:Solver"}!r}))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", child], check=True)
    assert json.loads((tmp_path / "out" / "result.json").read_bytes())["metrics"]["effort"] == "high"


def test_the_sdk_reads_as_python_3_8_and_needs_only_the_standard_library() -> None:
    for path in sorted(SDK.glob("*.py")):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        imported = {
            name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert imported <= {*sys.stdlib_module_names, "mrp"}, path.name
        assert path.name == "__init__.py" or ast.get_docstring(tree), path.name


def test_the_runner_loads_nothing_heavy() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import mrp.sdk.runner; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code, str(SDK.parents[1])]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "mrp.sdk.runner" in loaded
    assert not loaded & {"dataclasses", "inspect", "asyncio", "typing", "subprocess", "random", "traceback", "shutil"}


def test_the_worked_example_of_the_docs_passes_its_own_tests(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "operators.md").read_text()
    for block in text.split("```python\n# agents/")[1:]:
        name, _, source = block.split("```")[0].partition("\n")
        (tmp_path / name).write_text(source)
    assert len(list(tmp_path.iterdir())) == 3
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_adder.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr

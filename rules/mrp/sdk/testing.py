"""A harness for authors: run an operator in pytest, with the contract's folders and without any sandbox.

    def test_it_writes_the_answer(tmp_path):
        outcome = run_agent(Answerer, record={"id": "a", "question": "6 * 7"}, tmp_path=tmp_path)
        assert outcome.status == "ok"
        assert outcome.work["answer.txt"] == b"42"

The operator runs in this process, so breakpoints and coverage work. Nothing isolates it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
from pathlib import Path

from mrp.sdk.runner import run_operator
from mrp.sdk.writing import json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from mrp.sdk.operators import Agent, Evaluator, Producer, Reducer
    from mrp.sdk.values import Trial

    Files = Mapping[str, "str | bytes"]


class Outcome:
    """What a run left.

    status: "ok" or "failed". reason: one sentence when an agent failed. result: the document that the operator wrote
    (result.json; reward.json for graders), None when it wrote none. work: path -> bytes of what is in /work.
    trajectory: what was logged. writes: path -> bytes of what a producer wrote.
    """

    def __init__(self, folder: Path, role: str, exit_code: int) -> None:
        out = folder / "out"
        self.exit_code = exit_code
        self.result = _read_json(out / ("reward.json" if role == "grader" else "result.json"))
        said = self.result if role == "agent" and self.result is not None else {}
        self.status = "failed" if exit_code != 0 or said.get("status") == "failed" else "ok"
        self.reason = str(said.get("reason", ""))
        self.work = _read_folder(folder / "work")
        self.trajectory = _read_lines(out / "trajectory.jsonl")
        self.writes = {
            row["path"]: row["text"].encode() if "text" in row else base64.b64decode(row["base64"])
            for row in _read_lines(out / "writes.jsonl")
        }


def run_agent(
    agent: type[Agent],
    *,
    tmp_path: Path,
    record: Mapping[str, Any] | None = None,
    task_files: Files | None = None,
    starter: Files | None = None,
    solution: Files | None = None,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    sample: int = 0,
    env: Mapping[str, str] | None = None,
    model: Any = None,
) -> Outcome:
    """Run an agent on one record. Files are path -> content; `model` is what ctx.model will be."""
    folder = _folder(tmp_path)
    _lay_out(folder / "task", task_files or {})
    (folder / "task" / "record.json").write_text(json_text(dict(record or {})), encoding="utf-8")
    _lay_out(folder / "work", starter or {})
    if solution is not None:
        _lay_out(folder / "solution", solution)
    return _run(agent, "agent", folder, record, params, seed, sample, env, model)


def run_grader(
    grader: type[Evaluator],
    *,
    tmp_path: Path,
    work: Files,
    record: Mapping[str, Any] | None = None,
    task_files: Files | None = None,
    params: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Run an evaluator as the grader of a trial that left `work`; its rewards are `outcome.result`."""
    folder = _folder(tmp_path)
    _lay_out(folder / "task", task_files or {})
    (folder / "task" / "record.json").write_text(json_text(dict(record or {})), encoding="utf-8")
    _lay_out(folder / "work", work)
    return _run(grader, "grader", folder, record, params, 0, 0, env, None)


def run_reducer(
    reducer: type[Reducer],
    trials: Iterable[Trial],
    *,
    tmp_path: Path,
    params: Mapping[str, Any] | None = None,
    group_by: Iterable[str] = (),
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a reducer over `trials`, which it gets in the order given; a trial's tree is a folder that you made."""
    folder = _folder(tmp_path)
    (folder / "task" / "trees").mkdir(parents=True)
    lines = []
    for number, trial in enumerate(trials):
        name = f"{number:064x}" if trial.tree is not None else None
        if trial.tree is not None:
            (folder / "task" / "trees" / str(name)).symlink_to(trial.tree.resolve())
        row = {slot: getattr(trial, slot) for slot in trial.__slots__ if slot != "tree"}
        lines.append(json_text({**row, "tree": name}) + "\n")
    (folder / "task" / "trials.jsonl").write_text("".join(lines), encoding="utf-8")
    env = {"MRP_GROUP_BY": json_text(list(group_by)), **(env or {})}
    return _run(reducer, "reducer", folder, None, params, 0, 0, env, None)


def run_evaluator(
    evaluator: type[Evaluator],
    artifact: Files,
    *,
    tmp_path: Path,
    params: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    model: Any = None,
) -> Outcome:
    """Run an evaluator on an artifact of these files, such as {"result.json": "..."}."""
    folder = _folder(tmp_path)
    _lay_out(folder / "task", artifact)
    return _run(evaluator, "evaluator", folder, None, params, 0, 0, env, model)


def run_producer(
    producer: type[Producer],
    artifact: Files,
    *,
    tmp_path: Path,
    params: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a producer on an artifact of these files; what it asks to write is `outcome.writes`."""
    folder = _folder(tmp_path)
    _lay_out(folder / "task", artifact)
    return _run(producer, "producer", folder, None, params, 0, 0, env, None)


def _run(
    operator: type[Any],
    role: str,
    folder: Path,
    record: Mapping[str, Any] | None,
    params: Mapping[str, Any] | None,
    seed: int,
    sample: int,
    env: Mapping[str, str] | None,
    model: Any,
) -> Outcome:
    for name in ("task", "work", "out"):
        (folder / name).mkdir(exist_ok=True)
    contract = {
        "MRP_TASK_DIR": str(folder / "task"),
        "MRP_WORKSPACE": str(folder / "work"),
        "MRP_OUTPUT_DIR": str(folder / "out"),
        "MRP_SOLUTION_DIR": str(folder / "solution"),
        "MRP_RECORD_ID": str((record or {}).get("id", "record")),
        "MRP_SAMPLE": str(sample),
        "MRP_SEED": str(seed),
        "MRP_TRIAL": "0123456789abcdef",
        "MRP_PARAMS": json_text(dict(params or {})),
    }
    with _restored():
        os.environ.update({**contract, **(env or {})})
        exit_code = run_operator(lambda: operator, role, dict(os.environ), model)
    return Outcome(folder, role, exit_code)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Puts the working folder, the environment and the random state back."""
    cwd, environ, state = Path.cwd(), dict(os.environ), random.getstate()
    try:
        yield
    finally:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environ)
        random.setstate(state)


def _folder(tmp_path: Path) -> Path:
    """A new folder below `tmp_path`, so that one test can run several operators."""
    number = 0
    while (tmp_path / f"run-{number}").exists():
        number += 1
    folder = tmp_path / f"run-{number}"
    folder.mkdir(parents=True)
    return folder


def _lay_out(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)


def _read_folder(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else None


def _read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

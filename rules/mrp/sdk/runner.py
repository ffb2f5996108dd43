"""Runs one operator inside its sandbox: from the contract's environment to the contract's files.

`run_entry` is all of it, so that a process that was forked warm can call it once its sandbox is set up. A fresh
process is started with `start_command`, never with `python3 -m`: that would put the working folder, which a trial
filled, before the standard library and before this package.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from mrp.sdk.context import Context
from mrp.sdk.values import Artifact, Result, Task, Trial, Write
from mrp.sdk.writing import is_number, json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

METHODS = {"agent": "run", "grader": "evaluate", "evaluator": "evaluate", "reducer": "reduce", "producer": "produce"}
"""Role -> the method that an operator of that role must have."""


class OperatorError(Exception):
    """The operator does not keep to its contract; the text says how."""


def start_command(python: str, sdk_dir: str, operator_dir: str) -> tuple[str, ...]:
    """The argv of a fresh process that runs the operator which its environment names."""
    paths = [sdk_dir, operator_dir]
    return (python, "-c", f"import sys; sys.path[0:1] = {paths!r}; from mrp.sdk.runner import main; main()")


def main() -> None:
    """Run the operator of this process's environment and exit with its code."""
    sys.exit(run_entry(os.environ))


def run_entry(environ: Mapping[str, str]) -> int:
    """Run the operator that `environ` names (MRP_ROLE, MRP_ENTRY); returns the exit code, 0 or 1.

    `environ` becomes the environment of this process, MRP_WORKSPACE its working folder.
    """
    if environ is not os.environ:
        environ = dict(environ)
        _become(environ)
    # What started this process is no business of the operator, and has paths of the machine in it.
    sys.argv[:] = [environ.get("MRP_ENTRY", "")]
    return run_operator(lambda: load(environ.get("MRP_ENTRY", "")), environ.get("MRP_ROLE", ""), environ)


def _become(environ: Mapping[str, str]) -> None:
    """Make `environ` the environment of this process, in its order; where only values differ, just these are set."""
    present = os.environ
    if list(present) != list(environ):
        present.clear()
        present.update(environ)
        return
    for name, value in environ.items():
        if present[name] != value:
            present[name] = value


def load(entry: str) -> Any:
    """The class that `module:Class` names; a warm process calls this before it forks.

    Raises OperatorError, or whatever the module raises while it is imported.
    """
    module_name, _, class_name = entry.partition(":")
    if not module_name or not class_name:
        raise OperatorError(f"the entry {entry!r} is not of the form module:Class")
    found = getattr(importlib.import_module(module_name), class_name, None)
    if found is None:
        raise OperatorError(f"the module {module_name} has no class {class_name}")
    return found


def run_operator(loader: Callable[[], Any], role: str, environ: Mapping[str, str], model: Any = None) -> int:
    """Run the class that `loader` gives in `role`; returns 0, or 1 after an exception, which goes to stderr.

    An agent that raises leaves a result.json with status "failed"; the other roles then leave nothing.
    """
    output = Path(environ.get("MRP_OUTPUT_DIR", "/out"))
    try:
        _run(loader, role, environ, output, model)
        code = 0
    except (Exception, SystemExit) as error:
        code = 0 if isinstance(error, SystemExit) and not error.code else 1
        reason = "" if code == 0 else _report(error)
        if role == "agent":
            _write_json(output / "result.json", _result_json(Result("failed" if code else "ok", reason)))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _run(loader: Callable[[], Any], role: str, environ: Mapping[str, str], output: Path, model: Any) -> None:
    if role not in METHODS:
        raise OperatorError(f"there is no role {role!r}; MRP_ROLE is one of {', '.join(METHODS)}")
    import random

    seed = int(environ.get("MRP_SEED", "0"))
    random.seed(seed)
    work = Path(environ.get("MRP_WORKSPACE", "/work"))
    has_work = os.path.isdir(work)
    if has_work:
        os.chdir(work)
    task_dir = Path(environ.get("MRP_TASK_DIR", "/task"))
    if model is None and "MRP_MODEL" in environ:
        from mrp.sdk.model import Model

        model = Model(environ["OPENAI_BASE_URL"], environ["MRP_MODEL"])
    context = Context(
        params=json.loads(environ.get("MRP_PARAMS", "{}")),
        seed=seed,
        sample=int(environ.get("MRP_SAMPLE", "0")),
        output=output,
        cwd=work if has_work else Path.cwd(),
        task=_task(task_dir, work, environ) if role in ("agent", "grader") else None,
        model=model,
        group_by=json.loads(environ.get("MRP_GROUP_BY", "[]")),
    )
    operator_class = loader()
    method = getattr(operator_class(), METHODS[role], None)
    if method is None:
        raise OperatorError(f"{operator_class.__name__} has no method {METHODS[role]}, which a {role} needs")
    if role == "agent":
        _agent(method, context, output)
    elif role == "grader":
        _grader(method, work, context, output)
    elif role == "evaluator":
        _document(_settle(method(Artifact(task_dir), context)), method, output)
    elif role == "reducer":
        _document(_settle(method(read_trials(task_dir), context)), method, output)
    else:
        _producer(method, Artifact(task_dir), context, output)


def read_trials(folder: Path) -> Iterator[Trial]:
    """The trials of `folder`/trials.jsonl, one at a time, each with its tree below `folder`/trees."""
    with (folder / "trials.jsonl").open("rb") as lines:
        for line in lines:
            row = json.loads(line)
            tree = row.get("tree")
            yield Trial(
                id=row.get("id", ""),
                sample=row.get("sample", 0),
                matrix=row.get("matrix"),
                params=row.get("params"),
                outcome=row.get("outcome", "ok"),
                rewards=row.get("rewards"),
                tree=folder / "trees" / tree if tree else None,
                agent=row.get("agent"),
                model=row.get("model"),
                target=row.get("target"),
            )


def _agent(method: Any, context: Context, output: Path) -> None:
    result = _settle(method(context.task, context))
    if result is None:
        result = Result()
    if not isinstance(result, Result):
        raise OperatorError(f"run() returned {type(result).__name__}; return an mrp.sdk.Result or None")
    _write_json(output / "result.json", _result_json(result))


def _grader(method: Any, work: Path, context: Context, output: Path) -> None:
    rewards = _settle(method(Artifact(work), context))
    if not isinstance(rewards, dict) or not rewards:
        raise OperatorError(f"a grader returns a dict of numbers by name, not {type(rewards).__name__}")
    numbers = {name: int(value) if isinstance(value, bool) else value for name, value in rewards.items()}
    wrong = [name for name, value in numbers.items() if not is_number(value)]
    if wrong:
        raise OperatorError(f"the reward {wrong[0]!r} is {numbers[wrong[0]]!r}, which is no number")
    _write_json(output / "reward.json", numbers)


def _document(document: Any, method: Any, output: Path) -> None:
    if not isinstance(document, dict):
        raise OperatorError(f"{method.__name__}() returned {type(document).__name__}; return a dict")
    _write_json(output / "result.json", document)


def _producer(method: Any, artifact: Artifact, context: Context, output: Path) -> None:
    seen = set()
    lines = []
    for write in _collected(method(artifact, context)):
        if not isinstance(write, Write):
            raise OperatorError(f"produce() gave a {type(write).__name__}; give mrp.sdk.Write values")
        if write.path in seen:
            raise OperatorError(f"produce() wrote {write.path} twice")
        seen.add(write.path)
        lines.append(json_text(_write_row(write)) + "\n")
    (output / "writes.jsonl").write_text("".join(lines), encoding="utf-8")


def _write_row(write: Write) -> dict[str, str]:
    try:
        return {"path": write.path, "text": write.data.decode()}
    except UnicodeDecodeError:
        import base64

        return {"path": write.path, "base64": base64.b64encode(write.data).decode()}


def _task(folder: Path, work: Path, environ: Mapping[str, str]) -> Task:
    try:
        with open(f"{folder}/record.json", "rb", 0) as file:
            record = json.loads(file.read())
    except FileNotFoundError:
        record = {}
    solution = environ.get("MRP_SOLUTION_DIR", "/solution")
    return Task(record, folder, work, Path(solution) if os.path.isdir(solution) else None)


def _settle(value: Any) -> Any:
    """What an operator's method returned, awaited when it is a coroutine."""
    if not hasattr(value, "__await__"):
        return value
    import asyncio

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())


def _collected(writes: Any) -> Any:
    """What produce() gave, as something to loop over: async generators are run to their end."""
    writes = _settle(writes)
    if not hasattr(writes, "__aiter__"):
        return writes
    import asyncio

    async def collect() -> list[Any]:
        return [write async for write in writes]

    return asyncio.run(collect())


def _result_json(result: Result) -> dict[str, Any]:
    return {"status": result.status, "reason": result.reason, "metrics": dict(result.metrics)}


def _write_json(path: Path, value: Any) -> None:
    # Made first, so that what is no JSON leaves no file.
    data = json_text(value).encode() + b"\n"
    with open(path, "wb") as file:
        file.write(data)


def _report(error: BaseException) -> str:
    """Print the traceback to stderr; returns its last line."""
    import traceback

    traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, SystemExit):
        return f"the operator called sys.exit({error.code!r})"
    lines = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    main()

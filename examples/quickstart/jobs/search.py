"""An agent without a model: it tries small edits of the program until the visible examples pass."""

import ast
import copy
import json
import multiprocessing
from collections.abc import Iterator

from mrp.sdk import Agent, Context, Result, Task

TRIAL_SECONDS = 0.5
MOST_TRIALS = 150

SWAPS = {
    ast.Add: [ast.Sub, ast.Mult],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Add],
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
}


class Search(Agent):
    """Breadth first over single edits; the first that passes all examples is kept."""

    def run(self, task: Task, ctx: Context) -> Result:
        program = task.work / "solution.py"
        examples = json.loads((task.dir / "examples.json").read_text())
        tried = 0
        for source in candidates(program.read_text()):
            tried += 1
            if passes(source, examples):
                program.write_text(source)
                ctx.log(f"candidate {tried} passes")
                return Result(status="ok", metrics={"tried": tried})
            if tried >= MOST_TRIALS:
                break
        return Result(status="ok", reason="no single edit passes the examples", metrics={"tried": tried})


def candidates(source: str) -> Iterator[str]:
    """The program as it is, then each program that is one edit away, in a fixed order."""
    tree = ast.parse(source)
    yield source
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    for position, node in enumerate(ast.walk(tree)):
        for edited in edits(node, names):
            changed = copy.deepcopy(tree)
            target = list(ast.walk(changed))[position]
            for name, value in edited.items():
                setattr(target, name, value)
            yield ast.unparse(ast.fix_missing_locations(changed)) + "\n"


def edits(node: ast.AST, names: list[str]) -> Iterator[dict]:
    """Replacements of one node's own fields."""
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)):
        for other in SWAPS.get(type(node.op), []):
            yield {"op": other()}
    elif isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in SWAPS.get(type(operator), []):
                yield {"ops": [*node.ops[:index], other(), *node.ops[index + 1 :]]}
    elif isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool):
        yield {"value": node.value + 1}
        yield {"value": node.value - 1}
        yield {"value": -node.value}
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Name):
        for name in names:
            yield {"value": ast.Name(id=name, ctx=ast.Load())}
    elif isinstance(node, ast.Attribute) and node.attr in ("lower", "upper"):
        yield {"attr": "upper" if node.attr == "lower" else "lower"}
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        last = node.args[-1]
        yield {"args": [*node.args[:-1], ast.BinOp(left=last, op=ast.Add(), right=ast.Constant(value=1))]}


def passes(source: str, examples: dict) -> bool:
    """Whether a program passes the examples, in a process of its own that is killed when it hangs."""
    process = multiprocessing.get_context("fork").Process(target=check, args=(source, examples), daemon=True)
    process.start()
    process.join(TRIAL_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def check(source: str, examples: dict) -> None:
    """Exit 0 when every example gives what it should."""
    scope: dict = {}
    try:
        exec(source, scope)
        function = scope[examples["function"]]
        right = all(function(*case["args"]) == case["expect"] for case in copy.deepcopy(examples["cases"]))
    except Exception:
        right = False
    raise SystemExit(0 if right else 1)

"""`mrp init`: a small workspace that builds, to be changed into one's own."""

import argparse
from pathlib import Path

from mrp.cli.screen import Screen
from mrp.cli.workspace import write_file
from mrp.specs.errors import UsageError

_FILES = {
    "mrp.yaml": """\
mrp: 1
name: {name}
""",
    ".gitignore": """\
.mrp/
mrp-out/
""",
    "BUILD.yaml": """\
mrp: 1
targets:
  # One record a line. Agents see `instruction` and what `starter` makes; only graders see the tests.
  tasks:
    kind: dataset
    srcs: [tasks.jsonl]
    format: jsonl
    id: id
    starter: {{files: {{main.py: "${{record.starter}}"}}}}
    private: {{files: {{tests.py: "${{record.tests}}"}}, fields: [tests]}}
    solution: {{files: {{main.py: "${{record.solution}}"}}, fields: [solution]}}

  # Where agents and graders run: this machine's own /usr, no network.
  box:
    kind: sandbox
    limits: {{cpus: 1, memory: 512MiB, wall: 20s, pids: 64, disk: 64MiB}}

  # A trial for each record and agent: the reference solution must pass, doing nothing must not.
  solve:
    kind: rollout
    over: ":tasks"
    agent: "${{matrix.agent}}"
    matrix: {{agent: ["builtin:oracle", "builtin:nop"]}}
    sandbox: ":box"
    grade: {{command: [env, PYTHONPATH=/work, python3, /task/tests.py]}}

  eval:
    kind: reduction
    of: [solve]
    reducer: stats
    group_by: [agent]
""",
    "tasks.jsonl": """\
{{"id": "add", "instruction": "Write add(a, b) in main.py.", "starter": "def add(a, b):\\n    return 0\\n", \
"tests": "from main import add\\nassert add(2, 3) == 5\\nassert add(-1, 1) == 0\\n", \
"solution": "def add(a, b):\\n    return a + b\\n"}}
{{"id": "double", "instruction": "Write double(x) in main.py.", "starter": "def double(x):\\n    return x\\n", \
"tests": "from main import double\\nassert double(4) == 8\\nassert double(\'ab\') == \'abab\'\\n", \
"solution": "def double(x):\\n    return x * 2\\n"}}
{{"id": "last", "instruction": "Write last(items) in main.py.", "starter": "def last(items):\\n    return None\\n", \
"tests": "from main import last\\nassert last([1, 2, 3]) == 3\\n", \
"solution": "def last(items):\\n    return items[-1]\\n"}}
""",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default=".", metavar="DIR", help="where to make it (default: here)")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    """Writes the files; raises UsageError, and writes nothing, when one of them is there already."""
    folder = Path(arguments.folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder to make the workspace in")
    present = [name for name in _FILES if (folder / name).exists() and name != ".gitignore"]
    if present:
        raise UsageError(f"{folder / present[0]} is there already; choose an empty folder: mrp init DIR")
    name = _name(folder.resolve().name)
    written = []
    for path, text in _FILES.items():
        if not (folder / path).exists():
            write_file(folder / path, text.format(name=name).encode())
            written.append(path)
    if screen.json:
        screen.document({"folder": str(folder.resolve()), "files": written})
    where = "" if arguments.folder == "." else f" -C {arguments.folder}"
    screen.answer(f"wrote {', '.join(written)}\nnext: mrp{where} build //:eval")
    return 0


def _name(text: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in text.lower()).strip("-_")
    return kept or "workspace"

"""HumanEval as a workspace: the corpus is read where it is, and never copied into the project."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.places import Place

CORPUS = Path(os.environ.get("MRP_CORPORA", Path(__file__).parents[3] / "shared" / "corpora")) / "humaneval"

BUILD = """\
mrp: 1
targets:
  tasks:
    kind: dataset
    srcs: ["tasks.jsonl"]
    id: task_id
    starter: {files: {solution.py: "${record.prompt}"}}
    private:
      fields: [test]
      files:
        check.py: |
          exec(open("solution.py").read())

          ${record.test}

          check(${record.entry_point})
    solution: {fields: [canonical_solution], files: {solution.py: "${record.prompt}${record.canonical_solution}"}}
  py: {kind: image, base: host, toolchain: [python3]}
  box: {kind: sandbox, image: ":py", limits: {memory: 512MiB, wall: 30s, pids: 32, disk: 16MiB}}
  solve:
    kind: rollout
    over: ":tasks"
    agent: "${matrix.agent}"
    sandbox: ":box"
    matrix: {agent: ["builtin:oracle", "builtin:nop"]}
    grade: {command: [python3, /task/check.py]}
  eval: {kind: reduction, of: [solve], reducer: stats, group_by: [agent]}
"""


def rows() -> list[dict[str, Any]]:
    """The 164 rows; skips the test where the corpus is not on this machine."""
    path = CORPUS / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"the HumanEval corpus is not here: {path}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_rows(place: Place, rows: list[dict[str, Any]]) -> None:
    """Write the dataset."""
    place.write({"jobs/tasks.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})


def humaneval(folder: Path, rows: list[dict[str, Any]]) -> Place:
    """The workspace over `rows`."""
    place = Place(folder)
    place.write({"mrp.yaml": "mrp: 1\nname: humaneval\n", "jobs/BUILD.yaml": BUILD})
    write_rows(place, rows)
    return place

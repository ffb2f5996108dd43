"""Plans: every kind and field of the language, lowered, and the same bytes wherever that happens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.showcase import showcase
from support.workspaces import Workspace

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.compiler.analysis import load_graph
from mrp.compiler.compile import write_compiled
from mrp.specs.documents import KINDS
from mrp.specs.ir import DatasetTask, MapTask, OperatorTask, ReduceTask, dependencies, parse_plan, plan_bytes

GOLDEN = Path(__file__).parent / "golden" / "plan"
TARGETS = ("//jobs:everything", "//jobs:images")


def pretty(path: Path) -> str:
    return json.dumps(json.loads(path.read_text()), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", ["ir.json", "manifest.json", "policy_report.json"])
def test_the_showcase_lowers_to_the_golden_plan(tmp_path: Path, name: str) -> None:
    write_compiled(showcase(tmp_path / "w").compile(*TARGETS), tmp_path / "out")
    found = pretty(tmp_path / "out" / name)
    if os.environ.get("MRP_WRITE_GOLDEN"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        (GOLDEN / name).write_text(found)
    assert found == (GOLDEN / name).read_text()


def test_the_showcase_uses_every_kind(tmp_path: Path) -> None:
    graph = load_graph(showcase(tmp_path).root)
    assert {vertex.kind for vertex in graph if not vertex.is_file} == set(KINDS)


def test_a_plan_survives_being_written_and_read(tmp_path: Path) -> None:
    plan = showcase(tmp_path).compile(*TARGETS).plan
    assert parse_plan(plan_bytes(plan)) == plan


def test_tasks_come_after_what_they_need_and_nothing_else_comes(tmp_path: Path) -> None:
    plan = showcase(tmp_path).compile("//jobs:own").plan
    seen: set[str] = set()
    for task in plan.tasks:
        assert seen.issuperset(dependencies(task)), task.label
        seen.add(task.label)
    assert seen == {
        "builtin:host",
        "builtin:host-image",
        "//jobs:box",
        "//jobs:numbers",
        "//jobs:oracle",
        "//jobs:own",
        "//jobs:py",
        "//jobs:online",
        "//jobs:solve@agent=oracle,temperature=0",
        "//jobs:solve@agent=oracle,temperature=0.7",
        "//jobs:summary",
        "//jobs:tasks",
        "//models:qwen",
        "//tools:bin",
    }


def test_the_plan_is_the_same_at_another_path_and_after_the_yaml_is_written_in_another_order(tmp_path: Path) -> None:
    here, there = showcase(tmp_path / "a"), showcase(tmp_path / "b/c")
    build = there.root / "sinks/BUILD.yaml"
    lines = build.read_text().splitlines()
    build.write_text("\n".join([*lines[:2], lines[3], lines[2], "# a comment"]) + "\n")
    assert plan_bytes(here.compile(*TARGETS).plan) == plan_bytes(there.compile(*reversed(TARGETS)).plan)


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_plan_does_not_depend_on_hash_randomisation(tmp_path: Path, seed: str) -> None:
    workspace = showcase(tmp_path / "w")
    script = (
        "import sys; from pathlib import Path; from mrp.cache.filestats import FileDigests\n"
        "from mrp.compiler.compile import compile_workspace, write_compiled\n"
        "root, out = map(Path, sys.argv[1:3])\n"
        "digests = FileDigests.open(root / '.mrp' / 'd')\n"
        "write_compiled(compile_workspace(root, sys.argv[3:], digests=digests), out)\n"
    )
    command = [sys.executable, "-c", script, str(workspace.root), str(tmp_path / "out"), *TARGETS]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert pretty(tmp_path / "out/ir.json") == (GOLDEN / "ir.json").read_text()


def test_a_config_chooses_branches_of_selects(tmp_path: Path) -> None:
    workspace = showcase(tmp_path)
    compiled = workspace.compile("//jobs:eval", config=["gpu"])
    box = next(task for task in compiled.plan.tasks if task.label == "//jobs:box")
    assert box.limits.memory == 32 * 2**30  # type: ignore[union-attr]
    assert compiled.plan.config == ("gpu",)
    assert (compiled.settings.engine, compiled.settings.jobs) == ("ray", 4)


def test_params_from_the_command_line_go_over_those_of_the_target(tmp_path: Path) -> None:
    params = {"//jobs:solve": {"effort": "low"}, "//jobs:solve@agent=oracle": {"effort": "none"}}
    plan = showcase(tmp_path).compile("//jobs:solve", params=params).plan
    efforts = {task.label: task.params["effort"] for task in plan.tasks if isinstance(task, MapTask)}
    assert efforts == {
        "//jobs:solve@agent=builtin:nop,temperature=0": "low",
        "//jobs:solve@agent=builtin:nop,temperature=0.7": "low",
        "//jobs:solve@agent=oracle,temperature=0": "none",
        "//jobs:solve@agent=oracle,temperature=0.7": "none",
    }


def test_a_new_file_changes_the_plan_and_stands_in_a_listed_folder(tmp_path: Path) -> None:
    workspace = showcase(tmp_path)
    before = workspace.compile("//jobs:tasks")
    workspace.write({"jobs/tasks/b.jsonl": "{}"})
    after = workspace.compile("//jobs:tasks")
    assert "jobs/tasks" in before.listed
    assert before.plan != after.plan


def test_only_the_files_of_needed_targets_are_read(tmp_path: Path) -> None:
    workspace = showcase(tmp_path)
    sources = workspace.compile("//jobs:prep").manifest["sources"]
    assert set(sources) == {"jobs/in.txt"}


def test_the_graph_for_queries_has_the_edges_of_all_cells_and_files(tmp_path: Path) -> None:
    graph = load_graph(showcase(tmp_path).root)
    assert ("srcs", "//jobs:tasks/a.jsonl") in graph["//jobs:tasks"].deps
    assert graph["//jobs:solve"].deps == (
        ("over", "//jobs:tasks"),
        ("agent", "builtin:nop"),
        ("sandbox", "//jobs:box"),
        ("model", "//models:qwen"),
        ("grade.sandbox", "//jobs:online"),
        ("agent", "//jobs:oracle"),
    )
    assert graph["//jobs:box"].attributes["limits"]["memory"] == "4GiB"


def test_a_split_part_is_a_dataset_of_its_own(tmp_path: Path) -> None:
    tasks = showcase(tmp_path).tasks("//jobs:both")
    part = tasks["//jobs:tasks@split=test"]
    assert isinstance(part, DatasetTask)
    assert part.take == "test"
    assert "//jobs:tasks" not in tasks


def test_built_in_reducers_and_agents_need_no_target(tmp_path: Path) -> None:
    workspace = Workspace(
        tmp_path,
        {
            "BUILD.yaml": """
                mrp: 1
                targets:
                  t: {kind: dataset, generate: {range: 2}}
                  r: {kind: rollout, over: t, agent: builtin:oracle}
                  e: {kind: reduction, of: [r], reducer: builtin:count}
            """
        },
    )
    tasks = workspace.tasks("//:e")
    reduction, oracle = tasks["//:e"], tasks["builtin:oracle"]
    assert isinstance(reduction, ReduceTask) and isinstance(oracle, OperatorTask)
    assert reduction.reducer == "builtin:count"
    assert (oracle.entry, oracle.sees, oracle.pure) == ("mrp.sdk.builtin:Oracle", "solution", False)


def test_an_operator_takes_its_module_when_it_names_no_srcs(tmp_path: Path) -> None:
    tasks = showcase(tmp_path).tasks("//jobs:own", "//jobs:judged")
    paths = {
        label: [source.path for source in task.files.sources]
        for label, task in tasks.items()
        if isinstance(task, OperatorTask)
    }
    assert paths["//jobs:judge"] == ["jobs/judge.py"]
    assert paths["//jobs:summary"] == ["jobs/summary/__init__.py", "jobs/summary/more.py"]


def test_written_files_end_in_a_newline_and_replace_older_ones(tmp_path: Path) -> None:
    workspace = showcase(tmp_path / "w")
    write_compiled(workspace.compile("//jobs:prep"), tmp_path / "out")
    first = (tmp_path / "out/ir.json").read_bytes()
    write_compiled(workspace.compile("//jobs:prep"), tmp_path / "out")
    assert (tmp_path / "out/ir.json").read_bytes() == first
    assert first.endswith(b"}\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "ir.json",
        "manifest.json",
        "policy_report.json",
    ]


class Remembered(dict[Digest, Json]):
    """A memory that lasts as long as the test."""

    def put(self, key: Digest, value: Json) -> None:
        self[key] = value


def test_parsed_packages_may_be_remembered_and_a_memory_that_is_nonsense_is_not_believed(tmp_path: Path) -> None:
    root = showcase(tmp_path).root
    parsed = load_graph(root)
    memory = Remembered()
    assert list(load_graph(root, memory=memory)) == list(parsed)
    assert len(memory) == 5
    assert list(load_graph(root, memory=memory)) == list(parsed)
    for key in memory:
        memory[key] = {"value": {"k": ["mrp"]}, "places": []}
    assert list(load_graph(root, memory=memory)) == list(parsed)


def test_what_is_remembered_is_used_while_the_file_is_the_same(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, {"BUILD.yaml": "mrp: 1\ntargets: {i: {kind: image, base: host}}\n"})
    memory = Remembered()
    load_graph(workspace.root, memory=memory)
    ((key, known),) = memory.items()
    memory[key] = json.loads(json.dumps(known).replace('"host"', '"scratch"'))
    assert load_graph(workspace.root, memory=memory)["//:i"].attributes["base"] == "scratch"

    workspace.write({"BUILD.yaml": "mrp: 1\ntargets: {i: {kind: image, base: host}}  # other bytes\n"})
    assert load_graph(workspace.root, memory=memory)["//:i"].attributes["base"] == "host"

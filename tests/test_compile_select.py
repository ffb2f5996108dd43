"""Selects and matrices: one target, several forms."""

from pathlib import Path

import pytest
from support.workspaces import Workspace

from mrp.specs.errors import UsageError
from mrp.specs.ir import MapTask, ReduceTask, SandboxTask

CONFIGS = "mrp: 1\nname: t\nconfigs: {gpu: {}, big: {}}\n"


def workspace(root: Path, targets: str) -> Workspace:
    return Workspace(root, {"mrp.yaml": CONFIGS, "BUILD.yaml": "mrp: 1\ntargets:\n" + targets})


BOX = """\
  box:
    kind: sandbox
    limits: {select: {gpu: {memory: 8GiB, cpus: {select: {big: 8, default: 4}}}, default: {memory: 1GiB}}}
    allow: [sh, {select: {gpu: nvidia-smi, default: python3}}]
  run: {kind: command, outs: [o], command: [touch, o], sandbox: box}
"""


@pytest.mark.parametrize(
    ("config", "memory", "cpus", "allow"),
    [
        ([], 1, 1, ("sh", "python3")),
        (["gpu"], 8, 4, ("sh", "nvidia-smi")),
        (["gpu", "big"], 8, 8, ("sh", "nvidia-smi")),
    ],
)
def test_a_select_may_stand_for_any_value_at_any_depth_and_in_another(
    tmp_path: Path, config: list[str], memory: int, cpus: int, allow: tuple[str, ...]
) -> None:
    box = workspace(tmp_path, BOX).tasks("//:run", config=config)["//:box"]
    assert isinstance(box, SandboxTask)
    assert (box.limits.memory, box.limits.cpus, box.allow) == (memory * 2**30, cpus, allow)


def test_a_select_that_no_chosen_config_matches_needs_a_default(tmp_path: Path) -> None:
    found = workspace(tmp_path, "  box: {kind: sandbox, network: {select: {gpu: none}}}\n")
    assert found.error() == (
        "BUILD.yaml:3:42: error: no branch of this select matches (configs chosen: none)\n"
        "    box: {kind: sandbox, network: {select: {gpu: none}}}\n"
        "                                           ^^^^^^^^^^^\n"
        "  add a `default`"
    )
    assert "matches no target that can be built" in found.error(config=["gpu"])


def test_two_chosen_configs_must_not_match_one_select(tmp_path: Path) -> None:
    found = workspace(tmp_path, "  box: {kind: sandbox, network: {select: {gpu: none, big: none}}}\n")
    text = found.error(config=["gpu", "big"])
    assert "the chosen configs `gpu` and `big` both match this select" in text


def test_branches_that_are_not_chosen_are_checked_too(tmp_path: Path) -> None:
    found = workspace(
        tmp_path,
        "  box:\n"
        "    kind: sandbox\n"
        "    image: {select: {gpu: nope, default: builtin:host}}\n"
        "    network: {select: {big: opne, default: none}}\n"
        "    env: {A: {select: {gup: a, default: b}}}\n",
    )
    messages = [line.split("error: ")[1] for line in found.error().splitlines() if "error: " in line]
    assert messages == [
        "there is no target //:nope",
        "`network` must be `none`, `open` or a mapping with `allow`, not `opne`",
        "there is no config `gup`",
    ]


def test_labels_in_branches_that_are_not_chosen_must_exist(tmp_path: Path) -> None:
    found = workspace(tmp_path, "  box: {kind: sandbox, image: {select: {gpu: nope, default: builtin:host}}}\n")
    assert "there is no target //:nope" in found.error()


def test_an_unknown_config_on_the_command_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no config `gup`; did you mean `gpu`\?"):
        workspace(tmp_path, BOX).compile("//:run", config=["gup"])


SWEEP = """\
  tasks: {kind: dataset, generate: {range: 2}}
  helper: {kind: agent, version: "1", command: [sh]}
  solve:
    kind: rollout
    over: tasks
    agent: "${matrix.agent}"
    matrix: {t: [0.70, 10, 2], agent: [helper, "builtin:nop"], flag: [true, null]}
    env: {T: "t=${matrix.t}", F: "${matrix.flag}"}
    params: {effort: high}
"""


def cells(root: Path, targets: str, *asked: str) -> dict[str, MapTask]:
    return {label: task for label, task in workspace(root, targets).tasks(*asked).items() if isinstance(task, MapTask)}


def test_each_combination_is_a_cell_whose_axes_are_sorted_and_numbers_shortest(tmp_path: Path) -> None:
    found = cells(tmp_path, SWEEP, "//:solve")
    assert len(found) == 12
    cell = found["//:solve@agent=helper,flag=null,t=0.7"]
    assert cell.agent == "//:helper"
    assert cell.params == {"effort": "high", "agent": "helper", "flag": None, "t": cell.matrix["t"]}
    assert cell.env == {"T": "t=0.7", "F": "null"}


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ("//:solve", 12),
        ("//:solve@t=0.70", 4),
        ("//:solve@agent=helper,t=10", 2),
        ("//:solve@agent=helper,flag=true,t=2", 1),
        ("//:solve@agent=builtin:*", 6),
    ],
)
def test_part_of_a_cell_stands_for_all_cells_that_agree(tmp_path: Path, asked: str, count: int) -> None:
    assert len(cells(tmp_path, SWEEP, asked)) == count


def test_a_reduction_of_a_matrix_reduces_the_cells_that_it_names(tmp_path: Path) -> None:
    more = '  e: {kind: reduction, of: ["solve@t=2,flag=true", "solve@t=2"], reducer: count}\n'
    reduction = workspace(tmp_path, SWEEP + more).tasks("//:e")["//:e"]
    assert isinstance(reduction, ReduceTask)
    assert reduction.of == (
        "//:solve@agent=builtin:nop,flag=true,t=2",
        "//:solve@agent=helper,flag=true,t=2",
        "//:solve@agent=builtin:nop,flag=null,t=2",
        "//:solve@agent=helper,flag=null,t=2",
    )


def test_the_order_in_which_axes_and_values_are_written_changes_nothing(tmp_path: Path) -> None:
    turned = SWEEP.replace(
        'matrix: {t: [0.70, 10, 2], agent: [helper, "builtin:nop"], flag: [true, null]}',
        'matrix: {flag: [null, true], agent: ["builtin:nop", helper], t: [2, 10, 0.7]}',
    )
    assert turned != SWEEP
    assert cells(tmp_path / "a", SWEEP, "//:solve") == cells(tmp_path / "b", turned, "//:solve")


def test_axes_do_not_share_values_of_different_types(tmp_path: Path) -> None:
    targets = SWEEP.replace("flag: [true, null]", 'flag: ["2", "10"]')
    found = cells(tmp_path, targets, "//:solve@agent=helper,flag=2,t=2")
    (cell,) = found.values()
    assert (cell.matrix["flag"], cell.matrix["t"]) == ("2", 2)


def test_a_matrix_without_bounds_is_refused(tmp_path: Path) -> None:
    axes = ", ".join(f"a{axis}: [{', '.join(map(str, range(10)))}]" for axis in range(5))
    targets = SWEEP[: SWEEP.index("  solve")] + (
        f"  solve: {{kind: rollout, over: tasks, agent: helper, matrix: {{{axes}}}}}\n"
    )
    assert "the matrix has 100000 cells; at most 10000 are planned" in workspace(tmp_path, targets).error()


def test_items_of_a_matrix_are_asked_for_in_each_cell(tmp_path: Path) -> None:
    plan = workspace(tmp_path, SWEEP).compile("//:solve@agent=helper,flag=true[a/b c#0]").plan
    assert plan.requested == (
        "//:solve@agent=helper,flag=true,t=0.7[a/b%20c#0]",
        "//:solve@agent=helper,flag=true,t=10[a/b%20c#0]",
        "//:solve@agent=helper,flag=true,t=2[a/b%20c#0]",
    )
    assert set(plan.aliases) == {"//:solve"}


def test_an_item_is_not_asked_for_twice_when_all_are(tmp_path: Path) -> None:
    plan = workspace(tmp_path, SWEEP).compile("//:solve@agent=helper,flag=true,t=2", "//:solve[a]").plan
    assert "//:solve@agent=helper,flag=true,t=2[a]" not in plan.requested
    assert "//:solve@agent=helper,flag=true,t=2" in plan.requested


WILD = """\
  tasks: {kind: dataset, generate: {range: 2}}
  solve: {kind: rollout, over: tasks, agent: builtin:nop}
  eval: {kind: reduction, of: [solve], reducer: count}
  board: {kind: sink, type: json, path: out.json}
  publish: {kind: produce, of: eval, sink: board}
  inner: {kind: job, of: [publish, eval], budget: {usd: 1}}
  outer: {kind: job, of: [inner, tasks]}
"""


@pytest.mark.parametrize(
    ("asked", "requested", "job"),
    [
        (("//...",), ("//:eval", "//:solve", "//:tasks"), ("//:eval",)),
        (("//:*",), ("//:eval", "//:solve", "//:tasks"), ("//:eval",)),
        (("//:all",), ("//:eval", "//:solve", "//:tasks"), ("//:eval",)),
        (("//:outer",), ("//:eval", "//:publish", "//:tasks"), ("//:eval", "//:publish")),
        (("//...", "//:publish"), ("//:eval", "//:publish", "//:solve", "//:tasks"), ("//:eval",)),
        (("//:outer", "-//:publish"), ("//:eval", "//:tasks"), ("//:eval",)),
    ],
)
def test_wildcards_leave_out_produce_targets_which_a_label_or_a_job_brings(
    tmp_path: Path, asked: tuple[str, ...], requested: tuple[str, ...], job: tuple[str, ...]
) -> None:
    plan = workspace(tmp_path, WILD).compile(*asked).plan
    assert plan.requested == requested
    assert plan.aliases["//:inner"] == job

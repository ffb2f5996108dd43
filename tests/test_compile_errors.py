"""What is wrong with a workspace: found everywhere at once, shown where it stands, with a next step."""

from pathlib import Path

import pytest
from support.workspaces import Workspace

HEAD = "mrp: 1\ntargets:\n"


def broken(root: Path, targets: str, **files: str) -> str:
    """The error of a workspace with `targets` in package `p`, beside a dataset, a rollout and a file."""
    usual = (
        "  tasks: {kind: dataset, generate: {range: 3}}\n"
        '  solve: {kind: rollout, over: tasks, agent: "builtin:nop", matrix: {k: [1, 2]}}\n'
    )
    return Workspace(root, {"p/BUILD.yaml": HEAD + usual + targets, "p/x.txt": "x", **files}).error()


CASES = [
    pytest.param(
        "  r: {kind: rollout, over: taks, agent: builtin:npo}\n",
        """\
p/BUILD.yaml:5:28: error: there is no target //p:taks
    r: {kind: rollout, over: taks, agent: builtin:npo}
                             ^^^^
  did you mean `//p:tasks`?
p/BUILD.yaml:5:41: error: there is no builtin:npo
    r: {kind: rollout, over: taks, agent: builtin:npo}
                                          ^^^^^^^^^^^
  did you mean `builtin:nop`?""",
        id="unknown labels",
    ),
    pytest.param(
        "  r: {kind: rollout, over: //q:tasks, agent: builtin:nop}\n",
        """\
p/BUILD.yaml:5:28: error: there is no target //q:tasks, and no package //q
    r: {kind: rollout, over: //q:tasks, agent: builtin:nop}
                             ^^^^^^^^^
  did you mean `//p:tasks`?""",
        id="unknown package",
    ),
    pytest.param(
        "  i: {kind: image, base: host}\n  r: {kind: rollout, over: i, agent: builtin:host}\n",
        """\
p/BUILD.yaml:6:28: error: `over` of //p:r must be a dataset, but //p:i is an image
    r: {kind: rollout, over: i, agent: builtin:host}
                             ^
p/BUILD.yaml:6:38: error: `agent` of //p:r must be an agent, but builtin:host is a sandbox or an image
    r: {kind: rollout, over: i, agent: builtin:host}
                                       ^^^^^^^^^^^^""",
        id="wrong kinds",
    ),
    pytest.param(
        "  e: {kind: evaluation, of: solve, evaluator: tasks}\n",
        """\
p/BUILD.yaml:5:29: error: `of` of //p:e takes one target, but //p:solve stands for 2 cells
    e: {kind: evaluation, of: solve, evaluator: tasks}
                              ^^^^^
  name one of them, like `//p:solve@k=1`
p/BUILD.yaml:5:47: error: `evaluator` of //p:e must be an evaluator, but //p:tasks is a dataset
    e: {kind: evaluation, of: solve, evaluator: tasks}
                                                ^^^^^""",
        id="several cells where one fits",
    ),
    pytest.param(
        '  e: {kind: reduction, of: ["solve@k=3", "solve@j=1", "tasks@k=1", "solve[a]"], reducer: stast}\n',
        """\
p/BUILD.yaml:5:29: error: the axis `k` of //p:solve has no value 3
    e: {kind: reduction, of: ["solve@k=3", "solve@j=1", "tasks@k=1", "solve[a]"], reducer: stast}
                              ^^^^^^^^^^^
  its values are 1, 2
p/BUILD.yaml:5:42: error: //p:solve has no axis `j`
    e: {kind: reduction, of: ["solve@k=3", "solve@j=1", "tasks@k=1", "solve[a]"], reducer: stast}
                                           ^^^^^^^^^^^
  did you mean `k`?
p/BUILD.yaml:5:55: error: //p:tasks is a dataset, which has no axis `k`
    e: {kind: reduction, of: ["solve@k=3", "solve@j=1", "tasks@k=1", "solve[a]"], reducer: stast}
                                                        ^^^^^^^^^^^
  a dataset has only `@split=...`
p/BUILD.yaml:5:68: error: `of` of //p:e names one item, solve[a]
    e: {kind: reduction, of: ["solve@k=3", "solve@j=1", "tasks@k=1", "solve[a]"], reducer: stast}
                                                                     ^^^^^^^^^^
  name the whole target
p/BUILD.yaml:5:90: error: there is no reducer `stast`
    e: {kind: reduction, of: ["solve@k=3", "solve@j=1", "tasks@k=1", "solve[a]"], reducer: stast}
                                                                                           ^^^^^
  did you mean `stats`?""",
        id="cells and reducers",
    ),
    pytest.param(
        "  e: {kind: reduction, of: [solve], reducer: count, group_by: [kk], params: {k: 1}, expect: n > }\n",
        """\
p/BUILD.yaml:5:64: error: there is no group key `kk`
    e: {kind: reduction, of: [solve], reducer: count, group_by: [kk], params: {k: 1}, expect: n > }
                                                                 ^^
  did you mean `k`?
p/BUILD.yaml:5:81: error: the reducer count has no param `k`
    e: {kind: reduction, of: [solve], reducer: count, group_by: [kk], params: {k: 1}, expect: n > }
                                                                                  ^
  its params are none
p/BUILD.yaml:5:96: error: `expect`, column 4: the expression ends too early
    e: {kind: reduction, of: [solve], reducer: count, group_by: [kk], params: {k: 1}, expect: n > }
                                                                                                 ^""",
        id="group keys, params and expressions",
    ),
    pytest.param(
        '  c: {kind: command, srcs: ["*.md", "../y", "b.txt"], outs: [x.txt, a/../b], command: [a]}\n',
        """\
p/BUILD.yaml:5:29: error: `srcs` of //p:c: `*.md` matches no file
    c: {kind: command, srcs: ["*.md", "../y", "b.txt"], outs: [x.txt, a/../b], command: [a]}
                              ^^^^^^
  the folder p holds BUILD.yaml, x.txt
p/BUILD.yaml:5:37: error: `srcs` of //p:c: `../y` leaves its package with `..`
    c: {kind: command, srcs: ["*.md", "../y", "b.txt"], outs: [x.txt, a/../b], command: [a]}
                                      ^^^^^^
  take other packages' files through their targets
p/BUILD.yaml:5:45: error: `srcs` of //p:c: there is no p/b.txt
    c: {kind: command, srcs: ["*.md", "../y", "b.txt"], outs: [x.txt, a/../b], command: [a]}
                                              ^^^^^^^
  did you mean `x.txt`?
p/BUILD.yaml:5:69: error: the output `a/../b` is no plain path below the package
    c: {kind: command, srcs: ["*.md", "../y", "b.txt"], outs: [x.txt, a/../b], command: [a]}
                                                                      ^^^^^^
  like out/a.txt""",
        id="files",
    ),
    pytest.param(
        "  c: {kind: command, srcs: [x.txt], outs: [x.txt, o, o/a], command: [echo, '${record.id}']}\n",
        """\
p/BUILD.yaml:5:44: error: `x.txt` is a source and an output of //p:c
    c: {kind: command, srcs: [x.txt], outs: [x.txt, o, o/a], command: [echo, '${record.id}']}
                                             ^^^^^
  write to another file
p/BUILD.yaml:5:54: error: the outputs `o` and `o/a` overlap
    c: {kind: command, srcs: [x.txt], outs: [x.txt, o, o/a], command: [echo, '${record.id}']}
                                                       ^^^
  keep the outer one
p/BUILD.yaml:5:76: error: `${record.id}` is not filled in here
    c: {kind: command, srcs: [x.txt], outs: [x.txt, o, o/a], command: [echo, '${record.id}']}
                                                                             ^^^^^^^^^^^^^^
  give it through `env`, where it is filled in for each trial""",
        id="outputs",
    ),
    pytest.param(
        "  d: {kind: dataset, srcs: [x.txt], format: text, private: [secret]}\n"
        "  r:\n"
        "    kind: rollout\n"
        "    over: d\n"
        "    agent: builtin:nop\n"
        "    params: {effort: 1}\n"
        '    env: {A: "${record.secret}", B: "a ${params.efort}", C: "${HOME}", D: "$${HOME}", E: "${seed.x}"}\n',
        """\
p/BUILD.yaml:11:14: error: `${record.secret}` is a private field, which agents must not see
      env: {A: "${record.secret}", B: "a ${params.efort}", C: "${HOME}", D: "$${HOME}", E: "${seed.x}"}
               ^^^^^^^^^^^^^^^^^^
  agents see only public fields
p/BUILD.yaml:11:40: error: //p:r has no param `efort`
      env: {A: "${record.secret}", B: "a ${params.efort}", C: "${HOME}", D: "$${HOME}", E: "${seed.x}"}
                                         ^
  did you mean `effort`?
p/BUILD.yaml:11:62: error: `${HOME}` stands for nothing here
      env: {A: "${record.secret}", B: "a ${params.efort}", C: "${HOME}", D: "$${HOME}", E: "${seed.x}"}
                                                               ^
  only record, params, seed, sample, trial may stand here; `$${` is a literal `${`
p/BUILD.yaml:11:91: error: `${seed.x}` stands for nothing here
      env: {A: "${record.secret}", B: "a ${params.efort}", C: "${HOME}", D: "$${HOME}", E: "${seed.x}"}
                                                                                            ^
  write ${seed}""",
        id="templates",
    ),
    pytest.param(
        '  r: {kind: rollout, over: tasks, agent: "${matrix.agnt}", '
        "matrix: {agent: [a], t: [0.7, 0.70]}, params: {t: 1}}\n",
        """\
p/BUILD.yaml:5:42: error: the matrix has no axis `agnt`
    r: {kind: rollout, over: tasks, agent: "${matrix.agnt}", matrix: {agent: [a], t: [0.7, 0.70]}, params: {t: 1}}
                                           ^^^^^^^^^^^^^^^^
  did you mean `agent`?
p/BUILD.yaml:5:90: error: the axis `t` has the value 0.7 twice
    r: {kind: rollout, over: tasks, agent: "${matrix.agnt}", matrix: {agent: [a], t: [0.7, 0.70]}, params: {t: 1}}
                                                                                           ^^^^
  remove one of them
p/BUILD.yaml:5:107: error: `t` is an axis of the matrix and a param
    r: {kind: rollout, over: tasks, agent: "${matrix.agnt}", matrix: {agent: [a], t: [0.7, 0.70]}, params: {t: 1}}
                                                                                                            ^
  remove one of them""",
        id="matrix",
    ),
    pytest.param(
        '  a: {kind: agent, version: "1", entry: "nowhere:A"}\n'
        '  b: {kind: agent, version: "1", entry: "m:A", srcs: [x.txt]}\n',
        """\
p/BUILD.yaml:5:41: error: `entry` of //p:a: there is no p/nowhere.py
    a: {kind: agent, version: "1", entry: "nowhere:A"}
                                          ^^^^^^^^^^^
p/BUILD.yaml:6:41: error: the srcs of //p:b hold no p/m.py, where `m:A` would be
    b: {kind: agent, version: "1", entry: "m:A", srcs: [x.txt]}
                                          ^^^^^
  add it to srcs""",
        id="operators",
    ),
    pytest.param(
        "  d: {kind: dataset, srcs: [x.txt], schema: x.txt, split: {a: 0.5}}\n"
        "  i: {kind: image, base: scratch, toolchain: [sh], layers: [{copy: {x.txt: opt/x}}]}\n"
        "  s: {kind: sink, type: json, path: ../x.json}\n"
        "  f: {kind: dataset, fetch: {path: /x, sha256: '" + "0" * 64 + "'}}\n",
        """\
p/BUILD.yaml:5:59: error: //p:d: the shares of `split` sum to 0.5, and must sum to 1
    d: {kind: dataset, srcs: [x.txt], schema: x.txt, split: {a: 0.5}}
                                                            ^^^^^^^^
p/BUILD.yaml:6:46: error: a toolchain is a part of the machine
    i: {kind: image, base: scratch, toolchain: [sh], layers: [{copy: {x.txt: opt/x}}]}
                                               ^^^^
  it needs `base: host`
p/BUILD.yaml:6:76: error: `opt/x` is no absolute path inside the sandbox
    i: {kind: image, base: scratch, toolchain: [sh], layers: [{copy: {x.txt: opt/x}}]}
                                                                             ^^^^^
  write it from /, without `..`
p/BUILD.yaml:7:37: error: the sink's path `../x.json` leaves its package
    s: {kind: sink, type: json, path: ../x.json}
                                      ^^^^^^^^^
  write a path below the package's folder
p/BUILD.yaml:8:36: error: the path `/x` leaves its package
    f: {kind: dataset, fetch: {path: /x, sha256: '0000000000000000000000000000000000000000000000000000000000000000'}}
                                     ^^
  copy the file into the package's folder
p/x.txt:1:1: error: is not valid JSON: Expecting value
  x
  ^
  write a JSON Schema: it is the schema of //p:d""",
        id="schemas, splits, images and sinks",
    ),
]


@pytest.mark.parametrize(("targets", "expected"), CASES)
def test_each_mistake_is_shown_at_its_place_with_a_next_step(tmp_path: Path, targets: str, expected: str) -> None:
    assert broken(tmp_path, targets) == expected


def test_a_cycle_is_shown_as_its_path_and_several_at_once(tmp_path: Path) -> None:
    workspace = Workspace(
        tmp_path,
        {
            "a/BUILD.yaml": HEAD
            + '  x: {kind: command, srcs: [":y"], outs: [o], command: [touch, o]}\n'
            + '  y: {kind: command, srcs: ["//b:z"], outs: [o], command: [touch, o]}\n'
            + "  self: {kind: dataset, of: [self]}\n",
            "b/BUILD.yaml": HEAD + '  z: {kind: command, srcs: ["//a:x"], outs: [o], command: [touch, o]}\n',
        },
    )
    text = workspace.error()
    assert "a/BUILD.yaml:3:3: error: a cycle: //a:x -> //a:y -> //b:z -> //a:x\n" in text
    assert "a/BUILD.yaml:5:3: error: a cycle: //a:self -> //a:self\n" in text


def test_errors_of_all_packages_and_documents_come_together_sorted_by_place(tmp_path: Path) -> None:
    workspace = Workspace(
        tmp_path,
        {
            "mrp.yaml": "mrp: 1\nname: t\npolicy: polcy.yaml\nconfigs: {default: {}}\n",
            "policy.yaml": "",
            "a/BUILD.yaml": "mrp: 1\ntargets: {x: {kind: imag}}\n",
            "b/BUILD.yaml": "mrp: 2\ntargets: {}\n",
            "b/c/BUILD.yaml": "mrp: 1\ntargets: [",
            ".hidden/BUILD.yaml": "not: read",
            "mrp-out/BUILD.yaml": "not: read",
            "node_modules/x/BUILD.yaml": "not: read",
            "operators.lock": "mrp: 1\noperators: {//a:y: {version: '1', digest: '" + "0" * 64 + "'}}\n",
        },
    )
    places = [line.split(": error:")[0] for line in workspace.error().splitlines() if ": error:" in line]
    assert places == [
        "a/BUILD.yaml:2:21",
        "b/BUILD.yaml:1:6",
        "b/c/BUILD.yaml:3:1",
        "mrp.yaml:3:9",
        "mrp.yaml:4:11",
        "operators.lock:2:13",
    ]


def test_nothing_is_planned_while_another_package_is_wrong(tmp_path: Path) -> None:
    workspace = Workspace(
        tmp_path,
        {"a/BUILD.yaml": HEAD + "  t: {kind: dataset, generate: {range: 1}}\n", "b/BUILD.yaml": HEAD + "  u: {}\n"},
    )
    assert "b/BUILD.yaml:3:3: error: the target `u` needs a `kind`" in workspace.error("//a:t")


def test_labels_into_a_package_that_cannot_be_read_are_not_called_wrong(tmp_path: Path) -> None:
    workspace = Workspace(
        tmp_path,
        {
            "a/BUILD.yaml": HEAD + '  r: {kind: rollout, over: "//b:t", agent: builtin:nop}\n',
            "b/BUILD.yaml": "mrp: 1\ntargets: [",
        },
    )
    assert [line for line in workspace.error().splitlines() if "error:" in line and "a/BUILD" in line] == []


def test_a_target_with_a_mistake_of_its_own_still_counts_as_there(tmp_path: Path) -> None:
    text = broken(tmp_path, "  d: {kind: dataset}\n  r: {kind: rollout, over: d, agent: builtin:nop}\n")
    assert text.count("error:") == 1


def test_a_file_with_the_name_of_a_target_is_refused_since_its_label_would_mean_both(tmp_path: Path) -> None:
    text = broken(tmp_path, "  out: {kind: dataset, srcs: [out], format: text}\n", **{"p/out": ""})
    assert "the target //p:out has the name of the file p/out, so that the label could mean both" in text


def test_a_symlink_out_of_the_workspace_is_named(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("")
    workspace = Workspace(tmp_path / "w", {"BUILD.yaml": HEAD + "  d: {kind: dataset, srcs: [leak], format: text}\n"})
    (tmp_path / "w/leak").symlink_to("../outside")
    assert "`srcs` of //:d: `leak` is a symlink that leads out of the workspace" in workspace.error()


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        ((), "no target is named; name one, like `//...` for all"),
        (("//p:slove",), "there is no target //p:slove; did you mean `//p:solve`?"),
        (("p:solve",), "`p:solve` is not a pattern; did you mean `//p:solve`?"),
        (("//q/...",), "//q/... matches no target that can be built; `mrp query //...` lists all targets"),
        (("//p:box",), "//p:box is a sandbox, of which nothing is built; build a target that uses it"),
        (("//p:tasks[a]",), "//p:tasks[a] names an item, but //p:tasks is a dataset; only rollouts have items"),
        (("//p:solve[a*]",), "//p:solve[a*] names items by wildcard; name the target, and use --items for the ids"),
        (("builtin:nop",), "builtin:nop is part of mrp; there is nothing to build"),
        (("//p:tasks", "-//p:*"), "nothing is left to build of //p:tasks -//p:*; leave out less"),
    ],
)
def test_a_target_that_cannot_be_built_says_why(tmp_path: Path, targets: tuple[str, ...], text: str) -> None:
    from mrp.cache.filestats import FileDigests
    from mrp.compiler.compile import compile_workspace
    from mrp.specs.errors import UsageError

    build = (
        "  tasks: {kind: dataset, generate: {range: 3}}\n  solve: {kind: rollout, over: tasks, agent: builtin:nop}\n"
    )
    root = Workspace(tmp_path, {"p/BUILD.yaml": HEAD + build + "  box: {kind: sandbox}\n"}).root
    with pytest.raises(UsageError) as error:
        compile_workspace(root, targets, digests=FileDigests.open(tmp_path / ".mrp/d"))
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (
            {"//p:tasks": {"a": 1}},
            "--param //p:tasks: a dataset takes no params; name a rollout, reduction, evaluation",
        ),
        ({"//p:solve": {"k": 1}}, "--param //p:solve:k: `k` is an axis of the matrix; choose a cell instead"),
        (
            {"//p:solve": {"efort": 1}},
            "--param //p:solve:efort: //p:solve has no param `efort`; did you mean `effort`?",
        ),
        ({"//p:slove": {"a": 1}}, "--param //p:slove: there is no target //p:slove; did you mean `//p:solve`?"),
    ],
)
def test_a_param_that_fits_nowhere_says_why(tmp_path: Path, params: dict[str, dict[str, int]], text: str) -> None:
    from mrp.specs.errors import UsageError

    build = (
        "  tasks: {kind: dataset, generate: {range: 3}}\n"
        "  solve: {kind: rollout, over: tasks, agent: builtin:nop, matrix: {k: [1]}, params: {effort: 1}}\n"
    )
    workspace = Workspace(tmp_path, {"p/BUILD.yaml": HEAD + build})
    with pytest.raises(UsageError) as error:
        workspace.compile("//p:solve", params=params)
    assert str(error.value) == text

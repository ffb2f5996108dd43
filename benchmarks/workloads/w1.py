"""W1: N leaf files, N cheap commands, groups of 100, one file; by every tool that builds files."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.environments import HERE, program
from benchmarks.measure import Finished
from benchmarks.terms import Benchmark, Contestant, Slow, Step, WrongWork
from benchmarks.workloads import w1_files
from benchmarks.workloads.bazel import Bazel
from benchmarks.workloads.leaves import Leaves
from benchmarks.workloads.mrp import Workspace

ROWS = ("cold", "edit", "revert", "touch", "null", "deleted", "clone")
"""In this order each row begins with everything built and no leaf edited, but `revert`, which undoes `edit`."""

JOBS = str(len(os.sched_getaffinity(0)) + 1)
"""One more than cores, for every tool: the default of mrp, and of ninja on two cores."""


def w1(size: int, tools: Sequence[str], *, rounds: int = 5, slow: Mapping[str, Slow] | None = None) -> Benchmark:
    """W1 with `size` leaves by `tools`, names of TOOLS. `slow` says by tool which rows are done in fewer rounds."""
    fewer = slow or {}

    def contestants(folder: Path) -> list[Contestant]:
        return [TOOLS[tool](folder / tool.replace(" ", "-"), size, fewer.get(tool, {})) for tool in tools]

    about = (
        f"{size:,} leaf files, {size:,} commands that copy one, groups of 100, one file of all, on {JOBS} jobs. "
        "cold: nothing was built; edit: one leaf has a new content; revert: its first content again; touch: only its "
        "time moved; null: nothing happened; deleted: the outputs are gone, the cache is there; clone: also mrp's "
        "state is gone."
    )
    return Benchmark(f"w1-{size}", about, ROWS, rounds, contestants)


def _mrp(folder: Path, size: int, slow: Slow) -> Contestant:
    return _mrp_contestant("mrp", Workspace(folder, isolation="none"), size, slow)


def _mrp_sandboxed(folder: Path, size: int, slow: Slow) -> Contestant:
    return _mrp_contestant("mrp sandboxed", Workspace(folder), size, slow)


def _mrp_contestant(tool: str, workspace: Workspace, size: int, slow: Slow) -> Contestant:
    leaves = Leaves(workspace.root, size)
    actions = size + len(leaves.groups) + 1

    def prepare() -> None:
        workspace.write(w1_files.mrp_files(leaves.groups))
        leaves.write()

    def step(row: str, executed: int, before: Callable[[], None]) -> Step:
        return workspace.build(
            "//:root",
            executed=executed,
            cached=actions - executed,
            before=before,
            then=lambda: leaves.expect_root(workspace.root / "mrp-out/root/root.txt"),
            rounds=slow.get(row),
        )

    situations: dict[str, tuple[int, Callable[[], None]]] = {
        "cold": (actions, workspace.forget),
        "edit": (3, leaves.edit),
        "revert": (0, leaves.revert),
        "touch": (0, leaves.touch),
        "null": (0, lambda: None),
        "deleted": (0, workspace.remove_outputs),
        "clone": (0, workspace.clone),
    }
    return Contestant(tool, prepare, {row: step(row, *situation) for row, situation in situations.items()})


def _bazel(folder: Path, size: int, slow: Slow) -> Contestant:
    bazel = Bazel(folder / "tree", folder / "output")
    leaves = Leaves(bazel.root, size)
    actions = size + len(leaves.groups) + 1

    def prepare() -> None:
        _write(bazel.root, w1_files.bazel_files(leaves.groups))
        leaves.write()

    def step(row: str, sandboxed: int | None, before: Callable[[], None]) -> Step:
        return bazel.build(
            "//:root",
            sandboxed=sandboxed,
            before=before,
            then=lambda: leaves.expect_root(bazel.root / "bazel-bin/root.txt"),
            rounds=slow.get(row),
        )

    steps = {
        "cold": step("cold", actions, bazel.clean),
        "edit": step("edit", 3, leaves.edit),
        "revert": step("revert", None, leaves.revert),
        "touch": step("touch", 0, leaves.touch),
        "null": step("null", 0, lambda: None),
    }
    return Contestant("bazel", prepare, steps, bazel.shutdown, peer="bazel", served=True)


def _ninja(folder: Path, size: int, slow: Slow) -> Contestant:
    def check_null(finished: Finished) -> None:
        if "no work to do" not in finished.output:
            raise WrongWork("ninja found work to do in a null build")

    command = (program("ninja", "ninja"), "-j", JOBS)
    files, state = w1_files.ninja_files, ("out", ".ninja_log", ".ninja_deps")
    return _by_time("ninja", "ninja", command, files, state, folder, size, slow, check_null=check_null)


def _snakemake(folder: Path, size: int, slow: Slow) -> Contestant:
    command = (program("snakemake", "snakemake"), "--cores", JOBS, "--quiet", "all", "--", "out/root.txt")
    files, state = w1_files.snakemake_files, ("out", ".snakemake")
    return _by_time("snakemake", "snakemake", command, files, state, folder, size, slow)


def _redun(folder: Path, size: int, slow: Slow) -> Contestant:
    script = str(HERE / "programs" / "redun_w1.py")
    command = (program("redun", "redun"), "run", script, "main", "--groups", str(size // 100))
    return _by_time("redun", "redun", command, lambda groups: {}, ("out", ".redun"), folder, size, slow)


def _dvc(folder: Path, size: int, slow: Slow) -> Contestant:
    command = (program("dvc", "dvc"), "repro", "--quiet", "root")
    files, state = w1_files.dvc_files, ("out", ".dvc/cache", ".dvc/tmp", "dvc.lock")
    begin = (program("dvc", "dvc"), "init", "--no-scm", "--quiet")
    return _by_time("dvc", "dvc", command, files, state, folder, size, slow, begin=begin)


def _by_time(
    tool: str,
    peer: str,
    command: tuple[str, ...],
    files: Callable[[Sequence[str]], Mapping[str, str]],
    state: Sequence[str],
    folder: Path,
    size: int,
    slow: Slow,
    *,
    begin: tuple[str, ...] = (),
    check_null: Callable[[Finished], None] = lambda finished: None,
) -> Contestant:
    """A tool without a server that writes out/root.txt; `state` is what it leaves behind, `begin` sets it up."""
    leaves = Leaves(folder, size)

    def prepare() -> None:
        _write(folder, files(leaves.groups))
        leaves.write()
        if begin:
            subprocess.run(begin, cwd=folder, check=True, capture_output=True)

    def forget() -> None:
        for name in state:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def check(finished: Finished) -> None:
        leaves.expect_root(folder / "out/root.txt")

    def checked_null(finished: Finished) -> None:
        check(finished)
        check_null(finished)

    environment = {"XDG_CACHE_HOME": str(folder / ".cache"), "DVC_NO_ANALYTICS": "1"}
    situations = {"cold": forget, "edit": leaves.edit, "revert": leaves.revert, "touch": leaves.touch}
    steps = {
        row: Step(command, folder, environment, before, check, slow.get(row)) for row, before in situations.items()
    }
    steps["null"] = Step(command, folder, environment, check=checked_null, rounds=slow.get("null"))
    return Contestant(tool, prepare, steps, peer=peer)


def _write(root: Path, files: Mapping[str, str]) -> None:
    shutil.rmtree(root, ignore_errors=True)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


TOOLS: Mapping[str, Callable[[Path, int, Slow], Contestant]] = {
    "mrp": _mrp,
    "mrp sandboxed": _mrp_sandboxed,
    "ninja": _ninja,
    "bazel": _bazel,
    "snakemake": _snakemake,
    "redun": _redun,
    "dvc": _dvc,
}

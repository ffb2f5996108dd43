"""Sandboxed processes: trials of an mrp agent, each forked into fresh mounts, against Bazel's sandboxed commands."""

from pathlib import Path

from benchmarks.terms import Benchmark, Contestant, WrongWork
from benchmarks.workloads.bazel import Bazel
from benchmarks.workloads.items import rollout_files
from benchmarks.workloads.mrp import Workspace


def trials(size: int, *, rounds: int = 5) -> Benchmark:
    """`size` trials, or commands."""

    def contestants(folder: Path) -> list[Contestant]:
        return [_mrp(folder / "mrp", size), _bazel(folder / "bazel", size)]

    about = (
        f"{size:,} trials of a trivial Python agent that is not pure, each forked into mounts of its own; for Bazel "
        f"{size:,} genrules that write a line, each in linux-sandbox, by a warm server. Nothing is cached."
    )
    return Benchmark(f"trials-{size}", about, ("first",), rounds, contestants)


def _mrp(folder: Path, size: int) -> Contestant:
    workspace = Workspace(folder)
    step = workspace.build("//:solve", executed=size, cached=0, before=workspace.forget)
    return Contestant("mrp", lambda: workspace.write(rollout_files(size, pure=False)), {"first": step})


def _bazel(folder: Path, size: int) -> Contestant:
    bazel = Bazel(folder / "tree", folder / "output")

    def prepare() -> None:
        bazel.root.mkdir(parents=True)
        rules = [f'genrule(name = "r{n}", outs = ["r{n}.txt"], cmd = "echo {n} > $@")\n' for n in range(size)]
        names = ", ".join(f'":r{n}"' for n in range(size))
        (bazel.root / "WORKSPACE").touch()
        (bazel.root / "BUILD").write_text(f'{"".join(rules)}filegroup(name = "all_rules", srcs = [{names}])\n')

    def check() -> None:
        if (bazel.root / f"bazel-bin/r{size - 1}.txt").read_text() != f"{size - 1}\n":
            raise WrongWork("the last command did not write its line")

    step = bazel.build("//:all_rules", sandboxed=size, before=bazel.clean, then=check)
    return Contestant("bazel", prepare, {"first": step}, bazel.shutdown, peer="bazel", served=True)

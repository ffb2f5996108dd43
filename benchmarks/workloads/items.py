"""Items for a trivial Python function: a pure mrp agent against Ray, redun and joblib, a task an item."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.environments import HERE, MRP, program
from benchmarks.measure import Finished
from benchmarks.terms import Benchmark, Contestant, Slow, Step, WrongWork, nothing
from benchmarks.workloads.mrp import Workspace

AGENT = """\
from mrp.sdk import Agent, Result


class Echo(Agent):
    def run(self, task, ctx):
        return Result(metrics={"reward": 1})
"""


def pure(size: int, tools: tuple[str, ...], *, rounds: int = 5, slow: Mapping[str, Slow] | None = None) -> Benchmark:
    """`size` items by `tools`; `slow` says by tool which rows are done in fewer rounds."""
    fewer = slow or {}

    def contestants(folder: Path) -> list[Contestant]:
        return [TOOLS[tool](folder / tool, size, fewer.get(tool, {})) for tool in tools]

    about = (
        f"{size:,} items of a trivial Python function, one task an item. first: nothing is cached; again: all is. "
        "Ray's time is that of the tasks alone, without its start; the others are whole processes. Ray has no cache."
    )
    return Benchmark(f"pure-{size}", about, ("first", "again"), rounds, contestants)


def on_ray(size: int, *, rounds: int = 5) -> Benchmark:
    """`size` items by mrp's Ray engine and by Ray itself; the start of Ray is left out on both sides."""

    def contestants(folder: Path) -> list[Contestant]:
        return [_mrp_on_ray(folder / "mrp", size), _ray(folder / "ray", size, {})]

    about = (
        f"{size:,} items of a trivial Python function on a cluster of this machine: `mrp build --engine ray`, all of "
        "it but the start of Ray, and plain Ray with one task an item. Only mrp isolates items and keeps results."
    )
    return Benchmark(f"ray-{size}", about, ("first",), rounds, contestants)


def rollout_files(size: int, *, pure: bool) -> dict[str, str]:
    """A workspace with `//:solve`: a trivial agent on `size` generated records."""
    return {
        "echo.py": AGENT,
        "BUILD.yaml": (
            "mrp: 1\ntargets:\n"
            f"  items: {{kind: dataset, generate: {{range: {size}}}}}\n"
            f'  echo: {{kind: agent, version: "1", entry: "echo:Echo", srcs: ["echo.py"], pure: {str(pure).lower()}}}\n'
            '  solve: {kind: rollout, over: ":items", agent: ":echo"}\n'
        ),
    }


def _mrp(folder: Path, size: int, slow: Slow) -> Contestant:
    workspace = Workspace(folder)

    def check() -> None:
        trials = (workspace.root / "mrp-out/solve/trials.jsonl").read_bytes().count(b"\n")
        if trials != size:
            raise WrongWork(f"{trials} trials were written; expected were {size}")

    steps = {
        "first": workspace.build(
            "//:solve", executed=size, cached=0, before=workspace.forget, then=check, rounds=slow.get("first")
        ),
        "again": workspace.build("//:solve", executed=0, cached=size, then=check, rounds=slow.get("again")),
    }
    return Contestant("mrp", lambda: workspace.write(rollout_files(size, pure=True)), steps)


def _mrp_on_ray(folder: Path, size: int) -> Contestant:
    workspace = Workspace(folder)
    script, jobs = str(HERE / "programs" / "mrp_ray_items.py"), str(len(os.sched_getaffinity(0)))
    command = (str(MRP / "python"), script, str(size), jobs, str(workspace.root))
    environment = {"MRP_CACHE": str(folder / "cache")}
    check = _counted(size)
    step = Step(command, folder, environment, before=workspace.forget, check=check, inside=True)
    return Contestant("mrp", lambda: workspace.write(rollout_files(size, pure=True)), {"first": step}, served=True)


def _ray(folder: Path, size: int, slow: Slow) -> Contestant:
    command = _script("ray", "ray_items.py", str(size), str(len(os.sched_getaffinity(0))))
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    step = Step(command, folder, environment, check=_counted(size), rounds=slow.get("first"), inside=True)
    return Contestant("ray", lambda: folder.mkdir(parents=True), {"first": step}, peer="ray", served=True)


def _redun(folder: Path, size: int, slow: Slow) -> Contestant:
    script = str(HERE / "programs" / "redun_items.py")
    command = (program("redun", "redun"), "run", script, "main", "--size", str(size))
    return _cached("redun", command, folder, size, ".redun", slow)


def _joblib(folder: Path, size: int, slow: Slow) -> Contestant:
    return _cached("joblib", _script("joblib", "joblib_items.py", str(size)), folder, size, "cache", slow)


def _cached(tool: str, command: tuple[str, ...], folder: Path, size: int, cache: str, slow: Slow) -> Contestant:
    """A tool that keeps its cache in the folder `cache`."""

    def step(row: str, before: Callable[[], None]) -> Step:
        return Step(command, folder, before=before, check=_counted(size), rounds=slow.get(row))

    def forget() -> None:
        shutil.rmtree(folder / cache, ignore_errors=True)

    steps = {"first": step("first", forget), "again": step("again", nothing)}
    return Contestant(tool, lambda: folder.mkdir(parents=True), steps, peer=tool)


def _script(peer: str, name: str, *arguments: str) -> tuple[str, ...]:
    return (program(peer, "python"), str(HERE / "programs" / name), *arguments)


def _counted(size: int) -> Callable[[Finished], None]:
    def check(finished: Finished) -> None:
        if f"items: {size}" not in finished.output:
            raise WrongWork(f"the command did not say that it had {size} results")

    return check


TOOLS: Mapping[str, Callable[[Path, int, Slow], Contestant]] = {
    "mrp": _mrp,
    "ray": _ray,
    "redun": _redun,
    "joblib": _joblib,
}

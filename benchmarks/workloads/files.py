"""Source files: one large and many small, read for the first time and checked again; mrp against plain Python."""

import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.environments import HERE, MRP
from benchmarks.terms import Benchmark, Contestant, Step, nothing
from benchmarks.workloads.mrp import Workspace

PYTHON = str(MRP / "python")
SMALL = 4096
FOLDER = 100
"""Bytes of a small file, and how many lie in a folder."""

ABOUT = (
    "first is timed inside, without the start of a process: for mrp the digests of all sources, remembered with their "
    "stats; build is a whole first build, which also copies them into the cache and the sandbox of a trivial command; "
    "again is a whole build with nothing changed. All is in the page cache."
)


def large_file(size: int, *, rounds: int = 5) -> Benchmark:
    """One file of `size` bytes."""

    def contestants(folder: Path) -> list[Contestant]:
        workspace = Workspace(folder / "mrp", isolation="none")

        def prepare() -> None:
            workspace.write(_files("large.bin"))
            _write_random(workspace.root / "large.bin", size)

        return [_mrp(workspace, prepare, "large.bin"), _python("hash_file.py", workspace.root, "large.bin")]

    about = f"{_readable(size)} in one file, against BLAKE3 with mmap and threads, and against one stat. {ABOUT}"
    return Benchmark(
        f"file-{_readable(size).replace(' ', '')}", about, ("first", "build", "again"), rounds, contestants
    )


def small_files(number: int, *, rounds: int = 5) -> Benchmark:
    """`number` files of 4 KiB, 100 in a folder."""

    def contestants(folder: Path) -> list[Contestant]:
        workspace = Workspace(folder / "mrp", isolation="none")

        def prepare() -> None:
            workspace.write(_files("data/**"))
            for start in range(0, number, FOLDER):
                inner = workspace.root / "data" / f"d{start // FOLDER:04d}"
                inner.mkdir(parents=True)
                for index in range(start, min(start + FOLDER, number)):
                    (inner / f"f{index:06d}").write_bytes(os.urandom(SMALL))

        return [_mrp(workspace, prepare, "data"), _python("scan_files.py", workspace.root, "data")]

    about = (
        f"{number:,} files of 4 KiB in folders of {FOLDER}, against Python that scans, reads and hashes each with "
        f"BLAKE3, and against Python that scans, calls stat and compares with what it kept. {ABOUT}"
    )
    return Benchmark(f"files-{number}", about, ("first", "build", "again"), rounds, contestants)


def _files(sources: str) -> dict[str, str]:
    target = f'{{kind: command, srcs: ["{sources}"], outs: ["done.txt"], command: [sh, -c, "echo done > done.txt"]}}'
    return {"BUILD.yaml": f"mrp: 1\ntargets:\n  look: {target}\n"}


def _mrp(workspace: Workspace, prepare: Callable[[], None], path: str) -> Contestant:
    kept = workspace.root.parent / "digests"
    program = (PYTHON, str(HERE / "programs" / "mrp_files.py"), path, str(kept))
    steps = {
        "first": Step(program, workspace.root, before=lambda: kept.unlink(missing_ok=True), inside=True),
        "build": workspace.build("//:look", executed=1, cached=0, before=workspace.forget, rounds=2),
        "again": workspace.build("//:look", executed=0, cached=1),
    }
    return Contestant("mrp", prepare, steps)


def _python(name: str, root: Path, path: str) -> Contestant:
    """A program that is told what to read, and keeps what it found in a file beside the workspace."""
    kept = root.parent / "kept.json"

    def step(verb: str, before: Callable[[], None], inside: bool) -> Step:
        command = (PYTHON, str(HERE / "programs" / name), verb, path, str(kept))
        return Step(command, root, before=before, inside=inside)

    def forget() -> None:
        kept.unlink(missing_ok=True)

    return Contestant("python", nothing, {"first": step("first", forget, True), "again": step("again", nothing, False)})


def _write_random(path: Path, size: int) -> None:
    piece = 1024 * 1024
    with path.open("wb") as file:
        for start in range(0, size, piece):
            file.write(os.urandom(min(piece, size - start)))


def _readable(size: int) -> str:
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"

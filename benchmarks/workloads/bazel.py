"""Bazel as a contestant: a server of its own that stays warm, and every command in Bazel's linux-sandbox."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.environments import program
from benchmarks.measure import Finished
from benchmarks.terms import Step, WrongWork, nothing


class Bazel:
    """A Bazel workspace at `root`, whose server keeps its state in `output`."""

    def __init__(self, root: Path, output: Path) -> None:
        self.root = root
        self._program = (program("bazel", "bazel"), f"--output_user_root={output}", "--nohome_rc")

    def clean(self) -> None:
        """Remove all outputs; the server stays."""
        subprocess.run([*self._program, "clean"], cwd=self.root, check=True, capture_output=True)

    def shutdown(self) -> None:
        """End the server."""
        subprocess.run([*self._program, "shutdown"], cwd=self.root, capture_output=True)

    def build(
        self,
        target: str,
        *,
        sandboxed: int | None,
        before: Callable[[], None] = nothing,
        then: Callable[[], None] = nothing,
        rounds: int | None = None,
    ) -> Step:
        """A build that must run exactly `sandboxed` commands, if it is said how many."""

        def check(finished: Finished) -> None:
            said = re.search(r"(\d+) linux-sandbox", finished.output)
            ran = int(said[1]) if said else 0
            if sandboxed is not None and ran != sandboxed:
                raise WrongWork(f"{ran} commands ran in linux-sandbox; expected were {sandboxed}")
            then()

        jobs = len(os.sched_getaffinity(0)) + 1
        flags = ("--spawn_strategy=linux-sandbox", "--nosandbox_debug", f"--jobs={jobs}", "--noshow_progress")
        return Step((*self._program, "build", target, *flags), self.root, {}, before, check, rounds)

"""The two agents that calibrate every rollout: one applies the reference solution, one does nothing."""

from __future__ import annotations

import os
from pathlib import Path

from mrp.sdk.operators import Agent
from mrp.sdk.values import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mrp.sdk.context import Context
    from mrp.sdk.values import Task


class Oracle(Agent):
    """Runs /solution/solve.sh in /work when there is one, else copies /solution over /work."""

    def run(self, task: Task, ctx: Context) -> Result:
        """Apply the solution; failed when there is none, or when solve.sh ends with another code than 0."""
        if task.solution is None or not os.listdir(task.solution):
            return Result("failed", "the record has no solution; declare `solution` in its dataset")
        script = task.solution / "solve.sh"
        if not script.is_file():
            copy_over(task.solution, task.work)
            return Result()
        done = ctx.exec([_shell(), str(script)], stdout=None, stderr=None)
        return (
            Result() if done.returncode == 0 else Result("failed", f"solve.sh ended with exit code {done.returncode}")
        )


class Nop(Agent):
    """Leaves /work as it is."""

    def run(self, task: Task, ctx: Context) -> None:
        """Do nothing; ok."""


def copy_over(source: Path, target: Path) -> None:
    """Lay the content of folder `source` over folder `target`: bytes, the executable bit and symlinks.

    A symlink or file of `target` that is in the way is replaced, never written through.
    """
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        place = target / entry.name
        if entry.is_dir(follow_symlinks=False):
            if place.is_symlink() or place.is_file():
                place.unlink()
            place.mkdir(exist_ok=True)
            copy_over(Path(entry.path), place)
            continue
        if place.is_symlink() or place.exists():
            place.unlink()
        if entry.is_symlink():
            place.symlink_to(os.readlink(entry.path))
            continue
        place.write_bytes(Path(entry.path).read_bytes())
        place.chmod(0o755 if entry.stat().st_mode & 0o100 else 0o644)


def _shell() -> str:
    for folder in os.environ.get("PATH", "/usr/bin:/bin").split(":"):
        if (Path(folder) / "bash").is_file():
            return "bash"
    return "sh"

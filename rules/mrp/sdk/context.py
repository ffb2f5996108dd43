"""What an operator may do beside its own work: run programs, log, ask its model."""

from __future__ import annotations

from pathlib import Path

from mrp.sdk.writing import json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from typing import Any

    from mrp.sdk.values import Task


class Context:
    """Handed to every operator.

    params: the target's params merged with the matrix values of its cell. group_by: the keys of a reduction. seed: 63
    bits that differ by record and sample; `random` is already seeded with it. sample: counts from 0. task: what agents
    and graders work on, else None. model: an OpenAI-style client; None when the rollout has no model.
    """

    def __init__(
        self,
        *,
        params: Mapping[str, Any],
        seed: int,
        sample: int,
        output: Path,
        cwd: Path,
        task: Task | None = None,
        model: Any = None,
        group_by: Sequence[str] = (),
    ) -> None:
        self.params = params
        self.group_by = tuple(group_by)
        self.seed = seed
        self.sample = sample
        self.task = task
        self.model = model
        self._trajectory = output / "trajectory.jsonl"
        self._cwd = cwd

    def exec(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program in the working folder and wait for it; stdout and stderr come back as text.

        `options` go to subprocess.run (`input`, `cwd`, `env`, `timeout`, ...). A non-zero exit code is no exception;
        a program that is not there is FileNotFoundError.
        """
        import subprocess

        settings: dict[str, Any] = {
            "cwd": self._cwd,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "encoding": "utf-8",
            "errors": "replace",
        }
        if "input" not in options:
            settings["stdin"] = subprocess.DEVNULL
        settings.update(options)
        return subprocess.run([str(word) for word in argv], **settings)

    def log(self, text: str) -> None:
        """Add a line to the trial's trajectory.jsonl; it is there even when the process is killed right after."""
        with self._trajectory.open("a", encoding="utf-8") as file:
            file.write(json_text({"type": "log", "text": str(text)}) + "\n")

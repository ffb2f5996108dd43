"""Workspaces whose rollouts ask a model."""

import re
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from support.fake_openai import FakeOpenAI
from support.kinds import TASKS, Targets, workspace
from support.places import Place

AGENT = """
from mrp.sdk import Agent

class Asker(Agent):
    def run(self, task, ctx):
        said = [task.record["text"]]
        for number in range(ctx.params.get("calls", 2)):
            said.append(ctx.model.ask(f"{number}: {said[-1]}"))
            (task.work / "said.txt").write_text("\\n".join(said[1:]))
"""
"""Asks its model so many times, each time about what it said before."""

ASKER: dict[str, Any] = {"kind": "agent", "version": "1.0.0", "entry": "agent:Asker", "srcs": ["agent.py"]}


def openai_model(fake: FakeOpenAI, **more: Any) -> dict[str, Any]:
    return {"kind": "model", "provider": "openai", "model": "tiny", "url": fake.url, **more}


def asking(folder: Path, model: dict[str, Any], *, files: dict[str, str | bytes] | None = None, **more: Any) -> Place:
    """A workspace with a rollout `solve` over two records, whose agent asks `model`; `more` are members of it."""
    solve = {"kind": "rollout", "over": "tasks", "agent": "asker", "model": "tiny", **more}
    targets: Targets = {**TASKS, "tiny": model, "asker": ASKER, "solve": solve}
    return workspace(folder, targets, {"agent.py": AGENT, **(files or {})})


def copy_packages(name: str, folder: Path) -> None:
    """Copy an installed distribution, with all that it needs, as what stands in site-packages."""
    waiting, seen = [name], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        needs = [need for need in found.requires or () if "extra ==" not in need]
        waiting += [match[0] for need in needs if (match := re.match(r"[A-Za-z0-9._-]+", need))]
        for file in found.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(file.locate()), target)

"""How-to pages as something to run: files that they show are written, commands that they show are run.

A block of code whose first line is a comment with a path is that file. The lines of a block marked `sh` are run, one
after the other; a block marked `console` shows what needs root, an account or another machine, and is not run.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.places import MRP, Place

DOCS = Path(__file__).parents[2] / "docs"

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_PATH = re.compile(r"(?:#|//) (\S+\.\w+|\S*BUILD\.yaml)\Z")


@dataclass(frozen=True)
class Shown:
    """A file of a page, or a command when `path` is None."""

    path: str | None
    text: str


def steps(page: str) -> list[Shown]:
    """The files and commands of docs/`page`.md, in order."""
    found = []
    for kind, text in _BLOCK.findall((DOCS / f"{page}.md").read_text()):
        first, _, rest = text.partition("\n")
        named = _PATH.match(first)
        if kind == "sh":
            found += [Shown(None, line) for line in _commands(text)]
        elif kind != "console" and named:
            found.append(Shown(named[1], rest))
    return found


def follow(page: str, place: Place, **environment: str) -> list[str]:
    """Do what a page says in an empty folder; gives the commands that were run. Fails at the first that fails."""
    ran = []
    for step in steps(page):
        if step.path is not None:
            place.write({step.path: step.text})
            continue
        script = f'mrp() {{ {" ".join(MRP)} "$@"; }}\n{step.text}\n'
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=place.folder,
            env=place.environment(**environment),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"docs/{page}.md: {step.text}\n{done.stdout}\n{done.stderr}"
        ran.append(step.text)
    return ran


def require_packages(page: str, place: Place) -> None:
    """Skip where the first thing that a page does, to lock packages of Debian, cannot be done."""
    place.write({step.path: step.text for step in steps(page) if step.path is not None})
    if place.mrp("image", "lock", "//:py").returncode:
        pytest.skip("the packages of Debian cannot be had here")


def _commands(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    lines = [line.partition("  #")[0].rstrip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]

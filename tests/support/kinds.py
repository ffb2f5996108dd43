"""Workspaces for stories of kinds: targets as a dict, files by path, one package or several."""

import json
from pathlib import Path
from typing import Any

from support.places import Place, QuickPlace

Targets = dict[str, Any]

ROWS = "".join(json.dumps({"id": name, "text": f"text of {name}"}) + "\n" for name in ("a", "b"))
TASKS: Targets = {"tasks": {"kind": "dataset", "srcs": ["rows.jsonl"], "id": "id"}}
"""A dataset of two rows, for stories of what works on it; `rows.jsonl` is ROWS."""


def workspace(
    folder: Path, targets: Targets, files: dict[str, str | bytes] | None = None, **packages: Targets
) -> Place:
    """A workspace whose root package holds `targets`, with further packages by name."""
    written: dict[str, str | bytes] = {"mrp.yaml": "mrp: 1\nname: kinds\n", "rows.jsonl": ROWS}
    for package, declared in {"": targets, **packages}.items():
        written[f"{package}/BUILD.yaml".lstrip("/")] = json.dumps({"mrp": 1, "targets": declared}, indent=1)
    return QuickPlace(folder / "ws").write({**written, **(files or {})})


def policy(place: Place, **fields: Any) -> None:
    """Give a workspace a policy file with these fields."""
    place.write(
        {
            "mrp.yaml": "mrp: 1\nname: kinds\npolicy: policy.yaml\n",
            "policy.yaml": json.dumps({"mrp": 1, **fields}),
        }
    )


def text(place: Place, path: str) -> str:
    """A text output under mrp-out."""
    return (place.folder / "mrp-out" / path).read_text()


def lines(place: Place, path: str) -> list[Any]:
    """The values of a JSON-lines output under mrp-out."""
    return [json.loads(line) for line in text(place, path).splitlines()]


def trials(place: Place, target: str = "solve") -> list[Any]:
    """The rows of a rollout's trials.jsonl."""
    return lines(place, f"{target}/trials.jsonl")


def shell(version: str = "1", *, script: str, **fields: Any) -> dict[str, Any]:
    """An agent that is one line of shell."""
    return {"kind": "agent", "version": version, "command": ["sh", "-c", script], **fields}

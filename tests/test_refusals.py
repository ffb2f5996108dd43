"""What may not run is refused when a workspace is compiled, with its place and a reason, on each backend alike."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.kinds import workspace

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    "an image tag without a digest": ({"base": "python:3.12"}, {}, 3, "the image python:3.12 is not pinned"),
    "a secret value": ({}, {"env": {"KEY": "ghp_" + "a1B2" * 9}}, 3, "looks like"),
    "an open network": ({}, {"network": "open"}, 3, "network"),
    "a GPU": ({}, {"limits": {"gpus": {"count": 1}}}, 2, "has no GPUs"),
}


@pytest.mark.parametrize("place", ["local", "daytona"])
@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_before_anything_runs(tmp_path: Path, case: str, place: str) -> None:
    image, box, code, words = REFUSED[case]
    ws = workspace(
        tmp_path,
        {
            "rows": {"kind": "dataset", "srcs": ["rows.jsonl"]},
            "os": {"kind": "image", "base": "scratch", **image},
            "box": {"kind": "sandbox", "image": ":os", **box},
            "me": {"kind": "agent", "version": "1", "command": ["true"]},
            "solve": {"kind": "rollout", "over": ":rows", "agent": ":me", "sandbox": ":box"},
        },
        {"rows.jsonl": json.dumps({"id": "a"}) + "\n"},
    )
    done = ws.mrp("build", "//:solve", "--sandbox", place)
    assert done.returncode == code, done.stderr
    assert "BUILD.yaml:" in done.stderr
    assert words in " ".join(done.stderr.split())
    assert not (ws.folder / ".mrp" / "runs").exists()

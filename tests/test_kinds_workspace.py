"""Stories of mrp.yaml: configs that select, engines and backends that are not there, providers of secrets."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.kinds import Targets, shell, text, trials, workspace

CHOICE = {
    "made": {
        "kind": "command",
        "outs": ["o"],
        "command": ["sh", "-c", {"select": {"fast": "echo fast > o", "default": "echo plain > o"}}],
    }
}


def write_root(place: Any, **fields: Any) -> None:
    place.write({"mrp.yaml": json.dumps({"mrp": 1, "name": "kinds", **fields})})


def test_a_config_selects_and_sets_how_things_run(tmp_path: Path) -> None:
    ws = workspace(tmp_path, CHOICE)
    write_root(ws, configs={"fast": {"jobs": 1}, "far": {"engine": "modal"}, "docker": {"sandbox": "docker"}})
    ws.build("//:made")
    assert text(ws, "made/o") == "plain\n"
    ws.build("//:made", "--config", "fast")
    assert text(ws, "made/o") == "fast\n"
    started = json.loads((ws.runs()[-1] / "events.jsonl").read_text().splitlines()[0])
    assert started["jobs"] == 1
    for config, word in (("far", "the modal engine"), ("docker", "the docker backend")):
        refused = ws.mrp("build", "//:made", "--config", config)
        assert refused.returncode == 2
        assert f"the machine's own system, which {word} does not have" in refused.stderr
    assert ws.mrp("plan", "//:made", "--config", "fast").returncode == 0
    assert len(ws.runs()) == 2, "what is refused leaves no run behind"


@pytest.mark.parametrize("provider", ["dotenv", "command"])
def test_secrets_come_from_a_file_or_a_program(tmp_path: Path, provider: str) -> None:
    targets: Targets = {
        "one": {"kind": "dataset", "generate": {"range": 1}},
        "box": {"kind": "sandbox", "secrets": ["TOKEN"]},
        "me": shell(script='test "$TOKEN" = open-sesame'),
        "solve": {"kind": "rollout", "over": ":one", "agent": ":me", "sandbox": ":box"},
    }
    ws = workspace(tmp_path, targets, {"keys.env": "# keys\nexport TOKEN='open-sesame'\n"})
    fields: dict[str, Any] = {"provider": "dotenv", "path": "keys.env"}
    if provider == "command":
        fields = {"provider": "command", "command": ["sh", "-c", "test $0 = TOKEN && echo open-sesame"]}
    write_root(ws, policy="policy.yaml", secrets=fields)
    ws.write({"policy.yaml": '{"mrp": 1, "secrets": ["TOKEN"]}'})
    ws.build("//:solve")
    assert trials(ws)[0]["outcome"] == "ok"

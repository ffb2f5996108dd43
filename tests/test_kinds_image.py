"""Stories of images and sandboxes: what is in them, what they allow, what their limits are called."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from support.kinds import TASKS, Targets, policy, shell, text, trials, workspace
from support.serving import served

ASK = {"kind": "dataset", "generate": {"range": 1}}


def archive(files: dict[str, str]) -> bytes:
    """A tar archive of text files, packed with gzip."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    return packed.getvalue()


def test_layers_lie_over_the_machine_and_over_each_other(tmp_path: Path) -> None:
    local, remote = archive({"opt/data/local.txt": "local\n"}), archive({"opt/data/remote.txt": "remote\n"})
    look = [
        "/opt/agent/run.sh; cat /opt/one/named.txt /opt/data/local.txt /opt/data/remote.txt /opt/tool/built",
        "readlink /opt/link; test -d /var/cache/thing && echo dir; echo $COLOR $SHAPE; id -u; id -g",
    ]
    with served({"/remote.tar.gz": remote}) as (address, asked):
        ws = workspace(
            tmp_path,
            {
                "built": {"kind": "command", "outs": ["built"], "command": ["sh", "-c", "echo built > built"]},
                "low": {
                    "kind": "image",
                    "base": "host",
                    "layers": [
                        {"copy": {"agent/": "/opt/agent", "one.txt": "/opt/one/named.txt", ":built": "/opt/tool"}},
                        {"dirs": ["/var/cache/thing"]},
                        {"links": {"/opt/link": "/opt/one/named.txt"}},
                        {"tar": "local.tar.gz", "sha256": hashlib.sha256(local).hexdigest()},
                        {"tar": f"{address}/remote.tar.gz", "sha256": hashlib.sha256(remote).hexdigest()},
                    ],
                    "env": {"COLOR": "red", "SHAPE": "round"},
                },
                "high": {"kind": "image", "base": ":low", "env": {"COLOR": "blue"}, "user": "1234:2345"},
                "box": {"kind": "sandbox", "image": ":high"},
                "look": {
                    "kind": "command",
                    "outs": ["o"],
                    "command": ["sh", "-c", f"({'; '.join(look)}) > o"],
                    "sandbox": ":box",
                },
            },
            {"agent/run.sh": "#!/bin/sh\necho ran\n", "one.txt": "one\n", "local.tar.gz": local},
        )
        (ws.folder / "agent/run.sh").chmod(0o755)
        ws.build("//:look")
        kinds = [kind for kind, _, _ in ws.executed()]
        assert kinds == ["command", "command", "fetch", "image", "image"]
        assert asked == ["/remote.tar.gz"]
    assert text(ws, "look/o").splitlines() == [
        *("ran", "one", "local", "remote", "built", "/opt/one/named.txt", "dir", "blue round", "1234", "2345"),
    ]
    assert ws.build("//:look")["executed"] == 0
    ws.write({"one.txt": "another\n"})
    ws.build("//:look")
    assert [(kind, label) for kind, label, _ in ws.executed()] == [
        *(("command", "//:look"), ("image", "//:high"), ("image", "//:low")),
    ]
    ws.write({"local.tar.gz": archive({"a": "b"})})
    assert "correct one of them" in ws.build("//:look", code=1)["reason"]


def test_a_toolchain_shows_its_programs_and_no_others(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            "small": {"kind": "image", "base": "host", "toolchain": ["sh", "cat", "python3"]},
            "box": {"kind": "sandbox", "image": ":small"},
            "look": {
                "kind": "command",
                "outs": ["o"],
                "command": [
                    "sh",
                    "-c",
                    "for p in cat python3 perl git; do command -v $p; done > o; python3 -c 'import json'",
                ],
                "sandbox": ":box",
            },
            "lost": {"kind": "image", "base": "host", "toolchain": ["no-such-program"]},
            "other": {"kind": "sandbox", "image": ":lost"},
            "never": {"kind": "command", "outs": ["o"], "command": ["true"], "sandbox": ":other"},
        },
    )
    ws.build("//:look")
    assert [line.rpartition("/")[2] for line in text(ws, "look/o").splitlines()] == ["cat", "python3"]
    assert "no-such-program" in ws.build("//:never", code=1)["reason"]


LATER_IMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "npm": ({"base": "host", "layers": [{"npm": "lock"}]}, "has a `npm` layer, which this version cannot build"),
    "run": ({"base": "host", "layers": [{"run": [["true"]]}]}, "has a `run` layer"),
}
LATER_BOXES: dict[str, tuple[dict[str, Any], str]] = {
    "volumes": ({"volumes": {"/memory": {"name": "memory"}}}, "has volumes, which this version cannot mount"),
}


def test_what_needs_another_backend_is_planned_and_refused_before_it_runs(tmp_path: Path) -> None:
    targets: Targets = {**TASKS}
    for name, (fields, _) in LATER_IMAGES.items():
        targets |= {f"image-{name}": {"kind": "image", **fields}}
        targets |= {f"box-{name}": {"kind": "sandbox", "image": f":image-{name}"}}
    targets |= {f"box-{name}": {"kind": "sandbox", **fields} for name, (fields, _) in LATER_BOXES.items()}
    solves = {name: f"//:solve-{name}" for name in (*LATER_IMAGES, *LATER_BOXES)}
    for name in solves:
        fields = {"over": ":tasks", "agent": "builtin:nop", "sandbox": f":box-{name}"}
        targets[f"solve-{name}"] = {"kind": "rollout", **fields}
    ws = workspace(tmp_path, targets, {"lock": ""})
    assert ws.mrp("compile", *solves.values(), "-o", str(tmp_path / "compiled")).returncode == 0
    assert "//:image-npm" in ws.mrp("query", "deps(//:solve-npm)").stdout
    plan = ws.mrp("plan", *solves.values()).stdout
    built = ws.mrp("build", *solves.values())
    assert built.returncode == 4
    assert "\n0 actions: 0 executed" in f"\n{built.stdout}"
    for name, (_, message) in LATER_IMAGES.items():
        assert f"//:image-{name}: cannot be built: //:image-{name} " in plan
        assert any(message in line for line in built.stderr.splitlines() if f"//:image-{name} " in line)
    for name, (_, message) in LATER_BOXES.items():
        assert any(message in line for line in plan.splitlines() if f"//:box-{name}:" in line)
        assert any(message in line for line in built.stderr.splitlines() if f"//:box-{name} " in line)


EATER = """
import os, time
from mrp.sdk import Agent

class Eater(Agent):
    def run(self, task, ctx):
        getattr(self, ctx.params["what"])()

    def wall(self):
        time.sleep(600)

    def memory(self):
        data = bytearray(400 * 2**20)
        for n in range(0, len(data), 4096):
            data[n] = 1

    def pids(self):
        for n in range(200):
            if os.fork() == 0:
                time.sleep(600)

    def disk(self):
        open("big", "wb").write(b"x" * (64 * 2**20))
"""


LIMITS = ["disk", "memory", "pids"]


def test_a_trial_over_a_limit_says_which(tmp_path: Path) -> None:
    eat = {"kind": "rollout", "over": ":one", "agent": ":eater", "grade": {"command": ["true"]}}
    targets: Targets = {
        "one": ASK,
        "small": {"kind": "sandbox", "limits": {"wall": "10m", "memory": "256MiB", "pids": 32, "disk": "16MiB"}},
        "hasty": {"kind": "sandbox", "limits": {"wall": "1s"}},
        "eater": {"kind": "agent", "version": "1", "entry": "eater:Eater"},
        "eat": {**eat, "sandbox": ":small", "matrix": {"what": LIMITS}},
        "wait": {**eat, "sandbox": ":hasty", "matrix": {"what": ["wall"]}},
        "all": {"kind": "reduction", "of": ["eat", "wait"], "reducer": "count", "group_by": ["what"]},
        "rows": {"kind": "reduction", "of": ["eat", "wait"], "reducer": "concat"},
    }
    ws = workspace(tmp_path, targets, {"eater.py": EATER})
    report = ws.build("//:rows", "//:all")
    rows = ws.output("rows/result.json")["rows"]
    assert {row["matrix"]["what"]: (row["outcome"], row["limit"]) for row in rows} == {
        what: ("limit", what) for what in [*LIMITS, "wall"]
    }
    assert all(row["rewards"] == {"reward": 1} for row in rows), "what was left is graded all the same"
    assert report["targets"]["//:rows"]["reproducible"] is False, "a wall limit depends on the machine"
    marked = {
        (line["kind"], line["label"]) for line in map(json.loads, ws.digests().splitlines()) if not line["reproducible"]
    }
    assert marked == {
        ("trial", "//:wait@what=wall"),
        ("grade", "//:wait@what=wall"),
        ("reduction", "//:rows"),
        ("reduction", "//:all"),
    }
    assert ws.build("//:rows")["executed"] == 0, "limits are results"
    ws.build("//:rows", "--retry-limits")
    assert ("trial", "//:wait@what=wall") in [(kind, label) for kind, label, _ in ws.executed()]
    assert ("trial", "//:eat@what=disk") not in [(kind, label) for kind, label, _ in ws.executed()]


def test_only_allowed_programs_can_be_executed(tmp_path: Path) -> None:
    try_all = (
        "cp /bin/ls mine; for p in cat ls ./mine; do $p /task/record.json > /dev/null 2>&1 && echo $p; done > ran; true"
    )
    ws = workspace(
        tmp_path,
        {
            "one": ASK,
            "strict": {"kind": "sandbox", "allow": ["sh", "cat", "cp", "grep"]},
            "me": shell(script=try_all),
            "try": {
                "kind": "rollout",
                "over": ":one",
                "agent": ":me",
                "sandbox": ":strict",
                "grade": {"command": ["sh", "-c", 'test "$(cat ran)" = cat']},
            },
        },
    )
    ws.build("//:try")
    assert trials(ws, "try")[0]["rewards"] == {"reward": 1}


def test_setup_runs_once_and_every_process_starts_from_it(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            **TASKS,
            "box": {
                "kind": "sandbox",
                "setup": {"run": [["sh", "-c", "echo one > state"], ["sh", "-c", "echo two >> state"]]},
            },
            "me": shell(script="grep -q two state && echo $MRP_RECORD_ID >> state"),
            "solve": {
                "kind": "rollout",
                "over": ":tasks",
                "agent": ":me",
                "sandbox": ":box",
                "samples": 2,
                "grade": {"command": ["sh", "-c", "grep -q one state && grep -q $MRP_RECORD_ID state"]},
            },
            "mean": {
                "kind": "reducer",
                "version": "1",
                "sandbox": ":box",
                "command": ["sh", "-c", "test -s state && echo '{\"ok\": 1}' > /out/result.json"],
            },
            "own": {"kind": "reduction", "of": ["solve"], "reducer": ":mean", "expect": "ok == 1"},
            "judge": {
                "kind": "evaluator",
                "version": "1",
                "command": ["sh", "-c", "test -s state && echo '{\"ok\": 1}' > /out/result.json"],
            },
            "judged": {"kind": "evaluation", "of": ":own", "evaluator": ":judge", "sandbox": ":box"},
        },
    )
    ws.build("//:judged", "//:solve")
    assert [row["rewards"] for row in trials(ws)] == [{"reward": 1}] * 4
    assert [kind for kind, _, _ in ws.executed()].count("setup") == 1
    ws.edit("BUILD.yaml", "echo one > state", "echo one > state; echo more > other")
    ws.build("//:solve")
    assert sorted({kind for kind, _, _ in ws.executed()}) == ["grade", "setup", "trial"]


def test_a_failed_setup_says_why_and_runs_no_trial(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            **TASKS,
            "box": {"kind": "sandbox", "setup": {"run": [["sh", "-c", "echo no such thing >&2; exit 7"]]}},
            "nop": {"kind": "rollout", "over": ":tasks", "agent": "builtin:nop", "sandbox": ":box"},
        },
    )
    report = ws.build("//:nop", code=1)
    assert "//:box failed: exit code 7: no such thing" in report["reason"]
    assert [kind for kind, _, _ in ws.executed()] == ["setup"]


def test_secrets_are_given_by_name_and_never_kept(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            "one": ASK,
            "box": {"kind": "sandbox", "secrets": ["MY_TOKEN"], "env": {"PLAIN": "seen"}},
            "me": shell(script="echo $MY_TOKEN > leaked; echo token $MY_TOKEN; echo $PLAIN > plain"),
            "solve": {
                "kind": "rollout",
                "over": ":one",
                "agent": ":me",
                "sandbox": ":box",
                "grade": {"command": ["grep", "-qx", "seen", "plain"]},
            },
        },
    )
    refused = ws.mrp("build", "//:solve", MY_TOKEN="s3cr3t-value")
    assert refused.returncode == 3 and "MY_TOKEN is not allowed" in refused.stderr
    policy(ws, secrets=["MY_TOKEN"])
    report = ws.build("//:solve", code=4)
    assert "the secret MY_TOKEN has no value" in report["reason"]
    assert ws.mrp("build", "//:solve", MY_TOKEN="s3cr3t-value").returncode == 0
    assert trials(ws)[0]["rewards"] == {"reward": 1}
    for folder in (ws.cache, ws.folder):
        for path in folder.rglob("*"):
            assert not path.is_file() or b"s3cr3t-value" not in path.read_bytes(), path
    assert ws.mrp("build", "//:solve", MY_TOKEN="another-value").stdout.endswith("0 executed, 2 cached, 0 failed\n")


def test_there_is_no_network_unless_policy_opens_it(tmp_path: Path) -> None:
    ask = "import socket, sys\nsocket.create_connection(('127.0.0.1', int(sys.argv[1])), 2)\nopen('reached', 'w')\n"
    with served({}) as (address, _):
        port = address.rpartition(":")[2]
        targets: Targets = {
            "one": ASK,
            "open": {"kind": "sandbox", "network": "open"},
            "me": {"kind": "agent", "version": "1", "command": ["python3", "ask.py", port], "srcs": ["ask.py"]},
            "closed": {"kind": "rollout", "over": ":one", "agent": ":me"},
            "opened": {"kind": "rollout", "over": ":one", "agent": ":me", "sandbox": ":open"},
        }
        ws = workspace(tmp_path, targets, {"ask.py": ask})
        refused = ws.mrp("build", "//:opened")
        assert refused.returncode == 3 and "the network is not open" in refused.stderr
        policy(ws, network=["*"])
        ws.build("//:closed", "//:opened")
    assert trials(ws, "closed")[0]["outcome"] == "failed"
    assert trials(ws, "opened")[0]["outcome"] == "ok"

"""Stories of commands: what they find, what they leave, what makes them run again."""

import json
from pathlib import Path

from support.kinds import text, workspace


def test_a_command_sees_only_its_sources_and_leaves_only_its_outs(tmp_path: Path) -> None:
    look = 'found=$(find /work -type f | sort); echo "$found" > seen.txt; pwd >> seen.txt; echo junk > junk.txt'
    ws = workspace(
        tmp_path,
        {},
        {"pkg/a.txt": "a", "pkg/sub/b.txt": "b", "pkg/other.md": "no", "elsewhere.txt": "no"},
        pkg={
            "made": {"kind": "command", "outs": ["made.txt"], "command": ["sh", "-c", "echo made > made.txt"]},
            "look": {
                "kind": "command",
                "srcs": ["*.txt", "sub/*.txt", ":made"],
                "outs": ["seen.txt"],
                "command": ["sh", "-c", look],
            },
        },
    )
    report = ws.build("//pkg:look")
    seen = text(ws, "pkg/look/seen.txt").splitlines()
    assert seen == [
        "/work/pkg/a.txt",
        "/work/pkg/made.txt",
        "/work/pkg/sub/b.txt",
        "/work/pkg",
    ]
    assert list(report["targets"]["//pkg:look"]["outputs"]) == ["seen.txt"]
    assert not (ws.folder / "mrp-out/pkg/look/junk.txt").exists()


def test_srcs_and_outs_are_filled_in_and_env_is_given(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            "joined": {
                "kind": "command",
                "srcs": ["one.txt", "two.txt"],
                "outs": ["joined.txt", "folder"],
                "command": [
                    "sh",
                    "-c",
                    'mkdir -p folder/in; cat "$1" "$2" > "$3"; echo $WORD > "$4/in/w"',
                    "x",
                    "${srcs}",
                    "${outs}",
                ],
                "env": {"WORD": "hello"},
            },
            "inside": {
                "kind": "command",
                "srcs": [":joined"],
                "outs": ["all.txt"],
                "command": ["sh", "-c", "echo ${srcs} > ${outs}; cat folder/in/w >> all.txt"],
            },
        },
        {"one.txt": "1\n", "two.txt": "2\n"},
    )
    report = ws.build("//:joined", "//:inside")
    assert text(ws, "joined/joined.txt") == "1\n2\n"
    assert text(ws, "joined/folder/in/w") == "hello\n"
    assert text(ws, "inside/all.txt") == "folder/in/w joined.txt\nhello\n"
    assert sorted(report["targets"]["//:joined"]["outputs"]) == ["folder", "joined.txt"]
    assert ws.build("//:inside")["executed"] == 0
    ws.edit("BUILD.yaml", '"WORD": "hello"', '"WORD": "bye"')
    ws.build("//:inside")
    assert [label for _, label, _ in ws.executed()] == ["//:inside", "//:joined"], "env is in the key"


def test_a_command_that_makes_the_same_bytes_stops_the_rebuild(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            "sorted": {
                "kind": "command",
                "srcs": ["in.txt"],
                "outs": ["out.txt"],
                "command": ["sort", "-o", "out.txt", "in.txt"],
            },
            "after": {
                "kind": "command",
                "srcs": [":sorted"],
                "outs": ["n"],
                "command": ["sh", "-c", "wc -l < out.txt > n"],
            },
        },
        {"in.txt": "b\na\n"},
    )
    ws.build("//:after")
    ws.write({"in.txt": "a\nb\n"})
    ws.build("//:after")
    assert [label for _, label, _ in ws.executed()] == ["//:sorted"]


def test_a_command_works_on_what_its_sandbox_set_up(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            "box": {"kind": "sandbox", "setup": {"run": [["sh", "-c", "echo ready > state"]]}, "env": {"COLOR": "red"}},
            "made": {
                "kind": "command",
                "outs": ["out.txt"],
                "command": ["sh", "-c", "cat state > out.txt; echo $COLOR >> out.txt"],
                "sandbox": ":box",
            },
        },
    )
    ws.build("//:made")
    assert text(ws, "made/out.txt") == "ready\nred\n"
    assert [kind for kind, _, _ in ws.executed()] == ["command", "setup"]


def test_links_and_executable_bits_survive(tmp_path: Path) -> None:
    make = "mkdir tool; echo '#!/bin/sh\necho ran' > tool/run; chmod +x tool/run; ln -s run tool/link; mkdir tool/empty"
    ws = workspace(
        tmp_path,
        {
            "tool": {"kind": "command", "outs": ["tool"], "command": ["sh", "-c", make]},
            "use": {
                "kind": "command",
                "srcs": [":tool"],
                "outs": ["out.txt"],
                "command": [
                    "sh",
                    "-c",
                    "./tool/link > out.txt; readlink tool/link >> out.txt; ls -d tool/empty >> out.txt",
                ],
            },
        },
    )
    ws.build("//:use")
    assert text(ws, "use/out.txt") == "ran\nrun\ntool/empty\n"


def test_what_failed_is_said_once(tmp_path: Path) -> None:
    ws = workspace(tmp_path, {"bad": {"kind": "command", "outs": ["out.txt"], "command": ["false"]}})
    done = ws.mrp("build", "//:bad")
    assert (done.returncode, done.stderr.count("//:bad")) == (1, 1), done.stderr


def test_an_unknown_program_is_a_failure_that_names_it(tmp_path: Path) -> None:
    ws = workspace(tmp_path, {"x": {"kind": "command", "outs": ["o"], "command": ["no-such-program", "now"]}})
    report = ws.build("//:x", code=1)
    assert "no-such-program: No such file or directory" in report["reason"]


def test_a_command_over_its_limit_fails_and_says_which(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            "box": {"kind": "sandbox", "limits": {"wall": "500ms"}},
            "slow": {"kind": "command", "outs": ["o"], "command": ["sleep", "60"], "sandbox": ":box"},
        },
    )
    report = ws.build("//:slow", code=1)
    assert "//:slow limit: went over its wall limit" in report["reason"]
    record = json.loads((ws.runs()[-1] / "run.json").read_text())
    assert record["status"] == "failed"

"""The property that a build system lives by: an incremental build equals a clean one.

Random workspaces get random edits; after each, the digests of a build that kept its cache equal those of a build that
began with nothing. A rebuilder that ignores one component of the key must be caught by the very same check.
"""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrp.rules import action, rollout
from mrp.runtime.build import build
from mrp.runtime.options import BuildOptions
from mrp.runtime.report import BuildReport


@dataclasses.dataclass(frozen=True)
class Model:
    """A small workspace: a command makes a table, an agent copies it with its own words, a grader looks at both."""

    rows: tuple[tuple[str, str, str], ...] = (("a", "1", "x"), ("b", "2", "y"))
    source: str = "seed"
    step: str = "cat in.txt"
    word: str = "hello"
    agent: str = "cat /task/record.json; echo $WORD $MRP_PARAMS"
    samples: int = 1
    epoch: int = 0
    seed: int = 0
    grade: str = "grep -q hello answer.txt"
    version: str = "1"
    wall: int = 20
    group: str = "agent"

    def files(self) -> dict[str, str]:
        rows = "".join(json.dumps({"id": i, "ask": ask, "secret": key}) + "\n" for i, ask, key in self.rows)
        build = {
            "mrp": 1,
            "targets": {
                "made": {
                    "kind": "command",
                    "srcs": ["in.txt"],
                    "outs": ["made.txt"],
                    "command": ["sh", "-c", f"{self.step} > made.txt"],
                },
                "tasks": {"kind": "dataset", "srcs": ["rows.jsonl"], "id": "id", "private": ["secret"]},
                "box": {"kind": "sandbox", "limits": {"wall": f"{self.wall}s", "disk": "8MiB"}},
                "writer": {
                    "kind": "agent",
                    "version": self.version,
                    "command": ["sh", "-c", f"({self.agent}; cat $MRP_OPERATOR_DIR/made.txt) > answer.txt"],
                    "srcs": [":made"],
                },
                "solve": {
                    "kind": "rollout",
                    "over": ":tasks",
                    "agent": ":writer",
                    "sandbox": ":box",
                    "samples": self.samples,
                    "epoch": self.epoch,
                    "seed": self.seed,
                    "params": {"word": self.word},
                    "env": {"WORD": "${params.word}"},
                    "grade": {"command": ["sh", "-c", self.grade]},
                },
                "eval": {"kind": "reduction", "of": [":solve"], "reducer": "stats", "group_by": [self.group]},
            },
        }
        return {
            "mrp.yaml": "mrp: 1\nname: random\n",
            "BUILD.yaml": json.dumps(build, indent=1),
            "rows.jsonl": rows,
            "in.txt": self.source,
        }


SMALL = st.text("abxy12", min_size=1, max_size=3)
ROWS = st.lists(st.tuples(st.sampled_from("abcd"), SMALL, SMALL), min_size=1, max_size=3, unique_by=lambda row: row[0])

EDITS: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("rows"), ROWS.map(tuple)),
    st.tuples(st.just("source"), SMALL),
    st.tuples(st.just("step"), st.sampled_from(["cat in.txt", "cat in.txt in.txt", "echo fixed"])),
    st.tuples(st.just("word"), SMALL),
    st.tuples(
        st.just("agent"),
        st.sampled_from(["cat /task/record.json", "echo $MRP_SEED $MRP_TRIAL", "echo $WORD $MRP_SAMPLE", "false"]),
    ),
    st.tuples(st.just("samples"), st.sampled_from([1, 2])),
    st.tuples(st.just("epoch"), st.sampled_from([0, 1])),
    st.tuples(st.just("seed"), st.sampled_from([0, 7])),
    st.tuples(st.just("grade"), st.sampled_from(["grep -q x answer.txt", "grep -q secret /task/record.json", "true"])),
    st.tuples(st.just("version"), st.sampled_from(["1", "2"])),
    st.tuples(st.just("wall"), st.sampled_from([20, 30])),
    st.tuples(st.just("group"), st.sampled_from(["agent", "target"])),
)


def build_model(folder: Path, cache: Path, model: Model) -> tuple[BuildReport, str]:
    """Write the model's files and build; the report and the text of digests.jsonl."""
    folder.mkdir(exist_ok=True)
    for name, text in model.files().items():
        (folder / name).write_text(text)
    # With an identity the build is remembered, so that edits of rows and sources patch the plan of the one before.
    report = build(BuildOptions(root=folder, targets=("//:eval",), cache=cache, jobs=2, identity=("build", "//:eval")))
    assert report.status == "ok", report.reason
    return report, (report.folder / "digests.jsonl").read_text()


def check_edits(edits: list[tuple[str, Any]]) -> None:
    """Build, edit, build, ...: each time the kept cache must lead to what an empty one leads to."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        model = Model()
        build_model(base / "kept", base / "kept-cache", model)
        for number, (part, value) in enumerate(edits):
            model = dataclasses.replace(model, **{part: value})
            _, incremental = build_model(base / "kept", base / "kept-cache", model)
            _, clean = build_model(base / f"clean-{number}", base / f"clean-cache-{number}", model)
            assert incremental == clean, f"after {edits[: number + 1]}"
        again, _ = build_model(base / "kept", base / "kept-cache", model)
        assert again.executed == 0, "a build without an edit executes nothing"


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.lists(EDITS, min_size=1, max_size=4))
def test_an_incremental_build_equals_a_clean_one(edits: list[tuple[str, Any]]) -> None:
    check_edits(edits)


WRONG = {
    "a trial keyed without its agent": ("describe", "agent", [("agent", "false")]),
    "a trial keyed without its params": ("describe", "params", [("word", "other")]),
    "a trial keyed without its view of the record": ("make", "task", [("rows", (("a", "changed", "x"),))]),
    "a trial keyed without its epoch": ("describe", "epoch", [("agent", "echo $MRP_SEED $MRP_TRIAL"), ("epoch", 1)]),
    "a grade keyed without its command": ("describe", "command", [("grade", "grep -q zzz answer.txt")]),
    "a grade keyed without the trial's tree": ("make", "work", [("agent", "echo nothing")]),
    "a command keyed without its files": ("make", "files", [("source", "edited")]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_rebuilder_that_ignores_a_component_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, component, edits = WRONG[wrong]
    if where == "describe":
        right = action.put_description

        def describe(store: Any, description: Mapping[str, Any]) -> Any:
            return right(store, {name: value for name, value in description.items() if name != component})

        monkeypatch.setattr(rollout, "put_description", describe)
    else:
        key = action.action_key

        def make(preimage: Mapping[str, Any]) -> Any:
            return key({name: value for name, value in preimage.items() if name != component})

        monkeypatch.setattr(action, "action_key", make)
        shape = action.Shape

        def make_shape(constant: Mapping[str, Any], *varying: str) -> Any:
            kept = {name: value for name, value in constant.items() if name != component}
            return shape(kept, *(name for name in varying if name != component))

        monkeypatch.setattr(action, "Shape", make_shape)
    with pytest.raises(AssertionError):
        check_edits(edits)

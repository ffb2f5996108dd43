"""--profile: what mrp itself did and when, apart from the actions."""

import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support.places import Place

from mrp.runtime.events import ItemFinished, ItemStarted, RunStarted
from mrp.runtime.trace import ACTIONS, ENGINE, Trace, count, span, tracing
from mrp.specs.errors import InfraError

WORKSPACE = """\
mrp: 1
targets:
  one: {kind: command, srcs: ["in.txt"], outs: ["one.txt"], command: [cp, in.txt, one.txt]}
  two: {kind: command, srcs: ["in.txt"], outs: ["two.txt"], command: [sh, -c, "echo $TOKEN; cp in.txt two.txt"]}
  all: {kind: command, srcs: [":one", ":two"], outs: ["all.txt"], command: [sh, -c, "cat ${srcs} > all.txt"]}
"""


def events_of(trace: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(trace.read_text())["traceEvents"]
    return events


def slices(events: list[dict[str, Any]], process: int) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X" and event["pid"] == process]


def assert_nested(found: list[dict[str, Any]]) -> None:
    """On each track, two slices are apart or one is inside of the other."""
    for track in {event["tid"] for event in found}:
        open_: list[int] = []
        for event in sorted(
            (event for event in found if event["tid"] == track), key=lambda event: (event["ts"], -event["dur"])
        ):
            while open_ and open_[-1] <= event["ts"]:
                open_.pop()
            assert not open_ or event["ts"] + event["dur"] <= open_[-1]
            if event["dur"]:
                open_.append(event["ts"] + event["dur"])


def test_a_build_is_traced_with_its_actions_apart(tmp_path: Path) -> None:
    place = Place(tmp_path / "work").write({"mrp.yaml": "mrp: 1\nname: t\n", "BUILD.yaml": WORKSPACE, "in.txt": "x"})
    trace = tmp_path / "traces" / "trace.json"
    assert place.mrp("build", "//:all", "--profile", str(trace), TOKEN="s3cret").returncode == 0
    text = trace.read_text()
    document = json.loads(text)
    actions, engine = slices(document["traceEvents"], ACTIONS), slices(document["traceEvents"], ENGINE)
    assert sorted((event["args"]["kind"], event["name"], "") for event in actions) == place.executed()
    assert {event["cat"] for event in actions} == {"action"}
    assert {event["args"]["outcome"] for event in actions} == {"ok"}
    assert {event["args"]["key"] for event in actions} == place.committed_keys()
    assert {event["name"] for event in engine} >= {"build", "decide", "submit", "wait", "commit", "settle"}
    assert_nested(actions)
    assert_nested(engine)
    totals = document["otherData"]
    root = next(event for event in engine if event["name"] == "build")
    assert totals["engine_us"] + totals["waiting_us"] == root["dur"]
    assert sum(totals["engine_us_by_span"].values()) == totals["engine_us"]
    assert totals["actions_us"] == sum(event["dur"] for event in actions) > 0
    assert (totals["executed"], totals["cached"], totals["requested"]) == (3, 0, ["//:all"])
    assert "s3cret" not in text
    assert str(tmp_path) not in text
    assert_a_second_build_executes_nothing(place, tmp_path / "again.json")


def assert_a_second_build_executes_nothing(place: Place, trace: Path) -> None:
    assert place.mrp("build", "//:all", "--profile", str(trace)).returncode == 0
    assert slices(events_of(trace), ACTIONS) == []
    assert slices(events_of(trace), ENGINE)


def test_without_the_flag_nothing_is_written(tmp_path: Path) -> None:
    place = Place(tmp_path / "work").write({"mrp.yaml": "mrp: 1\nname: t\n", "BUILD.yaml": WORKSPACE, "in.txt": "x"})
    before = {path.name for path in place.folder.iterdir()}
    assert place.mrp("build", "//:all").returncode == 0
    assert {path.name for path in place.folder.iterdir()} - before == {".mrp", "mrp-out"}
    assert not [path for path in place.folder.rglob("*") if path.is_file() and b"traceEvents" in path.read_bytes()]


def test_a_trace_that_cannot_be_written_stops_the_build_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InfraError, match="cannot use"),
        tracing(tmp_path / "file" / "trace.json", lambda event: None),
    ):
        raise AssertionError("not reached")


def test_spans_and_counts_are_free_of_effect_when_nothing_is_traced() -> None:
    assert span("one") is span("two")
    with span("one"):
        count(queued=1)


class Clock:
    """A clock that goes on when it is told to."""

    now = 0

    def __call__(self) -> int:
        return self.now * 1000


def written(trace: Trace, file: "Kept") -> dict[str, Any]:
    assert trace.close() == ""
    document: dict[str, Any] = json.loads(file.text)
    return document


class Kept(io.StringIO):
    """A file whose text can be read after it was closed."""

    text = ""

    def close(self) -> None:
        self.text = self.getvalue()
        super().close()


def test_actions_that_share_a_slot_follow_one_another() -> None:
    clock, file = Clock(), Kept()
    trace = Trace(file, clock)
    trace.event(RunStarted("r", (), 1))
    for item in ("a", "b", "c"):
        trace.event(ItemStarted("//:x", item, "trial"))
    clock.now = 5000
    trace.event(ItemFinished("//:x", "a", "trial", "ok", False, wall_s=Decimal("0.002")))
    trace.event(ItemFinished("//:x", "b", "trial", "failed", False, wall_s=Decimal("0.001")))
    clock.now = 6000
    document = written(trace, file)
    found = {event["name"]: event for event in slices(document["traceEvents"], ACTIONS)}
    assert [(found[f"//:x[{i}]"]["ts"], found[f"//:x[{i}]"]["dur"]) for i in "abc"] == [
        (0, 2000),
        (2000, 1000),
        (3000, 3000),
    ]
    assert [found[f"//:x[{item}]"]["args"]["outcome"] for item in "abc"] == ["ok", "failed", "unfinished"]
    running = [event["args"]["running"] for event in document["traceEvents"] if event["ph"] == "C"]
    assert running == [1, 2, 3, 2, 1]


def test_a_full_disk_is_said_and_does_not_fail_the_build() -> None:
    class Full(Kept):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    trace = Trace(Full())
    trace.event(ItemStarted("//:x", "", "command"))
    assert trace.close() == "No space left on device"

"""Stories of produce: results and trajectories in every sink, its modes, its gate, its schema, who may write where."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.kinds import TASKS, Targets, policy, shell, workspace
from support.places import Place

TALKS = """
echo '{"role": "user", "text": "'$MRP_RECORD_ID'"}' > /out/trajectory.jsonl
test $MRP_RECORD_ID = b && echo 'not json' >> /out/trajectory.jsonl
echo $MRP_RECORD_ID > answer
"""
COMMON: Targets = {
    **TASKS,
    "me": shell(script=TALKS),
    "solve": {"kind": "rollout", "over": ":tasks", "agent": ":me", "grade": {"command": ["grep", "-q", "a", "answer"]}},
    "eval": {"kind": "reduction", "of": ["solve"], "reducer": "table", "group_by": ["agent"]},
}
PRODUCER = """
from mrp.sdk import Producer, Write

class Pages(Producer):
    def produce(self, artifact, ctx):
        for row in artifact.rows("trials.jsonl"):
            answer = artifact.file("trees/" + row["tree"] + "/answer").read_text()
            yield Write(f"pages/{row['id']}.md", f"# {answer}")

class Lines(Producer):
    def produce(self, artifact, ctx):
        for row in artifact.rows("trials.jsonl"):
            text = artifact.file("trajectories/" + row["trajectory"]).read_text()
            yield Write(f"{row['id']}.jsonl", '{"id": "%s", "lines": %d}\\n' % (row["id"], len(text.splitlines())))

class Fails(Producer):
    def produce(self, artifact, ctx):
        raise ValueError("nothing to say")
"""


def sink(kind: str, path: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "sink", "type": kind, "path": path, **fields}


def publish(of: str, into: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "produce", "of": of, "sink": into, **fields}


def operator(name: str) -> dict[str, Any]:
    return {"kind": "producer", "version": "1", "entry": f"producers:{name}", "srcs": ["producers.py"]}


def held(place: Place, path: str) -> list[dict[str, Any]]:
    """The rows of a json sink, without the keys that mrp adds."""
    rows = json.loads((place.folder / path).read_text())
    return [{name: value for name, value in row.items() if name != "_key"} for row in rows]


def test_results_go_to_every_kind_of_sink(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    targets: Targets = {
        **COMMON,
        "made": {
            "kind": "command",
            "outs": ["one.txt", "sub"],
            "command": ["sh", "-c", "echo 1 > one.txt; mkdir sub; echo 2 > sub/x"],
        },
        "json": sink("json", "out/table.json"),
        "lines": sink("json", "out/trials.jsonl"),
        "columns": sink("parquet", "out/trials.parquet"),
        "files": sink("files", "out/report"),
        "folder": sink("files", "out/made"),
        "to-json": publish(":eval", ":json"),
        "to-lines": publish("solve", ":lines"),
        "to-parquet": publish("solve", ":columns"),
        "to-files": publish(":eval", ":files"),
        "to-folder": publish(":made", ":folder"),
        "all": {"kind": "job", "of": [":to-json", ":to-lines", ":to-parquet", ":to-files", ":to-folder"]},
    }
    ws = workspace(tmp_path, targets)
    ws.build("//:all")
    assert held(ws, "out/table.json")[0]["by"] == {"agent": "//:me"}, "a document's own rows are the rows"
    lines = [json.loads(line) for line in (ws.folder / "out/trials.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b"]
    table = parquet.read_table(ws.folder / "out/trials.parquet").to_pylist()
    assert [(row["id"], row["rewards.reward"]) for row in table] == [("a", 1), ("b", 0)]
    assert sorted(path.name for path in (ws.folder / "out/report").iterdir()) == ["result.json", "result.md"]
    assert (ws.folder / "out/made/sub/x").read_text() == "2\n"
    assert ws.build("//:all")["executed"] == 0


def test_trajectories_are_rows(tmp_path: Path) -> None:
    targets: Targets = {
        **COMMON,
        "board": sink("json", "trajectories.json"),
        "folder": sink("files", "trajectories"),
        "wrong": publish(":eval", ":board", rows="trajectory"),
        "publish": publish("solve", ":board", rows="trajectory"),
        "files": publish("solve", ":folder", rows="trajectory"),
    }
    ws = workspace(tmp_path, targets)
    assert "//:eval has no trajectories; only a rollout does" in ws.build("//:wrong", code=1)["reason"]
    ws.build("//:publish", "//:files")
    rows = held(ws, "trajectories.json")
    assert [row["trajectory"] for row in rows] == [
        [{"role": "user", "text": "a"}],
        [{"role": "user", "text": "b"}, "not json"],
    ]
    assert rows[0]["rewards"] == {"reward": 1}
    listed = [json.loads(line) for line in (ws.folder / "trajectories/trials.jsonl").read_text().splitlines()]
    kept = (ws.folder / "trajectories/trajectories" / listed[0]["trajectory"]).read_text()
    assert kept == '{"role": "user", "text": "a"}\n'
    assert ws.build("//:publish", "//:files")["executed"] == 0


def test_a_producer_makes_files_or_rows(tmp_path: Path) -> None:
    targets: Targets = {
        **COMMON,
        "site": sink("files", "site"),
        "board": sink("json", "board.json"),
        "pages": operator("Pages"),
        "counts": operator("Lines"),
        "fails": operator("Fails"),
        "rows": {"kind": "producer", "version": "1", "command": ["sh", "-c", "echo '{\"n\": 1}' > /out/writes.jsonl"]},
        "to-site": publish("solve", ":site", producer=":pages"),
        "to-board": publish("solve", ":board", rows="trajectory", producer=":counts"),
        "by-hand": publish(":eval", ":other", producer=":rows"),
        "other": sink("json", "other.json"),
        "broken": publish(":eval", ":third", producer=":fails"),
        "third": sink("json", "third.json"),
    }
    ws = workspace(tmp_path, targets, {"producers.py": PRODUCER})
    ws.build("//:to-site", "//:to-board", "//:by-hand")
    assert (ws.folder / "site/pages/a.md").read_text() == "# a\n"
    assert held(ws, "board.json") == [{"id": "a", "lines": 1}, {"id": "b", "lines": 2}]
    assert held(ws, "other.json") == [{"n": 1}]
    assert ws.build("//:to-site", "//:to-board")["executed"] == 0
    assert "ValueError: nothing to say" in ws.build("//:broken", code=1)["reason"]
    assert not (ws.folder / "third.json").exists()


def test_a_gate_sees_the_result_and_holds(tmp_path: Path) -> None:
    targets: Targets = {
        **COMMON,
        "board": sink("json", "board.json"),
        "publish": publish(":eval", ":board", gate="reward.mean >= 0.9"),
        "enough": publish("solve", ":board", gate="scored == count and count == 2"),
    }
    ws = workspace(tmp_path, targets)
    report = ws.build("//:publish")
    assert report["status"] == "held"
    assert report["targets"]["//:publish"]["status"] == "held"
    assert not (ws.folder / "board.json").exists()
    assert ws.build("//:enough")["status"] == "ok"
    assert len(held(ws, "board.json")) == 2


def test_modes_and_schemas_of_sinks(tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}
    targets: Targets = {
        **COMMON,
        "once": sink("json", "once.json", mode="create"),
        "log": sink("json", "log.json", mode="append"),
        "checked": sink("json", "checked.json", schema="row.json"),
        "to-once": publish("solve", ":once"),
        "to-log": publish("solve", ":log"),
        "to-checked": publish("solve", ":checked"),
        "to-wrong": publish(":eval", ":checked"),
    }
    ws = workspace(tmp_path, targets, {"row.json": json.dumps(schema)})
    ws.build("//:to-once", "//:to-log", "//:to-checked")
    assert "does not fit row.json" in ws.build("//:to-wrong", code=1)["reason"]
    ws.write({"rows.jsonl": '{"id": "c", "text": "new"}\n'})
    report = ws.build("//:to-once", code=1)
    assert "the sink's mode is create" in report["reason"]
    ws.build("//:to-log")
    assert [row["id"] for row in held(ws, "log.json")] == ["a", "b", "c"]


def test_who_may_write_where_is_checked_first(tmp_path: Path) -> None:
    targets: Targets = {
        **COMMON,
        "board": sink("json", "board.json", acl=["//other/..."]),
        "cloud": sink("s3", "s3://bucket/key"),
        "publish": publish(":eval", ":board"),
        "upload": publish(":eval", ":cloud"),
    }
    ws = workspace(tmp_path, targets)
    refused = ws.mrp("build", "//:publish")
    assert refused.returncode == 3
    assert "//:publish may not write to //:board" in refused.stderr
    assert "//:cloud" in ws.mrp("query", "deps(//:upload)").stdout
    report = ws.build("//:upload", code=4)
    assert "is an s3 sink, which needs mrp-build[s3]" in report["reason"]
    policy(ws, sink_paths=["elsewhere/**"])
    ws.edit("BUILD.yaml", '"//other/..."', '"//..."')
    refused = ws.mrp("build", "//:publish")
    assert refused.returncode == 3 and "board.json" in refused.stderr

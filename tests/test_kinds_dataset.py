"""Stories of datasets: where records come from, what is kept of them, and who sees what."""

import gzip
import hashlib
import io
import json
import subprocess
from pathlib import Path

import pytest
from support.kinds import Targets, lines, shell, text, trials, workspace
from support.places import Place
from support.serving import served


def ids(place: Place, name: str) -> list[str]:
    """The ids of a dataset, which must have been asked for."""
    return [row["id"] for row in lines(place, f"{name}/records.jsonl")]


def test_every_row_format_is_read_packed_or_not(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    zstandard = pytest.importorskip("zstandard")
    import pyarrow.parquet

    column = io.BytesIO()
    pyarrow.parquet.write_table(arrow.table({"id": ["p1", "p2"], "n": [1, 2]}), column)
    row = json.dumps({"id": "x", "n": 0.10}) + "\n"
    files: dict[str, str | bytes] = {
        "a.jsonl": row,
        "a.jsonl.gz": gzip.compress(row.encode()),
        "a.jsonl.zst": zstandard.ZstdCompressor().compress(row.encode()),
        "list.json": json.dumps([{"id": "one"}, {"id": "two"}]),
        "named.json": json.dumps({"k1": {"v": 1}, "k2": {"v": 1}}),
        "rows.csv": "id,word\nc1,007\nc2,x\n",
        "rows.parquet": column.getvalue(),
        "lines.txt": "first\n\nsecond\n",
    }
    targets: Targets = {
        "plain": {"kind": "dataset", "srcs": ["a.jsonl"], "id": "id"},
        "gz": {"kind": "dataset", "srcs": ["a.jsonl.gz"], "id": "id"},
        "zst": {"kind": "dataset", "srcs": ["a.jsonl.zst"], "id": "id"},
        "list": {"kind": "dataset", "srcs": ["list.json"], "format": "json", "id": "id"},
        "named": {"kind": "dataset", "srcs": ["named.json"], "format": "json"},
        "csv": {"kind": "dataset", "srcs": ["rows.csv"], "format": "csv", "id": "id"},
        "parquet": {"kind": "dataset", "srcs": ["rows.parquet"], "format": "parquet", "id": "id"},
        "text": {"kind": "dataset", "srcs": ["lines.txt"], "format": "text"},
        "all": {"kind": "reduction", "of": ["list", "csv", "parquet"], "reducer": "concat"},
    }
    ws = workspace(tmp_path, targets, files)
    report = ws.build("//:all")
    digests = {name: ws.build(f"//:{name}")["targets"][f"//:{name}"]["digest"] for name in ("plain", "gz", "zst")}
    assert len({text(ws, f"{name}/records.jsonl") for name in digests}) == 1, "packing is no difference"
    rows = ws.output("all/result.json")["rows"]
    assert rows[:2] == [{"id": "one", "target": "//:list"}, {"id": "two", "target": "//:list"}]
    assert rows[2] == {"id": "c1", "target": "//:csv", "word": "007"}
    assert rows[4] == {"id": "p1", "target": "//:parquet", "n": 1}
    ws.build("//:named", "//:text")
    assert ids(ws, "named") == ["k1", "k2"]
    assert len(ids(ws, "text")) == 2
    assert report["executed"] == 1


def test_records_that_differ_only_in_their_key_are_different_trials(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            "named": {"kind": "dataset", "srcs": ["named.json"], "format": "json"},
            "me": shell(script="echo $MRP_RECORD_ID > me"),
            "solve": {"kind": "rollout", "over": ":named", "agent": ":me"},
        },
        {"named.json": json.dumps({"k1": {"v": 1}, "k2": {"v": 1}})},
    )
    ws.build("//:solve")
    assert len({row["tree"] for row in trials(ws)}) == 2


def test_schema_where_dedupe_and_split_decide_who_stays(tmp_path: Path) -> None:
    rows = [{"id": f"r{n:02}", "language": "python" if n % 2 else "c", "n": n, "same": n // 4} for n in range(40)]
    schema = {"type": "object", "required": ["id"], "properties": {"n": {"type": "integer"}}}
    source = {"kind": "dataset", "srcs": ["in.jsonl"], "id": "id", "schema": "schema.json"}
    ws = workspace(
        tmp_path,
        {
            "python": {**source, "where": "language == 'python' and n < 10"},
            "distinct": {**source, "dedupe": ["same"]},
            "parts": {**source, "split": {"train": 0.5, "test": 0.5}},
            "half": {"kind": "reduction", "of": ["//:parts@split=test"], "reducer": "concat"},
            "other": {"kind": "reduction", "of": ["//:parts@split=train"], "reducer": "concat"},
        },
        {"in.jsonl": "".join(json.dumps(row) + "\n" for row in rows), "schema.json": json.dumps(schema)},
    )
    ws.build("//:python", "//:distinct", "//:half", "//:other")
    assert ids(ws, "python") == ["r01", "r03", "r05", "r07", "r09"]
    assert ids(ws, "distinct") == [f"r{n:02}" for n in range(0, 40, 4)]
    test, train = ({row["id"] for row in ws.output(f"{name}/result.json")["rows"]} for name in ("half", "other"))
    assert test | train == {row["id"] for row in rows} and not test & train and test and train

    ws.write({"in.jsonl": "".join(json.dumps(row) + "\n" for row in [*rows, {"id": "new", "n": 1, "same": -1}])})
    ws.build("//:half", "//:other")
    after = {row["id"] for row in ws.output("half/result.json")["rows"]}
    assert after - {"new"} == test, "a new row moves no other"

    ws.write({"in.jsonl": json.dumps({"id": "bad", "n": "one"}) + "\n"})
    done = ws.mrp("build", "//:python")
    assert done.returncode == 2
    assert "in.jsonl:1:1" in done.stderr and "schema.json" in done.stderr


def test_each_party_sees_its_own_part_of_a_row(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "def f():", "tests": "assert f", "answer": "return 1"}
    views = {
        "starter": {"files": {"main.py": "${record.prompt}\n"}},
        "private": {"fields": ["tests"], "files": {"tests/t.py": "${record.tests}"}},
        "solution": {"fields": ["answer"], "files": {"main.py": "${record.prompt} ${record.answer}\n"}},
    }
    look = "cp -r /task task; test -e /solution && cp -r /solution solution; true"
    grade = "cp -r /task /out/task; test ! -e /solution && test -e /task/tests/t.py"
    ws = workspace(
        tmp_path,
        {
            "tasks": {"kind": "dataset", "srcs": ["in.jsonl"], "id": "id", **views},
            "blind": shell(script=look),
            "seer": shell(script=look, sees="solution"),
            "public": {
                "kind": "rollout",
                "over": ":tasks",
                "agent": ":blind",
                "grade": {"command": ["sh", "-c", grade]},
            },
            "solved": {"kind": "rollout", "over": ":tasks", "agent": ":seer"},
            "oracle": {
                "kind": "rollout",
                "over": ":tasks",
                "agent": "builtin:oracle",
                "grade": {"command": ["grep", "-q", "return 1", "main.py"]},
            },
            "files": {"kind": "reduction", "of": ["public", "solved", "oracle"], "reducer": ":lister"},
            "lister": {"kind": "reducer", "version": "1", "entry": "lister:Lister"},
        },
        {"in.jsonl": json.dumps(row) + "\n", "lister.py": LISTER},
    )
    ws.build("//:files", "//:public", "//:oracle")
    found = ws.output("files/result.json")
    blind = found["//:public"]
    assert json.loads(blind["task/record.json"]) == {"id": "a", "prompt": "def f():"}
    assert sorted(blind) == ["main.py", "task/record.json"]
    seen = found["//:solved"]
    assert json.loads(seen["task/record.json"]) == {"id": "a", "prompt": "def f():", "answer": "return 1"}
    assert seen["solution/main.py"] == "def f(): return 1\n"
    assert trials(ws, "public")[0]["rewards"] == {"reward": 1}
    assert trials(ws, "oracle")[0]["rewards"] == {"reward": 1}


LISTER = """
from mrp.sdk import Reducer

class Lister(Reducer):
    def reduce(self, trials, ctx):
        import json
        rows = [json.loads(line) for line in open('/task/trials.jsonl')]
        found = {}
        for trial, row in zip(trials, rows):
            files = [path for path in sorted(trial.tree.rglob('*')) if path.is_file()]
            found[row['target']] = {str(path.relative_to(trial.tree)): path.read_text() for path in files}
        return found
"""


def test_each_party_sees_its_own_part_of_a_folder(tmp_path: Path) -> None:
    files = {
        "tasks/one/README.md": "do it\n",
        "tasks/one/start/main.py": "start\n",
        "tasks/one/tests/t.py": "secret\n",
        "tasks/one/solution/main.py": "solved\n",
    }
    look = "cp -r /task task; true"
    ws = workspace(
        tmp_path,
        {
            "tasks": {
                "kind": "dataset",
                "srcs": ["tasks/*"],
                "format": "dir",
                "starter": ["start/**"],
                "private": ["tests/**"],
                "solution": ["solution/**"],
            },
            "blind": shell(script=look),
            "lister": {"kind": "reducer", "version": "1", "entry": "lister:Lister"},
            "public": {
                "kind": "rollout",
                "over": ":tasks",
                "agent": ":blind",
                "grade": {"command": ["grep", "-q", "secret", "/task/tests/t.py"]},
            },
            "oracle": {
                "kind": "rollout",
                "over": ":tasks",
                "agent": "builtin:oracle",
                "grade": {"command": ["grep", "-q", "solved", "main.py"]},
            },
            "files": {"kind": "reduction", "of": ["public"], "reducer": ":lister"},
        },
        {**files, "lister.py": LISTER},
    )
    ws.build("//:files", "//:public", "//:oracle")
    assert sorted(ws.output("files/result.json")["//:public"]) == [
        "main.py",
        "task/README.md",
        "task/record.json",
        "task/start/main.py",
    ]
    assert trials(ws, "public")[0]["rewards"] == {"reward": 1}
    assert trials(ws, "oracle")[0]["rewards"] == {"reward": 1}


def test_datasets_one_after_the_other_keep_their_views(tmp_path: Path) -> None:
    ws = workspace(
        tmp_path,
        {
            "one": {"kind": "dataset", "srcs": ["one.jsonl"], "id": "id", "private": ["k"]},
            "two": {"kind": "dataset", "generate": {"range": 2}},
            "both": {"kind": "dataset", "of": ["one", "two"], "where": "n != 1"},
        },
        {"one.jsonl": '{"id": "x", "k": 1}\n'},
    )
    ws.build("//:both")
    assert ids(ws, "both") == ["0", "x"]
    assert ws.output("both/_meta.json")["num_records"] == 2


def test_records_come_from_a_command_of_the_workspace(tmp_path: Path) -> None:
    folders = "for n in one two; do mkdir -p out/$n/tests; echo $n > out/$n/a.txt; echo t > out/$n/tests/t; done"
    ws = workspace(
        tmp_path,
        {},
        {"data/seed.txt": "3\n"},
        data={
            "rows": {
                "kind": "command",
                "srcs": ["seed.txt"],
                "outs": ["made.jsonl"],
                "command": [
                    "sh",
                    "-c",
                    "for n in $(seq $(cat seed.txt)); do echo '{\"id\": \"n'$n'\"}'; done > made.jsonl",
                ],
            },
            "made": {"kind": "dataset", "srcs": [":rows"], "id": "id"},
            "folders": {"kind": "command", "outs": ["out"], "command": ["sh", "-c", folders]},
            "tasks": {"kind": "dataset", "srcs": [":folders"], "format": "dir", "private": ["tests/**"]},
            "nop": {"kind": "rollout", "over": ":made", "agent": "builtin:nop"},
            "printed": {"kind": "dataset", "id": "id", "generate": {"command": ["echo", '{"id": "p"}']}},
        },
    )
    ws.build("//data:nop", "//data:tasks", "//data:made", "//data:printed")
    assert ids(ws, "data/printed") == ["p"]
    assert ids(ws, "data/made") == ["n1", "n2", "n3"]
    assert ids(ws, "data/tasks") == ["one", "two"]
    ws.write({"data/seed.txt": "4\n"})
    ws.build("//data:nop")
    assert ws.executed() == [("command", "//data:rows", ""), ("trial", "//data:nop", "n4")]


def test_records_are_generated_by_a_command_or_an_operator(tmp_path: Path) -> None:
    print_rows = """
import json, os
for n in range(json.loads(os.environ["MRP_PARAMS"])["n"]):
    print(json.dumps({"id": f"g{n}"}))
"""
    producer = (
        "from mrp.sdk import Producer, Write\n"
        "class Rows(Producer):\n"
        "    def produce(self, artifact, ctx):\n"
        "        yield Write('rows.jsonl', ''.join('{\"id\": \"o%d\"}\\n' % n for n in range(ctx.params['n'])))\n"
    )
    ws = workspace(
        tmp_path,
        {
            "printed": {
                "kind": "dataset",
                "id": "id",
                "generate": {"command": ["python3", "make.py"], "srcs": ["make.py"], "params": {"n": 2}},
            },
            "made": {"kind": "dataset", "id": "id", "generate": {"operator": ":rows", "params": {"n": 3}}},
            "rows": {"kind": "producer", "version": "1", "entry": "rows:Rows"},
            "shell": {
                "kind": "producer",
                "version": "1",
                "command": ["sh", "-c", 'echo \'{"id": "s"}\' > /out/records.jsonl'],
            },
            "byhand": {"kind": "dataset", "id": "id", "generate": {"operator": ":shell"}},
            "silent": {"kind": "producer", "version": "1", "command": ["true"]},
            "nothing": {"kind": "dataset", "id": "id", "generate": {"operator": ":silent"}},
            "failing": {"kind": "dataset", "id": "id", "generate": {"command": ["sh", "-c", "echo oops >&2; exit 2"]}},
        },
        {"make.py": print_rows, "rows.py": producer},
    )
    ws.build("//:printed", "//:made", "//:byhand")
    assert ids(ws, "printed") == ["g0", "g1"]
    assert ids(ws, "made") == ["o0", "o1", "o2"]
    assert ids(ws, "byhand") == ["s"]
    assert {kind for kind, _, _ in ws.executed()} == {"generate"}
    assert "records.jsonl" in ws.build("//:nothing", code=1)["reason"]
    assert "//:failing failed: exit code 2: oops" in ws.build("//:failing", code=1)["reason"]


def test_what_a_generator_prints_beyond_the_log_limit_is_refused(tmp_path: Path) -> None:
    line = json.dumps({"id": "x" * 90})
    script = f"import sys\nsys.stdout.write('{line}\\n' * 200000)\n"
    ws = workspace(
        tmp_path,
        {"big": {"kind": "dataset", "generate": {"command": ["python3", "make.py"], "srcs": ["make.py"]}}},
        {"make.py": script},
    )
    assert "printed more than" in ws.build("//:big", code=1)["reason"]


def test_a_pinned_download_is_fetched_once(tmp_path: Path) -> None:
    rows = b'{"id": "d1"}\n{"id": "d2"}\n'
    pin = hashlib.sha256(rows).hexdigest()
    ws = workspace(tmp_path, {}, {"vendor/rows.jsonl": rows})
    with served({"/rows.jsonl": rows}) as (address, asked):
        fetch = {"url": f"{address}/rows.jsonl", "sha256": pin, "size": len(rows), "downloaded_at": "2026-01-02"}
        targets = {
            "web": {"kind": "dataset", "id": "id", "fetch": fetch, "metadata": {"license": "MIT", "version": "2"}},
            "local": {"kind": "dataset", "id": "id", "fetch": {"path": "vendor/rows.jsonl", "sha256": pin}},
            "file": {
                "kind": "dataset",
                "id": "id",
                "fetch": {"url": f"file://{ws.folder}/vendor/rows.jsonl", "sha256": pin},
            },
            "wrong": {"kind": "dataset", "id": "id", "fetch": {"path": "vendor/rows.jsonl", "sha256": "0" * 64}},
        }
        ws.write({"BUILD.yaml": json.dumps({"mrp": 1, "targets": targets})})
        ws.build("//:web")
        assert ids(ws, "web") == ["d1", "d2"]
        assert ws.output("web/_meta.json") == {
            "source": f"{address}/rows.jsonl",
            "version": "2",
            "license": "MIT",
            "downloaded_at": "2026-01-02",
            "sha256": pin,
            "num_records": 2,
        }
        assert ws.build("//:web")["executed"] == 0
        assert asked == ["/rows.jsonl"]
    report = ws.build("//:local", "//:file")
    assert report["executed"] == 0, "a download is known by its pin, not by its address"
    assert ids(ws, "local") == ids(ws, "file") == ["d1", "d2"]
    assert f"has sha256 {pin}, and {'0' * 64} was pinned" in ws.build("//:wrong", code=1)["reason"]


def test_a_commit_of_a_repository_is_a_dataset(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "one").mkdir(parents=True)
    (repository / "one" / "task.md").write_text("hello\n")

    def git(*words: str) -> str:
        options = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
        done = subprocess.run(["git", *options, *words], cwd=repository, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    rev = git("rev-parse", "HEAD")
    ws = workspace(
        tmp_path,
        {
            "tasks": {"kind": "dataset", "format": "dir", "fetch": {"git": f"file://{repository}", "rev": rev}},
            "lost": {"kind": "dataset", "format": "dir", "fetch": {"git": f"file://{repository}", "rev": "0" * 40}},
        },
    )
    ws.build("//:tasks")
    assert ids(ws, "tasks") == ["one"]
    assert "has no commit" in ws.build("//:lost", code=1)["reason"]


def test_offline_builds_download_nothing(tmp_path: Path) -> None:
    fetch = {"url": "http://127.0.0.1:9/rows.jsonl", "sha256": "0" * 64}
    ws = workspace(tmp_path, {"web": {"kind": "dataset", "fetch": fetch}})
    report = ws.build("//:web", "--offline", code=4)
    assert "this build is offline" in report["reason"]

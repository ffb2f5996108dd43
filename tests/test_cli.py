"""The command line: what it prints where, its exit codes, and that no error is a traceback."""

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from support.places import MRP, Place

from mrp.cli.flags import params
from mrp.cli.fmt import tidy
from mrp.cli.main import main
from mrp.cli.parser import VERBS, read
from mrp.cli.progress import PLAIN_EVERY, Progress, duration
from mrp.cli.screen import Screen
from mrp.cli.workspace import absolute
from mrp.runtime import runs
from mrp.runtime.events import AttemptFailed, Draining, ItemFinished, ItemStarted, TaskFinished, TaskStarted, Warned
from mrp.specs.errors import UsageError

HEAVY = ("pydantic", "lark", "yaml", "networkx", "rich", "sqlite3", "asyncio", "pyarrow", "re2")


def mrp(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run mrp in a new process."""
    return subprocess.run(
        [*MRP, *words], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """The workspace that `mrp init` makes, not built."""
    made = Place(tmp_path / "demo")
    assert made.mrp("init").returncode == 0
    return made


# -- starting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_version_and_help_load_nothing_heavy(word: str) -> None:
    script = f"import sys; from mrp.cli.main import main; main([{word!r}]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert not set(done.stderr.split()) & set(HEAVY)
    assert "mrp" in done.stdout


def test_help_names_every_verb() -> None:
    shown = mrp("--help").stdout
    assert [verb for verb in VERBS if f"\n  {verb} " not in shown] == []


def test_no_words_at_all_show_the_help() -> None:
    assert mrp().stdout == mrp("--help").stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    done = mrp(verb, "--help")
    assert done.returncode == 0
    assert f"mrp {verb}" in done.stdout


# -- the words of the user ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["biuld", "//:eval"], "mrp has no verb 'biuld'; did you mean `build`?"),
        (["build", "//:eval", "--jbos", "2"], "mrp build has no flag --jbos; did you mean `--jobs`?"),
        (["build", "--fail-fats", "//:eval"], "did you mean `--fail-fast`?"),
        (["frobnicate"], "mrp has no verb 'frobnicate'; see mrp --help"),
        (["build", "-j", "0", "//:eval"], "'0' is not a whole number from 1"),
        (["build", "--rebuil", "//:eval"], "did you mean `--rebuild`?"),
        (["build"], "mrp build needs a target"),
        (["inspect", "a", "b", "c"], "does not know what to do with 'c'"),
        (["-C", "nowhere", "build"], "there is no such folder"),
        (["-C"], "needs a folder"),
        (["-q"], "a verb is missing after -q"),
        (["diff"], "mrp diff needs old"),
        (["schema", "biuld"], "did you mean `build`?"),
    ],
)
def test_wrong_words_exit_2_with_a_hint(words: list[str], hint: str, tmp_path: Path) -> None:
    done = mrp(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert hint in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_rebuild_pattern_that_is_none_is_refused(place: Place) -> None:
    done = place.mrp("build", "//:eval", "--rebuild", "eval")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--rebuild: `eval` is not a label; did you mean `:eval`?" in done.stderr


def test_outside_of_a_workspace_the_next_step_is_init(tmp_path: Path) -> None:
    done = mrp("build", "//:eval", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "run `mrp init`" in done.stderr


def test_common_flags_stand_before_or_after_the_verb(place: Place) -> None:
    before = mrp("-C", str(place.folder), "--json", "query", "//...")
    after = mrp("query", "//...", "--json", "-C", str(place.folder))
    assert before.stdout == after.stdout
    assert json.loads(before.stdout)


def test_a_pattern_may_begin_with_a_minus() -> None:
    assert read(["build", "//...", "-//slow/...", "-:x"]).targets == ["//...", "-//slow/...", "-:x"]


def test_labels_are_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "jobs" / "inner")
    assert absolute(":eval[a]", tmp_path) == "//jobs/inner:eval[a]"
    assert absolute("-...", tmp_path) == "-//jobs/inner/..."
    assert absolute("//x:y", tmp_path) == "//x:y"
    monkeypatch.chdir(tmp_path)
    assert absolute(":eval", tmp_path) == "//:eval"
    assert absolute("...", tmp_path) == "//..."


def test_params_are_json_or_words_or_files(tmp_path: Path) -> None:
    (tmp_path / "value.json").write_text('{"a": 0.70}')
    words = ["//:s:n=3", "//:s:x=0.7", "//:s:w=high", '//:s:l=["a"]', f"//:t:f=@{tmp_path}/value.json", "//:t:e=a=b"]
    assert params(words, tmp_path) == {
        "//:s": {"n": 3, "x": Decimal("0.7"), "w": "high", "l": ["a"]},
        "//:t": {"f": {"a": Decimal("0.70")}, "e": "a=b"},
    }


@pytest.mark.parametrize("word", ["effort=high", "//:solve", "//:solve:=1", ":=1", "//:s:x=@missing.json"])
def test_wrong_params_are_refused(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--param"):
        params([word], tmp_path)


@pytest.mark.parametrize("verb", ["registry", "attest", "verify-attestation", "approve", "session"])
def test_verbs_of_later_versions_say_so(verb: str) -> None:
    done = mrp(verb, "anything")
    assert done.returncode == 2
    assert f"`mrp {verb}` is not part of this version" in done.stderr


# -- errors ------------------------------------------------------------------------------------------------------


def test_an_error_is_one_json_document_too(tmp_path: Path) -> None:
    done = mrp("build", "//:eval", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert (document["status"], document["exit_code"], document["error"]["type"]) == ("error", 2, "UsageError")


def test_a_wrong_workspace_lists_its_errors_and_says_that_nothing_ran(place: Place) -> None:
    place.edit("BUILD.yaml", "kind: rollout", "kind: rollot")
    done = place.mrp("build", "//:eval", "--json")
    assert done.returncode == 2
    assert "nothing was executed" in done.stderr
    (found,) = json.loads(done.stdout)["error"]["diagnostics"]
    assert (found["path"], found["hint"]) == ("BUILD.yaml", "did you mean `rollout`?")
    assert not (place.folder / ".mrp" / "runs").exists()


def test_a_fault_of_mrps_own_is_one_line_and_a_file(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(state: Path) -> list[str]:
        raise KeyError("a fault")

    (place.folder / ".mrp").mkdir()
    monkeypatch.setattr(runs, "list_runs", fault)
    assert main(["-C", str(place.folder), "log"]) == 4
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "mrp has a bug: KeyError" in said
    (log,) = (place.folder / ".mrp").glob("crash-*.log")
    assert str(log) in said
    assert "Traceback" in log.read_text()
    assert main(["-C", str(place.folder), "log", "-v"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_ends_the_output_and_nothing_else(place: Place) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*MRP, "schema", "build"], stdout=writing, stderr=subprocess.PIPE, timeout=300)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_sentence_with_the_place(place: Place) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MRP, "schema", "build"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 4
    assert done.stderr == "error: cannot write to standard output: no space left on device; make room where it goes\n"
    done = place.mrp("graph", "-o", "/dev/full")
    assert done.returncode == 4
    assert "cannot write /dev/full: no space left on device" in done.stderr


def test_a_cache_that_is_a_file_is_a_sentence(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = place.mrp("cache", "stats", MRP_CACHE=str(tmp_path / "file"))
    assert done.returncode == 4
    assert "set MRP_CACHE to a folder" in done.stderr


# -- verbs that execute nothing ----------------------------------------------------------------------------------


def test_init_writes_over_nothing(place: Place) -> None:
    before = {path.name: path.read_bytes() for path in place.folder.iterdir()}
    done = place.mrp("init")
    assert done.returncode == 2
    assert "is there already" in done.stderr
    assert {path.name: path.read_bytes() for path in place.folder.iterdir()} == before


def test_compile_writes_the_same_bytes_in_another_folder(tmp_path: Path) -> None:
    plans = []
    for name in ("one", "two"):
        place = Place(tmp_path / name / "demo")
        place.mrp("init")
        assert place.mrp("compile", "//:eval", "-o", "plan").returncode == 0
        plans.append({path.name: path.read_bytes() for path in (place.folder / "plan").iterdir()})
    assert plans[0] == plans[1]
    assert sorted(plans[0]) == ["ir.json", "manifest.json", "policy_report.json"]


def test_plan_tells_what_would_run_and_what_is_known_later(place: Place) -> None:
    found = json.loads(place.mrp("plan", "//:eval", "--json").stdout)
    assert (found["hit"], found["miss"]) == (0, 6)
    by_label = {target["label"]: target for target in found["targets"]}
    assert by_label["//:solve@agent=builtin:oracle"]["unknown_grades"] == 3
    assert by_label["//:eval"]["unknown_until"] == ["//:solve@agent=builtin:nop", "//:solve@agent=builtin:oracle"]
    assert not (place.folder / ".mrp" / "runs").exists()


def test_query_and_graph_read_the_workspace(place: Place) -> None:
    assert place.mrp("query", "deps", "//:eval", "1").stdout.split() == ["//:eval", "//:solve"]
    assert "//:solve" in place.mrp("graph", ":eval", "--output", "mermaid").stdout
    assert place.mrp("query", "label", "//:evil").returncode == 2


def test_policy_is_shown_and_checked(place: Place) -> None:
    shown = json.loads(place.mrp("policy", "show", "--json").stdout)
    assert (shown["path"], shown["policy"]["isolation"]) == (None, "namespaces")
    assert place.mrp("policy", "check").returncode == 0
    place.write({"policy.yaml": "mrp: 1\nmax_memory: 1MiB\n", "mrp.yaml": "mrp: 1\nname: x\npolicy: policy.yaml\n"})
    assert place.mrp("policy", "check").returncode == 3


def test_schemas_are_json_for_every_document(tmp_path: Path) -> None:
    names = mrp("schema").stdout.split()
    assert mrp("schema", "-o", str(tmp_path)).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.schema.json" for name in names)
    assert all(json.loads(path.read_text())["$schema"] for path in tmp_path.iterdir())


def test_doctor_looks_at_this_machine() -> None:
    document = json.loads(mrp("doctor", "--json").stdout)
    assert {"python", "bubblewrap", "cgroups", "cache"} <= {finding["name"] for finding in document["findings"]}


def test_fmt_tidies_and_keeps_comments_and_meaning(place: Place) -> None:
    untidy = b"# about\r\nmrp: 1   \r\n\r\n\r\n\r\nname: demo  # why\n\n\n"
    assert tidy(untidy, "mrp.yaml") == b"# about\nmrp: 1\n\nname: demo  # why\n"
    place.write({"mrp.yaml": untidy})
    assert place.mrp("fmt", "--check").returncode == 1
    assert (place.folder / "mrp.yaml").read_bytes() == untidy
    assert place.mrp("fmt").stdout == "tidied mrp.yaml\n"
    assert place.mrp("fmt", "--check").returncode == 0


def test_fmt_leaves_alone_what_would_change_its_meaning() -> None:
    text = b"mrp: 1\nname: |\n  two  \n\n\n  blanks\n"
    assert tidy(text, "mrp.yaml") == text


# -- progress ----------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def finished(item: str, *, cached: bool = False, outcome: str = "ok", usd: str = "0") -> ItemFinished:
    return ItemFinished("//:solve", item, "trial", outcome, cached, "why", Decimal(usd), Decimal(2))


def test_cached_items_print_nothing_and_lines_are_seconds_apart(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(Screen(), clock) as progress:
        progress(TaskStarted("//:solve", 1003))
        for number in range(1000):
            progress(finished(f"hit-{number}", cached=True))
        for number in range(3):
            progress(ItemStarted("//:solve", f"run-{number}", "trial"))
            clock.now += PLAIN_EVERY * 0.6
            progress(finished(f"run-{number}", usd="0.10"))
        progress(TaskFinished("//:solve", "ok"))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "1002/1003 trials, 2 executed, 1000 cached, $0.2, 6.0s",
        "//:solve done: 3 executed, 1000 cached",
    ]


def test_quiet_shows_failures_alone_and_verbose_each_item(capfd: pytest.CaptureFixture[str]) -> None:
    events = [
        ItemStarted("//:solve", "a", "trial"),
        AttemptFailed("//:solve", "a", "trial", 1, "no memory"),
        finished("a", outcome="failed"),
        finished("b", cached=True),
        TaskFinished("//:solve", "ok"),
        TaskFinished("//:eval", "failed", "it broke"),
        Warned("careful"),
        Draining(2, kill=False),
    ]
    for screen in (Screen(quiet=True), Screen(verbose=True)):
        with Progress(screen, Clock()) as progress:
            for event in events:
                progress(event)
    lines = capfd.readouterr().err.splitlines()
    quiet = ["//:eval failed: it broke", "warning: careful", "finishing 2 running items; press Ctrl-C again to kill"]
    assert lines[:3] == quiet
    assert lines[3:6] == [
        "//:solve[a] (trial) attempt 1: no memory",
        "//:solve[a] trial failed (2.0s): why",
        "//:solve[b] trial ok (cached)",
    ]


def test_the_estimate_comes_from_what_was_executed_and_not_from_hits() -> None:
    from mrp.cli.progress import Tally

    tally = Tally(started=0.0)
    tally.add(TaskStarted("//:solve", 100), 0.0)
    for number in range(90):
        tally.add(finished(str(number), cached=True), 1.0)
    assert tally.eta(1.0) is None, "nothing was executed yet"
    for number in range(5):
        tally.add(finished(f"x{number}"), 10.0)
    assert tally.eta(10.0) == 10.0


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0s"), (59.9, "59.9s"), (65, "1m05s"), (7385, "2h03m")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text

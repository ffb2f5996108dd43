"""Starting costs nothing that is not needed: which modules each kind of call loads, and that the quick reading of
words means what the parser means."""

import os
import subprocess
import sys
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.places import Place

from mrp.cli.parser import read
from mrp.cli.version import VERSION
from mrp.cli.words import verb_of, without_directory
from mrp.specs.errors import UsageError

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "runtime" / "mrp.script"

LANGUAGE = {"pydantic", "yaml", "lark", "mrp.compiler.compile", "mrp.specs.documents"}
"""What reads documents; a build whose documents are as they were needs none of it."""

HEAVY = LANGUAGE | {"networkx", "rich", "asyncio", "diskcache", "jsonschema", "re2", "pyarrow", "numpy"}

WORKSPACE = {
    "mrp.yaml": "mrp: 1\nname: small\n",
    "BUILD.yaml": """mrp: 1
targets:
  left: {kind: command, srcs: [left.txt], outs: [l.txt], command: [cp, left.txt, l.txt]}
  right: {kind: command, srcs: [right.txt], outs: [r.txt], command: [cp, right.txt, r.txt]}
  all: {kind: command, srcs: [":left", ":right"], outs: [all.txt], command: [sh, -c, "cat l.txt r.txt > all.txt"]}
""",
    "left.txt": "left\n",
    "right.txt": "right\n",
}


def loaded(*words: str, **environment: str) -> set[str]:
    """The modules that a call of mrp loads beyond those of a bare Python."""
    code = (
        "import sys; before = set(sys.modules); from mrp.cli.main import main; code = main();"
        " print('\\0', code, *(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    code_and_names = done.stderr.rpartition("\0")[2].split()
    assert code_and_names[0] == "0", done.stderr
    return set(code_and_names[1:])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A built workspace whose files are old enough for their times to be trusted."""
    place = Place(tmp_path / "w").write(dict(WORKSPACE))
    time.sleep(0.05)
    place.build("//:all")
    return place


def build(place: Place) -> set[str]:
    """What one more build loads."""
    return loaded("-C", str(place.folder), "build", "//:all", MRP_CACHE=str(place.cache))


# -- which modules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_needs_one_module_beside_the_entry(word: str) -> None:
    assert loaded(word) == {"mrp", "mrp.cli", "mrp.cli.main", "mrp.cli.version"}


def test_the_words_that_a_usage_error_needs_load_no_language() -> None:
    assert loaded("build", "--help").isdisjoint(HEAVY)


def test_the_first_build_loads_the_language(tmp_path: Path) -> None:
    """The names are right: what the other tests do not find is there when it is needed."""
    place = Place(tmp_path / "w").write(dict(WORKSPACE))
    assert loaded("-C", str(place.folder), "plan", "//:all", MRP_CACHE=str(place.cache)) >= LANGUAGE - {"lark"}
    query = loaded("-C", str(place.folder), "query", "deps(//:all)", MRP_CACHE=str(place.cache))
    assert query >= LANGUAGE - {"mrp.compiler.compile"}


def test_a_build_with_nothing_to_do_loads_nothing_heavy(place: Place) -> None:
    assert build(place).isdisjoint(HEAVY | {"argparse", "sqlite3", "decimal", "dataclasses", "typing"})


def test_a_build_after_an_edit_of_a_source_reads_no_document(place: Place) -> None:
    place.write({"left.txt": "another\n"})
    time.sleep(0.05)
    assert build(place).isdisjoint(HEAVY)
    assert (place.folder / "mrp-out" / "all" / "all.txt").read_text() == "another\nright\n"


def test_a_build_after_an_edit_of_a_document_reads_it(place: Place) -> None:
    place.edit("BUILD.yaml", "cat l.txt r.txt", "cat r.txt l.txt")
    assert build(place) >= LANGUAGE - {"lark"}


def test_what_is_lazy_stays_lazy() -> None:
    """Modules that an edited build loads must not load the language by being imported."""
    names = (
        "mrp.cli.build",
        "mrp.cli.parser",
        "mrp.cli.screen",
        "mrp.specs.ir",
        "mrp.specs.labels",
        "mrp.specs.errors",
    )
    code = f"import sys, importlib; [importlib.import_module(name) for name in {names}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert set(done.stdout.split()).isdisjoint(HEAVY)
    assert set(names) <= set(done.stdout.split())


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_loads_nothing_before_the_entry() -> None:
    """pip's own script, which [project.scripts] would give, imports `re` first: more than all of `mrp --version`."""
    command = [sys.executable, "-X", "importtime", str(SCRIPT), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == f"mrp {VERSION}\n"
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    assert names[-1] == "mrp.cli.version"
    assert not {"re", "enum", "typing"} & set(names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-scripts"] == {"runtime/mrp.script": "mrp"}
    assert "scripts" not in project["project"]
    assert SCRIPT.read_text().startswith("#!python\n"), "installers put their Python there"


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "mrp", "--version"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"mrp {VERSION}\n")


def test_the_version_is_that_of_the_distribution() -> None:
    assert version("mrp-build") == VERSION


# -- the words ---------------------------------------------------------------------------------------------------

WORDS = ["-C", "/a", "b", "--directory", "--directory=/c", "-C/d", "-qC", "-q", "--json", "-v", "-j", "2", "--", "-C/"]
words = st.lists(st.sampled_from([*WORDS, "build", "plan", "-//x", "//:all", "--config", "--offline"]), max_size=7)


@given(words, words)
def test_the_quick_reading_of_words_agrees_with_the_parser(before: list[str], after: list[str]) -> None:
    said = [*before, "build", *after]
    try:
        arguments = read(said)
    except UsageError:
        return
    assert verb_of(said) == arguments.verb
    told = without_directory(said)
    if told is not None:
        assert told[0] == arguments.directory
        assert not any(word.startswith(("-C", "--directory")) for word in told[1])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["build", "//:all"], (".", ["build", "//:all"])),
        (["-C", "/a", "build"], ("/a", ["build"])),
        (["-C", "/a", "build", "-C", "b", "-j", "2"], ("b", ["build", "-j", "2"])),
        (["--directory=/c", "build", "-//x"], ("/c", ["build", "-//x"])),
        (["-C/d", "build"], None),
        (["build", "--", "-C"], None),
        (["build", "-C"], None),
    ],
)
def test_the_folder_of_a_call(said: list[str], told: tuple[str, list[str]] | None) -> None:
    assert without_directory(said) == told


@pytest.mark.parametrize("said", [[], ["--help", "build"], ["-C", "build"], ["--version", "build"]])
def test_calls_without_a_verb(said: list[str]) -> None:
    assert verb_of(said) is None

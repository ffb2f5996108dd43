from collections.abc import Iterator
from decimal import Decimal

import pytest
from support.datasets import dataset, files_of, index, rows_text

from mrp.cache.store import Store
from mrp.rules.globs import parse_glob
from mrp.rules.views import check_record_names, check_views
from mrp.specs.errors import SpecError
from mrp.specs.ir import DatasetTask, GenerateSpec


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("cache")) as opened:
        yield opened


# -- globs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("tests/**", ["tests/a", "tests/a/b", "tests/.hidden"], ["tests", "a/tests/b", "Tests/a"]),
        ("**/secret.txt", ["secret.txt", "a/secret.txt", "a/b/secret.txt"], ["asecret.txt", "secret.txt/a"]),
        ("*.py", ["a.py", ".py"], ["a/b.py", "a.pyc"]),
        ("a/**/b/*.py", ["a/b/x.py", "a/c/d/b/x.py"], ["a/b/c/x.py", "b/x.py"]),
        ("?[ab][!ab]", ["xac", "xb-"], ["xaa", "x/c", "xa/"]),
        ("a[]x]b", ["a]b", "axb"], ["ab", "a/b"]),
        ("[a", ["[a"], ["a"]),
        ("a.b+(c)", ["a.b+(c)"], ["aXb+(c)"]),
        ("./tests/x", ["tests/x"], ["x"]),
        ("**", ["a", "a/b", ".x/y"], []),
    ],
)
def test_a_glob_matches_whole_paths(pattern: str, matching: list[str], other: list[str]) -> None:
    glob = parse_glob(pattern)
    assert [path for path in matching if not glob.matches(path)] == []
    assert [path for path in other if glob.matches(path)] == []


@pytest.mark.parametrize("pattern", ["", "/etc/**", "../x", "a/../../b", "a\\b", "."])
def test_a_glob_that_leaves_the_record_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="must be a glob below the record's folder"):
        parse_glob(pattern)


@pytest.mark.parametrize(
    ("pattern", "path", "stripped"),
    [
        ("start/**", "start/a/b.py", "a/b.py"),
        ("start/v1/*.py", "start/v1/m.py", "m.py"),
        ("start/*/m.py", "start/x/m.py", "x/m.py"),
        ("solution/solve.sh", "solution/solve.sh", "solve.sh"),
        ("*.py", "m.py", "m.py"),
    ],
)
def test_a_glob_has_a_literal_folder(pattern: str, path: str, stripped: str) -> None:
    assert parse_glob(pattern).stripped(path) == stripped


# -- rows --------------------------------------------------------------------------------------------------------

ROW = {"id": "a", "prompt": "Add.", "tests": "assert add(1, 1) == 2", "answer": "return a + b", "n": 1.50}
ROWS = rows_text(ROW)


def test_rows_show_fields_to_those_who_may_see_them(store: Store) -> None:
    task = dataset(id="id", private=["tests"], solution=["answer"])
    record = index(store, task, {"a.jsonl": ROWS})["a"]
    assert files_of(store, record.task) == {"record.json": '{"id":"a","n":1.5,"prompt":"Add."}\n'}
    assert files_of(store, record.grader) == {
        "record.json": '{"id":"a","n":1.5,"prompt":"Add.","tests":"assert add(1, 1) == 2"}\n'
    }
    assert files_of(store, record.solver) == {
        "record.json": '{"answer":"return a + b","id":"a","n":1.5,"prompt":"Add."}\n'
    }
    assert files_of(store, record.starter) == files_of(store, record.solution) == {}


def test_rows_become_files_by_templates(store: Store) -> None:
    task = dataset(
        id="id",
        starter={"files": {"main.py": "# ${record.prompt}\n"}},
        private={"fields": ["tests"], "files": {"tests/t.py": "# ${record.prompt}\n${record.tests}\n"}},
        solution={"fields": ["answer"], "files": {"main.py": "# ${record.prompt}\n${record.answer}\n"}},
    )
    record = index(store, task, {"a.jsonl": ROWS})["a"]
    assert files_of(store, record.starter) == {"main.py": "# Add.\n"}
    assert files_of(store, record.solution) == {"main.py": "# Add.\nreturn a + b\n"}
    assert files_of(store, record.grader)["tests/t.py"] == "# Add.\nassert add(1, 1) == 2\n"
    assert set(files_of(store, record.task)) == set(files_of(store, record.solver)) == {"record.json"}


def test_what_is_private_and_solution_is_solution(store: Store) -> None:
    record = index(store, dataset(id="id", private=["tests", "answer"], solution=["answer"]), {"a.jsonl": ROWS})["a"]
    assert "answer" not in files_of(store, record.grader)["record.json"]
    assert "answer" in files_of(store, record.solver)["record.json"]


def test_a_template_that_names_a_field_which_a_row_lacks_is_an_error_of_that_row(store: Store) -> None:
    task = dataset(id="id", starter={"files": {"main.py": "${record.start}"}})
    with pytest.raises(SpecError) as caught:
        index(store, task, {"a.jsonl": rows_text({"id": "a", "start": ""}, {"id": "b"})})
    assert str(caught.value) == ("a.jsonl:2:1: error: file main.py: `${record.start}`: record has no `start`")


@pytest.mark.parametrize("view", ["private", "solution"])
def test_a_hidden_field_that_no_row_has_is_an_error(store: Store, view: str) -> None:
    with pytest.raises(SpecError) as caught:
        index(store, dataset(id="id", **{view: ["tets"]}), {"a.jsonl": ROWS})
    assert str(caught.value) == (
        f"a.jsonl:1:1: error: `{view}` names the field 'tets', which no record has (//p:tasks)\n  did you mean `tests`?"
    )


# -- folders -----------------------------------------------------------------------------------------------------

FOLDER = {
    "t/add/README.md": "Add.\n",
    "t/add/record.json": '{"level": 1}',
    "t/add/start/m.py": "def add(): ...\n",
    "t/add/start/run.sh": "python3 m.py\n",
    "t/add/tests/test_m.py": "assert add(1, 1) == 2\n",
    "t/add/solution/m.py": "def add(a, b): return a + b\n",
}


def folder_task(**fields: object) -> DatasetTask:
    views = {"starter": ["start/**"], "private": ["tests/**"], "solution": ["solution/**"]}
    return dataset("dir", roots=("t/add",), **{**views, **fields})


def test_folders_show_files_to_those_who_may_see_them(store: Store) -> None:
    record = index(store, folder_task(), FOLDER)["add"]
    public = {
        "README.md": "Add.\n",
        "record.json": '{"id":"add","level":1}\n',
        "start/m.py": "def add(): ...\n",
        "start/run.sh": "python3 m.py\n",
    }
    assert files_of(store, record.task) == public
    assert files_of(store, record.solver) == public
    assert files_of(store, record.grader) == {**public, "tests/test_m.py": "assert add(1, 1) == 2\n"}
    assert files_of(store, record.starter) == {"m.py": "def add(): ...\n", "run.sh": "python3 m.py\n"}
    assert files_of(store, record.solution) == {"m.py": "def add(a, b): return a + b\n"}
    assert store.read_tree(record.starter)["run.sh"].kind == "x"
    assert record.public == {"id": "add", "level": 1}


def test_a_starter_file_that_is_private_stays_private(store: Store) -> None:
    task = folder_task(starter=["**/*.py"])
    record = index(store, task, FOLDER)["add"]
    assert set(files_of(store, record.starter)) == {"start/m.py"}


def test_a_folders_own_record_file_may_be_private(store: Store) -> None:
    record = index(store, folder_task(private=["tests/**", "record.json"]), FOLDER)["add"]
    assert files_of(store, record.task)["record.json"] == '{"id":"add"}\n'
    assert files_of(store, record.solver)["record.json"] == '{"id":"add"}\n'
    assert files_of(store, record.grader)["record.json"] == '{"id":"add","level":1}\n'
    record = index(store, folder_task(solution=["solution/**", "record.json"]), FOLDER)["add"]
    assert files_of(store, record.grader)["record.json"] == '{"id":"add"}\n'
    assert files_of(store, record.solver)["record.json"] == '{"id":"add","level":1}\n'


@pytest.mark.parametrize(
    ("starter", "message"),
    [
        (["start/**", "other/**"], "`starter` would put both other/m.py and start/m.py at m.py"),
        (["start/**", "clash/**"], "`starter` would make m.py both a file and a folder"),
    ],
)
def test_two_files_at_one_place_are_an_error(store: Store, starter: list[str], message: str) -> None:
    files = {**FOLDER, "t/add/other/m.py": "", "t/add/clash/m.py/x": ""}
    with pytest.raises(SpecError, match="t/add:1:1: error: " + message):
        index(store, folder_task(starter=starter), files)


def test_a_glob_that_matches_nothing_is_an_error(store: Store) -> None:
    with pytest.raises(SpecError) as caught:
        index(store, folder_task(private=["tests"]), FOLDER)
    assert str(caught.value) == (
        "t/add:1:1: error: `private` names 'tests', which matches no file of any record (//p:tasks)\n"
        "  for all files of a folder write `tests/**`"
    )


def test_harbor_agents_see_the_instruction_and_neither_tests_nor_settings(store: Store) -> None:
    files = {
        "h/instruction.md": "Say hello.\n",
        "h/task.toml": '[metadata]\nsolution_explanation = "echo"\n',
        "h/environment/Dockerfile": "FROM scratch\n",
        "h/tests/test.sh": "exit 0\n",
        "h/solution/solve.sh": "echo hello\n",
    }
    record = index(store, dataset("harbor", roots=("h",)), files)["h"]
    assert files_of(store, record.task) == {
        "instruction.md": "Say hello.\n",
        "record.json": '{"id":"h","instruction":"Say hello.\\n"}\n',
    }
    assert files_of(store, record.solver) == files_of(store, record.task)
    assert files_of(store, record.solution) == {"solve.sh": "echo hello\n"}
    grader = files_of(store, record.grader)
    assert set(grader) == {"instruction.md", "record.json", "task.toml", "environment/Dockerfile", "tests/test.sh"}
    assert '"metadata":{"solution_explanation":"echo"}' in grader["record.json"]


# -- what the compiler asks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (dataset(starter=["prompt"]), "`starter` puts files into /work, and rows have none"),
        (dataset(id="key", private=["key"]), "`id` 'key' cannot be a private or solution field"),
        (dataset(private={"files": {"record.json": "x"}}), "`private.files` 'record.json' is where graders find"),
        (dataset(starter={"files": {"../x": ""}}), "`starter.files` '../x' must be a plain relative path"),
        (dataset(starter={"files": {"/x": ""}}), "`starter.files` '/x' must be a plain relative path"),
        (dataset(starter={"files": {"a//b": ""}}), "`starter.files` 'a//b' must be a plain relative path"),
        (dataset(starter={"files": {"a": "", "a/b": ""}}), "`starter.files` makes 'a' both a file and a folder"),
        (dataset(starter={"files": {"a": "x ${y"}}), "`starter.files` 'a', column 3: `${` has no closing"),
        (dataset(starter={"files": {"a": "${seed}"}}), "only `${record.FIELD}` may stand here, not seed"),
        (dataset(starter={"files": {"a": "${record}"}}), "only `${record.FIELD}` may stand here, not record"),
        (
            dataset(private=["tests"], starter={"files": {"a": "x${record.tests.0}"}}),
            "`starter.files` 'a', column 2: `record.tests.0` is a private field, which `starter` must not show",
        ),
        (
            dataset(solution=["answer"], private={"files": {"a": "${record.answer}"}}),
            "`record.answer` is a solution field, which `private` must not show",
        ),
        (
            dataset(private=["tests"], solution={"files": {"a": "${record.tests}"}}),
            "`record.tests` is a private field, which `solution` must not show",
        ),
        (dataset("dir", private={"fields": ["x"]}), "`private` of format dir takes globs over files"),
        (dataset("dir", private=["../x"]), "`private`: '../x' must be a glob below the record's folder"),
        (dataset(of=("//p:a",), private=["x"]), "`private` cannot stand beside `of`"),
        (dataset(of=("//p:a",), id="x"), "`id` cannot stand beside `of`"),
        (dataset(split={"a": Decimal("0.5")}), "the shares of `split` sum to 0.5, and must sum to 1"),
        (dataset(split={"a": Decimal(2), "b": Decimal(-1)}), "`split` gives 'b' a share below 0"),
        (dataset(split={"a": Decimal(1)}, take="b"), "there is no part 'b' in `split`; it has a"),
        (dataset("csv", generate=GenerateSpec(command=("x",))), "what is generated is jsonl; remove `format: csv`"),
    ],
)
def test_views_that_cannot_be_are_named(task: DatasetTask, problem: str) -> None:
    (found,) = check_views(task)
    assert problem in found


def test_good_views_have_no_problems() -> None:
    task = dataset(
        id="id",
        starter={"files": {"main.py": "${record.prompt}"}},
        private={"fields": ["tests"], "files": {"t.py": "${record.tests}${record.prompt}"}},
        solution={"fields": ["answer"], "files": {"main.py": "${record.prompt}${record.answer}${record.id}"}},
        split={"a": Decimal("0.1"), "b": Decimal("0.9")},
        take="a",
    )
    assert check_views(task) == []
    assert check_views(folder_task()) == []


def test_templates_that_agents_see_name_public_fields_only() -> None:
    task = dataset(private=["tests", "both"], solution=["answer", "both"])
    names = ["seed", "record.id", "record.prompt.x", "record.tests.0", "record.answer", "record.both", "record"]
    assert check_record_names(task, names) == [
        "`${record.tests.0}` is a private field, which agents must not see",
        "`${record.answer}` is a solution field, which agents must not see",
        "`${record.both}` is a solution field, which agents must not see",
        "`${record}` is the whole record; name a field, like ${record.id}",
    ]

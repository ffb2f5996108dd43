"""Patterns: which files they stand for, and what they refuse."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrp.compiler.globs import GlobError, WorkspaceTree, expand, expand_file, literal_prefix


def tree(root: Path, *files: str) -> WorkspaceTree:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("")
    return WorkspaceTree(root)


def files(found: WorkspaceTree, pattern: str, package: str = "p") -> list[str]:
    return [path.removeprefix("p/") for path in expand(found, package, pattern).files]


FILES = ("p/a.py", "p/B.py", "p/c.txt", "p/x/a.py", "p/x/y/a.py", "p/x/y/z.txt", "p/.hidden", "p/.dot/a.py")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.py", ["a.py"]),
        ("*.py", ["B.py", "a.py"]),
        ("?.py", ["B.py", "a.py"]),
        ("[ab].py", ["a.py"]),
        ("[!a].py", ["B.py"]),
        ("*/a.py", ["x/a.py"]),
        ("**/a.py", ["a.py", "x/a.py", "x/y/a.py"]),
        ("x/**", ["x/a.py", "x/y/a.py", "x/y/z.txt"]),
        ("x", ["x/a.py", "x/y/a.py", "x/y/z.txt"]),
        ("x/", ["x/a.py", "x/y/a.py", "x/y/z.txt"]),
        ("**", ["B.py", "a.py", "c.txt", "x/a.py", "x/y/a.py", "x/y/z.txt"]),
        ("*/", ["x/a.py", "x/y/a.py", "x/y/z.txt"]),
        ("./a.py", ["a.py"]),
        (".hidden", [".hidden"]),
        (".h*", [".hidden"]),
        (".dot/*.py", [".dot/a.py"]),
        ("x/**/z.txt", ["x/y/z.txt"]),
    ],
)
def test_patterns_take_files_sorted_by_code_point_and_no_hidden_ones_unless_named(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    assert files(tree(tmp_path, *FILES), pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "message", "hint"),
    [
        ("", "an empty pattern matches nothing", "write `**` for all files of the package"),
        ("/etc/passwd", "`/etc/passwd` is an absolute path", "write a path relative to the package's folder"),
        ("../q/a", "`../q/a` leaves its package with `..`", "take other packages' files through their targets"),
        ("x/../../q", "`x/../../q` leaves its package with `..`", "take other packages' files through their targets"),
        ("a\\b", "`a\\b` holds a backslash or a NUL", "folders are separated by `/`"),
        ("x//a", "`x//a` has an empty name between slashes", "write one `/` between two names"),
        ("a**", "`a**` has `**` inside a name", "`**` stands alone between slashes"),
        ("[ab", "`[ab` has a `[` that is not closed", "write `[[]` for a plain `[`"),
        ("*.md", "`*.md` matches no file", "the folder p holds B.py, a.py, c.txt, empty, ..."),
        ("b.py", "there is no p/b.py", "did you mean `B.py`?"),
        ("x/q/a.py", "there is no p/x/q", "did you mean `x/y`?"),
        ("empty", "the folder p/empty holds no file", "name one that does"),
    ],
)
def test_a_pattern_that_is_wrong_or_takes_nothing_says_so(
    tmp_path: Path, pattern: str, message: str, hint: str
) -> None:
    found = tree(tmp_path, *FILES)
    (tmp_path / "p/empty").mkdir()
    with pytest.raises(GlobError) as error:
        expand(found, "p", pattern)
    assert (error.value.message, error.value.hint) == (message, hint)


def test_two_stars_and_whole_folders_stop_where_another_package_begins(tmp_path: Path) -> None:
    found = tree(tmp_path, "p/a", "p/sub/BUILD.yaml", "p/sub/b", "p/x/sub/BUILD.yaml", "p/x/sub/c", "p/x/d")
    assert files(found, "**") == ["a", "x/d"]
    assert files(found, "x") == ["x/d"]
    with pytest.raises(GlobError, match="matches no file"):
        expand(found, "p", "**/b")
    assert files(found, "sub/b") == ["sub/b"]


def test_what_builds_leave_behind_is_passed_over(tmp_path: Path) -> None:
    found = tree(tmp_path, "a", "mrp-out/b", "node_modules/c", "__pycache__/d", ".mrp/e", "x/__pycache__/f", "x/g")
    assert expand(found, "", "**").files == ("a", "x/g")
    assert expand(found, "", "*/*").files == ("x/g",)
    assert expand(found, "", "node_modules/c").files == ("node_modules/c",)


def test_record_folders_are_roots_with_all_their_files(tmp_path: Path) -> None:
    found = tree(tmp_path, "p/tasks/one/a", "p/tasks/one/d/b", "p/tasks/two/a", "p/tasks/README")
    expansion = expand(found, "p", "tasks/*", folders=True)
    assert expansion.roots == ("p/tasks/one", "p/tasks/two")
    assert expansion.files == ("p/tasks/one/a", "p/tasks/one/d/b", "p/tasks/two/a")
    with pytest.raises(GlobError, match="`tasks/README` is a file, but the records of this format are folders"):
        expand(found, "p", "tasks/README", folders=True)
    with pytest.raises(GlobError, match="matches no folder"):
        expand(found, "p", "tasks/one/a*", folders=True)


def test_a_symlink_is_read_through_inside_the_workspace_and_refused_outside(tmp_path: Path) -> None:
    root, outside = tmp_path / "w", tmp_path / "outside"
    found = tree(root, "p/real", "q/shared")
    outside.write_text("")
    (root / "p/link").symlink_to("../q/shared")
    assert files(found, "l*") == ["link"]

    (root / "p/leak").symlink_to(outside)
    with pytest.raises(GlobError, match="`le\\*` takes p/leak, a symlink that leads out of the workspace"):
        expand(WorkspaceTree(root), "p", "le*")
    with pytest.raises(GlobError, match="a symlink that leads out of the workspace"):
        expand(WorkspaceTree(root), "p", "leak")

    (root / "p/gone").symlink_to("nothing")
    with pytest.raises(GlobError, match="`gone` is a symlink that leads nowhere"):
        expand(WorkspaceTree(root), "p", "gone")


def test_symlinked_folders_are_never_entered(tmp_path: Path) -> None:
    found = tree(tmp_path, "p/real/a", "q/b")
    (tmp_path / "p/link").symlink_to("../q")
    assert files(found, "**") == ["real/a"]
    for pattern in ("link", "link/b"):
        with pytest.raises(GlobError, match="names p/link, a symlink to a folder"):
            expand(found, "p", pattern)


def test_names_that_are_not_utf8_are_refused_rather_than_guessed(tmp_path: Path) -> None:
    found = tree(tmp_path, "p/a")
    with open(os.fsencode(tmp_path / "p") + b"/\xff", "w"):
        pass
    with pytest.raises(GlobError, match="the folder p holds a file whose name is not UTF-8"):
        expand(found, "p", "*")


def test_a_special_file_is_refused(tmp_path: Path) -> None:
    found = tree(tmp_path, "p/a")
    os.mkfifo(tmp_path / "p/pipe")
    with pytest.raises(GlobError, match="`\\*` takes p/pipe, which is neither a file nor a folder"):
        expand(found, "p", "*")


def test_the_folders_that_were_listed_are_all_that_a_new_file_could_matter_in(tmp_path: Path) -> None:
    found = tree(tmp_path, "p/a.py", "p/x/y/b.py", "q/c.py")
    assert expand(found, "p", "*.py").listed == ("p",)
    assert expand(found, "p", "**/*.py").listed == ("p", "p/x", "p/x/y")
    assert found.listed == ["p", "p/x", "p/x/y"]


def test_a_single_file_is_one_literal_file(tmp_path: Path) -> None:
    found = tree(tmp_path, "p/a.json", "p/d/b")
    assert expand_file(found, "p", "a.json") == "p/a.json"
    with pytest.raises(GlobError, match="must name one file, without wildcards"):
        expand_file(found, "p", "*.json")
    with pytest.raises(GlobError, match="`d` is a folder where a file is expected"):
        expand_file(found, "p", "d")


def test_the_literal_part_of_a_pattern() -> None:
    assert [literal_prefix(p) for p in ("start/**", "*.py", "a/b/*.py", "a/b", "a")] == ["start", "", "a/b", "a", ""]


NAMES = st.sampled_from(["a", "b", "ab", "ba", "a.b"])


@settings(max_examples=60)
@given(
    paths=st.sets(st.lists(NAMES, min_size=1, max_size=3).map(tuple), min_size=1, max_size=6),
    pattern=st.lists(st.sampled_from(["a", "*", "**", "?", "a*", "[ab]"]), min_size=1, max_size=3),
)
def test_patterns_agree_with_pathlib(
    tmp_path_factory: pytest.TempPathFactory, paths: set[tuple[str, ...]], pattern: list[str]
) -> None:
    """Against another implementation; a literal folder is the one case in which ours takes more."""
    root = tmp_path_factory.mktemp("globs")
    leaves = {path for path in paths if not any(other[: len(path)] == path and other != path for other in paths)}
    found = tree(root, *("/".join(path) for path in leaves))
    text = "/".join(pattern)
    theirs = {path for path in root.glob(text if pattern[-1] != "**" else f"{text}/*") if path.is_file()}
    if pattern[-1] == "a":
        theirs |= {
            file for folder in root.glob(text) if folder.is_dir() for file in folder.rglob("*") if file.is_file()
        }
    try:
        ours = set(expand(found, "", text).files)
    except GlobError:
        ours = set()
    assert ours == {path.relative_to(root).as_posix() for path in theirs}

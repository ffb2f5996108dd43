"""Broken workspaces: each is refused with its exact message; nothing is executed and nothing is written.

The stories are the files of golden/broken (see support.broken). `MRP_REGENERATE=1` writes their endings anew; then
read every message that changed as prose.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.broken import read_broken, snapshot

from mrp.cache.store import Store
from mrp.cli.main import main

GOLDEN = Path(__file__).parent / "golden" / "broken"
STORIES = {str(path.relative_to(GOLDEN).with_suffix("")): read_broken(path) for path in sorted(GOLDEN.rglob("*.txt"))}


SPAWNED = (
    "documents/everything-at-once",
    "documents/yaml-billion-laughs",
    "documents/yaml-not-utf-8",
    "policy/network-open",
    "rows/nan",
    "words/verb-typo",
)

_JARGON = re.compile(
    r"Traceback|pydantic|validation error|\b(?:NoneType|Decimal|dict|str|int|bool|float|tuple|KeyError|ValueError"
    r"|TypeError|OSError|Errno)\b|line \d+ column \d+|<unicode string>|mrp has a bug"
)


def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a workspace; the cache and the home folder are beside it, and are not there yet."""
    monkeypatch.setenv("MRP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ws"


@pytest.mark.parametrize("name", STORIES)
def test_a_broken_workspace(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    story = STORIES[name]
    workspace = places(tmp_path, monkeypatch)
    story.lay_out(workspace)
    before = snapshot(tmp_path)
    code = main(["-C", str(workspace), *story.words])
    captured = capsys.readouterr()
    stderr = captured.err.replace(str(workspace), "<workspace>")
    if os.environ.get("MRP_REGENERATE"):
        story.path.write_bytes(story.rewritten(code, stderr))
    else:
        assert (code, stderr) == (story.exit_code, story.stderr)
    assert captured.out == ""
    assert code == (3 if name.startswith("policy/") else 2)
    assert not _JARGON.search(stderr), f"not for people: {stderr}"
    assert str(tmp_path) not in stderr
    assert_nothing_written(name, tmp_path, before)


def assert_nothing_written(name: str, folder: Path, before: dict[bytes, tuple[int, int, bytes]]) -> None:
    """Nothing at all; where rows had to be read to know, the digests of files and their bytes may be remembered."""
    after = snapshot(folder)
    if name.startswith("rows/"):
        assert executed(folder / "cache") == []
        own = (os.fsencode(folder / "cache"), os.fsencode(folder / "ws" / ".mrp" / "files.digests"))
        after = {path: what for path, what in after.items() if not path.startswith(own)}
        after.pop(os.fsencode(folder / "ws" / ".mrp"), None)
        after[os.fsencode(folder / "ws")] = before[os.fsencode(folder / "ws")]
    assert after == before


def executed(cache: Path) -> list[str]:
    """The kinds of the action entries of a cache. Rows that were read and are right count as nothing executed."""
    if not cache.exists():
        return []
    with Store.open(cache) as store:
        return [kind for (kind,) in store.index.read("SELECT kind FROM actions") if kind != "index"]


@pytest.mark.parametrize("name", SPAWNED)
def test_the_command_line_as_a_process_says_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = STORIES[name]
    workspace = places(tmp_path, monkeypatch)
    story.lay_out(workspace)
    command = [sys.executable, "-m", "mrp", "-C", str(workspace), *story.words]
    done = subprocess.run(command, capture_output=True, check=False, timeout=300)
    stderr = done.stderr.decode().replace(str(workspace), "<workspace>")
    assert (done.returncode, stderr, done.stdout) == (story.exit_code, story.stderr, b"")


def test_there_are_enough_of_them() -> None:
    assert sum(story.exit_code == 2 for story in STORIES.values()) >= 80


def test_the_check_notices_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = places(tmp_path, monkeypatch)
    STORIES["words/target-typo"].lay_out(workspace)
    before = snapshot(tmp_path)
    assert main(["-C", str(workspace), "build", "//jobs:tasks"]) == 0
    for name in ("documents/any", "rows/any"):
        with pytest.raises(AssertionError):
            assert_nothing_written(name, tmp_path, before)

"""The house: five rooms, imports go one way, and the wheel holds them all."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["cache", "specs", "rules", "compiler", "runtime"]
ALSO = {"sdk": "rules", "cli": "runtime", "api": "runtime"}


def imports_of(path: Path) -> set[str]:
    """The rooms (and mrp.sdk, mrp.cli) that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 or "sdk" in path.parts, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module else []
        for name in names:
            parts = name.split(".")
            if parts[0] == "mrp" and len(parts) > 1:
                found.add(ALSO.get(parts[1], parts[1]))
    return found


def wrong_way(path: Path, room: str) -> set[str]:
    """The rooms to the right of `room` that a module of it imports."""
    return imports_of(path) & set(ROOMS[ROOMS.index(room) + 1 :])


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_those_to_its_left(room: str) -> None:
    modules = sorted((ROOT / room).rglob("*.py"))
    assert modules
    assert {path: wrong for path in modules if (wrong := wrong_way(path, room))} == {}


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def late():\n    from mrp.runtime.build import build\n")
    assert wrong_way(module, "cache") == {"runtime"}
    assert wrong_way(module, "runtime") == set()


def test_there_is_no_init_that_would_hide_the_other_rooms() -> None:
    assert [path for room in ROOMS for path in (ROOT / room / "mrp").glob("__init__.py")] == []


def test_the_wheel_holds_every_file_of_every_room(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("mrp_build-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if name.startswith("mrp/")}
    tracked = {
        str(path.relative_to(ROOT / room))
        for room in ROOMS
        for path in (ROOT / room / "mrp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == tracked
    assert [name for name in names if name.endswith(".data/scripts/mrp")], "the command"

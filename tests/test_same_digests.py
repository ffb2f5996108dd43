"""The same workspace at another path, by another user, with other jobs, on another Python: the same digests."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import Place

ROOT = Path(__file__).parents[1]
ROOMS = ["cache", "specs", "rules", "compiler", "runtime"]
NOBODY = 65534


def quickstart(folder: Path, python: str | None = None) -> Place:
    """The example, without what an earlier build of it left."""
    ignore = shutil.ignore_patterns(".mrp", "mrp-out", "__pycache__", "board.json")
    shutil.copytree(ROOT / "examples" / "quickstart", folder, ignore=ignore)
    return Place(folder, python=python)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """digests.jsonl of a build with one job."""
    place = quickstart(tmp_path_factory.mktemp("reference") / "ws")
    place.build("//jobs:eval", "-j", "1")
    return place.digests()


def test_at_another_path_with_eight_jobs(tmp_path: Path, reference: str) -> None:
    place = quickstart(tmp_path / "quite another" / "place é")
    place.build("//jobs:eval", "-j", "8")
    assert place.digests() == reference


def test_another_input_would_be_seen(tmp_path: Path, reference: str) -> None:
    place = quickstart(tmp_path / "ws")
    place.edit("jobs/BUILD.yaml", "pids: 32", "pids: 33")
    place.build("//jobs:eval")
    assert place.digests() != reference


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_on_another_python(version: str, tmp_path: Path, reference: str) -> None:
    python = ROOT / f".venv-{version}" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"there is no .venv-{version}; `make pythons` makes it where python{version} is installed")
    place = quickstart(tmp_path / "ws", python=str(python))
    place.build("//jobs:eval")
    assert place.digests() == reference


def test_by_another_user(tmp_path: Path, reference: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    python = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "MRP_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([packages, *(str(ROOT / room) for room in ROOMS)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "mrp", *words]
        return subprocess.run(
            command, env=environment, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True
        )

    try:
        reachable = as_nobody("--version").returncode == 0
    except OSError:
        reachable = False
    if not reachable:
        pytest.skip(f"another user cannot run {python} with the packages of this environment")
    place = quickstart(tmp_path / "ws")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for folder in tmp_path.parents:
        if folder.owner() == "root" and not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(0o755)
    done = as_nobody("-C", str(place.folder), "build", "//jobs:eval")
    assert done.returncode == 0, done.stderr
    assert place.digests() == reference

"""What a build with nothing to do costs, counted in system calls: a few hundred, and one for each source."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import Place

import mrp

STRACE = shutil.which("strace")

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace, which counts system calls, is not on this machine")

FIXED = 500
"""System calls of the answer beyond those of a bare Python and one for each of mrp's own files, which are compared."""


def system_calls(command: list[str], place: Place, log: Path) -> int:
    """How many system calls a command makes, its children included."""
    assert STRACE is not None
    subprocess.run([STRACE, "-f", "-qq", "-o", log, *command], env=place.environment(), check=True, capture_output=True)
    return len(log.read_text(errors="replace").splitlines())


def built(folder: Path, files: int) -> Place:
    """A workspace whose one command reads so many files, built twice, so that all times are old enough."""
    place = Place(folder).write(
        {
            "mrp.yaml": "mrp: 1\nname: many\n",
            "BUILD.yaml": "mrp: 1\ntargets:\n"
            "  count: {kind: command, srcs: ['in/*'], outs: [n.txt], command: [sh, -c, 'ls in | wc -l > n.txt']}\n",
            **{f"in/{number}": f"{number}\n" for number in range(files)},
        }
    )
    place.build("//:count")
    place.build("//:count")
    return place


def null_build(place: Place, log: Path) -> int:
    return system_calls([sys.executable, "-m", "mrp", "-C", str(place.folder), "build", "//:count"], place, log)


def test_one_call_for_each_source_and_a_few_hundred_besides(tmp_path: Path) -> None:
    few, many = built(tmp_path / "few", 100), built(tmp_path / "many", 1100)
    bare = system_calls([sys.executable, "-c", "import runpy"], few, tmp_path / "log")
    least, most = null_build(few, tmp_path / "log"), null_build(many, tmp_path / "log")
    assert (most - least) / 1000 <= 1.02
    own = sum(1 for portion in mrp.__path__ for path in Path(portion).rglob("*") if path.suffix != ".pyc")
    assert least - bare <= FIXED + own + 100


def test_a_build_that_must_look_closer_makes_many_more(tmp_path: Path) -> None:
    place = built(tmp_path / "w", 100)
    quiet = null_build(place, tmp_path / "log")
    (place.folder / "in" / "7").write_text("another\n")
    assert null_build(place, tmp_path / "log") > 3 * quiet

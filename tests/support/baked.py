"""The example and HumanEval in one portable image: scratch, Debian's python3 as a deb layer, the agents copied in.

The lock of the deb layer is made here, by `mrp image lock`, from the package sources of this machine.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.humaneval import BUILD as HUMANEVAL
from support.humaneval import write_rows
from support.places import Place

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
IMAGE = "//images:py"

IMAGES = """\
mrp: 1
targets:
  py:
    kind: image
    base: scratch
    layers:
      - {deb: [dash, python3], lock: debs.lock}
      - copy: {"agents/": /opt/agents}
"""


def baked_quickstart(folder: Path) -> Place:
    """The example, whose sandbox shows the portable image."""
    ignore = shutil.ignore_patterns(".mrp", "mrp-out", "__pycache__", "board.json")
    shutil.copytree(QUICKSTART, folder, ignore=ignore)
    place = Place(folder)
    _with_image(place)
    shutil.copy(folder / "jobs" / "search.py", folder / "images" / "agents")
    return place


def baked_humaneval(folder: Path, rows: list[dict[str, Any]], like: Place | None = None) -> Place:
    """HumanEval over `rows`; with the lock and a copy of the cache of `like`, another workspace with this image."""
    place = Place(folder)
    place.write({"mrp.yaml": "mrp: 1\nname: humaneval\n", "jobs/BUILD.yaml": HUMANEVAL})
    write_rows(place, rows)
    if like is None:
        _with_image(place)
    else:
        place.edit("jobs/BUILD.yaml", 'image: ":py"', f'image: "{IMAGE}"')
        shutil.copytree(like.folder / "images", folder / "images")
        shutil.copytree(like.cache, place.cache, symlinks=True)
    return place


def copy_of(place: Place, folder: Path) -> Place:
    """The same workspace and the same cache, in another place."""
    ignore = shutil.ignore_patterns("runs", "snapshots", "owner", "mrp-out")
    shutil.copytree(place.folder, folder, ignore=ignore, symlinks=True)
    made = Place(folder)
    # Unpacked images in the cache hold links that lead out of it from here.
    shutil.copytree(place.cache, made.cache, symlinks=True)
    return made


def _with_image(place: Place) -> None:
    place.edit("jobs/BUILD.yaml", 'image: ":py"', f'image: "{IMAGE}"')
    place.write({"images/BUILD.yaml": IMAGES, "images/agents/README": "The agents of these evaluations.\n"})
    done = place.mrp("image", "lock", IMAGE)
    if done.returncode == 4:
        pytest.skip(f"the packages of Debian cannot be had here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr

"""The how-to pages that need nothing but this machine and Debian's packages, followed from their first line."""

import tarfile
from pathlib import Path

from support.howto import follow, require_packages
from support.places import Place


def test_the_page_of_the_local_backend(tmp_path: Path) -> None:
    place = Place(tmp_path / "page")
    assert len(follow("local", place)) == 5
    assert place.executed() == [], "the words for the place are in no key"
    assert place.output("eval/result.json")["reward"]["max"] == 4


def test_the_page_of_images(tmp_path: Path) -> None:
    place = Place(tmp_path / "page")
    require_packages("images", place)
    assert len(follow("images", place)) == 3
    with tarfile.open(place.folder / "py.tar") as archive:
        assert {"index.json", "manifest.json", "oci-layout"} <= set(archive.getnames())

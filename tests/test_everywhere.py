"""One workspace in every place: the same command, the same digests; and what one place did, no other does again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.baked import IMAGE, baked_humaneval, baked_quickstart, copy_of
from support.humaneval import rows
from support.places import Place
from support.surroundings import PLACES, surroundings

pytestmark = pytest.mark.backend

ELSEWHERE = [name for name in PLACES if name != "local"]
SOME_ROWS = 10


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The example with its image baked, and nothing run."""
    place = baked_quickstart(tmp_path_factory.mktemp("quickstart") / "ws")
    place.build(IMAGE)
    return place


@pytest.fixture(scope="module")
def humaneval(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = baked_humaneval(tmp_path_factory.mktemp("humaneval") / "ws", rows()[:SOME_ROWS])
    place.build(IMAGE)
    return place


@pytest.fixture(scope="module")
def here(quickstart: Place, humaneval: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """digests.jsonl of both workspaces, built on the local backend."""
    found = {}
    for name, place in (("quickstart", quickstart), ("humaneval", humaneval)):
        local = copy_of(place, tmp_path_factory.mktemp("here") / "ws")
        assert local.build("//jobs:eval")["failed"] == 0
        found[name] = local.digests()
    return found


@pytest.fixture(scope="module", params=ELSEWHERE)
def elsewhere(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The flags that lead to a place, and the environment in which it is reached."""
    with surroundings(request.param, tmp_path_factory.mktemp(request.param.replace("+", "-"))) as environment:
        yield PLACES[request.param], environment


def build(place: Place, flags: list[str], environment: dict[str, str], *words: str) -> dict[str, object]:
    done = place.mrp("build", "//jobs:eval", "--json", *flags, *words, **environment)
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("name", ["quickstart", "humaneval"])
def test_the_same_digests(
    name: str,
    elsewhere: tuple[list[str], dict[str, str]],
    here: dict[str, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    place = copy_of(request.getfixturevalue(name), tmp_path / "ws")
    report = build(place, *elsewhere)
    assert report["failed"] == 0
    assert report["executed"], "everything but the image runs"
    assert place.digests() == here[name]


def test_what_was_half_done_here_is_finished_there(
    quickstart: Place, elsewhere: tuple[list[str], dict[str, str]], here: dict[str, str], tmp_path: Path
) -> None:
    place = copy_of(quickstart, tmp_path / "ws")
    place.build("//jobs:eval", "--items", "c*")
    done = set(place.executed())
    build(place, *elsewhere)
    assert place.digests() == here["quickstart"]
    trials = {action for action in done if action[0] in ("trial", "grade")}
    assert trials
    assert not trials & set(place.executed()), "what was done here was done again there"

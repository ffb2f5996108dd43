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
def humaneval(quickstart: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return baked_humaneval(tmp_path_factory.mktemp("humaneval") / "ws", rows()[:SOME_ROWS], quickstart)


@pytest.fixture(scope="module")
def half_done(quickstart: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The example, of which the local backend did a part."""
    place = copy_of(quickstart, tmp_path_factory.mktemp("half") / "ws")
    place.build("//jobs:eval", "--items", "c*")
    return place


@pytest.fixture(scope="module")
def here(half_done: Place, humaneval: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """digests.jsonl of both workspaces, built on the local backend."""
    found = {}
    for name, place in (("quickstart", half_done), ("humaneval", humaneval)):
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


def test_all_of_humaneval_there(
    elsewhere: tuple[list[str], dict[str, str]], humaneval: Place, here: dict[str, str], tmp_path: Path
) -> None:
    place = copy_of(humaneval, tmp_path / "ws")
    report = build(place, *elsewhere)
    assert report["failed"] == 0
    assert len([kind for kind, _, _ in place.executed() if kind == "trial"]) == 2 * SOME_ROWS
    assert place.digests() == here["humaneval"]


def test_what_was_half_done_here_is_finished_there(
    elsewhere: tuple[list[str], dict[str, str]], half_done: Place, here: dict[str, str], tmp_path: Path
) -> None:
    done = trials_of(half_done)
    place = copy_of(half_done, tmp_path / "ws")
    report = build(place, *elsewhere)
    assert report["failed"] == 0
    assert done and trials_of(place)
    assert not done & trials_of(place), "what was done here was done again there"
    assert place.digests() == here["quickstart"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_each_row_of_humaneval_in_containers(
    quickstart: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = baked_humaneval(tmp_path / "local", rows(), quickstart)
    contained = copy_of(local, tmp_path / "contained")
    assert local.build("//jobs:eval")["failed"] == 0
    with surroundings("docker", tmp_path) as environment:
        monkeypatch.setenv("DOCKER_HOST", environment["DOCKER_HOST"])
        assert contained.start("build", "//jobs:eval", *PLACES["docker"]).wait(3000) == 0
    assert contained.digests() == local.digests()


def trials_of(place: Place) -> set[tuple[str, str, str]]:
    """The trials and grades that its last run executed."""
    return {action for action in place.executed() if action[0] in ("trial", "grade")}

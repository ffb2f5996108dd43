"""Builds on a real Docker engine: the same digests, and nothing lost or left whatever dies."""

import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.docker_bench import docker_bench
from support.dockerd import DockerEngine, docker_engine
from support.dockerd import docker_host as docker_host
from support.howto import follow
from support.places import Place, kill_group
from support.portable import portable

from mrp.runtime.sandbox.protocol import Cancelled
from mrp.specs.errors import InfraError

pytestmark = pytest.mark.backend

DOCKER = ("--sandbox", "docker")
_SECONDS = 120


@pytest.fixture
def engine(docker_host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the shared engine, which DOCKER_HOST names."""
    import docker

    monkeypatch.setenv("DOCKER_HOST", docker_host)
    client = docker.from_env()
    yield client
    client.close()


def kept(client: Any) -> list[str]:
    """The names of all containers and volumes of mrp's that there are."""
    labelled = {"label": "mrp.sandbox"}
    containers = [container["Names"][0] for container in client.api.containers(all=True, filters=labelled)]
    return containers + [volume["Name"] for volume in client.api.volumes(filters=labelled)["Volumes"] or []]


def running(client: Any) -> int:
    return len(client.api.containers(filters={"label": "mrp.sandbox"}))


def wait_until(true: Callable[[], bool], process: "subprocess.Popen[bytes] | None" = None) -> None:
    deadline = time.monotonic() + _SECONDS
    while not true():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, "it ended before that"
        time.sleep(0.02)


def test_the_digests_are_those_of_the_local_backend(tmp_path: Path, engine: Any) -> None:
    here, there = portable(tmp_path / "here"), portable(tmp_path / "there")
    here.build("//:eval")
    report = there.build("//:eval", *DOCKER)
    assert report["executed"] == 10
    assert there.digests() == here.digests()
    assert kept(engine) == []


def test_what_is_half_done_here_is_finished_there(tmp_path: Path, engine: Any) -> None:
    place = portable(tmp_path / "w")
    assert place.build("//:solve[task-1]")["executed"] == 3
    report = place.build("//:eval", *DOCKER)
    assert (report["executed"], report["failed"]) == (7, 0)
    assert all(item != "task-1" for _, _, item in place.executed())
    assert place.build("//:eval")["executed"] == 0


def test_a_killed_build_leaves_sandboxes_that_the_next_one_removes(tmp_path: Path, engine: Any) -> None:
    place = portable(tmp_path / "w", seconds=600)
    process = place.start("build", "//:eval", *DOCKER)
    wait_until(lambda: running(engine) > 0, process)
    kill_group(process)
    assert running(engine) > 0, "the control: they outlive the build"
    place.edit("tasks.jsonl", '{"name": "task-0", "seconds": 600}', '{"name": "task-0", "seconds": 0}')
    report = place.build("//:solve[task-0]", *DOCKER)
    assert report["failed"] == 0
    assert kept(engine) == []


def test_two_builds_at_once_leave_each_others_sandboxes_alone(tmp_path: Path, engine: Any) -> None:
    place = portable(tmp_path / "w", seconds=8)
    slow = place.start("build", "//:solve[task-0]", *DOCKER)
    wait_until(lambda: running(engine) > 0, slow)
    second = Place(place.folder, tmp_path / "another-cache")
    second.edit("tasks.jsonl", '"task-1", "seconds": 8}', '"task-1", "seconds": 0}')
    assert second.build("//:solve[task-1]", *DOCKER)["failed"] == 0
    assert slow.wait(_SECONDS) == 0
    assert kept(engine) == []


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, engine: Any) -> None:
    place = portable(tmp_path / "w", seconds=600)
    process = place.start("build", "//:eval", *DOCKER)
    wait_until(lambda: running(engine) > 0, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(_SECONDS) == 130
    assert kept(engine) == []


def test_an_engine_that_dies_in_the_middle_fails_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import docker

    with docker_engine() as engine:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
        place = portable(tmp_path / "w", names=2, seconds=3)
        place.edit("BUILD.yaml", "retries: 8", "retries: 1")
        client = docker.from_env()
        process = place.start("build", "//:eval", *DOCKER)
        wait_until(lambda: running(client) > 0, process)
        engine.kill()
        time.sleep(3)
        assert process.poll() is None, "it waits for the engine"
        engine.start()
        assert process.wait(_SECONDS) == 0
        wait_until(lambda: _is_up(engine))
        client.close()
    clean = portable(tmp_path / "clean", names=2, seconds=3)
    clean.build("//:eval")
    assert place.digests() == clean.digests()


def _is_up(engine: DockerEngine) -> bool:
    return Path(engine.host.removeprefix("unix://")).exists()


def test_without_an_engine_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker", reason="the extra `docker` is not installed")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    place = portable(tmp_path / "w", names=1)
    place.edit("BUILD.yaml", "retries: 8", "retries: 0")
    done = place.mrp("build", "//:solve", *DOCKER)
    assert done.returncode == 4
    assert "Docker cannot be reached" in done.stderr
    assert "start it, or set DOCKER_HOST" in done.stderr


def test_an_engine_behind_ssh_is_refused_with_a_way_to_it(tmp_path: Path) -> None:
    pytest.importorskip("docker", reason="the extra `docker` is not installed")
    done = portable(tmp_path / "w", names=1).mrp("build", "//:solve", *DOCKER, DOCKER_HOST="ssh://me@there")
    assert done.returncode == 4
    assert "forward the socket (ssh -NL" in done.stderr


def test_cancel_ends_what_runs_and_close_leaves_nothing(tmp_path: Path, docker_host: str) -> None:
    ended: list[type[BaseException]] = []
    with docker_bench(docker_host, tmp_path) as bench:

        def wait() -> None:
            try:
                bench.run("sh", "-c", "sleep 61; true")
            except Cancelled:
                ended.append(Cancelled)

        threads = [threading.Thread(target=wait) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(list(bench.owned())) == 2)
        bench.backend.cancel()
        for thread in threads:
            thread.join()
        assert ended == [Cancelled] * 2
        with pytest.raises(Cancelled):
            bench.run("true")
        assert list(bench.owned()) == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_leases_end_and_other_workspaces_are_not_touched(tmp_path: Path, docker_host: str) -> None:
    from mrp.runtime.sandbox.docker import DockerProvider
    from mrp.runtime.sandbox.provider import Order, Owner

    with docker_bench(docker_host, tmp_path) as bench:
        bench.run("true")
        provider = DockerProvider(bench.store)
        image = f"mrp/image:{bench.image}"
        workspace = bench.backend._settings.owner.workspace  # type: ignore[attr-defined]
        made = {
            "dead": provider.create(Order(image, Owner(workspace, "dead"), writable=("/work",))).id,
            "expired": provider.create(Order(image, Owner(workspace, "alive", lease=-1))).id,
            "alive": provider.create(Order(image, Owner(workspace, "alive"))).id,
            "other": provider.create(Order(image, Owner("other", "dead"))).id,
        }
        with docker_bench(docker_host, tmp_path, run="next", alive=lambda run: run == "alive"):
            assert [one.id for one in provider.owned(workspace)] == [made["alive"]]
            assert [one.id for one in provider.owned("other")] == [made["other"]]
        for identity in made.values():
            provider.remove(identity)
        provider.close()


def test_a_missing_sdk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from mrp.runtime.sandbox.docker import DockerProvider

    monkeypatch.setitem(sys.modules, "docker", None)
    assert DockerProvider().missing() == "the docker backend needs the Docker SDK; run pip install 'mrp-build[docker]'"
    with pytest.raises(InfraError, match=r"mrp-build\[docker\]"):
        DockerProvider().client()


def test_the_page_leads_from_nothing_to_a_result(tmp_path: Path, engine: Any) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("this machine has no apt-get, which locks Debian packages")
    place = Place(tmp_path / "w")
    ran = follow("docker", place)
    assert [command.split()[1] for command in ran] == ["doctor", "image", "build", "build"]
    assert place.executed(place.runs()[-1]) == []
    assert [json.loads(row)["rewards"]["reward"] for row in rows_of(place)] == [1, 1]
    assert kept(engine) == []


def rows_of(place: Place) -> list[str]:
    """The trials of the page's rollout."""
    place.build("//:solve")
    return (place.folder / "mrp-out/solve/trials.jsonl").read_text().splitlines()

"""The Ray engine on real clusters: the same digests as on local, whatever dies, freezes or is not shared meanwhile."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.howto import follow
from support.places import Place, kill_group
from support.ray_cluster import RayCluster, node_that_does_not_see, processes_of, ray_cluster, why_no_ray

from mrp.runtime.engine.ray import clusters_folder

pytestmark = pytest.mark.backend

if reason := why_no_ray():
    pytest.skip(reason, allow_module_level=True)

CPUS = 6
"""Of the cluster that tests share, before one of its nodes is killed."""

NO_WALLS = {
    "mrp.yaml": "mrp: 1\nname: ray\npolicy: policy.yaml\n",
    "policy.yaml": "mrp: 1\nisolation: none\n",
}
"""Without walls, what runs can write down that it ran, where the test finds it."""

PURE = """\
from mrp.sdk import Agent, Result


class Double(Agent):
    def run(self, task, ctx):
        number = int(task.record["id"])
        (task.work / "double.txt").write_text(str(2 * number))
        return Result(metrics={"reward": number % 2})
"""

SMALL = {
    "mrp.yaml": "mrp: 1\nname: ray\n",
    "double.py": PURE,
    "big.txt": "0123456789abcdef" * 70_000,
    "BUILD.yaml": """\
mrp: 1
targets:
  items: {kind: dataset, generate: {range: 40}}
  double: {kind: agent, version: "1", entry: "double:Double", srcs: ["double.py"], pure: true}
  solve: {kind: rollout, over: ":items", agent: ":double", grade: {command: [sh, -c, "test -s double.txt"]}}
  stats: {kind: reduction, of: [":solve"], reducer: stats}
  big:
    kind: command
    srcs: ["big.txt"]
    outs: ["bigger.txt"]
    command: [sh, -c, "for _ in 1 2 3 4 5; do cat big.txt; done > bigger.txt"]
  lines: {kind: command, srcs: [":big"], outs: ["size.txt"], command: [sh, -c, "wc -c < bigger.txt > size.txt"]}
""",
}


def counting(log: Path, items: int, seconds: float) -> dict[str, str]:
    """A workspace with `items` trials that each take so long and append their id to a file."""
    script = f'echo "$MRP_RECORD_ID" >> {log}; sleep {seconds}; echo "$MRP_RECORD_ID" > /work/done.txt'
    script = script.replace("/work/", "$MRP_WORKSPACE/")
    return NO_WALLS | {
        "BUILD.yaml": f"""\
mrp: 1
targets:
  items: {{kind: dataset, generate: {{range: {items}}}}}
  agent: {{kind: agent, version: "1", command: [sh, -c, {json.dumps(script)}]}}
  solve: {{kind: rollout, over: ":items", agent: ":agent"}}
"""
    }


ASKING = {
    "ask.py": """\
from mrp.sdk import Agent, Result


class Ask(Agent):
    def run(self, task, ctx):
        said = ctx.model.ask(f"number {task.record['id']}")
        (task.work / "said.txt").write_text(said)
        return Result(metrics={"reward": 1})
""",
    "answers.jsonl": '{"text": "as you say"}\n',
    "BUILD.yaml": """\
mrp: 1
targets:
  items: {kind: dataset, generate: {range: 4}}
  script: {kind: model, provider: scripted, script: answers.jsonl}
  ask: {kind: agent, version: "1", entry: "ask:Ask", srcs: ["ask.py"]}
  solve: {kind: rollout, over: ":items", agent: ":ask", model: ":script"}
""",
}


def ran(log: Path) -> Counter[str]:
    return Counter(log.read_text().split()) if log.exists() else Counter()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not come about in {seconds} s"
        time.sleep(0.05)


def finished(place: Place) -> dict[str, str]:
    """Key to item of what the last run finished, as far as its log tells."""
    log = place.runs()[-1] / "events.jsonl" if place.runs() else None
    if log is None or not log.exists():
        return {}
    events = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return {event["key"]: event["item"] for event in events if event["type"] == "ItemFinished"}


def local_digests(folder: Path, files: dict[str, str], *targets: str) -> str:
    place = Place(folder / "local").write(dict(files))
    place.build(*targets)
    return place.digests()


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of clusters that are started for a build, which no other build of this user is in."""
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder) / clusters_folder().name


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(3, CPUS // 3, CPUS // 3) as cluster:
        yield cluster


def test_a_cluster_started_on_demand_gives_the_same_digests_and_leaves_nothing(tmp_path: Path, own: Path) -> None:
    place = Place(tmp_path / "ws").write(dict(SMALL))
    place.build("--engine", "ray", "//:stats", "//:lines")
    assert place.digests() == local_digests(tmp_path, SMALL, "//:stats", "//:lines")
    assert list(own.iterdir()) == []
    assert processes_of(f"{own}/") == []
    assert place.build("//:stats", "//:lines")["executed"] == 0


@pytest.mark.slow
def test_ctrl_c_drains_and_a_second_one_kills(tmp_path: Path, own: Path) -> None:
    log = tmp_path / "ran"
    place = Place(tmp_path / "ws").write(dict(counting(log, 6, 3)))
    build = place.start("build", "--engine", "ray", "-j", "2", "//:solve")
    wait_until(lambda: sum(ran(log).values()) >= 2, "the first two items")
    build.send_signal(signal.SIGINT)
    assert build.wait(60) == 130
    assert len(finished(place)) == 2
    build = place.start("build", "--engine", "ray", "-j", "2", "//:solve")
    wait_until(lambda: sum(ran(log).values()) >= 4, "two more items")
    build.send_signal(signal.SIGINT)
    time.sleep(0.2)
    build.send_signal(signal.SIGINT)
    assert build.wait(60) == 130
    assert processes_of(f"{own}/") == []
    place.build("-j", "6", "//:solve")
    first = [item for item, times in ran(log).items() if times == 1]
    assert len(first) >= 4, "what finished before is not run again"


def test_two_ctrl_c_end_a_build_whose_cluster_only_starts(tmp_path: Path, own: Path) -> None:
    place = Place(tmp_path / "ws").write(dict(counting(tmp_path / "ran", 2, 0)))
    build = place.start("build", "--engine", "ray", "//:solve")
    wait_until(lambda: own.exists() and processes_of(f"{own}/") != [], "the first process of the cluster")
    build.send_signal(signal.SIGINT)
    time.sleep(0.2)
    build.send_signal(signal.SIGINT)
    assert build.wait(60) == 130
    wait_until(lambda: processes_of(f"{own}/") == [], "the end of the cluster", 30)
    assert list(own.iterdir()) == []
    assert not ran(tmp_path / "ran")


def test_kill_9_leaves_nothing_of_the_cluster_and_loses_nothing_finished(tmp_path: Path, own: Path) -> None:
    log = tmp_path / "ran"
    place = Place(tmp_path / "ws").write(dict(counting(log, 12, 1)))
    build = place.start("build", "--engine", "ray", "-j", "2", "//:solve")
    wait_until(lambda: len(finished(place)) >= 4, "four finished items")
    kill_group(build)
    wait_until(lambda: processes_of(f"{own}/") == [], "the end of the cluster", 30)
    committed = {item for key, item in finished(place).items() if key in place.committed_keys()}
    before = ran(log)
    report = place.build("--engine", "ray", "//:solve")
    assert report["executed"] == 12 - report["cached"] and report["cached"] >= 4
    assert {item: ran(log)[item] for item in committed} == {item: before[item] for item in committed}
    assert list(own.iterdir()) == []


def test_ray_listens_on_loopback_only_and_knows_no_secret(tmp_path: Path, own: Path) -> None:
    log = tmp_path / "ran"
    files = counting(log, 1, 6)
    files["BUILD.yaml"] = files["BUILD.yaml"].replace(
        "  solve: {", '  box: {kind: sandbox, secrets: [WORD]}\n  solve: {sandbox: ":box", '
    )
    files["policy.yaml"] += "secrets: [WORD]\n"
    place = Place(tmp_path / "ws").write(dict(files))
    os.environ["WORD"] = "open-sesame-1234567"
    try:
        build = place.start("build", "--engine", "ray", "//:solve")
    finally:
        del os.environ["WORD"]
    wait_until(lambda: bool(ran(log)), "the item")
    pids = processes_of(f"{own}/")
    assert pids
    environments = {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in pids}
    assert not any(b"open-sesame" in environment for environment in environments.values())
    written = subprocess.run(
        ["grep", "-rlE", "-D", "skip", "open-sesame", str(own), str(place.folder)], capture_output=True
    )
    assert written.stdout == b""
    listening = subprocess.run(["ss", "-Htlnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [line.split()[3] for line in listening if any(f"pid={pid}," in line for pid in pids)]
    assert ours
    assert all(address.rpartition(":")[0] in ("127.0.0.1", "[::ffff:127.0.0.1]", "[::1]") for address in ours)
    assert build.wait(60) == 0


def test_without_a_number_of_jobs_as_many_run_as_the_cluster_has_room_for(tmp_path: Path, cluster: RayCluster) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    script = f"touch {begun}/$MRP_RECORD_ID; until [ $(ls {begun} | wc -l) = {CPUS} ]; do sleep 0.1; done"
    files = counting(tmp_path / "ran", CPUS, 0)
    files["BUILD.yaml"] = files["BUILD.yaml"].replace("sleep 0;", f"{script};")
    place = Place(tmp_path / "ws").write(files)
    place.build("--engine", "ray", "--address", cluster.address, "//:solve")
    assert len(list(begun.iterdir())) == CPUS


def test_a_thousand_items_survive_a_killed_node_and_a_killed_driver(tmp_path: Path, cluster: RayCluster) -> None:
    log = tmp_path / "ran"
    files = counting(log, 1000, 0.01)
    place = Place(tmp_path / "ws").write(dict(files))
    words = ("build", "--engine", "ray", "--address", cluster.address, "-j", "6", "//:solve")
    build = place.start(*words)
    wait_until(lambda: sum(ran(log).values()) >= 150, "150 items")
    cluster.kill(2)
    wait_until(lambda: sum(ran(log).values()) >= 400, "400 items")
    kill_group(build)
    committed = place.committed_keys()
    items = {item for key, item in finished(place).items() if key in committed}
    assert len(items) >= 100
    time.sleep(2)
    before = ran(log)
    report = place.build(*words[1:])
    assert report["executed"] + report["cached"] == 1000 and report["cached"] >= len(items)
    assert {item: ran(log)[item] for item in items} == {item: before[item] for item in items}
    assert len(ran(log)) == 1000
    again = [item for item, times in ran(log).items() if times > 1]
    assert len(again) <= 12, "only what was running at a death is run twice"
    assert place.digests() == local_digests(tmp_path, files, "//:solve")


def test_a_scripted_model_is_reached_from_a_worker_through_a_box_without_network(
    tmp_path: Path, cluster: RayCluster
) -> None:
    files = {"mrp.yaml": "mrp: 1\nname: ray\n", **ASKING}
    place = Place(tmp_path / "ws").write(dict(files))
    first = place.build("--engine", "ray", "--address", cluster.address, "//:solve")
    assert first["executed"] == 4
    trials = [json.loads(line) for line in (place.folder / "mrp-out/solve/trials.jsonl").read_text().splitlines()]
    assert [trial["outcome"] for trial in trials] == ["ok"] * 4
    assert place.digests() == local_digests(tmp_path, files, "//:solve")
    assert place.build("//:solve")["executed"] == 0


def test_resources_that_no_node_has_are_an_error_that_names_them(tmp_path: Path, cluster: RayCluster) -> None:
    files = counting(tmp_path / "ran", 1, 0)
    files["BUILD.yaml"] = files["BUILD.yaml"].replace(
        "  solve: {", '  box: {kind: sandbox, limits: {cpus: 7}}\n  solve: {sandbox: ":box", '
    )
    place = Place(tmp_path / "ws").write(files)
    done = place.mrp("build", "--engine", "ray", "--address", cluster.address, "//:solve")
    assert done.returncode == 4
    assert "no node of the Ray cluster has 7 processors" in done.stderr
    assert place.build("//:solve")["executed"] == 1, "the local engine takes a limit for a ceiling"


def test_a_resource_by_name_chooses_the_node_and_no_key(tmp_path: Path) -> None:
    files = counting(tmp_path / "ran", 2, 0)
    plain = files["BUILD.yaml"].replace("  solve: {", '  box: {kind: sandbox}\n  solve: {sandbox: ":box", ')
    place = Place(tmp_path / "ws").write({**files, "BUILD.yaml": plain})
    place.write({"BUILD.yaml": plain.replace("{kind: sandbox}", "{kind: sandbox, limits: {resources: {scanner: 1}}}")})
    with ray_cluster(1) as cluster:
        words = ("build", "--engine", "ray", "--address", cluster.address, "//:solve")
        done = place.mrp(*words)
        assert done.returncode == 4
        assert "no node of the Ray cluster has 1 processors, 2 GiB of memory, 1 of scanner" in done.stderr
        cluster.add("scanner")
        assert place.build(*words[1:])["executed"] == 2
    place.write({"BUILD.yaml": plain})
    assert place.build("//:solve")["executed"] == 0


def test_a_worker_that_does_not_see_the_cache_exchanges_blobs(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can hide a folder from a process")
    place = Place(tmp_path / "ws").write(dict(SMALL))
    place.cache.mkdir()
    (place.folder / ".mrp").mkdir()
    with ray_cluster(1, head_cpus=0) as cluster, node_that_does_not_see(cluster, [place.cache, place.folder / ".mrp"]):
        place.build("--engine", "ray", "--address", cluster.address, "//:stats", "//:lines")
    assert place.digests() == local_digests(tmp_path, SMALL, "//:stats", "//:lines")
    assert (place.folder / "mrp-out/lines/size.txt").read_text().strip() == str(16 * 70_000 * 5)


def test_an_address_without_a_cluster_is_an_infrastructure_error(tmp_path: Path) -> None:
    place = Place(tmp_path / "ws").write(dict(SMALL))
    done = place.mrp("build", "--engine", "ray", "--address", "127.0.0.1:9", "//:lines")
    assert done.returncode == 4
    assert "the Ray cluster at 127.0.0.1:9 cannot be used" in done.stderr


def test_a_frozen_node_holds_nothing_up(tmp_path: Path, cluster: RayCluster) -> None:
    log = tmp_path / "ran"
    files = counting(log, 60, 0.5)
    place = Place(tmp_path / "ws").write(dict(files))
    node = cluster.add()
    build = place.start("build", "--engine", "ray", "--address", cluster.address, "-j", "6", "//:solve")
    wait_until(lambda: sum(ran(log).values()) >= 12, "the first items")
    cluster.freeze(node)
    try:
        assert build.wait(200) == 0
    finally:
        cluster.thaw(node)
        kill_group(build)
    assert place.build("//:solve")["executed"] == 0
    assert place.digests() == local_digests(tmp_path, files, "//:solve")


@pytest.mark.slow
def test_a_head_that_is_started_anew_loses_nothing_finished(tmp_path: Path) -> None:
    log = tmp_path / "ran"
    place = Place(tmp_path / "ws").write(dict(counting(log, 60, 0.5)))
    with ray_cluster(2) as cluster:
        build = place.start("build", "--engine", "ray", "--address", cluster.address, "-j", "3", "//:solve")
        wait_until(lambda: len(finished(place)) >= 10, "ten items")
        cluster.restart_head(after=3)
        assert build.wait(300) == 0
    assert max(ran(log).values()) <= 4
    assert sum(times > 1 for times in ran(log).values()) <= 3
    assert len(ran(log)) == 60


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mrp.cache.store import Store
    from mrp.runtime.engine.protocol import EngineSettings
    from mrp.runtime.engine.registry import ENGINES
    from mrp.runtime.sandbox.provider import Owner
    from mrp.runtime.sandbox.registry import BackendSettings
    from mrp.specs.errors import InfraError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with Store.open(tmp_path / "cache") as store:
        backend = BackendSettings(store, tmp_path, "none", Owner("w", "r"))
        with pytest.raises(InfraError, match=r"pip install 'mrp-build\[ray\]'"):
            ENGINES["ray"](EngineSettings(backend))


def test_the_page_leads_from_nothing_to_a_result(tmp_path: Path) -> None:
    place = Place(tmp_path / "page")
    assert [command.split()[0] for command in follow("ray", place)] == ["mrp", "mrp", "cat"]
    assert place.executed() == [], "what Ray did is a hit elsewhere"
    assert place.output("eval/result.json")["reward"]["max"] == 99**2

"""Builds on Modal's EMULATOR, as sandbox backend and as engine: the same digests as here, and nothing left behind."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from grpclib import Status
from support.howto import follow, require_packages
from support.modal_emulator import ModalEmulator
from support.places import Place, kill_group
from support.portable import Rooted

from mrp.cache.store import Store

pytestmark = pytest.mark.backend

WAYS = {"sandbox": ("--sandbox", "modal"), "engine": ("--engine", "modal")}

AGENT = """
import json, mrp.sdk
class Agent(mrp.sdk.Agent):
    def run(self, task, context):
        text = json.loads((task.dir / "record.json").read_text())["text"]
        (task.work / "answer.txt").write_text(text.upper())
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Rooted:
    return Rooted(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalEmulator]:
    with ModalEmulator(tmp_path_factory.mktemp("emulator") / "modal") as emulator, emulator.reachable():
        yield emulator


@pytest.fixture
def emulator(service: ModalEmulator) -> Iterator[ModalEmulator]:
    yield service
    service.heal()
    service.empty_volumes()


def place(
    folder: Path,
    root: Rooted,
    *,
    items: int = 3,
    script: str | None = None,
    limits: Mapping[str, object] | None = None,
    **solve: object,
) -> Place:
    """A rollout of a Python agent, or of one that is a shell script, over some rows."""
    agent: dict[str, object] = {"kind": "agent", "version": "1"}
    if script is None:
        agent |= {"entry": "agent:Agent", "srcs": ["agent.py"]}
    else:
        agent |= {"command": ["sh", "-c", script]}
    rows = "".join(json.dumps({"id": f"item-{n}", "text": f"text {n}"}) + "\n" for n in range(items))
    return root.workspace(
        folder,
        {
            "tasks": {"kind": "dataset", "srcs": ["tasks.jsonl"], "id": "id"},
            "box": {
                "kind": "sandbox",
                "image": ":py",
                "limits": {"memory": "512MiB", "disk": "64MiB", **(limits or {})},
            },
            "me": agent,
            "solve": {"kind": "rollout", "over": ":tasks", "agent": ":me", "sandbox": ":box", "samples": 2, **solve},
            "eval": {"kind": "reduction", "of": ["solve"], "reducer": "stats"},
        },
        {"tasks.jsonl": rows, "agent.py": AGENT},
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_build_gives_the_digests_of_here(tmp_path: Path, root: Rooted, emulator: ModalEmulator, way: str) -> None:
    here = place(tmp_path / "here", root)
    report = here.build("//:eval")
    there = place(tmp_path / "there", root)
    assert there.build("//:eval", *WAYS[way])["executed"] == report["executed"]
    assert there.digests() == here.digests()
    assert emulator.running() == [], "each sandbox ended with its process"
    assert there.build("//:eval")["executed"] == 0, "where it ran is in no key"


@pytest.mark.parametrize("way", WAYS)
def test_what_was_begun_there_is_finished_here(tmp_path: Path, root: Rooted, emulator: ModalEmulator, way: str) -> None:
    ws = place(tmp_path, root)
    ws.build("//:solve", "--items", "item-0", *WAYS[way])
    before = emulator.calls["SandboxCreateV2"]
    ws.build("//:solve")
    executed = [item for _, label, item in ws.executed() if label == "//:solve"]
    assert executed == ["item-1", "item-1#1", "item-2", "item-2#1"]
    assert emulator.calls["SandboxCreateV2"] == before


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_hour_of_the_service_is_no_score(tmp_path: Path, root: Rooted, emulator: ModalEmulator, way: str) -> None:
    here = place(tmp_path / "here", root)
    here.build("//:eval")
    there = place(tmp_path / "there", root)
    emulator.vanish(times=2)
    emulator.fail("SandboxCreateV2", Status.RESOURCE_EXHAUSTED, times=1)
    emulator.cut("TaskExecStdioRead", after=10)
    there.build("//:eval", *WAYS[way])
    assert there.digests() == here.digests()
    assert emulator.running() == []


@pytest.mark.parametrize("way", WAYS)
def test_a_build_may_ask_for_gpus(tmp_path: Path, root: Rooted, emulator: ModalEmulator, way: str) -> None:
    ws = place(tmp_path, root, items=1, samples=1, limits={"gpus": {"count": 2, "type": "A100"}})
    before = set(emulator.sandboxes)
    ws.build("//:solve", *WAYS[way])
    ordered = [emulator.sandboxes[each].definition.resources.gpu_config for each in set(emulator.sandboxes) - before]
    assert ("A100", 2) in {(gpus.gpu_type, gpus.count) for gpus in ordered}


def test_a_service_that_stays_down_is_an_infrastructure_failure(
    tmp_path: Path, root: Rooted, emulator: ModalEmulator
) -> None:
    ws = place(tmp_path, root, items=1, samples=1, retries=0)
    emulator.fail("SandboxCreateV2", Status.RESOURCE_EXHAUSTED, times=1000)
    done = ws.mrp("build", "//:solve", "--sandbox", "modal")
    assert done.returncode == 4, done.stderr
    assert "Modal could not create a sandbox" in done.stderr
    emulator.heal()
    assert ws.build("//:solve", "--sandbox", "modal")["failed"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_what_a_killed_build_leaves_is_swept_by_the_next(
    tmp_path: Path, root: Rooted, emulator: ModalEmulator, way: str
) -> None:
    ws = place(tmp_path, root, items=2, script='test -e /task/record.json; sleep "$SECONDS_TO_WAIT"')
    text = (ws.folder / "BUILD.yaml").read_text()
    spec = json.loads(text)
    spec["targets"]["solve"]["env"] = {"SECONDS_TO_WAIT": "300"}
    ws.write({"BUILD.yaml": json.dumps(spec)})
    process = ws.start("build", "//:solve", "-j", "4", *WAYS[way])
    deadline = time.monotonic() + 60
    while sum(len(sandbox.commands) > 1 for sandbox in emulator.running()) < 2:
        assert time.monotonic() < deadline, "no sandbox was made"
        time.sleep(0.1)
    kill_group(process)
    left = {sandbox.id for sandbox in emulator.running()}
    assert left
    spec["targets"]["solve"]["env"] = {"SECONDS_TO_WAIT": "0"}
    ws.write({"BUILD.yaml": json.dumps(spec)})
    ws.build("//:solve", *WAYS[way])
    assert left.isdisjoint(sandbox.id for sandbox in emulator.running())
    assert emulator.running() == []


def test_the_engine_uploads_a_blob_once(tmp_path: Path, root: Rooted, emulator: ModalEmulator) -> None:
    def uploaded() -> list[str]:
        return [name for name in emulator.files.uploads[before:] if name.startswith("block-")]

    before = len(emulator.files.uploads)
    place(tmp_path / "one", root, items=4).build("//:solve", "--engine", "modal", "-j", "4")
    blocks = uploaded()
    assert blocks, "the sdk has files that are too large to go along"
    assert len(blocks) == len(set(blocks))
    again = place(tmp_path / "two", root, items=5)
    again.build("//:solve", "--engine", "modal")
    assert uploaded() == blocks, "another build has them"


def test_an_emptied_volume_is_filled_again(tmp_path: Path, root: Rooted, emulator: ModalEmulator) -> None:
    place(tmp_path / "one", root, items=1).build("//:solve", "--engine", "modal")
    assert emulator.empty_volumes()
    place(tmp_path / "two", root, items=2).build("//:solve", "--engine", "modal")


def test_an_agent_cannot_look_into_the_volume(tmp_path: Path, root: Rooted, emulator: ModalEmulator) -> None:
    script = "python3 -c \"import os; print(os.listdir('/.mrp'))\" > seen.txt 2> why.txt; true"
    ws = place(tmp_path, root, items=1, script=script)
    ws.build("//:solve", "--engine", "modal")
    sandbox = list(emulator.sandboxes.values())[-1]
    assert [mount.mount_path for mount in sandbox.definition.volume_mounts] == ["/.mrp/blobs"]
    assert sandbox.definition.volume_mounts[0].read_only
    rows = (ws.folder / "mrp-out" / "solve" / "trials.jsonl").read_text().splitlines()
    tree = json.loads(rows[0])["tree"]
    with Store.open(ws.cache) as store:
        found = {path: store.get_bytes(entry.digest) for path, entry in store.read_tree(tree).items() if entry.digest}
    assert found["seen.txt"] == b""
    assert b"PermissionError" in found["why.txt"]


def test_a_volume_that_takes_nothing_is_an_infrastructure_failure(
    tmp_path: Path, root: Rooted, emulator: ModalEmulator
) -> None:
    ws = place(tmp_path, root, items=1, samples=1, retries=0)
    emulator.fail("VolumePutFiles2", Status.UNAVAILABLE, times=1000)
    done = ws.mrp("build", "//:solve", "--engine", "modal")
    assert done.returncode == 4, done.stderr
    assert "Modal could not upload blobs" in done.stderr


def test_the_page_is_true(tmp_path: Path, emulator: ModalEmulator) -> None:
    place = Place(tmp_path / "page")
    require_packages("modal", place)
    assert len(follow("modal", place)) == 4
    assert emulator.running() == []

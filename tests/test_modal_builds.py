"""Builds on Modal's EMULATOR, as sandbox backend and as engine: the same digests as here, and nothing left behind."""

import hashlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpclib import Status
from support.howto import follow, steps
from support.kinds import workspace
from support.modal_emulator import ModalEmulator
from support.places import Place, kill_group

from mrp.cache.filestats import FileDigests
from mrp.cache.store import Store
from mrp.runtime.contract.image import toolchain_image
from mrp.runtime.images.oci import write_layer
from mrp.runtime.images.portable import read_portable

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
def root(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """This machine's own tools as a tar archive."""
    folder = tmp_path_factory.mktemp("root")
    with Store.open(folder / "cache") as store, FileDigests.open(folder / "digests") as digests:
        programs = ("cat", "env", "mkdir", "python3", "sh", "sleep", "test", "true", "wc")
        image = read_portable(toolchain_image(store, digests, programs), store, "modal")
        out = io.BytesIO()
        (tree,) = image.layers
        write_layer(tree, store, out)
        return out.getvalue()


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModalEmulator]:
    with ModalEmulator(tmp_path / "emulator") as emulator, emulator.reachable():
        yield emulator


def place(folder: Path, root: bytes, *, items: int = 3, script: str | None = None) -> Place:
    """A rollout of a Python agent, or of one that is a shell script, over some rows."""
    agent: dict[str, object] = {"kind": "agent", "version": "1"}
    if script is None:
        agent |= {"entry": "agent:Agent", "srcs": ["agent.py"]}
    else:
        agent |= {"command": ["sh", "-c", script]}
    rows = "".join(json.dumps({"id": f"item-{n}", "text": f"text {n}"}) + "\n" for n in range(items))
    return workspace(
        folder,
        {
            "tasks": {"kind": "dataset", "srcs": ["tasks.jsonl"], "id": "id"},
            "py": {
                "kind": "image",
                "base": "scratch",
                "layers": [{"tar": "root.tar", "sha256": hashlib.sha256(root).hexdigest()}],
            },
            "box": {"kind": "sandbox", "image": ":py", "limits": {"memory": "512MiB", "disk": "64MiB"}},
            "me": agent,
            "solve": {"kind": "rollout", "over": ":tasks", "agent": ":me", "sandbox": ":box", "samples": 2},
            "eval": {"kind": "reduction", "of": ["solve"], "reducer": "stats"},
        },
        {"tasks.jsonl": rows, "root.tar": root, "agent.py": AGENT},
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_build_gives_the_same_digests_as_here(tmp_path: Path, root: bytes, emulator: ModalEmulator, way: str) -> None:
    here = place(tmp_path / "here", root)
    report = here.build("//:eval")
    there = place(tmp_path / "there", root)
    assert there.build("//:eval", *WAYS[way])["executed"] == report["executed"]
    assert there.digests() == here.digests()
    assert emulator.running() == [], "each sandbox ended with its process"
    assert there.build("//:eval")["executed"] == 0, "where it ran is in no key"


@pytest.mark.parametrize("way", WAYS)
def test_what_was_begun_there_is_finished_here(tmp_path: Path, root: bytes, emulator: ModalEmulator, way: str) -> None:
    ws = place(tmp_path, root)
    ws.build("//:solve", "--items", "item-0", *WAYS[way])
    before = emulator.calls["SandboxCreateV2"]
    ws.build("//:solve")
    executed = [item for _, label, item in ws.executed() if label == "//:solve"]
    assert executed == ["item-1", "item-1#1", "item-2", "item-2#1"]
    assert emulator.calls["SandboxCreateV2"] == before


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_hour_of_the_service_is_no_score(tmp_path: Path, root: bytes, emulator: ModalEmulator, way: str) -> None:
    here = place(tmp_path / "here", root)
    here.build("//:eval")
    there = place(tmp_path / "there", root)
    emulator.vanish(times=2)
    emulator.fail("SandboxCreateV2", Status.RESOURCE_EXHAUSTED, times=1)
    emulator.cut("TaskExecStdioRead", after=10)
    there.build("//:eval", *WAYS[way])
    assert there.digests() == here.digests()
    assert emulator.running() == []


def test_a_service_that_stays_down_is_an_infrastructure_failure(
    tmp_path: Path, root: bytes, emulator: ModalEmulator
) -> None:
    ws = place(tmp_path, root, items=1)
    emulator.fail("SandboxCreateV2", Status.RESOURCE_EXHAUSTED, times=1000)
    done = ws.mrp("build", "//:solve", "--sandbox", "modal")
    assert done.returncode == 4, done.stderr
    assert "Modal could not create a sandbox" in done.stderr
    emulator.heal()
    assert ws.build("//:solve", "--sandbox", "modal")["failed"] == 0


@pytest.mark.parametrize("way", WAYS)
def test_what_a_killed_build_leaves_is_swept_by_the_next(
    tmp_path: Path, root: bytes, emulator: ModalEmulator, way: str
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


def test_the_engine_uploads_a_blob_once(tmp_path: Path, root: bytes, emulator: ModalEmulator) -> None:
    ws = place(tmp_path / "one", root, items=4)
    ws.build("//:solve", "--engine", "modal", "-j", "4")
    blocks = [name for name in emulator.files.uploads if name.startswith("block-")]
    assert blocks, "the sdk has files that are too large to go along"
    assert len(blocks) == len(set(blocks))
    again = place(tmp_path / "two", root, items=5)
    again.build("//:solve", "--engine", "modal")
    assert [name for name in emulator.files.uploads if name.startswith("block-")] == blocks, "another build has them"


def test_an_emptied_volume_is_filled_again(tmp_path: Path, root: bytes, emulator: ModalEmulator) -> None:
    place(tmp_path / "one", root, items=1).build("//:solve", "--engine", "modal")
    (volume,) = emulator.files.volumes.values()
    for path in [path for path in volume.rglob("*") if path.is_file()]:
        path.unlink()
    place(tmp_path / "two", root, items=2).build("//:solve", "--engine", "modal")


def test_an_agent_cannot_look_into_the_volume(tmp_path: Path, root: bytes, emulator: ModalEmulator) -> None:
    script = "python3 -c \"import os; print(os.listdir('/.mrp'))\" > seen.txt 2> why.txt; true"
    ws = place(tmp_path, root, items=1, script=script)
    ws.build("//:solve", "--engine", "modal")
    (sandbox, *_) = emulator.sandboxes.values()
    assert [mount.mount_path for mount in sandbox.definition.volume_mounts] == ["/.mrp/blobs"]
    assert sandbox.definition.volume_mounts[0].read_only
    rows = (ws.folder / "mrp-out" / "solve" / "trials.jsonl").read_text().splitlines()
    tree = json.loads(rows[0])["tree"]
    with Store.open(ws.cache) as store:
        found = {path: store.get_bytes(entry.digest) for path, entry in store.read_tree(tree).items() if entry.digest}
    assert found["seen.txt"] == b""
    assert b"PermissionError" in found["why.txt"]


def test_a_volume_that_takes_nothing_is_an_infrastructure_failure(
    tmp_path: Path, root: bytes, emulator: ModalEmulator
) -> None:
    ws = place(tmp_path, root, items=1)
    emulator.fail("VolumePutFiles2", Status.UNAVAILABLE, times=1000)
    done = ws.mrp("build", "//:solve", "--engine", "modal")
    assert done.returncode == 4, done.stderr
    assert "Modal could not upload blobs" in done.stderr


def test_the_page_is_true(tmp_path: Path, emulator: ModalEmulator) -> None:
    probe = Place(tmp_path / "probe").write({step.path: step.text for step in steps("modal") if step.path is not None})
    if probe.mrp("image", "lock", "//:py").returncode:
        pytest.skip("the packages of Debian cannot be had here")
    assert len(follow("modal", Place(tmp_path / "page"))) == 4
    assert emulator.running() == []

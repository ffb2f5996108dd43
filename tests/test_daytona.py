"""The Daytona provider against the emulator, by way of the real SDK: sandboxes, and everything that may go wrong."""

import asyncio
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from support.daytona import require_emulator, settings_for
from support.daytona_emulator import Emulator, Fault, emulated

from mrp.cache.digest import Digest
from mrp.cache.filestats import FileDigests
from mrp.cache.store import Entry, Store
from mrp.runtime.contract.bench import Bench, listening
from mrp.runtime.contract.image import toolchain_image
from mrp.runtime.images.portable import PortableImage, read_portable
from mrp.runtime.sandbox.daytona import DaytonaProvider, DaytonaSandbox
from mrp.runtime.sandbox.protocol import Endpoint
from mrp.runtime.sandbox.provider import Exit, Order, Owner
from mrp.runtime.sandbox.registry import BACKENDS
from mrp.specs.errors import InfraError
from mrp.specs.ir import Limits

pytestmark = pytest.mark.backend

LIMITS = Limits(memory=256 * 2**20, pids=64, disk=32 * 2**20)
OWNER = Owner("workspace-1", "run-1", lease=3600)
ENV = {"PATH": "/usr/bin:/bin"}

Shared = tuple[Emulator, Store, PortableImage]
Create = Callable[..., DaytonaSandbox]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    require_emulator()
    folder = tmp_path_factory.mktemp("daytona")
    with (
        emulated() as emulator,
        emulator.reachable(),
        Store.open(folder / "cache") as store,
        FileDigests.open(folder / "digests") as digests,
    ):
        yield emulator, store, read_portable(toolchain_image(store, digests), store, "daytona")


@pytest.fixture
def emulator(shared: Shared) -> Iterator[Emulator]:
    emulator = shared[0]
    yield emulator
    emulator.faults.clear()
    emulator.never_start = None
    for box in emulator.running():
        emulator.vanish(box.id)


@pytest.fixture
def provider(shared: Shared, emulator: Emulator) -> Iterator[DaytonaProvider]:
    provider = DaytonaProvider(shared[1])
    yield provider
    provider.close()


@pytest.fixture
def create(shared: Shared, provider: DaytonaProvider) -> Create:
    return lambda **fields: provider.create(
        Order(**{"image": provider.prepare(shared[2]), "owner": OWNER, "limits": LIMITS, **fields})
    )


def run(sandbox: DaytonaSandbox, folder: Path, *argv: str, timeout: float = 300, root: bool = False) -> Exit:
    logs = folder / f"logs-{time.monotonic_ns()}"
    logs.mkdir()
    return sandbox.exec(argv, env=ENV, cwd="/work", timeout=timeout, logs=logs, root=root)


def text(done: Exit) -> str:
    return done.stdout.read_text()


def archive(**files: str) -> io.BytesIO:
    """A tar archive with text files of user 1000 in /work."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as out:
        for name, content in files.items():
            info = tarfile.TarInfo(f"work/{name}")
            info.size, info.uid, info.gid, info.mtime = len(content), 1000, 1000, 946684800
            out.addfile(info, io.BytesIO(content.encode()))
    made.seek(0)
    return made


# -- what a sandbox is -----------------------------------------------------------------------------------------------


def test_a_sandbox_has_what_was_ordered(create: Create, emulator: Emulator) -> None:
    sandbox = create(limits=Limits(cpus=Decimal("1.5"), memory=3 * 2**30 + 1, disk=2**30))
    params = emulator.boxes[sandbox.id].params
    assert (params["cpu"], params["memory"], params["disk"]) == (2, 4, 2)
    assert params["networkBlockAll"] is True
    assert params["ttlMinutes"] == 60
    assert params["autoDeleteInterval"] == 0
    assert params["labels"]["mrp-workspace"] == "workspace-1"
    assert params["labels"]["mrp-run"] == "run-1"


def test_an_image_is_uploaded_and_built_once(create: Create, provider: DaytonaProvider, emulator: Emulator) -> None:
    create(limits=Limits(memory=5 * 2**30))
    before = emulator.calls.copy()
    create(limits=Limits(memory=5 * 2**30))
    assert emulator.calls["POST /api/snapshots"] == before["POST /api/snapshots"]
    assert emulator.calls["GET /api/object-storage/push-access"] == before["GET /api/object-storage/push-access"]


def test_a_second_start_finds_the_image_that_is_there(create: Create, shared: Shared, emulator: Emulator) -> None:
    create()
    before = emulator.calls["POST /api/snapshots"]
    later = DaytonaProvider(shared[1])
    later.create(Order(later.prepare(shared[2]), OWNER, LIMITS))
    assert emulator.calls["POST /api/snapshots"] == before


def test_nothing_of_a_command_is_in_the_calls_that_the_service_keeps(create: Create, tmp_path: Path) -> None:
    sandbox = create()
    logs = tmp_path / "logs"
    logs.mkdir()
    env = {**ENV, "TOKEN": "squeamish-ossifrage"}
    script = "echo $TOKEN; cat /proc/*/cmdline /.mrp/*/* 2>/dev/null"
    done = sandbox.exec(["sh", "-c", script], env=env, cwd="/work", timeout=30, logs=logs)
    assert text(done).count("squeamish-ossifrage") == 1


def test_archives_travel_both_ways(create: Create, tmp_path: Path) -> None:
    sandbox = create()
    sandbox.put(archive(a="A", b="B"))
    script = "cat a b; mkdir d; ln a d/hard; ln -s nowhere l; rm b; python3 -c 'import os; os.mkfifo(\"p\")'"
    assert text(run(sandbox, tmp_path, "sh", "-c", script)) == "AB"
    out = io.BytesIO()
    assert sandbox.get("/work", out, 100_000)
    out.seek(0)
    with tarfile.open(fileobj=out) as found:
        kinds = {each.name: (each.type, each.size) for each in found}
    assert kinds == {
        "a": (tarfile.REGTYPE, 1),
        "d": (tarfile.DIRTYPE, 0),
        "d/hard": (tarfile.REGTYPE, 1),
        "l": (tarfile.SYMTYPE, 0),
        "p": (tarfile.FIFOTYPE, 0),
    }
    assert not sandbox.get("/work", io.BytesIO(), 1)


def test_a_snapshot_holds_what_was_written(create: Create, tmp_path: Path) -> None:
    sandbox = create()
    run(sandbox, tmp_path, "sh", "-c", "echo kept > /opt/kept", root=True)
    copy = create(image=sandbox.snapshot())
    assert text(run(copy, tmp_path, "cat", "/opt/kept")) == "kept\n"


def test_a_snapshot_of_the_service_can_be_the_source(
    create: Create, provider: DaytonaProvider, shared: Shared, tmp_path: Path
) -> None:
    store = shared[1]
    name = create().snapshot()
    layer = store.put_tree({"opt/agent": Entry("f", store.put_bytes(b"agent"))})
    image = PortableImage(Digest("1" * 64), (layer,), {}, "1000:1000", f"snapshot:///{name}")
    sandbox = create(image=provider.prepare(image))
    assert text(run(sandbox, tmp_path, "cat", "/opt/agent")) == "agent"


def test_another_providers_source_is_refused(provider: DaytonaProvider, shared: Shared) -> None:
    image = PortableImage(shared[2].digest, (), {}, "1000:1000", "modal:///debian_slim")
    with pytest.raises(InfraError, match=r"modal:///debian_slim") as refused:
        provider.prepare(image)
    assert not refused.value.retryable


def test_an_image_without_python_is_refused(
    create: Create, provider: DaytonaProvider, shared: Shared, emulator: Emulator
) -> None:
    store, image = shared[1], shared[2]
    entries = dict(store.read_tree(image.layers[0]))
    bare: dict[str, Entry] = {path: entry for path, entry in entries.items() if "python" not in path}
    small = PortableImage(Digest("0" * 64), (store.put_tree(bare),), {}, "1000:1000")
    with pytest.raises(InfraError, match="add python3") as refused:
        create(image=provider.prepare(small))
    assert not refused.value.retryable
    assert shared[0].running() == []


# -- whose it is -----------------------------------------------------------------------------------------------------


def test_only_ones_own_are_found_and_removed(create: Create, provider: DaytonaProvider, emulator: Emulator) -> None:
    ours = {create().id for _ in range(3)}
    other = create(owner=Owner("workspace-2", "run-9"))
    owned = list(provider.owned("workspace-1"))
    assert {each.id for each in owned} == ours
    assert all(each.run == "run-1" and time.time() < each.expires <= time.time() + 3600 for each in owned)
    for each in owned:
        provider.remove(each.id)
        provider.remove(each.id)
    assert [box.id for box in emulator.running()] == [other.id]


def test_destroying_twice_or_what_is_gone_is_no_error(create: Create, emulator: Emulator) -> None:
    sandbox, vanished = create(), create()
    sandbox.destroy()
    sandbox.destroy()
    emulator.vanish(vanished.id)
    vanished.destroy()
    assert emulator.running() == []


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_sandbox_that_does_not_start_is_an_infrastructure_failure(create: Create, emulator: Emulator) -> None:
    create()
    emulator.never_start = "no runner has room"
    with pytest.raises(InfraError, match="no runner has room") as failed:
        create()
    assert failed.value.retryable
    assert len(emulator.running()) == 1


def test_a_create_whose_answer_is_lost_leaves_one_sandbox(create: Create, emulator: Emulator) -> None:
    create().destroy()
    emulator.faults.append(Fault("POST /api/sandbox", after=True))
    sandbox = create()
    assert [box.id for box in emulator.running()] == [sandbox.id]


def test_a_refusal_by_rate_limit_is_waited_out(create: Create, emulator: Emulator, tmp_path: Path) -> None:
    sandbox = create()
    emulator.faults.append(Fault("process/execute", status=429, times=2, retry_after="0.3"))
    assert text(run(sandbox, tmp_path, "sh", "-c", "echo x >> f; cat f")) == "x\n"
    assert emulator.faults[0].times == 0


def test_a_refusal_that_asks_for_too_much_is_given_back(create: Create, emulator: Emulator, tmp_path: Path) -> None:
    sandbox = create()
    emulator.faults.append(Fault("process/execute", status=429, times=99, retry_after="3600"))
    with pytest.raises(InfraError, match="run a command") as failed:
        run(sandbox, tmp_path, "true")
    assert failed.value.retryable
    assert emulator.faults[0].times == 98


@pytest.mark.parametrize(
    "fault",
    [
        Fault("process/execute", status=502),
        Fault("process/execute", status=504, after=True),
        Fault("process/execute", after=True),
        Fault("process/execute", status=500, times=3, seconds=0.2),
        Fault("files/bulk-upload", status=503),
        Fault("files/bulk-upload", after=True),
    ],
    ids=["refused", "answered late", "answer cut", "errors three times", "upload refused", "upload cut"],
)
def test_a_command_runs_once_whatever_happens_to_the_calls(
    fault: Fault, create: Create, emulator: Emulator, tmp_path: Path
) -> None:
    sandbox = create()
    emulator.faults.append(fault)
    assert text(run(sandbox, tmp_path, "sh", "-c", "echo x >> f; cat f")) == "x\n"
    assert fault.times == 0


def test_a_download_that_is_cut_begins_anew(create: Create, emulator: Emulator, tmp_path: Path) -> None:
    sandbox = create()
    emulator.faults.append(Fault("files/bulk-download"))
    done = run(sandbox, tmp_path, "python3", "-c", "print('x' * 100000)")
    assert text(done) == "x" * 100000 + "\n"


def test_a_sandbox_that_vanishes_fails_the_attempt(create: Create, emulator: Emulator, tmp_path: Path) -> None:
    sandbox = create()
    timer = threading.Timer(1.0, emulator.vanish, [sandbox.id])
    timer.start()
    with pytest.raises(InfraError) as failed:
        run(sandbox, tmp_path, "sleep", "60", timeout=90)
    timer.join()
    assert failed.value.retryable


def test_what_looks_after_commands_is_killed(create: Create, emulator: Emulator, tmp_path: Path) -> None:
    sandbox = create()
    with pytest.raises(InfraError, match="was killed") as failed:
        run(sandbox, tmp_path, "sh", "-c", "kill -9 $PPID; sleep 5", root=True)
    assert failed.value.retryable


def test_a_stream_that_is_cut_ends(create: Create, emulator: Emulator) -> None:
    sandbox = create()
    stream = sandbox.stream(["cat"], env=ENV)
    stream.write(b"\x00\xffone")
    assert stream.read() == b"\x00\xffone"
    (socket,) = emulator.terminals.values()
    assert emulator.loop is not None
    asyncio.run_coroutine_threadsafe(socket.close(), emulator.loop).result(10)
    assert stream.read() == b""
    with pytest.raises(InfraError):
        stream.write(b"two")
    stream.close()


def test_a_trial_whose_way_to_the_model_is_cut_is_no_result(shared: Shared, emulator: Emulator, tmp_path: Path) -> None:
    _, store, image = shared
    with listening(b"", tmp_path) as (address, _):
        backend = BACKENDS["daytona"](settings_for(store, tmp_path / "scratch"))
        bench = Bench(store, backend, image.digest, tmp_path)
        endpoint = Endpoint(address, "token")
        assert bench.run("true", endpoint=endpoint).exit_code == 0

        def cut() -> None:
            while not emulator.terminals:
                time.sleep(0.05)
            time.sleep(1)
            (socket,) = emulator.terminals.values()
            assert emulator.loop is not None
            asyncio.run_coroutine_threadsafe(socket.close(), emulator.loop)

        cutting = threading.Thread(target=cut)
        cutting.start()
        with pytest.raises(InfraError, match="relay to the model ended") as failed:
            bench.run("sleep", "2", endpoint=endpoint)
        cutting.join()
        backend.close()
    assert failed.value.retryable


def test_a_wrong_key_is_said_and_not_tried_again(provider: DaytonaProvider, emulator: Emulator) -> None:
    emulator.faults.append(Fault("GET /api/sandbox", status=401, times=99))
    with pytest.raises(InfraError, match="check DAYTONA_API_KEY") as failed:
        list(provider.owned("workspace-1"))
    assert not failed.value.retryable
    assert emulator.faults[0].times == 98
    assert "check DAYTONA_API_KEY" in (provider.missing() or "")


def test_without_a_key_it_says_so(provider: DaytonaProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provider.missing() is None
    monkeypatch.delenv("DAYTONA_API_KEY")
    assert "DAYTONA_API_KEY" in (provider.missing() or "")


def test_more_than_the_service_gives_is_refused(create: Create) -> None:
    with pytest.raises(InfraError, match="limit of 4") as refused:
        create(limits=Limits(cpus=Decimal(5)))
    assert not refused.value.retryable


def test_gpus_are_refused(create: Create) -> None:
    with pytest.raises(InfraError, match="no GPUs") as refused:
        create(limits=Limits(gpus=(1, None)))
    assert not refused.value.retryable

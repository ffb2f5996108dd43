"""The Modal provider against the EMULATOR, by way of the real client: sandboxes, images, and what may go wrong."""

import io
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from grpclib import Status
from support.modal_emulator import ModalEmulator

from mrp.cache.filestats import FileDigests
from mrp.cache.store import Entry, Store
from mrp.runtime.contract.image import toolchain_image
from mrp.runtime.images.portable import PortableImage, read_portable
from mrp.runtime.sandbox.modal import ModalProvider, ModalSandbox
from mrp.runtime.sandbox.provider import KEPT_LOG, Exit, Order, Owner
from mrp.specs.errors import InfraError
from mrp.specs.ir import Limits

pytestmark = pytest.mark.backend

OWNER = Owner("/a/workspace", "run-1", lease=3600)
LIMITS = Limits(memory=256 * 2**20, pids=32)
ENV = {"PATH": "/usr/bin:/bin"}

Shared = tuple[ModalEmulator, Store, PortableImage]
Create = Callable[..., ModalSandbox]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("modal")
    with (
        ModalEmulator(folder / "emulator") as emulator,
        emulator.reachable(),
        Store.open(folder / "cache") as store,
        FileDigests.open(folder / "digests") as digests,
    ):
        image = read_portable(toolchain_image(store, digests), store, "modal")
        yield emulator, store, image


@pytest.fixture
def emulator(shared: Shared) -> Iterator[ModalEmulator]:
    yield shared[0]
    shared[0].heal()
    provider = ModalProvider()
    for workspace in (OWNER.workspace, "/another"):
        for owned in provider.owned(workspace):
            provider.remove(owned.id)


@pytest.fixture
def create(shared: Shared, emulator: ModalEmulator) -> Create:
    provider = ModalProvider(shared[1])
    name = provider.prepare(shared[2])
    return lambda **fields: provider.create(Order(**{"image": name, "owner": OWNER, "limits": LIMITS, **fields}))


def run(sandbox: ModalSandbox, folder: Path, *argv: str, timeout: float = 300, root: bool = False) -> Exit:
    logs = folder / f"logs-{time.monotonic_ns()}"
    logs.mkdir()
    return sandbox.exec(argv, env=ENV, cwd="/work", timeout=timeout, logs=logs, root=root)


def archive(files: dict[str, bytes], *, uid: int = 1000, mode: int = 0o644) -> io.BytesIO:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), mode, 946684800
            member.uid = member.gid = uid
            tar.addfile(member, io.BytesIO(data))
    packed.seek(0)
    return packed


def held(sandbox: ModalSandbox, path: str) -> dict[str, bytes]:
    out = io.BytesIO()
    assert sandbox.get(path, out, 2**30)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


# --- What a sandbox does --------------------------------------------------------------------------------------------


def test_a_command_has_two_outputs_and_a_code(create: Create, tmp_path: Path) -> None:
    done = run(create(), tmp_path, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.exit_code, done.limit, done.exec_error) == (7, None, None)
    assert (done.stdout.read_text(), done.stderr.read_text()) == ("out\n", "err\n")


def test_a_command_is_the_users_and_root_is_root(create: Create, tmp_path: Path) -> None:
    sandbox = create()
    assert run(sandbox, tmp_path, "id", "-u").stdout.read_text() == "1000\n"
    assert run(sandbox, tmp_path, "id", "-u", root=True).stdout.read_text() == "0\n"
    sandbox.put(archive({"task/given": b"text"}, uid=0, mode=0o444))
    assert run(sandbox, tmp_path, "sh", "-c", "echo more > /task/given").exit_code == 2
    assert held(sandbox, "/task") == {"given": b"text"}


def test_programs_that_cannot_be_executed_say_why(create: Create, tmp_path: Path) -> None:
    sandbox = create()
    done = run(sandbox, tmp_path, "no-such-program")
    assert (done.exit_code, done.exec_error) == (127, 2)
    sandbox.put(archive({"work/data": b"text"}))
    done = run(sandbox, tmp_path, "/work/data")
    assert (done.exit_code, done.exec_error) == (126, 13)


def test_large_trees_go_there_and_come_back(create: Create) -> None:
    files = {f"work/{number}": bytes([number]) * 300_000 for number in range(40)}
    sandbox = create()
    sandbox.put(archive(files))
    assert held(sandbox, "/work") == {name.removeprefix("work/"): data for name, data in files.items()}
    assert not sandbox.get("/work", io.BytesIO(), 12_020_000)
    assert sandbox.get("/work", io.BytesIO(), 12_040_000)


def test_limits_end_a_command(create: Create, tmp_path: Path) -> None:
    sandbox = create(file_bytes=1000)
    assert run(sandbox, tmp_path, "sleep", "60", timeout=0.3).limit == "wall"
    assert run(sandbox, tmp_path, "sh", "-c", "trap '' TERM; sleep 61; sleep 62", timeout=0.3).limit == "wall"
    hungry = "x = bytearray(2**29)\nimport time\ntime.sleep(20)"
    assert run(sandbox, tmp_path, "python3", "-c", hungry).limit == "memory"
    threads = "import threading, time\nfor _ in range(60): threading.Thread(target=time.sleep, args=(20,)).start()"
    assert run(sandbox, tmp_path, "python3", "-c", threads).limit == "pids"
    many = "import subprocess, time\nfor _ in range(60): subprocess.Popen(['sleep', '63'])\ntime.sleep(20)"
    assert run(sandbox, tmp_path, "python3", "-c", many).limit == "pids"
    assert run(sandbox, tmp_path, "sh", "-c", "cat /bin/sh > big").exit_code == 128 + 25
    assert run(sandbox, tmp_path, "true").exit_code == 0


def test_what_a_command_leaves_running_ends_with_it(create: Create, tmp_path: Path) -> None:
    sandbox = create()
    assert run(sandbox, tmp_path, "sh", "-c", "sleep 71 & exec >&- 2>&-; setsid sleep 72 & exit 4").exit_code == 4
    script = "import os; print([open(f'/proc/{p}/cmdline').read() for p in os.listdir('/proc') if p.isdigit()])"
    assert "sleep\\x007" not in run(sandbox, tmp_path, "python3", "-c", script).stdout.read_text()


_OF_THE_C_LIBRARY = 3 << 31
"""Signals 32 and 33, which nobody else can set; a parent that used threads may have had them ignored."""


def test_a_command_inherits_nothing_of_who_starts_it(create: Create, tmp_path: Path) -> None:
    for user in ("1000:1000", "0:0"):
        status = run(create(user=user), tmp_path, "cat", "/proc/self/status").stdout.read_text()
        found = dict(line.split(":\t", 1) for line in status.splitlines())
        wanted = {"SigBlk": "0" * 16, "CapEff": "0" * 16, "NoNewPrivs": "1", "Uid": user.partition(":")[0]}
        assert {name: found[name].split()[0] for name in wanted} == wanted
        assert int(found["SigIgn"], 16) & ~_OF_THE_C_LIBRARY == 0


def test_a_command_that_cannot_be_made_ready_is_no_result(create: Create, tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="/nowhere"):
        create().exec(["true"], env=ENV, cwd="/nowhere", timeout=9, logs=tmp_path)


def test_processes_are_told_apart_where_python_has_no_ctypes(shared: Shared, create: Create, tmp_path: Path) -> None:
    _, store, image = shared
    entries = store.read_tree(image.layers[0])
    lean = store.put_tree({path: entry for path, entry in entries.items() if "ctypes" not in path})
    assert store.read_tree(lean) != entries
    provider = ModalProvider(store)
    name = provider.prepare(PortableImage(store.put_bytes(b"lean"), (lean,), image.env, image.user))
    sandbox = create(image=name)
    stream = sandbox.stream(["cat"], env=ENV)
    # As a relay does, it answers before a command starts: where nothing else tells them apart, age does.
    stream.write(b"there")
    assert stream.read() == b"there"
    assert run(sandbox, tmp_path, "sh", "-c", "(setsid sleep 71 &) ; exit 4").exit_code == 4
    assert run(sandbox, tmp_path, "sh", "-c", "trap '' TERM; sleep 61; sleep 62", timeout=0.3).limit == "wall"
    many = "import subprocess, time\nfor _ in range(60): subprocess.Popen(['sleep', '63'])\ntime.sleep(20)"
    assert run(sandbox, tmp_path, "python3", "-c", many).limit == "pids"
    script = "import os; print([open(f'/proc/{p}/cmdline').read() for p in os.listdir('/proc') if p.isdigit()])"
    assert "sleep\\x00" not in run(sandbox, tmp_path, "python3", "-c", script).stdout.read_text()
    stream.write(b"still there")
    assert stream.read() == b"still there"


def test_a_command_cannot_end_the_stream_beside_it(create: Create, tmp_path: Path) -> None:
    sandbox = create()
    stream = sandbox.stream(["cat"], env=ENV)
    assert run(sandbox, tmp_path, "sh", "-c", "kill -9 -1; exit 5").exit_code in (5, 137)
    stream.write(b"still there")
    assert stream.read() == b"still there"


def test_what_the_image_has_where_folders_are_given_is_not_seen(shared: Shared, create: Create) -> None:
    _, store, image = shared
    tree = store.put_tree({"work/left": image_entry(store, b"1"), "work/in/left": image_entry(store, b"2")})
    own = PortableImage(store.put_bytes(b"own"), (*image.layers, tree), image.env, image.user)
    sandbox = create(image=ModalProvider(store).prepare(own), writable=("/work",))
    assert set(held(sandbox, "/work")) == {"left", "in/left"}
    sandbox.put(archive({"work/given": b"text"}))
    sandbox.put(archive({"work/more": b"text"}))
    assert set(held(sandbox, "/work")) == {"given", "more"}


def test_logs_are_kept_up_to_a_size(create: Create, tmp_path: Path) -> None:
    done = run(create(), tmp_path, "python3", "-c", f"print('x' * {KEPT_LOG + 5_000_000})")
    assert (done.exit_code, done.stdout.stat().st_size) == (0, KEPT_LOG)


def test_no_network_means_none(create: Create, tmp_path: Path, emulator: ModalEmulator) -> None:
    port = emulator.url.rpartition(":")[2]
    script = f"import socket; socket.create_connection(('127.0.0.1', {port}), 3); print('reached')"
    assert "reached" not in run(create(), tmp_path, "python3", "-c", script).stdout.read_text()
    assert "reached" in run(create(network="open"), tmp_path, "python3", "-c", script).stdout.read_text()


def test_a_stream_stands_beside_commands(create: Create, tmp_path: Path) -> None:
    sandbox = create()
    echo = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
    stream = sandbox.stream(["python3", "-c", echo], env=ENV)
    stream.write(b"one\n")
    assert stream.read() == b"ONE\n"
    assert run(sandbox, tmp_path, "true").exit_code == 0
    stream.write(b"two\n")
    assert stream.read() == b"TWO\n", "the end of a command ends what was started during it, and nothing else"
    stream.close()
    stream.close()
    assert stream.read() == b""


def test_a_snapshot_is_an_image(create: Create, tmp_path: Path) -> None:
    sandbox = create()
    sandbox.put(archive({"work/kept": b"text"}))
    image = sandbox.snapshot()
    sandbox.destroy()
    assert held(create(image=image), "/work") == {"kept": b"text"}


def test_gpus_are_ordered_by_type(create: Create, emulator: ModalEmulator, tmp_path: Path) -> None:
    sandbox = create(limits=Limits(gpus=(2, "A100")))
    ordered = emulator.sandboxes[sandbox.id].definition.resources
    assert (ordered.gpu_config.gpu_type, ordered.gpu_config.count) == ("A100", 2)
    assert run(sandbox, tmp_path, "true").exit_code == 0
    with pytest.raises(InfraError, match="which GPU"):
        create(limits=Limits(gpus=(1, None)))


def test_the_order_reaches_the_service(create: Create, emulator: ModalEmulator) -> None:
    definition = emulator.sandboxes[create().id].definition
    assert definition.timeout_secs == 3600, "the lease holds even when nobody is left to sweep"
    assert definition.resources.milli_cpu_max == 1000
    assert definition.resources.memory_mb_max > 256


# --- Images ---------------------------------------------------------------------------------------------------------


def test_an_image_is_uploaded_and_built_once(shared: Shared, create: Create) -> None:
    emulator, store, image = shared
    before = (dict(emulator.files.built), list(emulator.files.uploads))
    name = ModalProvider(store).prepare(image)
    assert name in emulator.files.built
    assert (emulator.files.built, emulator.files.uploads) == before


def test_a_layer_is_uploaded_once_for_all_images(shared: Shared, emulator: ModalEmulator) -> None:
    _, store, image = shared
    digest = store.put_bytes(b"another description")
    tree = store.put_tree({"opt/more": image_entry(store, b"more")})
    before = len(emulator.files.uploads)
    other = PortableImage(digest, (*image.layers, tree), image.env, image.user, image.source)
    ModalProvider(store).prepare(other)
    assert len(emulator.files.uploads) == before + 1


def test_layers_lie_over_a_source_of_modals_own(shared: Shared, emulator: ModalEmulator, tmp_path: Path) -> None:
    _, store, image = shared
    provider = ModalProvider(store)
    toolchain = emulator.files.images[provider.prepare(image)]
    emulator.files.registry["python:*"] = toolchain[1]
    tree = store.put_tree({"opt/more": image_entry(store, b"more")})
    over = PortableImage(store.put_bytes(b"over"), (tree,), {}, "1000:1000", "modal:///debian_slim")
    sandbox = provider.create(Order(provider.prepare(over), OWNER))
    assert held(sandbox, "/opt") == {"more": b"more"}
    with pytest.raises(InfraError, match="debian_slim"):
        provider.prepare(PortableImage(store.put_bytes(b"none"), (), {}, "1000:1000", "modal:///nothing"))


def test_an_image_without_python_is_refused_with_a_next_step(shared: Shared, emulator: ModalEmulator) -> None:
    _, store, _ = shared
    bare = PortableImage(store.put_bytes(b"bare"), (store.put_tree({"a": image_entry(store, b"b")}),), {}, "1:1", None)
    provider = ModalProvider(store)
    sandbox = provider.create(Order(provider.prepare(bare), OWNER))
    with pytest.raises(InfraError, match="no python3") as caught:
        sandbox.put(archive({"work/x": b"y"}))
    assert not caught.value.retryable


def image_entry(store: Store, data: bytes) -> Entry:
    return Entry("f", store.put_bytes(data))


# --- Whose they are -------------------------------------------------------------------------------------------------


def test_sandboxes_are_their_owners(create: Create, emulator: ModalEmulator) -> None:
    mine = {create().id for _ in range(5)}
    other = create(owner=Owner("/another", "run-9", lease=60)).id
    provider = ModalProvider()
    listed = list(provider.owned("/a/workspace"))
    assert {owned.id for owned in listed} == mine, "the service lists a few at a time"
    assert {owned.run for owned in listed} == {"run-1"}
    assert all(abs(owned.expires - time.time() - 3600) < 120 for owned in listed)
    assert [(owned.id, owned.run) for owned in provider.owned("/another")] == [(other, "run-9")]
    provider.remove(other)
    provider.remove(other)
    assert list(provider.owned("/another")) == []


def test_destroy_is_idempotent_and_final(create: Create, emulator: ModalEmulator, tmp_path: Path) -> None:
    sandbox = create()
    sandbox.destroy()
    sandbox.destroy()
    assert sandbox.id not in {each.id for each in emulator.running()}
    with pytest.raises(InfraError):
        run(sandbox, tmp_path, "true")


# --- What the service does wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.INTERNAL, Status.RESOURCE_EXHAUSTED])
def test_a_refused_creation_may_be_tried_again(create: Create, emulator: ModalEmulator, status: Status) -> None:
    emulator.fail("SandboxCreateV2", status, times=50)
    with pytest.raises(InfraError) as caught:
        create()
    assert caught.value.retryable
    assert "Modal could not create a sandbox" in str(caught.value)
    emulator.heal()
    create()


def test_what_again_cannot_help_is_not_tried_again(create: Create, emulator: ModalEmulator) -> None:
    emulator.fail("SandboxCreateV2", Status.PERMISSION_DENIED)
    with pytest.raises(InfraError) as caught:
        create()
    assert not caught.value.retryable


def test_a_rate_limit_that_names_its_time_is_waited_for(create: Create, emulator: ModalEmulator) -> None:
    before = emulator.calls["SandboxCreateV2"]
    emulator.fail("SandboxCreateV2", Status.RESOURCE_EXHAUSTED, times=2, retry_after=0.1)
    create()
    assert emulator.calls["SandboxCreateV2"] == before + 3


def test_a_stream_that_breaks_once_is_taken_up_where_it_broke(
    create: Create, emulator: ModalEmulator, tmp_path: Path
) -> None:
    sandbox = create()
    emulator.cut("TaskExecStdioRead", after=1000)
    done = run(sandbox, tmp_path, "python3", "-c", "print('0123456789' * 1000)")
    assert done.stdout.read_text() == "0123456789" * 1000 + "\n"


def test_a_stream_that_stays_broken_is_no_result(create: Create, emulator: ModalEmulator, tmp_path: Path) -> None:
    sandbox = create()
    emulator.fail("TaskExecStdioRead", Status.UNAVAILABLE, times=1000)
    with pytest.raises(InfraError) as caught:
        run(sandbox, tmp_path, "true")
    assert caught.value.retryable


def test_a_sandbox_that_vanishes_is_no_result(create: Create, emulator: ModalEmulator, tmp_path: Path) -> None:
    sandbox = create()
    emulator.vanish()
    with pytest.raises(InfraError) as caught:
        run(sandbox, tmp_path, "true")
    assert caught.value.retryable
    sandbox.destroy()
    with suppress(InfraError):
        sandbox.stream(["cat"], env=ENV)


def test_a_slow_service_is_waited_for(create: Create, emulator: ModalEmulator, tmp_path: Path) -> None:
    emulator.hang("TaskExecStart", 0.5)
    assert run(create(), tmp_path, "true").exit_code == 0


def test_an_image_that_is_not_built_is_an_error_of_the_service(shared: Shared, emulator: ModalEmulator) -> None:
    _, store, image = shared
    emulator.fail("ImageGetOrCreate", Status.UNAVAILABLE, times=50)
    with pytest.raises(InfraError, match="build an image"):
        other = PortableImage(store.put_bytes(b"unbuilt"), image.layers[:0], {}, "1:1", None)
        ModalProvider(store).prepare(other)


# --- Whether it can be used -----------------------------------------------------------------------------------------


def test_what_is_missing_is_said(emulator: ModalEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.modal_emulator import forget_client

    assert ModalProvider().missing() is None
    emulator.fail("ClientHello", Status.UNAVAILABLE, times=50)
    assert "Modal could not answer" in str(ModalProvider().missing())
    emulator.heal()
    monkeypatch.delenv("MODAL_TOKEN_ID")
    monkeypatch.delenv("MODAL_TOKEN_SECRET")
    forget_client()
    assert "modal token new" in str(ModalProvider().missing())
    forget_client()

"""What travels to sandboxes elsewhere and back: archives of folders, hostile ones too, and services that fail."""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO

import pytest

from mrp.cache.canonical import canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.runtime.images.portable import PortableImage
from mrp.runtime.sandbox.packing import count, pack, plan_points, unpack
from mrp.runtime.sandbox.provided import ProvidedBackend
from mrp.runtime.sandbox.provider import Exit, Order, Owned, Owner, Sandbox
from mrp.runtime.sandbox.registry import BackendSettings
from mrp.runtime.sandbox.tree_programs import find_program
from mrp.runtime.state import owner_of
from mrp.specs.errors import InfraError
from mrp.specs.work import OUT, TASK, WORK, Box, Mount, Process


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


def tree(store: Store, files: Mapping[str, str]) -> Digest:
    return store.put_tree({name: Entry("f", store.put_bytes(text.encode())) for name, text in files.items()})


def image(store: Store) -> Digest:
    base = {"scratch": {"platform": "linux/amd64"}}
    description = {"base": base, "env": {}, "layers": [tree(store, {"etc/x": ""})], "user": "1234:5678"}
    return store.put_bytes(canonical_bytes(description))


def process(store: Store, *mounts: Mount) -> Process:
    return Process(Box(image(store)), ("true",), mounts=mounts, outputs=(WORK, OUT))


def archive(*members: tuple[str, bytes, str]) -> io.BytesIO:
    """A tar archive of (name, kind, content or target)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, kind, text in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o755
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                member.linkname = text
            elif kind == tarfile.REGTYPE:
                member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()) if kind == tarfile.REGTYPE else None)
    return packed


FILE, FOLDER, LINK, HARD, PIPE = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE


# --- There --------------------------------------------------------------------------------------------------------


def test_folders_are_packed_with_fixed_owners_modes_and_times(store: Store) -> None:
    work = store.put_tree({
        "d/tool": Entry("x", store.put_bytes(b"#!/bin/sh\n")),
        "empty": Entry("d"),
        "link": Entry("l", target="d/tool"),
        "n" * 150: Entry("f", store.put_bytes(b"long")),
    })  # fmt: skip
    points = plan_points(process(store, Mount(WORK, work, True), Mount(TASK, tree(store, {"t": "T"}))), store)
    packed = io.BytesIO()
    pack(points, store, (1234, 5678), packed)
    again = io.BytesIO()
    pack(points, store, (1234, 5678), again)
    assert packed.getvalue() == again.getvalue()
    packed.seek(0)
    with tarfile.open(fileobj=packed) as tar:
        found = {m.name: (m.type, oct(m.mode), m.uid, m.gid) for m in tar.getmembers()}
        assert {int(m.mtime) for m in tar.getmembers()} == {946684800}
    assert found == {
        "out": (FOLDER, "0o755", 1234, 5678),
        "task": (FOLDER, "0o555", 0, 0),
        "task/t": (FILE, "0o444", 0, 0),
        "tmp": (FOLDER, "0o755", 1234, 5678),
        "work": (FOLDER, "0o755", 1234, 5678),
        "work/d": (FOLDER, "0o755", 1234, 5678),
        "work/d/tool": (FILE, "0o755", 1234, 5678),
        "work/empty": (FOLDER, "0o755", 1234, 5678),
        "work/link": (LINK, "0o777", 1234, 5678),
        f"work/{'n' * 150}": (FILE, "0o644", 1234, 5678),
    }


def test_what_is_given_counts_as_it_does_on_this_machine(store: Store, tmp_path: Path) -> None:
    work = tree(store, {"a": "x" * 5000, "d/e/f": "y", "g": ""})
    points = plan_points(process(store, Mount(WORK, work, True)), store)
    assert points.base == store.checkout(work, tmp_path / "w", writable=True)


@pytest.mark.parametrize(
    ("outer", "writable", "words"),
    [({"a": "file"}, True, "holds something else"), ({}, False, "which is read-only"), ({"a/b": ""}, True, "")],
)
def test_mounts_within_mounts(store: Store, outer: dict[str, str], writable: bool, words: str) -> None:
    mounts = (Mount(WORK, tree(store, outer), writable), Mount(f"{WORK}/a/m", tree(store, {})))
    if words:
        with pytest.raises(InfraError, match=words) as error:
            plan_points(process(store, *mounts), store)
        assert not error.value.retryable
    else:
        assert plan_points(process(store, *mounts), store).within == {f"{WORK}/a/m": [f"{WORK}/a/m"]}


def test_nothing_can_be_mounted_over_the_system(store: Store) -> None:
    with pytest.raises(InfraError, match="nothing can be mounted at /etc"):
        plan_points(process(store, Mount("/etc", tree(store, {}))), store)


# --- Back ---------------------------------------------------------------------------------------------------------


def test_an_archive_comes_back_as_a_folder(tmp_path: Path) -> None:
    packed = archive(
        ("./", FOLDER, ""), ("./d", FOLDER, ""), ("./d/f", FILE, "text"), ("./again", HARD, "d/f"),
        ("./l", LINK, "/etc/passwd"), ("./pipe", PIPE, ""), ("./left", FOLDER, ""), ("./left/x", FILE, "x"),
    )  # fmt: skip
    assert unpack(packed, tmp_path, leave_out=("left",)) == []
    assert sorted(os.listdir(tmp_path)) == ["again", "d", "l", "left", "pipe"]
    assert (tmp_path / "again").read_text() == "text"
    assert os.readlink(tmp_path / "l") == "/etc/passwd"
    assert os.listdir(tmp_path / "left") == []
    assert count(packed, leave_out=("left",)) == 6 * 4096


def test_one_archive_may_hold_several_folders(tmp_path: Path) -> None:
    packed = archive(("work", FOLDER, ""), ("work/a", FILE, "A"), ("workshop", FOLDER, ""), ("workshop/b", FILE, "B"))
    unpack(packed, tmp_path, "work")
    assert os.listdir(tmp_path) == ["a"]
    assert count(packed, "work") == count(packed, "workshop") == 4096


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", FILE, "x")],
        [("/evil", FILE, "x")],
        [("a/../../evil", FILE, "x")],
    ],
)
def test_a_path_that_leads_out_is_refused(tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(InfraError, match="leads out of it"):
        unpack(archive(*members), inner)
    assert os.listdir(tmp_path) == ["inner"]


def test_no_symlink_of_the_archive_is_followed(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()
    (outer / "secret").write_text("secret")
    unpack(archive(("l", LINK, str(outer)), ("l/evil", FILE, "x"), ("h", HARD, "l/secret")), inner)
    assert os.listdir(outer) == ["secret"]
    assert not (inner / "h").is_file()


def test_a_name_that_comes_twice_does_not_write_through_the_first(tmp_path: Path) -> None:
    inner, target = tmp_path / "inner", tmp_path / "target"
    inner.mkdir()
    target.write_text("before")
    with pytest.raises(InfraError, match="twice"):
        unpack(archive(("a", LINK, str(target)), ("a", FILE, "after")), inner)
    assert target.read_text() == "before"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive",
        bytes(700),
        archive(("f", FILE, "x")).getvalue()[:1024],
        archive(("f", FILE, "x" * 5000)).getvalue()[:2000],
    ],
)
def test_what_is_cut_short_or_no_archive_is_the_service_failing(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InfraError, match="cannot be read") as error:
        unpack(io.BytesIO(data), tmp_path)
    assert error.value.retryable


def test_what_is_too_deep_is_left_out_and_noted(tmp_path: Path) -> None:
    deep = "/".join("d" * 310)
    members = [("/".join("d" * depth), FOLDER, "") for depth in range(1, 311)]
    notes = unpack(archive(*members, (f"{deep}/f", FILE, "x")), tmp_path)
    assert len(notes) == 1
    assert "nested deeper than 300 folders" in notes[0]


# --- Images that are only stored ----------------------------------------------------------------------------------


def test_programs_are_found_through_symlinks_within_the_image(store: Store) -> None:
    program = store.put_bytes(b"ELF")
    low = store.put_tree({"usr/bin/python3.11": Entry("x", program), "usr/bin/plain": Entry("f", program)})
    high = store.put_tree({
        "bin": Entry("l", target="usr/bin"),
        "usr/bin/python3": Entry("l", target="/etc/alternatives/python3"),
        "etc/alternatives/python3": Entry("l", target="../../usr/bin/python3.11"),
        "usr/bin/loop": Entry("l", target="loop"),
        "usr/bin/out": Entry("l", target="../../../../usr/bin/python3.11"),
        "usr/bin/gone": Entry("l", target="nowhere"),
    })  # fmt: skip
    found = {
        name: find_program((low, high), name, "/usr/local/bin:/bin", store)
        for name in ("python3", "python3.11", "plain", "loop", "out", "gone", "none")
    }
    there = {name: path for name, path in found.items() if path is not None}
    assert there == {"python3": "/bin/python3", "python3.11": "/bin/python3.11", "out": "/bin/out"}


# --- Services that fail -------------------------------------------------------------------------------------------


class Failing:
    """A service whose sandboxes fail where `at` says, and which counts the ones it keeps."""

    name, isolation = "failing", "vm"
    id = "one"

    def __init__(self, at: str) -> None:
        self._at = at
        self.prepared = self.kept = self.removed = 0

    def _may_fail(self, here: str) -> None:
        if self._at == here:
            raise InfraError(f"{here} failed")

    def missing(self) -> str | None:
        return None

    def prepare(self, image: PortableImage) -> str:
        self.prepared += 1
        self._may_fail("prepare")
        return "image"

    def create(self, order: Order) -> Sandbox:
        self._may_fail("create")
        self.kept += 1
        return self

    def put(self, archive: BinaryIO) -> None:
        self._may_fail("put")

    def get(self, path: str, out: BinaryIO, most: int) -> bool:
        self._may_fail("get")
        out.write(b"cut short" if self._at == "archive" else archive().getvalue())
        return True

    def exec(self, *argv: object, logs: Path, **more: object) -> Exit:
        self._may_fail("exec")
        for name in ("out", "err"):
            (logs / name).write_text(name)
        return Exit(0, None, logs / "out", logs / "err")

    def stream(self, *argv: object, **more: object) -> None:  # type: ignore[override]
        raise AssertionError

    def snapshot(self) -> str:
        raise AssertionError

    def destroy(self) -> None:
        self._may_fail("destroy")
        self.kept -= 1

    def owned(self, workspace: str) -> list[Owned]:
        self._may_fail("owned")
        return [Owned("old", "dead", 0.0)]

    def remove(self, identity: str) -> None:
        self._may_fail("remove")
        self.removed += 1

    def close(self) -> None:
        """It has nothing open."""


def backend(service: Failing, store: Store, tmp_path: Path) -> ProvidedBackend:
    settings = BackendSettings(store, tmp_path / "scratch", "container", Owner("w", "r"), lambda run: False)
    return ProvidedBackend(service, settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", ["prepare", "create", "put", "exec", "get", "archive"])
def test_a_service_that_fails_is_no_failed_task_and_keeps_no_sandbox(store: Store, tmp_path: Path, at: str) -> None:
    service = Failing(at)
    made = backend(service, store, tmp_path)
    for _ in range(2):
        with pytest.raises(InfraError, match="//t:t: ") as error:
            made.run(process(store), secrets={}, tag="//t:t")
        assert error.value.retryable
    assert (service.kept, service.removed) == (0, 1)
    assert service.prepared == (2 if at in ("prepare", "create") else 1)
    made.close()
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("at", ["", "destroy", "owned", "remove"])
def test_what_fails_beside_the_process_is_no_failure_of_it(store: Store, tmp_path: Path, at: str) -> None:
    service = Failing(at)
    made = backend(service, store, tmp_path)
    done = made.run(process(store), secrets={"WORD": "out!"}, tag="//t:t")
    assert (done.exit_code, done.isolation) == (0, "vm")
    assert store.get_bytes(done.stdout) == b"out"
    assert done.outputs == {WORK: tree(store, {}), OUT: tree(store, {})}
    made.close()


def test_a_copy_of_a_workspace_does_not_know_what_is_kept_for_the_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    word = owner_of(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert owner_of(tmp_path / "copy") != word
    (tmp_path / "a").rename(tmp_path / "moved")
    assert owner_of(tmp_path / "moved") == word
    (tmp_path / "moved" / "owner").write_bytes(b"\xff damaged")
    assert owner_of(tmp_path / "moved").isalnum()


def test_a_lease_is_longer_than_the_process_may_take(store: Store, tmp_path: Path) -> None:
    leases = []

    class Noting(Failing):
        def create(self, order: Order) -> Sandbox:
            leases.append(order.owner.lease)
            return super().create(order)

    made = backend(Noting(""), store, tmp_path)
    for seconds in (60, 48 * 3600):
        made.run(replace(process(store), timeout=Decimal(seconds)), secrets={}, tag="//t:t")
    made.close()
    assert leases[0] == Owner("w", "r").lease
    assert leases[1] > 48 * 3600


def test_what_somebody_tagged_otherwise_is_nobodys() -> None:
    assert Owned.tagged("a", "run", "17.5") == Owned("a", "run", 17.5)
    for run, expires in (("run", "soon"), (None, None), (None, "")):
        assert Owned.tagged("a", run, expires) == Owned("a", "", 0.0)


def test_what_could_not_be_removed_is_removed_at_the_end(store: Store, tmp_path: Path) -> None:
    service = Failing("destroy")
    made = backend(service, store, tmp_path)
    made.run(process(store), secrets={}, tag="//t:t")
    before = service.removed
    made.close()
    assert service.removed == before + 1


def test_what_cannot_be_removed_keeps_nothing_of_the_others(store: Store, tmp_path: Path) -> None:
    class Stubborn(Failing):
        def owned(self, workspace: str) -> list[Owned]:
            return [Owned("stubborn", "dead", 0.0), *super().owned(workspace)]

        def remove(self, identity: str) -> None:
            if identity == "stubborn":
                raise InfraError("it stays")
            super().remove(identity)

    service = Stubborn("")
    backend(service, store, tmp_path).close()
    assert service.removed == 1


def test_a_weaker_level_than_policy_asks_for_is_refused(store: Store, tmp_path: Path) -> None:
    settings = BackendSettings(store, tmp_path / "scratch", "vm", Owner("w", "r"))
    service = Failing("")
    service.isolation = "container"  # type: ignore[misc]
    made = ProvidedBackend(service, settings)  # type: ignore[arg-type]
    with pytest.raises(InfraError, match="isolation `vm` is needed, and failing gives `container`") as error:
        made.run(process(store), secrets={}, tag="//t:t")
    assert not error.value.retryable
    made.close()


def test_limits_are_named_as_on_this_machine() -> None:
    from mrp.runtime.sandbox.provided import _limit_of

    done = Exit(0, None, Path(), Path())
    assert _limit_of(done, used=10, disk=10) is None
    assert _limit_of(done, used=11, disk=10) == "disk"
    assert _limit_of(replace(done, exit_code=1), used=10, disk=10) == "disk"
    assert _limit_of(replace(done, exit_code=153), used=0, disk=10) == "disk"
    assert _limit_of(replace(done, limit="memory"), used=0, disk=10) is None
    assert _limit_of(replace(done, exit_code=137, limit="memory"), used=0, disk=10) == "memory"
    assert _limit_of(replace(done, exit_code=0, limit="wall"), used=99, disk=10) == "wall"

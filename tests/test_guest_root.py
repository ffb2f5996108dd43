"""Portable images on the local backend: only their own files are there, and their root is laid out once."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sandboxes import Bench, make_bench, why_not

from mrp.cache.canonical import canonical_bytes, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.errors import MissingBlob
from mrp.cache.store import Entry, Store
from mrp.runtime.sandbox.guest_root import guest_file, guest_program
from mrp.runtime.sandbox.materials import Materials
from mrp.runtime.sandbox.roots import laid_out_root, roots_folder, sweep_roots
from mrp.specs.errors import InfraError
from mrp.specs.work import TASK, WORK


@pytest.fixture(scope="module", params=["portable-launcher", "portable-bubblewrap"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    reason = why_not(request.param)
    if reason:
        pytest.skip(reason)
    made = make_bench(request.param, tmp_path_factory.mktemp("guest"))
    yield made
    made.backend.close()
    made.store.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Bench]:
    """A cache without any root, and a small image."""
    reason = why_not("portable-launcher")
    if reason:
        pytest.skip(reason)
    made = small("portable-launcher", tmp_path)
    yield made
    made.backend.close()
    made.store.close()


def small(name: str, folder: Path) -> Bench:
    made = make_bench(name, folder)
    made._images["plain"] = made.portable_image(["cat", "sh", "true"])
    return made


def image(bench: Bench, layer: dict[str, Entry], **changed: object) -> Digest:
    """The usual image with one more layer."""
    description = parse_canonical(bench.store.get_bytes(bench.portable_image()))
    description["layers"] = [*description["layers"], bench.store.put_tree(layer)]
    image: Digest = bench.store.put_bytes(canonical_bytes({**description, **changed}))
    return image


def text(bench: Bench, content: str, kind: str = "f") -> Entry:
    return Entry(kind, bench.store.put_bytes(content.encode()))  # type: ignore[arg-type]


def test_nothing_of_the_machine_is_there(bench: Bench) -> None:
    done = bench.run("sh", "-c", "ls /; ls -A /etc /home /var /run /tmp /root; ls /usr/bin | wc -l")
    said = bench.stdout(done).split()
    assert {"bin", "etc", "usr", "work", "out", "tmp"} <= set(said)
    assert {"passwd", "group", "hosts", "hostname", "nsswitch.conf", "resolv.conf"} <= set(said)
    assert "root" not in said
    assert int(said[-1]) < 80 < len(os.listdir("/usr/bin"))


def test_the_image_has_its_own_etc_with_our_users_in_it(bench: Bench) -> None:
    layer = {"etc/motd": text(bench, "hello"), "etc/passwd": text(bench, "root:x:0:0::/:/bin/sh\n")}
    layer |= {"etc/resolv.conf": Entry("l", target="../../../../../../tmp/resolv.conf")}
    box = bench.box(image=image(bench, layer))
    done = bench.run("sh", "-c", "cat /etc/motd; echo; cat /etc/hostname; whoami; cat /etc/resolv.conf", box=box)
    assert (done.exit_code, bench.stdout(done)) == (0, "hello\nmrp\nmrp\n"), bench.stderr(done)
    open_box = bench.box(image=image(bench, layer), network="open")
    seen = bench.stdout(bench.run("cat", "/etc/resolv.conf", box=open_box))
    assert seen == (Path("/etc/resolv.conf").read_text() if os.path.exists("/etc/resolv.conf") else "")


def test_programs_are_found_through_the_images_own_symlinks(bench: Bench) -> None:
    layer = {
        "opt/tool/bin/hello": text(bench, "#!/bin/sh\necho hello from $0\n", "x"),
        "opt/current": Entry("l", target="/opt/tool"),
        "usr/bin/hello": Entry("l", target="../../opt/current/bin/hello"),
    }
    box = bench.box(image=image(bench, layer))
    assert bench.stdout(bench.run("hello", box=box)) == "hello from /usr/bin/hello\n"
    assert (
        bench.stdout(bench.run("sh", "-c", "/opt/current/bin/hello", box=box)) == "hello from /opt/current/bin/hello\n"
    )


def test_the_environment_and_user_of_the_image_count(bench: Bench) -> None:
    layer = {"opt/bin/python3": Entry("l", target="/usr/bin/python3")}
    env = {"PATH": "/opt/bin:/usr/bin", "COLOUR": "red"}
    box = bench.box(image=image(bench, layer, env=env, user="4321:1234"))
    done = bench.run("sh", "-c", "echo $COLOUR $(id -u) $(id -g) $PATH", box=box)
    assert bench.stdout(done) == "red 4321 1234 /opt/bin:/usr/bin\n"
    source = "import sys, mrp.sdk\nclass Op(mrp.sdk.Agent):\n    def run(self, task, ctx): print(sys.executable)"
    done = bench.operator(source, files={TASK: {"record.json": "{}"}}, box=box)
    assert bench.stdout(done) == "/opt/bin/python3\n", bench.stderr(done)


def test_folders_of_the_sandbox_lie_over_those_of_the_image(bench: Bench) -> None:
    layer = {"work/old": text(bench, "old"), "opt/mrp/stale": text(bench, "x"), "data/in/a": text(bench, "A")}
    layer |= {
        "data/b": text(bench, "B"),
        "tmp/t": text(bench, "T"),
        "proc/p": text(bench, "P"),
        "dev/d": text(bench, "D"),
    }
    box = bench.box(image=image(bench, layer))
    files = {WORK: {"new": "new"}, "/data/in": {"c": "C"}}
    done = bench.run(
        "sh", "-c", "ls /work /data /data/in; ls -A /tmp; test ! -e /proc/p -a ! -e /dev/d", box=box, files=files
    )
    assert (done.exit_code, bench.stdout(done).split()) == (0, ["/data:", "b", "in", "/data/in:", "c", "/work:", "new"])


@pytest.mark.parametrize("name", ["task", "opt", "opt/mrp"])
def test_a_symlink_where_the_sandbox_needs_a_folder_is_refused(bench: Bench, name: str, tmp_path: Path) -> None:
    """Followed, it would have the sandbox made outside of its root."""
    (tmp_path / "outside").mkdir()
    box = bench.box(image=image(bench, {name: Entry("l", target=str(tmp_path / "outside"))}))
    with pytest.raises(InfraError, match=f"the image has no folder at /{name}") as error:
        source = "import mrp.sdk\nclass Op(mrp.sdk.Agent):\n    def run(self, task, ctx): pass"
        bench.operator(source, files={TASK: {"record.json": "{}"}}, box=box)
    assert not error.value.retryable
    assert os.listdir(tmp_path / "outside") == []


def test_an_image_without_python_runs_commands_and_no_operators(bench: Bench) -> None:
    box = bench.box(image=bench.portable_image(["sh"]))
    assert bench.stdout(bench.run("sh", "-c", "echo on", box=box)) == "on\n"
    with pytest.raises(InfraError, match="no python3"):
        bench.operator("", files={TASK: {"record.json": "{}"}}, box=box)


def test_operators_find_byte_code_and_nothing_else_of_it(bench: Bench) -> None:
    source = """
import importlib.util, os, subprocess, sys, mrp.sdk, json
class Op(mrp.sdk.Agent):
    def run(self, task, ctx):
        print(os.path.exists(json.__cached__), 'PYTHONPYCACHEPREFIX' in os.environ, flush=True)
        subprocess.run(['python3', '-c', 'import sys; print(sys.pycache_prefix)'])
"""
    for pure in (False, True):
        done = bench.operator(source, files={TASK: {"record.json": "{}"}}, pure=pure)
        assert bench.stdout(done) == "True False\nNone\n", bench.stderr(done)


def test_an_image_of_a_service_names_the_service(bench: Bench) -> None:
    description = {"base": {"source": "modal:///debian_slim"}, "env": {}, "layers": [], "user": "1000:1000"}
    box = bench.box(image=bench.store.put_bytes(canonical_bytes(description)))
    with pytest.raises(InfraError, match="modal:///debian_slim, which only the `modal` service has") as error:
        bench.run("true", box=box)
    assert not error.value.retryable


# --- Roots in the cache -----------------------------------------------------------------------------------------


def again(fresh: Bench) -> Bench:
    """Another backend on the same cache."""
    made = small("portable-launcher", fresh.folder)
    fresh.backend.close()
    fresh.store.close()
    fresh.backend, fresh.store = made.backend, made.store
    return fresh


def only_root(fresh: Bench) -> Path:
    (root,) = [place / "root" for place in roots_folder(fresh.store).iterdir()]
    return root


def test_a_root_is_laid_out_once_for_all_builds(fresh: Bench) -> None:
    assert fresh.run("true").exit_code == 0
    before = os.stat(only_root(fresh) / "usr")
    assert again(fresh).run("true").exit_code == 0
    assert os.path.samestat(before, os.stat(only_root(fresh) / "usr"))


@pytest.mark.parametrize("damage", ["edit", "mode", "remove", "seal", "no seal"])
def test_a_root_that_was_touched_is_made_anew(fresh: Bench, damage: str) -> None:
    assert fresh.run("true").exit_code == 0
    again(fresh)
    root = only_root(fresh)
    program = root / "usr/bin/cat"
    bytes_before = program.read_bytes()
    program.parent.chmod(0o755)
    if damage == "edit":
        times = program.stat()
        program.chmod(0o755)
        program.write_bytes(b"#" * len(bytes_before))
        program.chmod(times.st_mode)
        os.utime(program, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif damage == "mode":
        program.chmod(0o000)
    elif damage == "remove":
        program.unlink()
    elif damage == "seal":
        (root.parent / "seal").write_bytes(b"\xff")
    else:
        (root.parent / "seal").unlink()
    assert fresh.stdout(fresh.run("cat", "/task/a", files={TASK: {"a": "fine"}})) == "fine"
    assert (only_root(fresh) / "usr/bin/cat").read_bytes() == bytes_before


def test_a_root_in_use_is_neither_swept_nor_made_anew(fresh: Bench) -> None:
    assert fresh.run("true").exit_code == 0
    root = only_root(fresh)
    assert sweep_roots(roots_folder(fresh.store), unused_for=0) == 0
    (root.parent / "seal").unlink()
    other = small("portable-launcher", fresh.folder)
    # It trusts nothing there, and lays out one of its own.
    assert other.run("true").exit_code == 0
    other.backend.close()
    other.store.close()
    assert not (root.parent / "seal").exists()
    assert fresh.run("cat", "/etc/hostname").exit_code == 0
    fresh.backend.close()
    assert sweep_roots(roots_folder(fresh.store)) == 0
    assert sweep_roots(roots_folder(fresh.store), unused_for=0) == 1
    assert list(roots_folder(fresh.store).iterdir()) == []


def test_a_root_is_never_removed_under_its_users(tmp_path: Path) -> None:
    wrong: list[str] = []
    over = threading.Event()
    with Store.open(tmp_path / "cache") as store:
        tree = store.put_tree({"a/b": Entry("f", store.put_bytes(b"x"))})

        def use(materials: Materials) -> None:
            for _ in range(200):
                time.sleep(0.001)
                with laid_out_root(tree, store, materials) as root:
                    for _ in range(5):
                        time.sleep(0)
                        if not (root / "a/b").exists():
                            wrong.append(str(root))

        def remove() -> None:
            while not over.is_set():
                sweep_roots(roots_folder(store), unused_for=0)

        users = [threading.Thread(target=use, args=(Materials(tmp_path / str(number)),)) for number in range(2)]
        sweepers = [threading.Thread(target=remove) for _ in range(2)]
        for thread in [*users, *sweepers]:
            thread.start()
        for thread in users:
            thread.join()
        over.set()
        for thread in sweepers:
            thread.join()
    assert wrong == []


def test_a_root_that_could_not_be_finished_takes_no_room(fresh: Bench) -> None:
    assert fresh.run("true").exit_code == 0
    root = only_root(fresh)
    fresh.backend.close()
    tree = Digest(root.parent.name)
    sweep_roots(roots_folder(fresh.store), unused_for=0)
    (missing,) = [entry.digest for path, entry in fresh.store.read_tree(tree).items() if path == "usr/bin/cat"]
    assert missing is not None
    fresh.store.blobs.blob_path(missing).unlink()
    with pytest.raises(MissingBlob), laid_out_root(tree, fresh.store, Materials(fresh.folder / "materials")):
        pass
    assert os.listdir(root.parent) == ["lock"]


# --- Finding files ----------------------------------------------------------------------------------------------


def test_symlinks_lead_nowhere_out_of_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_text("")
    (root / "usr/bin/tool").chmod(0o755)
    (root / "bin").symlink_to("usr/bin")
    (root / "up").symlink_to("../../../../usr/bin/tool")
    (root / "loop").symlink_to("loop")
    (root / "gone").symlink_to("/no/where")
    (tmp_path / "secret").write_text("")
    (root / "secret").symlink_to(str(tmp_path / "secret"))
    tool = root / "usr/bin/tool"
    assert guest_file(root, "/bin/tool") == guest_file(root, "/up") == guest_file(root, "/../usr/./bin/tool") == tool
    assert [guest_file(root, f"/{name}") for name in ("loop", "gone", "secret", "../secret")] == [None] * 4
    assert guest_program(root, "tool", "/none:/bin:/usr/bin") == "/bin/tool"
    assert guest_program(root, "tool", "relative:usr/bin") is None

"""What a real Docker engine keeps beyond the checks of tests/test_contract.py, which run on it too."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from support.docker_bench import docker_bench
from support.dockerd import docker_engine
from support.dockerd import docker_host as docker_host

from mrp.cache.canonical import canonical_bytes, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.store import Entry
from mrp.runtime.contract.bench import LIMITS, Bench, listening
from mrp.runtime.sandbox.local import LocalBackend
from mrp.runtime.sandbox.protocol import Endpoint
from mrp.specs.errors import InfraError
from mrp.specs.work import OUT, SOLUTION, TASK, WORK, Mount, Process

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def bench(docker_host: str) -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="mrp-docker-contract-"))
    try:
        with docker_bench(docker_host, folder) as made:
            yield made
    finally:
        shutil.rmtree(folder)


def other_image(bench: Bench, **changes: object) -> Digest:
    """The bench's image with another description."""
    description = parse_canonical(bench.store.get_bytes(bench.image))
    return bench.store.put_bytes(canonical_bytes({**description, **changes}))


# --- The same bytes as on this machine ----------------------------------------------------------------------------

_ODD = r"""
import os
os.chdir('/work')
open('plain', 'w').write('p'); open('run', 'w').write('r'); os.chmod('run', 0o4711)
os.link('plain', 'again'); os.link('run', 'sub-run')
os.symlink('/etc/passwd', 'far'); os.symlink('nowhere/at/all', 'broken'); os.symlink('.', 'here')
os.makedirs('a/b/c'); open('a/b/locked', 'w').write('x'); os.chmod('a/b/locked', 0); os.chmod('a/b', 0)
os.mkfifo('pipe'); open(b'bad\xff', 'w').close(); open('caf\u00e9 \n odd', 'w').write('u')
open('n' * 200, 'w').write('long'); os.makedirs('d' * 150 + '/' + 'e' * 150); open('empty', 'w').close()
with open('sparse', 'wb') as f: f.seek(3 * 2**20); f.write(b'!')
open('/out/result.json', 'w').write('{}')
"""


def test_what_is_kept_is_what_the_local_backend_keeps_of_the_same(bench: Bench, tmp_path: Path) -> None:
    files = {WORK: {"given": "G", "in/tool*": "#!/bin/sh\n"}, TASK: {"record.json": "{}"}}
    there = bench.python(_ODD, files=files)
    local = LocalBackend(bench.store, tmp_path)
    try:
        here = replace_backend(bench, local).python(_ODD, files=files)
    finally:
        local.close()
    assert (there.exit_code, bench.stderr(there).count("\n")) == (0, 2), bench.stderr(there)
    assert sorted(bench.stderr(there).splitlines()) == sorted(bench.stderr(here).splitlines())
    assert bench.store.read_tree(there.outputs[WORK]) == bench.store.read_tree(here.outputs[WORK])
    assert there.outputs == here.outputs
    assert (there.isolation, here.isolation) == ("container", "namespaces")


def replace_backend(bench: Bench, backend: LocalBackend) -> Bench:
    return Bench(bench.store, backend, bench.image, bench.scratch)


def test_folders_nested_without_end_neither_break_nor_stay(bench: Bench) -> None:
    source = "import os\nos.chdir('/work')\nfor _ in range(2000): os.mkdir('d'); os.chdir('d')"
    done = bench.python(source)
    assert done.exit_code == 0
    assert "nested deeper than 300 folders" in bench.stderr(done)


def test_messages_of_what_cannot_be_executed_are_the_local_ones(bench: Bench) -> None:
    assert bench.stderr(bench.run("no-such-program", "x")) == "mrp: no-such-program: No such file or directory\n"
    done = bench.run("/work/data", files={WORK: {"data": "x"}})
    assert bench.stderr(done) == "mrp: /work/data: Permission denied\n"
    done = bench.run("sh", "-c", "echo '[FATAL tini (7)] exec x failed: no' >&2; exit 3")
    assert bench.stderr(done) == "[FATAL tini (7)] exec x failed: no\n"


# --- Walls --------------------------------------------------------------------------------------------------------


def test_root_in_a_container_cannot_write_to_what_is_given_nor_to_the_system(bench: Bench) -> None:
    image = other_image(bench, user="0:0")
    script = "for f in /task/record.json /task/new /solution/s /usr/new /new /etc/passwd /opt/mrp/x; do "
    script += 'if (echo x > $f) 2>/dev/null; then echo "wrote $f"; fi; done; chmod 777 /task/record.json 2>&1; '
    script += "rm -rf /task 2>/dev/null; id -u; cat /task/record.json; touch /work/mine /out/mine /tmp/mine"
    files = {TASK: {"record.json": "R"}, SOLUTION: {"s": "S"}}
    done = bench.run("sh", "-c", script, files=files, image=image)
    said = bench.stdout(done)
    assert "wrote" not in said
    assert "Read-only file system" in said
    assert said.endswith("0\nR")
    assert (done.exit_code, bench.stderr(done)) == (0, "")


def test_the_solution_is_absent_unless_it_is_given(bench: Bench) -> None:
    assert bench.run("ls", SOLUTION).exit_code == 2
    assert bench.stdout(bench.run("ls", SOLUTION, files={SOLUTION: {"s": ""}})) == "s\n"


def test_the_engine_itself_cannot_be_reached(bench: Bench) -> None:
    """Not by its socket, whose path is known, nor by an abstract one: the control reaches it."""
    import os
    import socket

    place = os.environ["DOCKER_HOST"].removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(place)
    reach = f"import socket\nsocket.socket(socket.AF_UNIX).connect({place!r})"
    done = bench.python(reach)
    assert done.exit_code == 1
    assert "FileNotFoundError" in bench.stderr(done)


def test_only_its_own_processes_are_seen(bench: Bench) -> None:
    done = bench.python("import os; print(sum(name.isdigit() for name in os.listdir('/proc')))")
    assert int(bench.stdout(done)) <= 3


def test_devices_cannot_be_made_and_mounts_not_changed(bench: Bench) -> None:
    image = other_image(bench, user="0:0")
    source = """
import ctypes, os, stat
for what in (lambda: os.mknod('/work/d', stat.S_IFBLK | 0o600, os.makedev(8, 0)), lambda: os.chroot('/work'),
             lambda: os.setuid(1), lambda: os.sethostname('x') if hasattr(os, 'sethostname') else os.chroot('/')):
    try: what(); print('did')
    except PermissionError: pass
libc = ctypes.CDLL(None, use_errno=True)
print(libc.mount(b'none', b'/work', b'tmpfs', 0, None), libc.unshare(0x10000000))
"""
    assert bench.stdout(bench.python(source, image=image)) == "-1 -1\n"


_CONNECTS = """
import socket, sys
for place in (sys.argv[1], '127.0.0.1'):
    try: socket.create_connection((place, int(sys.argv[2])), timeout=3).close()
    except OSError: continue
    print('reached', place)
"""


def test_network_open_reaches_what_network_none_does_not(tmp_path: Path) -> None:
    """What listens is the engine itself, on all addresses of a network of the tests' own."""
    with docker_engine(bridge=True) as engine, docker_bench(engine.host, tmp_path) as bench:
        address, port = engine.BRIDGE
        argv = ("python3", "-c", _CONNECTS, address, str(port))
        assert bench.stdout(bench.run(*argv, network="open")) == f"reached {address}\n"
        assert bench.stdout(bench.run(*argv)) == ""
        with listening(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nmodel", tmp_path) as (gateway, heard):
            endpoint = Endpoint(gateway, "a-token")
            for network, reached in (("open", f"reached {address}\n"), ("none", "")):
                script = _CONNECTS + "\nimport os, urllib.request\n"
                script += "print(urllib.request.urlopen(os.environ['OPENAI_BASE_URL'] + '/models').read().decode())"
                done = bench.run("python3", "-c", script, *argv[3:], network=network, endpoint=endpoint)
                assert bench.stdout(done) == f"{reached}model\n", bench.stderr(done)
        assert len(heard) == 2


# --- Folders ------------------------------------------------------------------------------------------------------


def test_a_mount_may_lie_within_a_writable_one(bench: Bench) -> None:
    files = {WORK: {"a": "A"}, f"{WORK}/memory/deep": {"note": "N"}}
    done = bench.run("sh", "-c", "cat a memory/deep/note; echo new > memory/more", files=files)
    assert bench.stdout(done) == "AN"
    kinds = {path: entry.kind for path, entry in bench.store.read_tree(done.outputs[WORK]).items()}
    assert kinds == {"a": "f", "memory/deep": "d", "memory/more": "f"}


def test_a_writable_mount_within_a_writable_one_is_kept_by_itself(bench: Bench) -> None:
    inner = f"{WORK}/memory"
    mounts = (Mount(WORK, bench.tree({"a": "A"}), True), Mount(inner, bench.tree({"note": "N"}), True))
    process = Process(bench.box(), ("sh", "-c", "echo 2 > memory/note; echo 3 > b"), mounts=mounts,
                      outputs=(WORK, OUT, inner))  # fmt: skip
    done = bench.backend.run(process, secrets={}, tag="//t:t")
    assert bench.files(done) == {"a": "A", "b": "3\n"}
    assert bench.files(done, inner) == {"note": "2\n"}


def test_a_mount_point_that_is_a_symlink_is_not_followed(bench: Bench) -> None:
    work = bench.store.put_tree({"memory": Entry("l", target="/etc")})
    mounts = (Mount(WORK, work, True), Mount(f"{WORK}/memory", bench.tree({"note": "N"})))
    with pytest.raises(InfraError, match="holds something else there"):
        bench.backend.run(Process(bench.box(), ("true",), mounts=mounts), secrets={}, tag="//t:t")


def test_tmp_and_shared_memory_are_empty_and_can_be_written(bench: Bench) -> None:
    script = (
        "ls -A /tmp /var/tmp /dev/shm; echo x > /tmp/x && echo y > /dev/shm/y && cat /var/tmp/x; ls -ldn /tmp /work"
    )
    said = bench.stdout(bench.run("sh", "-c", script))
    assert "x\n" in said
    assert [line.split()[:4] for line in said.splitlines()[-2:]] == [["drwxr-xr-x", "2", "1000", "1000"]] * 2


# --- Limits -------------------------------------------------------------------------------------------------------


def test_as_many_processes_as_are_allowed_can_be_had(bench: Bench) -> None:
    enough = "import os, time\nfor _ in range(19):\n    if os.fork() == 0: time.sleep(0.3); os._exit(0)"
    limits = replace(LIMITS, pids=20)
    assert bench.python(enough, limits=limits).exit_code == 0
    assert bench.python(enough.replace("19", "20"), limits=limits).limit == "pids"


def test_a_limit_that_was_survived_is_none(bench: Bench) -> None:
    tries = """
import os, time
try:
    for _ in range(200):
        if os.fork() == 0: time.sleep(20); os._exit(0)
except OSError:
    print('no more')
"""
    done = bench.python(tries)
    assert (done.exit_code, done.limit, bench.stdout(done)) == (0, None, "no more\n")


def test_a_small_sandbox_starts(bench: Bench) -> None:
    limits = replace(LIMITS, pids=2, memory=16 * 2**20, cpus=Decimal("0.1"))
    assert bench.run("true", limits=limits).exit_code == 0


def test_more_processors_than_the_machine_has_are_all_of_them(bench: Bench) -> None:
    assert bench.run("true", limits=replace(LIMITS, cpus=Decimal(4096))).exit_code == 0


def test_disk_is_limited_for_one_file_and_with_what_is_in_tmp(bench: Bench) -> None:
    one = bench.python("open('/out/big', 'wb').write(bytes(40 * 2**20))")
    assert one.limit == "disk"
    tmp = bench.python("for n in range(6): open(f'/tmp/{n}', 'wb').write(bytes(10 * 2**20))")
    assert tmp.limit == "disk"
    many = bench.python("for n in range(9000): open(f'/work/{n}', 'w').close()")
    assert (many.limit, many.outputs[OUT]) == ("disk", bench.tree({}))


def test_disk_does_not_count_what_was_given(bench: Bench) -> None:
    limits = replace(LIMITS, disk=2**20)
    done = bench.run("sh", "-c", "true", files={WORK: {"big": "x" * 3 * 2**20}}, limits=limits)
    assert (done.exit_code, done.limit) == (0, None)


def test_usage_is_measured_where_the_engine_is_on_this_machine(bench: Bench) -> None:
    source = "import time\nx = bytearray(60 * 2**20)\nt = time.process_time()\n"
    done = bench.python(source + "while time.process_time() < t + 0.5: pass")
    assert done.wall_s >= Decimal("0.5")
    assert done.cpu_s >= Decimal("0.2")
    assert done.max_rss >= 60 * 2**20


# --- What it cannot do --------------------------------------------------------------------------------------------


def test_what_docker_cannot_do_is_said_and_not_retried(bench: Bench) -> None:
    host = bench.store.put_bytes(canonical_bytes({"base": {"host": {}}, "env": {}, "layers": [], "user": "1000:1000"}))
    source = {"base": {"source": "modal:///debian_slim"}, "env": {}, "layers": [], "user": "1000:1000"}
    modal = bench.store.put_bytes(canonical_bytes(source))
    for fields, words in [
        ({"allow": ("sh",)}, "cannot hold `allow`"),
        ({"network": ("example.org:443",)}, "no allowlist"),
        ({"image": host}, "machine's own system"),
        ({"image": modal}, "modal:///debian_slim"),
        ({"limits": replace(LIMITS, gpus=(1, None))}, "device driver"),
    ]:
        with pytest.raises(InfraError, match=words) as error:
            bench.run("true", **fields)  # type: ignore[arg-type]
        assert not error.value.retryable, words
    assert list(bench.owned()) == []


def test_an_operator_and_a_model_need_python_in_the_image(bench: Bench, tmp_path: Path) -> None:
    tree = bench.store.read_tree(parse_canonical(bench.store.get_bytes(bench.image))["layers"][0])
    kept = {path: entry for path, entry in tree.items() if "python3" not in path}
    bare = other_image(bench, layers=[bench.store.put_tree(kept)])
    assert bench.stdout(bench.run("sh", "-c", "echo runs", image=bare)) == "runs\n"
    with pytest.raises(InfraError, match="no python3, that calls to a model pass through") as error:
        bench.run("true", image=bare, endpoint=Endpoint(f"unix:{tmp_path}/s", "t"))
    assert not error.value.retryable
    operator = Process(bench.box(image=bare), entry="op:Op", role="agent", outputs=(WORK, OUT))
    with pytest.raises(InfraError, match="no python3, which Python operators need") as error:
        bench.backend.run(operator, secrets={}, tag="//t:t")
    assert not error.value.retryable


def test_an_image_that_somebody_removed_is_brought_again(bench: Bench) -> None:
    import docker

    image = other_image(bench, env={"MARK": "removed"})
    assert bench.stdout(bench.run("sh", "-c", "echo $MARK", image=image)) == "removed\n"
    client = docker.from_env()
    client.images.remove(f"mrp/image:{image}", force=True)
    client.close()
    with pytest.raises(InfraError) as error:
        bench.run("true", image=image)
    assert error.value.retryable
    assert bench.stdout(bench.run("sh", "-c", "echo $MARK", image=image)) == "removed\n"


def test_a_shell_of_the_image_that_hangs_does_not_hold_up_the_time_limit(bench: Bench) -> None:
    hanging = {"usr/bin/sh": Entry("x", bench.store.put_bytes(b"#!/usr/bin/sleep 600\n"))}
    layers = parse_canonical(bench.store.get_bytes(bench.image))["layers"]
    image = other_image(bench, layers=[*layers, bench.store.put_tree(hanging)])
    done = bench.run("python3", "-c", "import time; time.sleep(600)", image=image, timeout=0.5)
    assert (done.limit, done.exit_code) == ("wall", None)
    assert list(bench.owned()) == []


def test_what_stops_all_that_starts_beside_it_ends_at_its_time_limit(bench: Bench) -> None:
    source = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    for pid in range(2, 60):
        try: os.getpid() == pid or os.kill(pid, signal.SIGSTOP)
        except OSError: pass
"""
    done = bench.python(source, timeout=1)
    assert (done.limit, done.exit_code) == ("wall", None)
    assert list(bench.owned()) == []


def test_at_the_time_limit_all_processes_are_asked_to_end(bench: Bench) -> None:
    trap = "trap 'echo %s asked' TERM; sleep 60 & wait"
    inner = f'sh -c "{trap % "inner"}"'
    done = bench.run("sh", "-c", f"{inner} & {trap % 'outer'}; wait", timeout=1)
    assert done.limit == "wall"
    assert sorted(bench.stdout(done).split()) == ["asked", "asked", "inner", "outer"]


def test_many_runs_leave_nothing_here_or_there(bench: Bench) -> None:
    client = bench.backend._provider.client()  # type: ignore[attr-defined]
    bench.run("true")
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    images = {image["Id"] for image in client.images(all=True)}
    for _ in range(4):
        done = bench.python("open('/work/big', 'wb').write(bytes(8 << 20)); raise SystemExit(7)")
        assert done.exit_code == 7
        assert bench.run("no\nsuch program").exit_code == 127
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert threading.active_count() <= threads
    assert {image["Id"] for image in client.images(all=True)} == images
    assert client.containers(all=True) == []
    assert client.volumes()["Volumes"] in (None, [])

"""Sandboxes stand ready and run one process after the other; the next finds nothing of the one before."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sandboxes import Bench, make_bench, why_not

from mrp.cache.store import Store
from mrp.runtime.sandbox.local import LocalBackend
from mrp.runtime.sandbox.reuse import ReusedFolders
from mrp.runtime.sandbox.supervise import descendants
from mrp.specs.work import TASK, WORK


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    yield from opened("launcher")


@pytest.fixture(scope="module")
def plain() -> Iterator[Bench]:
    yield from opened("plain")


def opened(name: str) -> Iterator[Bench]:
    reason = why_not(name)
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="mrp-reuse-"))
    made = make_bench(name, folder)
    yield made
    made.backend.close()
    made.store.close()
    shutil.rmtree(folder)


def sandboxes() -> set[int]:
    """Processes of this one's warm processes: the sandboxes that stand ready."""
    return {pid for child in descendants(os.getpid()) for pid in descendants(child)}


def test_one_sandbox_runs_many_processes(bench: Bench) -> None:
    bench.run("true")
    before = sandboxes()
    for _ in range(3):
        bench.run("true")
    assert sandboxes() == before != set()


def test_process_ids_start_anew(bench: Bench) -> None:
    script = "for i in 1 2 3 4 5; do true & done; wait; sh -c 'echo $PPID $$'"
    first, second = (bench.stdout(bench.run("sh", "-c", script)) for _ in range(2))
    assert first == second
    assert first.split()[0] == "2"


LEAVE = """
import ctypes, socket
libc = ctypes.CDLL(None, use_errno=True)
assert libc.shmget(77, 4096, 0o1666) >= 0
assert libc.msgget(77, 0o1666) >= 0
assert libc.mq_open(b'/left', 0o102, 0o666, None) >= 0
server = socket.create_server(('127.0.0.1', 7777))
client = socket.create_connection(('127.0.0.1', 7777))
other, _ = server.accept()
other.close(); client.close()
"""

LOOK = """
import ctypes
for name in ('sysvipc/shm', 'sysvipc/msg', 'net/tcp', 'net/snmp', 'net/dev'):
    print(open(f'/proc/{name}').read())
print(ctypes.CDLL(None).mq_open(b'/left', 0))
"""


def test_neither_shared_memory_nor_queues_nor_traffic_are_left(bench: Bench) -> None:
    fresh = bench.stdout(bench.python(LOOK))
    used = bench.python(LEAVE + LOOK)
    assert used.exit_code == 0, bench.stderr(used)
    assert bench.stdout(used) != fresh
    assert "77" in bench.stdout(used)
    assert bench.stdout(bench.python(LOOK)) == fresh


SCAN = """
import os
class Op:
    def run(self, task, context):
        found = {name: 0 for name in ('earlier-', 'present-')}
        for line in open('/proc/self/maps'):
            words = line.split()
            if 'r' not in words[1] or words[-1] in ('[vvar]', '[vsyscall]'):
                continue
            start, end = (int(part, 16) for part in words[0].split('-'))
            with open('/proc/self/mem', 'rb') as memory:
                memory.seek(start)
                try:
                    data = memory.read(end - start)
                except OSError:
                    continue
            for name in found:
                found[name] += (name + 'needle').encode() in data
        print({name: count > 0 for name, count in found.items()})
"""


def test_an_operator_finds_nothing_of_an_earlier_one_in_its_memory(bench: Bench) -> None:
    def run(value: str) -> str:
        done = bench.operator(SCAN, files={TASK: {"record.json": "{}"}}, env={"SOME_VALUE": value})
        assert done.exit_code == 0, bench.stderr(done)
        return bench.stdout(done)

    assert run("earlier-" + "needle") == "{'earlier-': True, 'present-': False}\n"
    assert run("present-" + "needle") == "{'earlier-': False, 'present-': True}\n"


def test_the_memory_of_what_starts_commands_is_closed_to_them(bench: Bench) -> None:
    bench.run("true", env={"SOME_VALUE": "x"})
    peek = "for f in environ mem maps; do cat /proc/1/$f >/dev/null 2>&1 && echo $f; done; cat /proc/self/environ"
    assert "SOME_VALUE" in bench.stdout(bench.run("sh", "-c", peek, env={"SOME_VALUE": "x"}))
    shown = bench.stdout(bench.run("sh", "-c", peek))
    assert "MRP_WORKSPACE=" in shown and "SOME_VALUE" not in shown
    assert "\n" not in shown, "one of these files of process 1 could be read"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGCHLD])
def test_what_keeps_a_sandbox_heeds_no_signal_from_inside(bench: Bench, number: signal.Signals) -> None:
    before = sandboxes()
    done = bench.python(f"import os\nos.kill(1, {int(number)})\nprint('on')")
    assert (done.exit_code, bench.stdout(done)) == (0, "on\n")
    assert bench.run("true").exit_code == 0
    assert before <= sandboxes()


SPOIL = """
import os
for folder in ('/work', '/tmp', '/out'):
    for number in range(500):
        open(f'{folder}/a-rather-long-name-that-fills-the-folder-{number:04}', 'w').close()
    try:
        os.setxattr(folder, 'user.left', b'x')
    except OSError:
        pass
    os.chmod(folder, 0o700)
"""

STATE = "import os\nfor f in ('/work', '/tmp', '/out'):\n    s = os.stat(f)\n    print(f, oct(s.st_mode), s.st_size, \
int(s.st_mtime), os.listxattr(f), os.listdir(f))"


def test_folders_are_as_new_for_each_process(bench: Bench) -> None:
    fresh = bench.stdout(bench.python(STATE))
    spoilt = bench.python(SPOIL + STATE)
    assert spoilt.exit_code == 0
    assert "0o40700" in bench.stdout(spoilt)
    assert bench.stdout(bench.python(STATE)) == fresh
    bench.python("import os\nos.mkdir('/tmp/deep'); os.chmod('/tmp', 0)")
    assert bench.stdout(bench.python(STATE)) == fresh


def test_a_folder_is_used_again_only_as_it_was(tmp_path: Path) -> None:
    folders = ReusedFolders(tmp_path)
    first = folders.get("a").stat().st_ino
    folders.take_back(["a"], 4096)
    assert folders.get("a").stat().st_ino == first
    (folders.get("a") / "left").write_text("x")
    folders.take_back(["a"], 4096)
    assert list(folders.get("a").iterdir()) == []
    (folders.get("a") / "left").write_text("x")
    folders.take_back(["a"], None)
    assert list(folders.get("a").iterdir()) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "a", "discarded"], "what was left the second time"
    place = folders.get("a")
    moved = tmp_path / "moved"
    place.rename(moved)
    place.symlink_to(moved)
    folders.take_back(["a"], 4096)
    assert not folders.get("a").is_symlink()
    assert moved.is_dir()
    folders.close()


# --- Without walls ----------------------------------------------------------------------------------------------


def test_without_walls_is_how_commands_run_where_that_will_do(tmp_path: Path, bench: Bench) -> None:
    store = Store.open(tmp_path / "cache")
    backend = LocalBackend(store, tmp_path / "scratch", require="none")
    lax = Bench(store, backend, tmp_path)
    try:
        assert backend.isolation == "none"
        assert lax.run("true").isolation == "none"
        assert lax.run("true", box=lax.box(allow=("true",))).isolation == "namespaces"
        operator = "class Op:\n    def run(self, task, context): pass"
        assert lax.operator(operator, files={TASK: {"record.json": "{}"}}).isolation == "namespaces"
    finally:
        backend.close()
        store.close()


DAEMON = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.setsid()
open(sys.argv[1], 'w').write(str(os.getpid()))
time.sleep(600)
"""


def test_what_flees_into_a_session_of_its_own_is_killed(plain: Bench, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    script = f'python3 -c "{DAEMON}" {told}; while ! test -s {told}; do sleep 0.02; done'
    assert plain.run("sh", "-c", script).exit_code == 0
    assert not Path(f"/proc/{told.read_text()}").exists()


def test_commands_without_walls_end_when_mrp_is_killed(plain: Bench, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    program = (
        "import sys\nfrom pathlib import Path\nsys.path[:0] = sys.argv[3].split(':')\n"
        "from support.sandboxes import make_bench\n"
        "make_bench('plain', Path(sys.argv[1])).run('sh', '-c', f'echo $$ > {sys.argv[2]}; sleep 600')\n"
    )
    host = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(told), ":".join(sys.path)])
    deadline = time.monotonic() + 120
    while not (told.exists() and told.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    host.kill()
    host.wait()
    while Path(f"/proc/{told.read_text().strip()}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_files_of_the_working_folder_are_read_when_the_process_changed_them_back(plain: Bench) -> None:
    script = 'cd "$MRP_WORKSPACE"; touch -r a stamp; printf y > a; touch -r stamp a; rm stamp'
    done = plain.run("sh", "-c", script, files={WORK: {"a": "x"}})
    assert plain.files(done) == {"a": "y"}

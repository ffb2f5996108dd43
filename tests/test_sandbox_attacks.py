"""Attacks on the sandbox. Each has a control: the same payload, run outside of it, succeeds."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.sandboxes import SHOWN, WALLED, Bench, benches, make_bench, outside, why_not

from mrp.runtime.sandbox.scratch import sweep
from mrp.specs.work import OUT, TASK, WORK


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[str], Bench]]:
    with benches() as get:
        yield get


@pytest.fixture(scope="module", params=WALLED)
def bench(request: pytest.FixtureRequest, opened: Callable[[str], Bench]) -> Bench:
    return opened(request.param)


@pytest.fixture(scope="module", params=SHOWN)
def shown(request: pytest.FixtureRequest, opened: Callable[[str], Bench]) -> Bench:
    return opened(request.param)


# --- Reading ----------------------------------------------------------------------------------------------------

FIND = """
import os, sys
needle, roots = sys.argv[1].encode(), sys.argv[2:]
for root in roots:
    for parent, folders, files in os.walk(root):
        if parent.startswith(('/proc', '/sys', '/usr', '/dev')):
            folders[:] = []
            continue
        for name in files:
            try:
                with open(os.path.join(parent, name), 'rb') as file:
                    if needle in file.read(1 << 20):
                        print('found', os.path.join(parent, name))
            except OSError:
                pass
"""


def find_outside(needle: str, *roots: Path) -> str:
    command = [sys.executable, "-c", FIND, needle, *map(str, roots)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_private_files_of_the_record_are_not_the_agents(shown: Bench) -> None:
    grader = shown.run("cat", "/task/tests/t.py", files={TASK: {"record.json": "{}", "tests/t.py": "PRIVATE-1"}})
    assert shown.stdout(grader) == "PRIVATE-1"
    agent = shown.run("python3", "-c", FIND, "PRIVATE-1", "/", files={TASK: {"record.json": "{}"}})
    assert (agent.exit_code, shown.stdout(agent)) == (0, "")


def test_the_home_and_the_files_of_the_host_cannot_be_read(shown: Bench, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=Path.home()) as home:
        places = [Path(home) / "key", tmp_path / "key"]
        for place in places:
            place.write_text("PRIVATE-2")
        assert len(find_outside("PRIVATE-2", Path(home), tmp_path).splitlines()) == 2
        read = "; ".join(f"cat {place}" for place in places)
        assert shown.stdout(shown.run("sh", "-c", f"{read}; ls {Path.home()} {tmp_path}")) == ""
        assert shown.stdout(shown.run("python3", "-c", FIND, "PRIVATE-2", "/")) == ""


def test_ways_round_through_proc_lead_nowhere(shown: Bench, tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("PRIVATE-3")
    payload = f"""
import os
for pid in [name for name in os.listdir('/proc') if name.isdigit()] + ['self']:
    for way in ('root', 'cwd'):
        for up in ('', '/..', '/../../../../..'):
            try: print(open(f'/proc/{{pid}}/{{way}}{{up}}{secret}').read())
            except OSError: pass
    try:
        for fd in os.listdir(f'/proc/{{pid}}/fd'):
            try: print(open(f'/proc/{{pid}}/fd/{{fd}}{secret}').read())
            except OSError: pass
    except OSError: pass
"""
    assert "PRIVATE-3" in outside(payload).stdout
    assert "PRIVATE-3" not in shown.stdout(shown.python(payload))


def test_another_trial_cannot_be_seen(shown: Bench) -> None:
    """Neither its folders, nor its processes, nor its inputs, while it runs."""
    victim = threading.Thread(
        target=shown.run,
        args=("sh", "-c", "echo PRIVATE-4 > /work/mine; while test -e /work/mine; do sleep 0.05; done"),
        kwargs={"files": {TASK: {"record.json": "PRIVATE-4"}}, "env": {"VICTIM": "PRIVATE-4"}},
    )
    victim.start()
    scratch = shown.folder / "scratch"
    while not (mine := [line for line in find_outside("PRIVATE-4", scratch).splitlines() if line.endswith("/mine")]):
        assert victim.is_alive()
    assert len(find_outside("PRIVATE-4", scratch).splitlines()) >= 2
    seen = shown.run("python3", "-c", FIND, "PRIVATE-4", "/")
    listed = shown.run("sh", "-c", "cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'")
    assert victim.is_alive()
    Path(mine[0].removeprefix("found ")).unlink()
    victim.join()
    assert shown.stdout(seen) == ""
    assert "VICTIM" not in shown.stdout(listed)


def test_items_of_a_pure_operator_do_not_see_each_other(shown: Bench) -> None:
    source = """
import os, mrp.sdk
class Op(mrp.sdk.Agent):
    def run(self, task, ctx):
        system = ('/proc', '/usr', '/dev', '/etc', '/opt')
        seen = [os.path.join(p, f) for p, _, fs in os.walk('/') if p != '/' and not p.startswith(system) for f in fs]
        print(sorted(seen))
        (task.work / f"left-{task.record['id']}").write_text('x')
        open(f"/tmp/left-{task.record['id']}", 'w').close()
"""
    for number in (1, 2):
        files = {TASK: {"record.json": f'{{"id":{number}}}'}, WORK: {f"start-{number}": ""}}
        done = shown.operator(source, files=files, pure=True)
        assert done.exit_code == 0, shown.stderr(done)
        assert shown.stdout(done) == f"['/task/record.json', '/work/start-{number}']\n"


# --- Writing ----------------------------------------------------------------------------------------------------


def test_the_task_cannot_be_written(shown: Bench, tmp_path: Path) -> None:
    payload = """
import os, sys
task = sys.argv[1]
for act in (lambda: open(task + '/record.json', 'w').write('x'), lambda: os.unlink(task + '/record.json'),
            lambda: os.rename(task + '/record.json', task + '/other'), lambda: open(task + '/new', 'w').write('x'),
            lambda: (os.chmod(task + '/record.json', 0o666), open(task + '/record.json', 'w').write('x'))):
    try: act(); print('done')
    except OSError as error: print(error.errno)
"""
    (tmp_path / "record.json").write_text("{}")
    control = subprocess.run([sys.executable, "-c", payload, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "done" in control.stdout
    files = {TASK: {"record.json": "{}"}}
    assert "done" not in shown.stdout(shown.run("python3", "-c", payload, "/task", files=files))
    assert shown.stdout(shown.run("cat", "/task/record.json", files=files)) == "{}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write there outside")
def test_the_kernels_settings_cannot_be_written(shown: Bench) -> None:
    payload = """
import os
for parent, folders, files in os.walk('/proc'):
    if parent == '/proc':
        folders[:] = [name for name in folders if not name.isdigit() and name not in ('self', 'thread-self')]
    for name in files:
        try:
            os.close(os.open(os.path.join(parent, name), os.O_WRONLY | os.O_NONBLOCK))
            print(os.path.join(parent, name))
        except OSError:
            pass
"""
    assert "/proc/sys/kernel/core_pattern\n" in outside(payload).stdout
    assert shown.stdout(shown.python(payload)) == ""


# --- Network ----------------------------------------------------------------------------------------------------

REACH = """
import socket, sys
kind, where = sys.argv[1], sys.argv[2]
try:
    if kind in ('tcp', 'udp', 'dns'):
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
        address = ('127.0.0.1', int(where))
    else:
        one, address = socket.socket(socket.AF_UNIX), where if kind == 'unix' else '\\0' + where
    one.settimeout(30)
    one.connect(address)
    query = b'\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x07example\\x03org\\x00\\x00\\x01\\x00\\x01'
    one.send(query if kind == 'dns' else b'hello')
    print('reached', one.recv(100)[:5])
except OSError as error:
    print('not reached', type(error).__name__)
"""


@contextlib.contextmanager
def listener(kind: str, folder: Path) -> Iterator[str]:
    """Something outside that answers everyone; gives where it is."""
    if kind == "tcp":
        server = socket.create_server(("127.0.0.1", 0))
        where = str(server.getsockname()[1])
    elif kind in ("udp", "dns"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        where = str(server.getsockname()[1])
    else:
        server = socket.socket(socket.AF_UNIX)
        where = str(folder / "socket") if kind == "unix" else f"mrp-{os.getpid()}-{folder.name}"
        server.bind(where if kind == "unix" else f"\0{where}")
        server.listen()

    def answer() -> None:
        with contextlib.suppress(OSError):
            while server.fileno() >= 0:
                if kind in ("udp", "dns"):
                    data, peer = server.recvfrom(500)
                    if peer is None:
                        return
                    server.sendto(data, peer)
                else:
                    one, _ = server.accept()
                    one.sendall(one.recv(100))
                    one.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield where
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()


@pytest.mark.parametrize("kind", ["tcp", "udp", "dns", "unix", "abstract"])
def test_nothing_outside_can_be_reached(shown: Bench, kind: str, tmp_path: Path) -> None:
    with listener(kind, tmp_path) as where:
        control = subprocess.run([sys.executable, "-c", REACH, kind, where], capture_output=True, text=True, check=True)
        assert control.stdout.startswith("reached")
        assert shown.stdout(shown.run("python3", "-c", REACH, kind, where)).startswith("not reached")
        if kind in ("tcp", "udp", "dns"):
            opened = shown.run("python3", "-c", REACH, kind, where, box=shown.box(network="open"))
            assert shown.stdout(opened).startswith("reached")


def test_a_sandbox_can_talk_to_itself(bench: Bench) -> None:
    payload = """
import socket
server = socket.create_server(('127.0.0.1', 0))
socket.create_connection(server.getsockname())
print('ok')
"""
    assert bench.stdout(bench.python(payload)) == "ok\n"


# --- The kernel -------------------------------------------------------------------------------------------------

CALLS = """
import ctypes, json, socket
libc = ctypes.CDLL(None, use_errno=True)
calls = {'unshare': (272, 0x10000000), 'keyctl': (250, 0, -3, 0), 'bpf': (321, 0, 0, 0), 'userfaultfd': (323, 1),
         'perf_event_open': (298, 0, 0, -1, -1, 0), 'io_uring_setup': (425, 1, 0), 'open_tree': (428, -100, b'/', 0),
         'add_key': (248, 0, 0, 0, 0, 0), 'mount': (165, b'x', b'/tmp', b'tmpfs', 0, 0),
         'clone_user': (56, 0x10000011, 0, 0, 0, 0)}
found = {}
import os
for name, (number, *rest) in calls.items():
    if name in ('unshare', 'clone_user', 'mount'):
        pid = os.fork()
        if pid == 0:
            got = libc.syscall(number, *rest)
            os._exit(0 if got >= 0 else ctypes.get_errno())
        found[name] = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
    else:
        found[name] = 0 if libc.syscall(number, *rest) >= 0 else ctypes.get_errno()
for family in (17, 38, 40):
    try:
        socket.socket(family, socket.SOCK_RAW if family == 17 else socket.SOCK_STREAM if family == 40 else 5).close()
        found[f'family {family}'] = 0
    except OSError as error:
        found[f'family {family}'] = error.errno
print(json.dumps(found))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the calls are those of x86_64")
def test_system_calls_that_reach_out_are_refused(shown: Bench) -> None:
    inside = json.loads(shown.stdout(shown.python(CALLS)))
    assert set(inside.values()) == {1}
    shell = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", CALLS], capture_output=True, text=True, check=False
    )
    control = json.loads(shell.stdout)
    assert {"unshare", "mount", "clone_user"} <= {name for name, code in control.items() if code == 0}
    assert sum(code != 1 for code in control.values()) >= 6


def test_signals_reach_nobody_outside(bench: Bench) -> None:
    payload = "import os, sys\ntry: os.kill(int(sys.argv[1]), 9); print('sent')\nexcept OSError: print('nobody')"
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    try:
        subprocess.run([sys.executable, "-c", payload, str(sleepers[0].pid)], check=True, stdout=subprocess.DEVNULL)
        assert sleepers[0].wait(60) == -signal.SIGKILL
        done = bench.run("python3", "-c", payload, str(sleepers[1].pid))
        assert bench.stdout(done) == "nobody\n"
        bench.run("python3", "-c", "import os; os.kill(-1, 9)")
        assert sleepers[1].poll() is None
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


# --- Using up the machine ---------------------------------------------------------------------------------------


def test_a_fork_bomb_is_held(bench: Bench) -> None:
    bomb = """
import os, time
made = []
for _ in range(150):
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    made.append(pid)
for pid in made:
    os.kill(pid, 9)
print('made', len(made))
"""
    assert outside(bomb).stdout == "made 150\n"
    done = bench.python(bomb)
    assert done.limit == "pids"


def test_a_fork_bomb_without_end_is_held_and_leaves_nothing(bench: Bench) -> None:
    done = bench.python("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout=1)
    assert done.limit == "wall"
    assert bench.run("true").exit_code == 0


def test_a_memory_hog_is_held(bench: Bench) -> None:
    hog = "x = [bytearray(50 * 2**20) for _ in range(14)]\nprint('got', sum(map(len, x)) // 2**20)"
    assert outside(hog).stdout == "got 700\n"
    assert bench.python(hog).limit == "memory"


def test_memory_held_by_files_in_memory_counts(bench: Bench) -> None:
    hog = """
import os, sys
with open(sys.argv[1], 'wb') as file:
    for _ in range(70): file.write(bytes(10 * 2**20))
print('got')
os.unlink(sys.argv[1])
"""
    path = f"/dev/shm/mrp-{os.getpid()}"
    control = subprocess.run([sys.executable, "-c", hog, path], capture_output=True, text=True, check=True)
    assert control.stdout == "got\n"
    assert bench.run("python3", "-c", hog, "/dev/shm/x").exit_code != 0


@pytest.mark.parametrize("folder", ["/work", "/out", "/tmp"])
def test_a_disk_filler_is_held(bench: Bench, folder: str, tmp_path: Path) -> None:
    filler = """
import sys, time
for number in range(80):
    with open(f'{sys.argv[1]}/{number}', 'wb') as file: file.write(bytes(2**20))
print('filled')
time.sleep(int(sys.argv[2]))
"""
    command = [sys.executable, "-c", filler, str(tmp_path), "0"]
    control = subprocess.run(command, capture_output=True, text=True, check=True)
    assert control.stdout == "filled\n"
    done = bench.run("python3", "-c", filler, folder, "60")
    assert done.limit == "disk"


def test_what_is_not_a_writable_folder_has_no_room(shown: Bench) -> None:
    payload = """
import os, sys
for place in sys.argv[1:]:
    try: os.mkdir(place + '/x'); print('made', place)
    except OSError: pass
"""
    done = shown.run(
        "python3", "-c", payload, "/", "/etc", "/dev", "/run", "/mnt", "/home", "/opt", "/usr", "/proc", "/var"
    )
    assert shown.stdout(done) == ""


def test_empty_files_without_number_are_held(bench: Bench) -> None:
    done = bench.python("for n in range(20000): open(f'/work/{n}', 'w').close()\nimport time; time.sleep(60)")
    assert done.limit == "disk"


# --- Not ending -------------------------------------------------------------------------------------------------

IGNORE = """
import signal, time
for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
print('on', flush=True)
time.sleep(60)
"""


def test_a_process_that_ignores_being_asked_is_killed(bench: Bench) -> None:
    control = subprocess.Popen([sys.executable, "-c", IGNORE], stdout=subprocess.PIPE)
    assert control.stdout is not None and control.stdout.readline() == b"on\n"
    control.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        control.wait(0.5)
    control.kill()
    control.communicate()
    done = bench.python(IGNORE, timeout=0.5, env={"MARK": "ignores-being-asked"})
    assert done.limit == "wall"
    assert marked("ignores-being-asked") == []


ORPHAN = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2): os.close(fd)
        time.sleep(60)
    os._exit(0)
time.sleep(0.2)
"""


def test_an_orphan_does_not_outlive_its_trial(bench: Bench) -> None:
    assert outside(ORPHAN, MARK="orphan-outside").returncode == 0
    left = marked("orphan-outside")
    assert len(left) == 1
    os.kill(left[0], signal.SIGKILL)
    assert bench.python(ORPHAN, env={"MARK": "orphan-inside"}).exit_code == 0
    assert marked("orphan-inside") == []


def test_an_orphan_that_holds_the_log_open_delays_nothing(bench: Bench) -> None:
    done = bench.run("sh", "-c", "sleep 600 & echo done", timeout=300)
    assert (done.exit_code, done.limit, bench.stdout(done)) == (0, None, "done\n")


def marked(mark: str) -> list[int]:
    """The processes of the whole machine that carry `mark` in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"MARK={mark}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


HOST = """
import sys, threading
from pathlib import Path
sys.path[:0] = sys.argv[3].split(':')
from support.sandboxes import make_bench
bench = make_bench(sys.argv[1], Path(sys.argv[2]))
bench.box()
env = {'MARK': sys.argv[4]}
sleep = ('sh', '-c', 'sleep 60; true')
threads = [threading.Thread(target=bench.run, args=sleep, kwargs={'env': env}) for _ in range(2)]
source = 'import time, mrp.sdk\\nclass Op(mrp.sdk.Agent):\\n    def run(self, task, ctx): time.sleep(60)'
for pure in (False, True):
    options = {'pure': pure, 'files': {'/task': {'record.json': '{}'}}, 'env': env}
    threads.append(threading.Thread(target=bench.operator, args=(source,), kwargs=options))
for thread in threads: thread.start()
"""


@pytest.mark.parametrize("name", WALLED)
def test_nothing_survives_the_death_of_mrp(name: str, tmp_path: Path) -> None:
    reason = why_not(name)
    if reason:
        pytest.skip(reason)
    mark = f"killed-{name}-{tmp_path.name}"
    command = [sys.executable, "-c", HOST, name, str(tmp_path), ":".join(sys.path), mark]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: sandboxes_under(process.pid) >= 4)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: marked(mark) == [])
    folders = [place.name for place in (tmp_path / "scratch").iterdir()]
    assert len(folders) == 1
    assert sweep(tmp_path / "scratch") == folders
    assert list((tmp_path / "scratch").iterdir()) == []
    groups = [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names]
    assert [name for name in groups if name.startswith(folders[0])] == []


def test_a_sweep_leaves_the_living_alone(bench: Bench) -> None:
    assert sweep(bench.folder / "scratch") == []
    assert bench.run("true").exit_code == 0


def sandboxes_under(pid: int) -> int:
    """How many processes below `pid` sleep in a sandbox."""
    from mrp.runtime.sandbox.supervise import descendants

    count = 0
    for each in descendants(pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{each}/cmdline").read_bytes()
            wait = Path(f"/proc/{each}/wchan").read_text() if b"sleep" not in words else "sleep"
            count += words.startswith(b"sleep") or "nanosleep" in wait
    return count


def wait_until(happened: object, seconds: float = 120) -> None:
    assert callable(happened)
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# --- Secrets ----------------------------------------------------------------------------------------------------

SPILL = """
import os, sys, time
value = os.environ['TOKEN']
print('out', value, flush=True)
print('err', value, file=sys.stderr, flush=True)
open('/work/file', 'w').write('x' + value + 'y')
open('/work/' + value, 'w').write('named')
os.mkdir('/work/d-' + value)
open('/work/d-' + value + '/f', 'w').write(value)
os.symlink(value, '/work/link')
open('/out/result.json', 'w').write('{"reason": "%s"}' % value)
open('/work/bytes', 'wb').write(bytes(range(256)) + value.encode() + bytes(5000))
time.sleep(0.5)
"""


def test_secret_values_are_in_no_list_of_processes_and_in_nothing_that_is_kept(bench: Bench) -> None:
    value = f"s3cr3t-{os.getpid()}-value"
    box = bench.box(secrets=("TOKEN",))
    found: set[str] = set()
    stop = threading.Event()
    control = subprocess.Popen(["sh", "-c", "sleep 60; true", value])

    def look() -> None:
        while not stop.is_set():
            for entry in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    if entry.name.isdigit() and value.encode() in (entry / "cmdline").read_bytes():
                        found.add((entry / "comm").read_text().strip())
            time.sleep(0.01)

    watcher = threading.Thread(target=look)
    watcher.start()
    done = bench.python(SPILL, box=box, secrets={"TOKEN": value})
    stop.set()
    watcher.join()
    control.kill()
    control.wait()
    assert found == {"sh"}
    assert done.exit_code == 0, bench.stderr(done)
    assert bench.stdout(done) == "out [secret TOKEN]\n"
    assert bench.stderr(done) == "err [secret TOKEN]\n"
    assert bench.files(done, OUT) == {"result.json": '{"reason": "[secret TOKEN]"}'}
    assert bench.files(done)["file"] == "x[secret TOKEN]y"
    entries = bench.store.read_tree(done.outputs[WORK])
    assert set(entries) == {"file", "[secret TOKEN]", "d-[secret TOKEN]/f", "link", "bytes"}
    assert entries["link"].target == "[secret TOKEN]"
    assert holders(bench, value) == []
    bench.python(SPILL, env={"TOKEN": value})
    assert holders(bench, value) != []


def holders(bench: Bench, value: str) -> list[str]:
    """The files of the store and the scratch folder that hold `value`, in their bytes or their names."""
    bench.store.commit([])
    found = [
        str(path)
        for root in (bench.store.root, bench.folder / "scratch")
        for path in root.rglob("*")
        if value in path.name or (path.is_file() and value.encode() in path.read_bytes())
    ]
    return sorted(found)


def test_a_secret_that_straddles_the_cut_of_a_log_is_not_halved(bench: Bench) -> None:
    value = "straddling-secret"
    payload = f"import os, sys\nsys.stdout.write('x' * ({16 * 2**20} - 8) + os.environ['TOKEN'] + 'more' * 100)"
    done = bench.python(payload, box=bench.box(secrets=("TOKEN",)), secrets={"TOKEN": value})
    log = bench.store.get_bytes(done.stdout)
    assert value[:4].encode() not in log
    assert log.endswith(b"x[secret\n[mrp: the log was cut here, at 16777216 bytes]\n") or b"[secret " in log[-120:]


# --- As an ordinary user ----------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="this run is that of an ordinary user already")
@pytest.mark.parametrize("name", ["bubblewrap", "launcher"])
def test_the_walls_stand_for_ordinary_users_too(name: str) -> None:
    """Without root there are no control groups: memory, pids and disk are watched and limited by rlimits instead."""
    folder = Path(tempfile.mkdtemp(prefix="mrp-user-"))
    os.chown(folder, 65534, 65534)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        report: object
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            report = as_ordinary_user(name, folder)
        except BaseException as error:
            report = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(report).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as result:
        report = json.loads(result.read())
    os.waitpid(pid, 0)
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(report, str) and ("user namespaces" in report or "Permission" in report):
        pytest.skip(report)
    assert report == {
        "plain": ["1000 /work", 0, None],
        "operator": 0,
        "memory": "memory",
        "pids": "pids",
        "disk": "disk",
        "wall": "wall",
        "read-only": False,
        "tcp": "not reached",
    }


def as_ordinary_user(name: str, folder: Path) -> dict[str, object]:
    if not os.access(sys.executable, os.X_OK):
        sys.executable = "/usr/bin/python3"
    bench = make_bench(name, folder)
    who = bench.run("sh", "-c", "echo $(id -u) $(pwd)")
    source = "import mrp.sdk\nclass Op(mrp.sdk.Agent):\n    def run(self, task, ctx): pass"
    files = {TASK: {"record.json": "{}"}}
    # Without a control group to ask, only what is seen to stand at the limit is known to have hit it.
    fork = "import os, time\ntry:\n    for _ in range(100):\n        if os.fork() == 0: time.sleep(60); os._exit(0)\n"
    fork += "except OSError: time.sleep(1); raise"
    fill = "import time\nfor n in range(40): open(f'/work/{n}', 'wb').write(bytes(2**20))\ntime.sleep(60)"
    with listener("tcp", folder) as where:
        tcp = bench.stdout(bench.run("python3", "-c", REACH, "tcp", where))
    report: dict[str, object] = {
        "plain": [bench.stdout(who).strip(), who.exit_code, who.limit],
        "operator": bench.operator(source, files=files).exit_code,
        "memory": bench.python("x = bytearray(700 * 2**20)\nimport time; time.sleep(60)").limit,
        "pids": bench.python(fork).limit,
        "disk": bench.python(fill).limit,
        "wall": bench.python(IGNORE, timeout=0.3).limit,
        "read-only": bench.run("sh", "-c", "echo x > /task/record.json", files=files).exit_code == 0,
        "tcp": tcp[:11],
    }
    bench.backend.close()
    bench.store.close()
    return report

"""The contract inside a sandbox (docs/sandbox-contract.md), which every backend must keep."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from support.sandboxes import BACKENDS, LIMITS, SHOWN, WALLED, Bench, benches, make_bench, why_not

from mrp.runtime.sandbox.protocol import Cancelled
from mrp.runtime.sandbox.supervise import descendants
from mrp.specs.errors import InfraError
from mrp.specs.work import OUT, SOLUTION, TASK, WORK, Process


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[str], Bench]]:
    with benches() as get:
        yield get


@pytest.fixture(scope="module", params=list(BACKENDS))
def bench(request: pytest.FixtureRequest, opened: Callable[[str], Bench]) -> Bench:
    return opened(request.param)


@pytest.fixture(scope="module", params=WALLED)
def walled(request: pytest.FixtureRequest, opened: Callable[[str], Bench]) -> Bench:
    return opened(request.param)


@pytest.fixture(scope="module", params=SHOWN)
def shown(request: pytest.FixtureRequest, opened: Callable[[str], Bench]) -> Bench:
    return opened(request.param)


@pytest.fixture(scope="module", params=[*SHOWN, "plain"])
def anywhere(request: pytest.FixtureRequest, opened: Callable[[str], Bench]) -> Bench:
    return opened(request.param)


# --- How a process ends -----------------------------------------------------------------------------------------


def test_a_process_gives_its_exit_code_and_both_logs(anywhere: Bench) -> None:
    done = anywhere.run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.exit_code, done.limit) == (3, None)
    assert (anywhere.stdout(done), anywhere.stderr(done)) == ("out\n", "err\n")
    assert done.isolation == anywhere.backend.isolation


def test_death_by_a_signal_is_128_and_its_number(bench: Bench) -> None:
    assert bench.run("sh", "-c", "kill -SEGV $$").exit_code == 128 + 11


def test_a_program_that_does_not_exist_is_the_tasks_failure(bench: Bench) -> None:
    done = bench.run("no-such-program", "x")
    assert done.exit_code == 127
    assert bench.stderr(done) == "mrp: no-such-program: No such file or directory\n"


def test_a_program_that_is_not_executable_is_the_tasks_failure(shown: Bench) -> None:
    done = shown.run("/work/data", files={WORK: {"data": "x"}})
    assert done.exit_code == 126
    assert shown.stderr(done) == "mrp: /work/data: Permission denied\n"


def test_standard_input_is_empty(bench: Bench) -> None:
    assert bench.stdout(bench.run("cat")) == ""


def test_a_log_is_cut_at_16_mib_and_says_so(bench: Bench) -> None:
    done = bench.python("import sys\nfor _ in range(40): sys.stdout.write('x' * 2**20)\nprint('end')")
    log = bench.store.get_bytes(done.stdout)
    assert done.exit_code == 0
    assert len(log) < 16 * 2**20 + 200
    assert log.endswith(b"x\n[mrp: the log was cut here, at 16777216 bytes]\n")


def test_usage_is_measured(bench: Bench) -> None:
    done = bench.python(
        "import time\nx = bytearray(60 * 2**20)\nt = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    )
    assert done.wall_s >= Decimal("0.3")
    assert done.cpu_s >= Decimal("0.25")
    assert done.max_rss >= 60 * 2**20


# --- Folders ----------------------------------------------------------------------------------------------------


def test_what_is_left_in_the_writable_folders_is_kept(bench: Bench) -> None:
    done = bench.run(
        "sh",
        "-c",
        'cd "$MRP_WORKSPACE"; echo new > made; rm gone; chmod +x tool; ln -s made link; mkdir empty; mkfifo pipe; '
        'echo 1 > "$MRP_OUTPUT_DIR/reward.txt"',
        files={WORK: {"gone": "", "kept": "kept", "tool": "#!/bin/sh\n"}},
    )
    assert done.exit_code == 0, bench.stderr(done)
    entries = bench.store.read_tree(done.outputs[WORK])
    assert {path: entry.kind for path, entry in entries.items()} == {
        "empty": "d",
        "kept": "f",
        "link": "l",
        "made": "f",
        "tool": "x",
    }
    assert bench.files(done)["made"] == "new\n"
    assert bench.files(done, OUT) == {"reward.txt": "1\n"}
    assert "pipe is no file, folder or symlink" in bench.stderr(done)


def test_a_symlink_out_of_the_folder_is_kept_as_one_and_not_followed(bench: Bench) -> None:
    done = bench.run("sh", "-c", 'ln -s /etc/passwd "$MRP_WORKSPACE/p"; ln -s / "$MRP_WORKSPACE/root"')
    assert {path: entry.target for path, entry in bench.store.read_tree(done.outputs[WORK]).items()} == {
        "p": "/etc/passwd",
        "root": "/",
    }


def test_names_that_no_tree_can_hold_are_left_out_and_noted(bench: Bench) -> None:
    done = bench.python(
        "import os\nos.chdir(os.environ['MRP_WORKSPACE'])\nopen(b'bad\\xff', 'w').close()\nopen('good', 'w').close()"
    )
    assert done.exit_code == 0
    assert set(bench.files(done)) == {"good"}
    assert "its name is not UTF-8" in bench.stderr(done)


def test_folders_that_the_process_locked_are_kept_and_removed(bench: Bench) -> None:
    done = bench.run("sh", "-c", 'cd "$MRP_WORKSPACE"; mkdir d; echo x > d/f; chmod 0 d/f; chmod 0 d')
    assert bench.files(done) == {"d/f": "x\n"}


def test_folders_nested_without_end_neither_break_nor_stay(bench: Bench) -> None:
    done = bench.python(
        "import os\nos.chdir(os.environ['MRP_WORKSPACE'])\nfor _ in range(1500):\n    os.mkdir('d'); os.chdir('d')"
    )
    assert done.exit_code == 0
    assert "nested deeper than 300 folders" in bench.stderr(done)


def test_two_processes_share_no_writable_folder(bench: Bench) -> None:
    bench.run("sh", "-c", 'echo x > "$MRP_WORKSPACE/x"; echo x > "$MRP_OUTPUT_DIR/x"', files={WORK: {"a": "a"}})
    done = bench.run("sh", "-c", 'ls "$MRP_WORKSPACE" "$MRP_OUTPUT_DIR"', files={WORK: {"a": "a"}})
    assert "x" not in bench.stdout(done).split()
    assert bench.files(done) == {"a": "a"}


def test_input_times_are_fixed(bench: Bench) -> None:
    show = 'cd "$MRP_WORKSPACE"; stat -c "%n %Y %a" . f d d/g; stat -c "%Y %a" "$MRP_TASK_DIR/t"'
    files = {WORK: {"f": "1", "d/g*": "2"}, TASK: {"t": "3"}}
    lines = bench.stdout(bench.run("sh", "-c", show, files=files)).splitlines()
    assert lines == [". 946684800 755", "f 946684800 644", "d 946684800 755", "d/g 946684800 755", "946684800 444"]


def test_the_folders_stand_where_the_contract_says(shown: Bench) -> None:
    done = shown.run(
        "sh",
        "-c",
        "pwd; cat /task/record.json a.py /solution/solve.sh; ls /out",
        files={TASK: {"record.json": "R"}, WORK: {"a.py": "A"}, SOLUTION: {"solve.sh": "S"}},
    )
    assert shown.stdout(done) == "/work\nRAS"


def test_the_solution_is_absent_unless_it_is_mounted(walled: Bench) -> None:
    assert walled.run("test", "-e", "/solution").exit_code == 1


def test_inputs_and_the_system_are_read_only(shown: Bench) -> None:
    script = "for f in /task/record.json /task/new /solution/s /usr/new /new /etc/passwd /opt/x /home/x /dev/x; do "
    script += 'if (echo x > $f) 2>/dev/null; then echo "wrote $f"; fi; done; chmod 777 /task/record.json'
    done = shown.run("sh", "-c", script, files={TASK: {"record.json": "R"}, SOLUTION: {"s": "S"}})
    assert shown.stdout(done) == ""
    assert "Read-only file system" in shown.stderr(done)


def test_tmp_and_shared_memory_can_be_written_and_are_empty(shown: Bench) -> None:
    done = shown.run(
        "sh", "-c", "ls -A /tmp /var/tmp /dev/shm; echo x > /tmp/x && echo y > /dev/shm/y && cat /var/tmp/x"
    )
    assert done.exit_code == 0
    assert "x\n" in shown.stdout(done)


def test_a_mount_may_lie_within_a_writable_one(shown: Bench) -> None:
    done = shown.run(
        "sh", "-c", "cat /work/a /work/memory/note", files={WORK: {"a": "A"}, f"{WORK}/memory": {"note": "N"}}
    )
    assert shown.stdout(done) == "AN"


def test_a_mount_point_that_is_a_symlink_is_not_followed(walled: Bench) -> None:
    from mrp.cache.store import Entry
    from mrp.specs.work import Mount

    work = walled.store.put_tree({"memory": Entry("l", target="/etc")})
    mounts = (Mount(WORK, work, True), Mount(f"{WORK}/memory", walled.tree({"note": "N"})))
    with pytest.raises(InfraError, match="holds something else there"):
        walled.backend.run(Process(walled.box(), argv=("true",), mounts=mounts), secrets={}, tag="//t:t")


# --- Environment ------------------------------------------------------------------------------------------------


def test_the_environment_is_the_declared_one_and_nothing_else(shown: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", "from the machine")
    image = shown.image(env={"A": "image", "B": "image", "C": "image"})
    box = shown.box(image=image, env={"B": "box", "C": "box"})
    done = shown.python("import os, json; print(json.dumps(dict(os.environ)))", box=box, env={"C": "process"})
    found = json.loads(shown.stdout(done))
    assert {name: value for name, value in found.items() if not name.startswith("MRP_")} == {
        "A": "image",
        "B": "box",
        "C": "process",
        "HOME": "/work",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PWD": "/work",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "TZ": "UTC",
    }


def test_without_walls_the_variables_name_the_folders(bench: Bench) -> None:
    done = bench.run(
        "sh",
        "-c",
        'cat "$MRP_TASK_DIR/t" "$MRP_WORKSPACE/w"; test "$PWD" = "$(pwd)" && test "$HOME" = "$MRP_WORKSPACE"',
        files={TASK: {"t": "T"}, WORK: {"w": "W"}},
    )
    assert (done.exit_code, bench.stdout(done)) == (0, "TW")


def test_who_and_where_are_fixed(shown: Bench) -> None:
    done = shown.run("sh", "-c", "id -u; id -g; hostname; umask; whoami; cat /proc/1/comm > /dev/null; date +%Z")
    assert shown.stdout(done).split() == ["1000", "1000", "mrp", "0022", "mrp", "UTC"]


def test_there_are_no_privileges(shown: Bench) -> None:
    done = shown.run("grep", "-E", "^(Cap(Eff|Prm|Bnd|Amb)|NoNewPrivs|Seccomp):", "/proc/self/status")
    rows = [line.split() for line in shown.stdout(done).splitlines()]
    assert {name: int(value, 16) for name, value in rows} == {
        "CapPrm:": 0,
        "CapEff:": 0,
        "CapBnd:": 0,
        "CapAmb:": 0,
        "NoNewPrivs:": 1,
        "Seccomp:": 2,
    }


def test_processes_of_the_machine_are_not_seen(shown: Bench) -> None:
    done = shown.run("sh", "-c", "ls /proc | grep -c '^[0-9]'")
    assert int(shown.stdout(done)) <= 5


def test_python_operators_find_the_same_as_commands(shown: Bench) -> None:
    look = """
import json, os, sys
env = {name: value for name, value in os.environ.items() if name not in ('MRP_ENTRY', 'MRP_ROLE')}
facts = {'env': env, 'cwd': os.getcwd(), 'root': sorted(os.listdir('/')), 'uid': os.getuid(), 'umask': os.umask(18),
         'fds': len(os.listdir('/proc/self/fd')), 'hash': hash('a'), 'python': sys.version, 'path': sys.path[-3:],
         'byte code': sys.dont_write_bytecode}
"""
    operator = (
        look
        + """
import mrp.sdk
class Op(mrp.sdk.Agent):
    def run(self, task, ctx): json.dump(facts, open('/out/facts', 'w'))
"""
    )
    command = look + "\njson.dump(facts, open('/out/facts', 'w'))"
    files = {TASK: {"record.json": "{}"}, WORK: {"a": "b"}}
    from mrp.specs.work import OPERATOR_DIR, SDK_DIR

    alone = shown.python(command, files={**files, OPERATOR_DIR: {"x": ""}, SDK_DIR: {"x": ""}})
    expected = json.loads(shown.files(alone, OUT)["facts"])
    for pure in (False, True):
        done = shown.operator(operator, files=files, pure=pure)
        assert done.exit_code == 0, shown.stderr(done)
        found = json.loads(shown.files(done, OUT)["facts"])
        if pure:
            found["fds"] = expected["fds"]
        assert found == expected


# --- Limits -----------------------------------------------------------------------------------------------------


def test_wall_time_ends_a_process_that_ignores_being_asked(bench: Bench) -> None:
    done = bench.python(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('on', flush=True)\ntime.sleep(600)",
        timeout=2,
    )
    assert (done.exit_code, done.limit) == (None, "wall")
    assert bench.stdout(done) == "on\n"
    assert done.wall_s < 300


def test_wall_time_asks_first_and_keeps_what_is_left(bench: Bench) -> None:
    done = bench.run(
        "sh", "-c", 'trap "echo asked; exit 0" TERM; echo 1 > "$MRP_WORKSPACE/x"; sleep 60 & wait', timeout=2
    )
    assert done.limit == "wall"
    assert bench.stdout(done) == "asked\n"
    assert bench.files(done) == {"x": "1\n"}


def test_memory_is_limited(bench: Bench) -> None:
    done = bench.python("import time\nx = bytearray(800 * 2**20)\ntime.sleep(60)")
    assert (done.exit_code, done.limit) == (None, "memory")


def test_disk_is_limited_in_all_and_for_one_file(bench: Bench) -> None:
    several = """
import os, time
os.chdir(os.environ['MRP_WORKSPACE'])
for number in range(8): open(str(number), 'wb').write(bytes(10 * 2**20))
time.sleep(60)
"""
    one = "import os\nopen(os.environ['MRP_OUTPUT_DIR'] + '/big', 'wb').write(bytes(40 * 2**20))"
    assert bench.python(several).limit == "disk"
    assert bench.python(one).limit == "disk"


def test_disk_counts_files_without_a_name(bench: Bench) -> None:
    hide = """
import os, time
os.chdir(os.environ['MRP_WORKSPACE'])
held = []
for _ in range(8):
    held.append(open('x', 'wb'))
    held[-1].write(bytes(10 * 2**20))
    held[-1].flush()
    os.unlink('x')
time.sleep(60)
"""
    assert bench.python(hide).limit == "disk"


def test_disk_does_not_count_what_was_given(bench: Bench) -> None:
    box = bench.box(limits=replace(LIMITS, disk=2**20))
    done = bench.run("sh", "-c", "sleep 0.3", files={WORK: {"big": "x" * 3 * 2**20}}, box=box)
    assert (done.exit_code, done.limit) == (0, None)


def test_processes_are_limited(walled: Bench) -> None:
    many = "import os, time\nfor _ in range(200):\n    if os.fork() == 0: time.sleep(20); os._exit(0)"
    done = walled.python(many)
    assert (done.exit_code, done.limit) == (None, "pids")


def test_as_many_processes_as_are_allowed_can_be_had(walled: Bench) -> None:
    box = walled.box(limits=replace(LIMITS, pids=20))
    enough = "import os, time\nfor _ in range(19):\n    if os.fork() == 0: time.sleep(0.3); os._exit(0)"
    assert walled.python(enough, box=box).exit_code == 0


def test_a_limit_that_was_survived_is_none(walled: Bench) -> None:
    tries = """
import os, time
try:
    for _ in range(200):
        if os.fork() == 0: time.sleep(20); os._exit(0)
except OSError:
    print('no more')
"""
    done = walled.python(tries)
    assert (done.exit_code, done.limit, walled.stdout(done)) == (0, None, "no more\n")


def test_processors_are_shared_out_and_no_failure(bench: Bench) -> None:
    box = bench.box(limits=replace(LIMITS, cpus=Decimal("0.5")))
    done = bench.python("import time\nt = time.process_time()\nwhile time.process_time() < t + 0.2: pass", box=box)
    assert (done.exit_code, done.limit) == (0, None)


# --- Operators --------------------------------------------------------------------------------------------------

COUNTING = """
import mrp.sdk
seen = []
class Op(mrp.sdk.Agent):
    def run(self, task, ctx):
        seen.append(ctx.sample)
        (task.work / 'seen').write_text(f"{len(seen)} {(task.dir / 'record.json').read_text()}")
        print('said', len(seen))
        if task.record.get('crash'):
            import os; os.kill(os.getpid(), 9)
        if task.record.get('sleep'):
            import time; time.sleep(60)
        return mrp.sdk.Result(metrics={'seen': len(seen)})
"""


def test_an_operator_is_run_by_its_entry(anywhere: Bench) -> None:
    done = anywhere.operator(COUNTING, files={TASK: {"record.json": '{"id":1}'}, WORK: {"a": "A"}})
    assert done.exit_code == 0, anywhere.stderr(done)
    assert anywhere.stdout(done) == "said 1\n"
    assert anywhere.files(done) == {"a": "A", "seen": '1 {"id":1}'}
    assert json.loads(anywhere.files(done, OUT)["result.json"])["metrics"] == {"seen": 1}


def test_an_operator_that_is_not_pure_starts_afresh_for_each_item(anywhere: Bench) -> None:
    for _ in range(3):
        done = anywhere.operator(COUNTING, files={TASK: {"record.json": "{}"}})
        assert anywhere.stdout(done) == "said 1\n"


def test_items_of_a_pure_operator_may_share_a_process_but_no_folder(shown: Bench) -> None:
    said = []
    for number in range(3):
        source = COUNTING + "# shared"
        done = shown.operator(source, files={TASK: {"record.json": f'{{"id":{number}}}'}, WORK: {}}, pure=True)
        count = 1 if shown.portable else number + 1
        assert shown.files(done) == {"seen": f'{count} {{"id":{number}}}'}
        assert set(shown.files(done, OUT)) == {"result.json"}
        said.append(shown.stdout(done))
    # The Python of a portable image is started anew for each.
    shared = not shown.portable
    assert said == (["said 1\n", "said 2\n", "said 3\n"] if shared else ["said 1\n"] * 3)


def test_a_crash_of_a_pure_process_hits_only_its_own_item(shown: Bench) -> None:
    source = COUNTING + "# crash"
    codes = []
    for crash in ("", '"crash":1', ""):
        done = shown.operator(source, files={TASK: {"record.json": f"{{{crash}}}"}}, pure=True)
        codes.append(done.exit_code)
    assert codes == [0, 137, 0]


def test_a_pure_item_that_takes_too_long_hits_only_itself(walled: Bench) -> None:
    source = COUNTING + "# slow"
    slow = walled.operator(source, files={TASK: {"record.json": '{"sleep":1}'}}, pure=True, timeout=0.5)
    assert slow.limit == "wall"
    assert walled.operator(source, files={TASK: {"record.json": "{}"}}, pure=True).exit_code == 0


def test_an_operator_with_python_variables_of_its_own_is_started_afresh(walled: Bench) -> None:
    source = "import sys, mrp.sdk\nclass Op(mrp.sdk.Agent):\n    def run(self, task, ctx): print(sys.flags.optimize)"
    done = walled.operator(source, env={"PYTHONOPTIMIZE": "2"}, files={TASK: {"record.json": "{}"}}, pure=True)
    assert walled.stdout(done) == "2\n", walled.stderr(done)


def test_draws_of_two_items_differ_unless_they_are_seeded(shown: Bench) -> None:
    source = "import uuid, mrp.sdk\nclass Op(mrp.sdk.Agent):\n    def run(self, task, ctx): print(uuid.uuid4())"
    files = {TASK: {"record.json": "{}"}}
    assert shown.stdout(shown.operator(source, files=files)) != shown.stdout(shown.operator(source, files=files))


def test_an_exception_is_a_failure_with_its_traceback(anywhere: Bench) -> None:
    source = "import mrp.sdk\nclass Op(mrp.sdk.Agent):\n    def run(self, task, ctx): raise ValueError('no way')"
    for pure in (False, True):
        done = anywhere.operator(source, files={TASK: {"record.json": "{}"}}, pure=pure)
        assert done.exit_code == 1
        assert "ValueError: no way" in anywhere.stderr(done)


# --- Images -----------------------------------------------------------------------------------------------------


def test_a_toolchain_shows_only_what_it_names(walled: Bench) -> None:
    box = walled.box(image=walled.image(["python3", "sh"]))
    done = walled.python("import ssl, sqlite3, ctypes, decimal, json; print('fine')", box=box)
    assert (done.exit_code, walled.stdout(done)) == (0, "fine\n"), walled.stderr(done)
    assert walled.run("cat", "/work/x", box=box).exit_code == 127
    assert walled.run("sh", "-c", "exit 4", box=box).exit_code == 4
    source = "import mrp.sdk\nclass Op(mrp.sdk.Agent):\n    def run(self, task, ctx): import sqlite3"
    assert walled.operator(source, files={TASK: {"record.json": "{}"}}, box=box).exit_code == 0


def test_an_operator_needs_python_in_its_image(walled: Bench) -> None:
    with pytest.raises(InfraError, match="no python3"):
        walled.operator(COUNTING, box=walled.box(image=walled.image(["sh"])))


def test_layers_lie_over_the_host_and_leave_room_for_operators(walled: Bench) -> None:
    layer = walled.tree({"opt/bin/hello*": "#!/bin/sh\necho hello $0\n", "opt/mrp-data/x": "X", "data/y": "Y"})
    box = walled.box(image=walled.image(layers=[layer]))
    done = walled.run("sh", "-c", "/opt/bin/hello; cat /opt/mrp-data/x /data/y", box=box)
    assert walled.stdout(done) == "hello /opt/bin/hello\nXY"
    assert walled.operator(COUNTING, files={TASK: {"record.json": "{}"}}, box=box).exit_code == 0


@pytest.mark.parametrize(
    ("name", "place"), [("data", "/data/in"), ("work", "/data"), ("a/b", "/a/b"), ("srv", "/data")]
)
def test_a_symlink_of_a_layer_where_a_folder_belongs_is_refused(
    walled: Bench, name: str, place: str, tmp_path: Path
) -> None:
    """Followed, it would have folders made outside of the sandbox."""
    from mrp.cache.store import Entry

    layer = walled.store.put_tree({name: Entry("l", target=str(tmp_path))})
    box = walled.box(image=walled.image(layers=[layer]))
    with pytest.raises(InfraError, match=f"the image has no folder at /{name}") as error:
        walled.run("true", box=box, outputs=(WORK, OUT, place))
    assert not error.value.retryable
    assert os.listdir(tmp_path) == []


# --- Allow ------------------------------------------------------------------------------------------------------


def test_only_allowed_programs_can_be_executed(shown: Bench) -> None:
    box = shown.box(allow=("sh", "cat"))
    assert shown.stdout(shown.run("sh", "-c", "echo x | cat", box=box)) == "x\n"
    done = shown.run("python3", "-c", "print(1)", box=box)
    assert done.exit_code == 126
    assert shown.stderr(done) == "mrp: python3: Permission denied\n"


def test_copies_scripts_and_other_ways_are_not_executed_either(shown: Bench) -> None:
    box = shown.box(allow=("sh", "cat", "cp", "chmod"))
    tries = [
        "cp /usr/bin/id /work/id; /work/id",
        "cp /usr/bin/id /tmp/id; /tmp/id",
        "cp /usr/bin/id /dev/shm/id; /dev/shm/id",
        "cp /usr/bin/id /work/cat; /work/cat",
        "printf '#!/bin/sh\\necho ran\\n' > /work/s; chmod +x /work/s; /work/s",
        "/task/s",
        "cp /usr/bin/id /work/id; /lib64/ld-linux-x86-64.so.2 /work/id",
    ]
    for attempt in tries:
        done = shown.run("sh", "-c", attempt, box=box, files={TASK: {"s*": "#!/bin/sh\necho ran\n"}})
        assert done.exit_code in (126, 127), attempt
        assert shown.stdout(done) == "", attempt
    free = shown.run(
        "sh", "-c", "cp /usr/bin/id /work/id; /work/id -u; /task/s", files={TASK: {"s*": "#!/bin/sh\necho ran\n"}}
    )
    assert shown.stdout(free) == "1000\nran\n"


def test_programs_in_memory_are_not_executed_either(walled: Bench) -> None:
    source = (
        "import os\nf = os.memfd_create('x')\nos.write(f, open('/usr/bin/id', 'rb').read())\nos.execve(f, ['id'], {})"
    )
    done = walled.python(source, box=walled.box(allow=("python3",)))
    assert done.exit_code == 1
    assert "Operation not permitted" in walled.stderr(done)
    assert "uid=1000" in walled.stdout(walled.python(source))


def test_operators_are_held_to_it(shown: Bench) -> None:
    source = """
import mrp.sdk, subprocess
class Op(mrp.sdk.Agent):
    def run(self, task, ctx):
        subprocess.run(['cat', '/task/record.json'])
        subprocess.run(['id'])
"""
    for pure in (False, True):
        done = shown.operator(source, files={TASK: {"record.json": "{}"}}, box=shown.box(allow=("cat",)), pure=pure)
        assert shown.stdout(done) == "{}"
        assert "PermissionError" in shown.stderr(done)


def test_an_unknown_name_in_allow_is_an_error(walled: Bench) -> None:
    with pytest.raises(InfraError, match="`allow` names no-such, which is no program of the image") as error:
        walled.run("true", box=walled.box(allow=("no-such",)))
    assert not error.value.retryable


# --- The backend ------------------------------------------------------------------------------------------------


def test_what_the_backend_cannot_do_is_said_and_not_retried(bench: Bench) -> None:
    for box, words in [
        (bench.box(network=("example.*:443",)), "no host and port" if bench.backend.isolation != "none" else "needs a"),
        (bench.box(limits=replace(LIMITS, gpus=(1, None))), "GPUs"),
    ]:
        with pytest.raises(InfraError, match=words) as error:
            bench.run("true", box=box)
        assert not error.value.retryable


def test_a_stronger_level_than_there_is_is_refused(tmp_path: Path) -> None:
    from mrp.cache.store import Store
    from mrp.runtime.sandbox.local import LocalBackend

    with Store.open(tmp_path / "cache") as store:
        backend = LocalBackend(store, tmp_path / "scratch", allowed=["plain"])
        bench = Bench(store, backend, tmp_path)
        with pytest.raises(InfraError, match="isolation `namespaces` is needed") as error:
            bench.run("true")
        assert not error.value.retryable
        backend.close()


def test_a_warm_process_that_died_is_replaced(walled: Bench) -> None:
    source = COUNTING + "# replaced"
    box = walled.box(image=walled.image())
    for pure in (False, True):
        assert walled.operator(source, files={TASK: {"record.json": "{}"}}, pure=pure, box=box).exit_code == 0
        killed = [pid for pid in descendants(os.getpid()) if b"sandbox.zygote" in cmdline(pid)]
        assert killed
        for pid in killed:
            # One may have taken another with it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        codes = []
        while not codes:
            # What was to run in its sandboxes says nothing about the task, and is tried again.
            with contextlib.suppress(InfraError):
                codes.append(walled.operator(source, files={TASK: {"record.json": "{}"}}, pure=pure, box=box).exit_code)
        assert codes == [0]


def cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_many_run_at_once(bench: Bench) -> None:
    results: list[str] = []

    def one(number: int) -> None:
        results.append(bench.stdout(bench.run("sh", "-c", f"sleep 0.1; echo {number}")))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, results)) == list(range(12))


@pytest.mark.parametrize("name", list(BACKENDS))
def test_cancel_ends_what_runs_and_close_leaves_nothing(name: str, tmp_path: Path) -> None:
    reason = why_not(name)
    if reason:
        pytest.skip(reason)
    bench = make_bench(name, tmp_path)
    box = bench.box()
    mark = f"{tmp_path.name}-mark"
    ended: list[type[BaseException]] = []

    def wait() -> None:
        try:
            bench.run("sh", "-c", "sleep 61; true", box=box, env={"MARK": mark})
        except Cancelled:
            ended.append(Cancelled)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    while _count_marked(mark) < 3:
        time.sleep(0.01)
    bench.backend.cancel()
    for thread in threads:
        thread.join()
    assert ended == [Cancelled] * 3
    assert _count_marked(mark) == 0
    bench.backend.close()
    bench.backend.close()
    assert list((tmp_path / "scratch").iterdir()) == []
    bench.store.close()


def _count_marked(mark: str) -> int:
    """Sandboxes whose processes carry `mark` in their environment."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                found += mark.encode() in environment and (entry / "comm").read_text() == "sh\n"
            except OSError:
                continue
    return found


def test_what_no_package_database_covers_is_not_shown(walled: Bench) -> None:
    assert Path("/usr/local/bin").is_dir()
    box = walled.box(image=walled.image())
    done = walled.run("sh", "-c", "test ! -e /usr/local && test -e /usr/bin/env", box=box)
    assert done.exit_code == 0

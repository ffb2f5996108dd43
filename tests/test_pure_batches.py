"""Items of a pure operator that go through a sandbox together: each has folders, an end and limits of its own."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from support.places import Place, kill_group
from support.sandboxes import CONTRACT_ENV, LIMITS, Bench, make_bench, why_not

from mrp.cache.digest import Digest
from mrp.runtime.sandbox.protocol import Cancelled
from mrp.runtime.sdk_tree import sdk_tree
from mrp.specs.errors import InfraError
from mrp.specs.work import OPERATOR_DIR, OUT, SDK_DIR, TASK, WORK, Box, Completed, Mount, Process

WHAT_IT_IS_TOLD = """
import os, mrp.sdk
class Op(mrp.sdk.Agent):
    def run(self, task, ctx):
        exec(task.record["do"], {"task": task, "os": os, "out": ctx._trajectory.parent})
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    reason = why_not("launcher")
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="mrp-batches-"))
    made = make_bench("launcher", folder)
    yield made
    made.backend.close()
    made.store.close()
    shutil.rmtree(folder)


class Told:
    """Items that do what they are told, by Python source."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.came: list[Completed | InfraError] = []
        self.returned: list[int] = []

    def process(self, do: str, *, work: Digest | None = None, box: Box | None = None, timeout: float = 20) -> Process:
        import json

        bench = self.bench
        mounts = (
            Mount(TASK, bench.tree({"record.json": json.dumps({"do": do})})),
            Mount(WORK, work or bench.tree({}), writable=True),
            Mount(OPERATOR_DIR, bench.tree({"op.py": WHAT_IT_IS_TOLD})),
            Mount(SDK_DIR, sdk_tree(bench.store)),
        )
        return Process(
            box=box or bench.box(),
            entry="op:Op",
            role="agent",
            pure=True,
            mounts=mounts,
            outputs=(WORK, OUT),
            env=CONTRACT_ENV,
            timeout=Decimal(str(timeout)),
        )

    def run(self, processes: Sequence[Process], *, give_back: bool = False) -> list[Completed]:
        taken = self.bench.backend.run_many(
            processes,
            tags=["//test:it"] * len(processes),
            finished=lambda number, came: self._note(number, came),
            returned=self.returned.append if give_back else None,
        )
        assert taken == len(processes)
        assert all(isinstance(came, Completed) for came in self.came), self.came
        return [came for came in self.came if isinstance(came, Completed)]

    def _note(self, number: int, came: Completed | InfraError) -> None:
        assert number == len(self.came), "results come in order, each once"
        self.came.append(came)


@pytest.fixture
def told(bench: Bench) -> Told:
    return Told(bench)


WRITE = "(task.work / 'made').write_text('%s')"


def test_the_crash_of_one_item_is_its_own_and_the_others_run(bench: Bench, told: Told) -> None:
    crash = "(task.work / 'made').write_text('2'); print('last words', flush=True); os.kill(os.getpid(), 9)"
    done = told.run([told.process(crash if number == 2 else WRITE % number) for number in range(5)])
    assert [each.exit_code for each in done] == [0, 0, 137, 0, 0]
    assert [bench.files(each) for each in done] == [{"made": str(number)} for number in range(5)]
    assert bench.stdout(done[2]) == "last words\n"


def test_the_wall_limit_of_one_item_is_its_own(bench: Bench, told: Told) -> None:
    late = "(task.work / 'made').write_text('2'); import time; time.sleep(60)"
    items = [told.process(late if number == 2 else WRITE % number) for number in range(5)]
    items[2] = replace(items[2], timeout=Decimal("2"))
    done = told.run(items)
    assert [each.limit for each in done] == [None, None, "wall", None, None]
    assert [bench.files(each) for each in done] == [{"made": str(number)} for number in range(5)]


def test_a_failure_in_the_middle_keeps_its_logs_and_outputs_apart(bench: Bench, told: Told) -> None:
    speak = "print('I am', %d); (task.work / 'made').write_text('%d')"
    fail = speak % (1, 1) + "; raise ValueError('no way')"
    done = told.run([told.process(speak % (0, 0)), told.process(fail), told.process(speak % (2, 2))])
    assert [each.exit_code for each in done] == [0, 1, 0]
    assert [bench.stdout(each) for each in done] == ["I am 0\n", "I am 1\n", "I am 2\n"]
    assert ["no way" in bench.stderr(each) for each in done] == [False, True, False]
    assert bench.files(done[1]) == {"made": "1"}


def test_a_long_log_is_passed_on_whole(bench: Bench, told: Told) -> None:
    done = told.run([told.process("print('x' * 3000000)"), told.process("print('y')")])
    assert [len(bench.stdout(each)) for each in done] == [3000001, 2]


def test_what_is_cancelled_comes_to_nothing(told: Told) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mrp-batches-"))
    own = make_bench("launcher", folder)
    items = Told(own)
    processes = [items.process("import time; time.sleep(60)" if number == 2 else "pass") for number in range(4)]

    def cancel() -> None:
        _wait_for(lambda: len(items.came) == 2)
        own.backend.cancel()

    timer = threading.Thread(target=cancel)
    timer.start()
    with pytest.raises(Cancelled):
        items.run(processes)
    timer.join()
    assert len(items.came) == 2
    own.backend.close()
    own.store.close()
    assert not list((folder / "scratch").iterdir())
    shutil.rmtree(folder)


def test_those_behind_a_slow_one_are_given_back(told: Told) -> None:
    slow = "import time; time.sleep(3)"
    done = told.run([told.process("pass"), told.process(slow), *[told.process("pass")] * 3], give_back=True)
    assert told.returned == [2]
    assert [each.exit_code for each in done] == [0, 0]


def test_symlinks_folders_and_programs_are_kept_as_they_are(bench: Bench, told: Told) -> None:
    make = """
os.symlink('/etc/passwd', 'link'); os.makedirs('a/b/empty'); open('a/tool', 'w').write('x'); os.chmod('a/tool', 0o755)
os.symlink('a', 'inner')
"""
    done = told.run([told.process(make), told.process("assert os.listdir('.') == []")])
    assert [each.exit_code for each in done] == [0, 0]
    entries = bench.store.read_tree(done[0].outputs[WORK])
    found = {path: (entry.kind, entry.target) for path, entry in entries.items()}
    assert found == {
        "a/b/empty": ("d", None),
        "a/tool": ("x", None),
        "inner": ("l", "a"),
        "link": ("l", "/etc/passwd"),
    }


@pytest.mark.parametrize(
    ("make", "kept", "said"),
    [
        ("os.mkfifo('pipe'); open('f', 'w').close()", {"f"}, "pipe is no file, folder or symlink"),
        ("open(b'bad\\xff', 'w').close(); open('f', 'w').close()", {"f"}, "its name is not UTF-8"),
        ("os.mkdir('d'); open('d/f', 'w').close(); os.chmod('d/f', 0); os.chmod('d', 0)", {"d/f"}, ""),
        ("open('f', 'wb').write(bytes(3 * 2**20))", {"f"}, ""),
    ],
)
def test_what_is_not_plain_is_kept_as_of_any_process(
    bench: Bench, told: Told, make: str, kept: set[str], said: str
) -> None:
    done = told.run([told.process("pass"), told.process(make), told.process("assert os.listdir('.') == []")])
    assert [each.exit_code for each in done] == [0, 0, 0], bench.stderr(done[2])
    assert set(bench.store.read_tree(done[1].outputs[WORK])) == kept
    assert said in bench.stderr(done[1])


def test_folders_without_end_hit_no_other_item(bench: Bench, told: Told) -> None:
    deep = "for _ in range(1500): os.mkdir('d'); os.chdir('d')"
    done = told.run([told.process(f"exec({deep!r})"), told.process("assert os.listdir('.') == []")])
    assert [each.exit_code for each in done] == [0, 0]
    assert "nested deeper than 300 folders" in bench.stderr(done[0])


def test_nothing_of_an_item_is_left_for_the_next(bench: Bench, told: Told) -> None:
    leave = """
for place in ('/work', '/out', '/tmp', '/dev/shm'):
    open(place + '/left', 'w').close()
    os.chmod(place, 0o700) if place != '/dev/shm' else None
os.environ['LEFT'] = 'x'; os.environ.pop('HOME'); os.chdir('/')
try: os.setxattr('/work', 'user.left', b'x')
except OSError: pass
"""
    look = """
for place in ('/work', '/out', '/tmp', '/dev/shm'):
    assert os.listdir(place) == [], place
for place in ('/work', '/out', '/tmp'):
    status = os.stat(place)
    assert (status.st_mode & 0o777, status.st_mtime) == (0o755, 946684800), place
assert os.listxattr('/work') == [] and os.getcwd() == '/work'
assert 'LEFT' not in os.environ and os.environ['HOME'] == '/work'
"""
    done = told.run([told.process(look), told.process(leave), told.process(look)])
    assert [each.exit_code for each in done] == [0, 0, 0], bench.stderr(done[2])


def test_the_task_cannot_be_written_and_is_each_items_own(bench: Bench, told: Told) -> None:
    attack = """
given = '/task/record.json'
for way in (lambda: open(given, 'w'), lambda: open('/task/new', 'w'), lambda: os.chmod('/task', 0o777),
            lambda: os.unlink(given), lambda: os.utime(given), lambda: os.listdir('/run/r1')):
    try: way()
    except OSError: continue
    raise SystemExit('it could')
assert sorted(os.listdir('/task')) == ['record.json']
status = os.stat('/task/record.json')
assert (status.st_mode & 0o777, status.st_mtime) == (0o444, 946684800)
"""
    done = told.run([told.process(attack), told.process(attack)])
    assert [each.exit_code for each in done] == [0, 0], bench.stderr(done[0])


def test_what_was_not_changed_has_the_digest_that_it_had(bench: Bench, told: Told) -> None:
    work = bench.tree({"a": "A", "d/tool*": "T"})
    touch = "os.utime('a'); open('b', 'w').close(); os.unlink('b')"
    change = "open('a', 'w').write('B'); os.utime('a', (946684800, 946684800))"
    done = told.run([told.process(do, work=work) for do in ("pass", touch, change, "os.chmod('a', 0o755)")])
    assert [each.outputs[WORK] == work for each in done] == [True, True, False, False]
    assert bench.files(done[2])["a"] == "B"


def test_large_inputs_are_laid_out_too(bench: Bench, told: Told) -> None:
    large = bench.tree({"large": "x" * 600_000, "small": "s"})
    look = "assert os.path.getsize('large') == 600000; os.unlink('large')"
    done = told.run([told.process("pass"), told.process(look, work=large), told.process("assert not os.listdir('.')")])
    assert [each.exit_code for each in done] == [0, 0, 0]
    assert bench.files(done[1]) == {"small": "s"}


def test_files_of_an_item_do_not_count_as_memory(bench: Bench, told: Told) -> None:
    box = bench.box(limits=replace(LIMITS, memory=96 * 2**20, disk=400 * 2**20))
    write = "[open(str(n), 'wb').write(bytes(2**20)) for n in range(200)]; [os.unlink(str(n)) for n in range(199)]"
    done = told.run([told.process(do, box=box) for do in ("pass", write, "assert not os.listdir('.')")])
    assert [(each.exit_code, each.limit) for each in done] == [(0, None)] * 3


def test_limits_are_each_items_own(bench: Bench, told: Told) -> None:
    box = bench.box(limits=replace(LIMITS, memory=96 * 2**20))
    fill = "[open(str(n), 'wb').write(bytes(2**20)) for n in range(60)]; import time; time.sleep(60)"
    hog = "x = bytearray(200 * 2**20)"
    done = told.run([told.process(do, box=box) for do in ("pass", hog, "pass", fill, "pass")])
    assert [each.limit for each in done] == [None, "memory", None, "disk", None]


def test_a_finished_item_of_a_batch_is_not_run_again_after_kill_9(tmp_path: Path) -> None:
    place = Place(tmp_path / "w", tmp_path / "cache")
    place.write(
        {
            "mrp.yaml": "mrp: 1\nname: w\n",
            "jobs/op.py": "import time, mrp.sdk\nclass Op(mrp.sdk.Agent):\n"
            "    def run(self, task, ctx): time.sleep(0.002)\n",
            "jobs/BUILD.yaml": "mrp: 1\ntargets:\n"
            "  data: {kind: dataset, generate: {range: 1500}}\n"
            '  op: {kind: agent, version: 1.0.0, entry: "op:Op", srcs: [op.py], pure: true}\n'
            '  solve: {kind: rollout, over: ":data", agent: ":op", sandbox: "builtin:host"}\n',
        }
    )
    process = place.start("build", "//jobs:solve")
    _wait_for(lambda: len(place.committed_keys()) > 200)
    kill_group(process)
    done = place.committed_keys()
    before = set(place.runs())
    assert len(done) < 1500
    report = place.build("//jobs:solve")
    (run,) = set(place.runs()) - before
    assert not place.started_keys(run) & done
    assert report["executed"] + report["cached"] == 1500 and report["failed"] == 0


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

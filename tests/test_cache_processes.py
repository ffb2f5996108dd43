"""Many processes on one cache: commits at once, death at any moment, and work that is done once."""

import os
import random
import signal
import subprocess
import sys
import time

from support.stores import run_python

from mrp.cache.canonical import action_key
from mrp.cache.inflight import InFlight
from mrp.cache.store import Store

COMMITTER = """
import sys
from pathlib import Path
from mrp.cache.canonical import action_key
from mrp.cache.store import ActionEntry, Entry, Store

root, name, count, report = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "report"
with Store.open(root) as store:
    for number in range(count):
        small = store.put_bytes(f"{name} {number}".encode())
        large = store.put_bytes(f"{name} {number}".encode() * 3000)
        shared = store.put_bytes(f"shared {number}".encode())
        tree = store.put_tree({"a/small": Entry("f", small), "large": Entry("f", large), "shared": Entry("f", shared)})
        key, preimage = action_key({"name": name, "number": number})
        both, both_preimage = action_key({"number": number})
        store.commit([
            ActionEntry(key, "trial", preimage, {"number": number}, [], (), (tree,)),
            ActionEntry(both, "trial", both_preimage, {"by": name}, [], (shared,), ()),
        ])
        if report:
            print(number, flush=True)
"""


def entry_key(name: str, number: int):
    return action_key({"name": name, "number": number})[0]


def test_processes_that_commit_at_once_lose_nothing(tmp_path):
    command = [sys.executable, "-c", COMMITTER, str(tmp_path / "cache")]
    writers = [subprocess.Popen([*command, name, "60", "quietly"]) for name in ("one", "two", "three")]
    assert [writer.wait(300) for writer in writers] == [0, 0, 0]
    with Store.open(tmp_path / "cache") as store:
        keys = [entry_key(name, number) for name in ("one", "two", "three") for number in range(60)]
        shared = [action_key({"number": number})[0] for number in range(60)]
        found = store.lookup([*keys, *shared])
        assert len(found) == 240
        assert store.missing_deep([ref for entry in found.values() for ref in entry.refs()]) == set()


def test_a_process_that_is_killed_loses_nothing_that_it_had_committed(tmp_path):
    chance = random.Random(0)
    root = tmp_path / "cache"
    for attempt in range(12):
        name = f"life {attempt}"
        child = subprocess.Popen(
            [sys.executable, "-c", COMMITTER, str(root), name, "100000", "report"], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(chance.random() * 0.05)
        os.kill(child.pid, signal.SIGKILL)
        done = [0, *(int(line) for line in child.stdout.read().splitlines())]
        child.stdout.close()
        child.wait()
        warnings: list[str] = []
        with Store.open(root, on_warning=warnings.append) as store:
            found = store.lookup([entry_key(name, number) for number in range(done[-1] + 1)])
            assert len(found) == done[-1] + 1
            # One more commit may have been made than was told.
            found |= store.lookup([entry_key(name, done[-1] + 1)])
            assert store.missing_deep([ref for entry in found.values() for ref in entry.refs()]) == set()
            for entry in found.values():
                assert set(store.read_tree(entry.trees[0])) == {"a/small", "large", "shared"}
        assert warnings == []


TRY = """
import sys
from pathlib import Path
from mrp.cache.inflight import InFlight
print([InFlight(Path(sys.argv[1])).try_acquire(key) for key in sys.argv[2:]])
"""


def test_a_key_is_held_by_one_process_at_a_time(tmp_path):
    one, two = (action_key({"name": name})[0] for name in ("one", "two"))
    locks = InFlight(tmp_path)
    assert locks.try_acquire(one)
    assert not locks.try_acquire(one)
    assert run_python(TRY, tmp_path, one, two).strip() == "[False, True]"
    # The other process has ended, and its lock with it.
    assert locks.try_acquire(two)
    locks.release(one)
    locks.release(one)
    assert run_python(TRY, tmp_path, one, two).strip() == "[True, False]"
    locks.close()
    assert run_python(TRY, tmp_path, one, two).strip() == "[True, True]"


def test_two_openings_in_one_process_exclude_each_other(tmp_path):
    (key, _) = action_key({"name": "one"})
    first, second = InFlight(tmp_path), InFlight(tmp_path)
    assert first.try_acquire(key)
    assert not second.try_acquire(key)
    second.close()
    assert not InFlight(tmp_path).try_acquire(key)
    first.release(key)
    assert InFlight(tmp_path).try_acquire(key)


def test_a_killed_process_gives_its_keys_back(tmp_path):
    (key, _) = action_key({"name": "one"})
    hold = TRY + "\nsys.stdout.flush(); __import__('time').sleep(60)"
    hold = hold.replace("print([InFlight(Path(sys.argv[1]))", "locks = InFlight(Path(sys.argv[1]))\nprint([locks")
    child = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path), key], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "[True]"
    locks = InFlight(tmp_path)
    assert not locks.try_acquire(key)
    child.kill()
    child.wait()
    child.stdout.close()
    assert locks.try_acquire(key)

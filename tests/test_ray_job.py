"""What the Ray engine and its workers say to each other: whole, in order, and no later than it must be."""

import pickle
import threading
from dataclasses import is_dataclass
from decimal import Decimal
from typing import get_args

import pytest

from mrp.cache.digest import Digest
from mrp.runtime.engine import ray_job
from mrp.runtime.engine.ray_job import Done, Over, Piece, Returned, packed
from mrp.runtime.engine.ray_worker import _Outbox
from mrp.specs.work import Box, Completed, Mount, Process

ONE = Digest("1" * 64)
PROCESS = Process(Box(ONE), ("cat",), mounts=(Mount("/task", ONE),), env={"A": "b"}, timeout=Decimal("1.5"))
DONE = Done(3, Completed(0, None, ONE, ONE, {"/out": ONE}, Decimal("0.1"), Decimal(0), 7, "none"), {ONE: b"x"})


@pytest.mark.parametrize("value", [PROCESS, DONE, Over(2, "none"), Returned(5)])
def test_what_is_packed_comes_out_the_same(value: object) -> None:
    assert pickle.loads(packed([value])) == [value]


def test_everything_with_slots_that_is_said_goes_as_its_values() -> None:
    said = {kind for kind in get_args(ray_job.Said) if is_dataclass(kind) and hasattr(kind, "__slots__")}
    assert said and {*said, Process, Mount, Completed} <= ray_job._REDUCERS.keys()


def test_items_that_end_together_are_said_together_and_the_end_at_once() -> None:
    outbox = _Outbox()
    threading.Timer(0.01, lambda: (outbox.put(DONE, 500), outbox.put(Over(2, "none")))).start()
    outbox.put(DONE, 500)
    assert list(outbox.take()) == [DONE, DONE, Over(2, "none")]


def test_what_is_large_is_said_in_parts_and_nothing_is_lost() -> None:
    outbox = _Outbox()
    pieces = [Piece(ONE, bytes([number]), False) for number in range(3)]
    for piece in pieces:
        outbox.put(piece, 2**20)
    outbox.put(Over(0, "none"))
    assert [list(outbox.take()) for _ in range(4)] == [[piece] for piece in pieces] + [[Over(0, "none")]]


def test_silence_is_said_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrp.runtime.engine.ray_worker.BEAT_SECONDS", 0.01)
    assert list(_Outbox().take()) == []

"""The pure queue: slots, lanes, and urgent tickets first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrp.runtime.schedule import Schedule


def test_no_more_run_than_there_are_slots() -> None:
    schedule: Schedule[str] = Schedule(2)
    for name in "abc":
        schedule.add("lane", name)
    assert [schedule.next(), schedule.next(), schedule.next()] == ["a", "b", None]
    schedule.end("lane")
    assert schedule.next() == "c"


def test_a_lane_keeps_to_its_own_limit_and_others_go_on() -> None:
    schedule: Schedule[str] = Schedule(4)
    schedule.limit("slow", 1)
    for name in ("slow 1", "slow 2"):
        schedule.add("slow", name)
    schedule.add("fast", "fast 1")
    assert [schedule.next(), schedule.next(), schedule.next()] == ["slow 1", "fast 1", None]


def test_a_limit_above_the_slots_counts_once_there_are_more_of_them() -> None:
    schedule: Schedule[str] = Schedule(2)
    schedule.limit("slow", 3)
    assert not schedule.is_limited("slow")
    for name in "abcd":
        schedule.add("slow", name)
    assert schedule.next() == "a"
    schedule.resize(6)
    assert schedule.is_limited("slow")
    assert [schedule.next(), schedule.next(), schedule.next()] == ["b", "c", None]


def test_urgent_tickets_go_first() -> None:
    schedule: Schedule[str] = Schedule(2)
    schedule.add("lane", "trial")
    schedule.add("lane", "grade", urgent=True)
    assert [schedule.next(), schedule.next()] == ["grade", "trial"]


def test_what_was_dropped_never_starts() -> None:
    schedule: Schedule[str] = Schedule(1)
    for name in "ab":
        schedule.add("lane", name)
    assert schedule.next() == "a"
    assert schedule.drop_queued() == ["b"]
    schedule.end("lane")
    assert (schedule.next(), schedule.queued, schedule.running) == (None, 0, 0)


def test_a_schedule_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Schedule(0)


@given(
    slots=st.integers(1, 4),
    limits=st.dictionaries(st.sampled_from("xyz"), st.integers(1, 3)),
    tickets=st.lists(st.tuples(st.sampled_from("xyz"), st.booleans()), max_size=30),
)
def test_every_ticket_runs_once_and_limits_hold(
    slots: int, limits: dict[str, int], tickets: list[tuple[str, bool]]
) -> None:
    schedule: Schedule[tuple[str, int]] = Schedule(slots)
    for lane, most in limits.items():
        schedule.limit(lane, most)
    for number, (lane, urgent) in enumerate(tickets):
        schedule.add(lane, (lane, number), urgent=urgent)
    running: list[tuple[str, int]] = []
    seen: list[tuple[str, int]] = []
    while schedule.queued or running:
        while (ticket := schedule.next()) is not None:
            running.append(ticket)
            seen.append(ticket)
            lanes = [lane for lane, _ in running]
            assert len(running) <= slots
            assert all(lanes.count(lane) <= limits.get(lane, slots) for lane in lanes)
        lane, _ = running.pop(0)
        schedule.end(lane)
    assert sorted(seen) == sorted((lane, number) for number, (lane, _) in enumerate(tickets))

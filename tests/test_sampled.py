"""What is sampled says so, and what may be paid for it is said beforehand."""

import json
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support.fake_openai import FakeOpenAI, fake_openai
from support.kinds import TASKS, policy, trials, workspace
from support.models import asking, openai_model
from support.places import Place

from mrp.cache.store import Store

DICE = ["sh", "-c", "head -c 8 /dev/urandom | od -An -tx1 > thrown.txt"]


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with fake_openai() as server:
        yield server


def dice(folder: Path, network: Any) -> Place:
    """A rollout whose agent throws dice, in a sandbox with this network, and a reduction over it."""
    targets = {
        **TASKS,
        "dice": {"kind": "agent", "version": "1.0.0", "command": DICE},
        "box": {"kind": "sandbox", "image": "builtin:host", "network": network},
        "throw": {
            "kind": "rollout",
            "over": "tasks",
            "agent": "dice",
            "sandbox": "box",
            "grade": {"command": ["true"], "sandbox": "builtin:host"},
        },
        "all": {"kind": "reduction", "of": [":throw"], "reducer": "table"},
    }
    place = workspace(folder, targets)
    policy(place, network=["example.org:443"])
    return place


def test_what_has_a_network_is_sampled_and_check_only_says_so(tmp_path: Path) -> None:
    place = dice(tmp_path, {"allow": ["example.org:443"]})
    done = place.mrp("check", "//:all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "//:throw had a network, and so is sampled" in done.stdout
    place.build("//:all")
    shown = place.mrp("inspect", "//:throw[a]").stdout
    assert "sampled: a model or a network had a part in it" in shown


def test_without_a_network_the_same_agent_fails_the_check(tmp_path: Path) -> None:
    place = dice(tmp_path, "none")
    done = place.mrp("check", "//:all")
    assert done.returncode == 1
    assert "culprit: //:throw[a] trial" in done.stdout
    place.build("//:all")
    assert "sampled" not in place.mrp("inspect", "//:throw[a]").stdout


def test_an_attempt_tells_what_its_model_makes_of_it(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake), params={"calls": 1})
    place.build("//:solve")
    assert "sampled: a model" in place.mrp("inspect", "//:solve[a]").stdout
    place.edit("BUILD.yaml", '"provider": "openai"', '"provider": "openai", "seeded": true')
    place.build("//:solve")
    assert "seeded: its model is declared so" in place.mrp("inspect", "//:solve[a]").stdout


@pytest.mark.parametrize(
    ("more", "price", "said"),
    [
        ({"limits": {"usd": 0.10}}, (1, 2), "$0 to $0.2"),
        ({"limits": {"tokens": 1000}}, (1, 2), "$0 to $0.004"),
        ({"cost": {"usd": 0.002}}, (1, 2), "$0.004"),
        ({"limits": {"usd": 0.10, "tokens": 1000}, "samples": 2}, (1, 2), "$0 to $0.008"),
        ({}, (0, 0), "$0"),
        ({}, (1, 2), "at least $0; give //:solve a `cost` or `limits`"),
    ],
)
def test_a_plan_says_what_the_calls_may_cost(
    tmp_path: Path, fake: FakeOpenAI, more: Any, price: tuple[int, int], said: str
) -> None:
    model = openai_model(fake, price={"input": price[0], "output": price[1]})
    place = asking(tmp_path, model, **more)
    place.build("//:tasks")
    assert f"cost: {said}" in place.mrp("plan", "//:solve").stdout
    assert fake.count == 0


def test_a_model_of_a_known_price_bounds_what_is_planned_for_later(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake, price={"input": 1, "output": 2}), limits={"usd": 0.1})
    planned = json.loads(place.mrp("plan", "--json", "//:solve").stdout)["cost"]
    assert planned["usd_min"] == "0"
    assert planned["usd_max"] is None or Decimal(planned["usd_max"]) == Decimal("0.2")


def test_a_row_that_is_edited_asks_for_its_own_trials_alone(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake), samples=2)
    place.build("//:solve")
    before = {(row["id"], row["sample"]): row["tree"] for row in trials(place)}
    assert fake.count == 8
    place.edit("rows.jsonl", "text of a", "another text of a")
    assert place.build("//:solve")["executed"] == 2, "two samples of one record"
    assert fake.count == 12
    after = {(row["id"], row["sample"]): row["tree"] for row in trials(place)}
    assert {key for key in after if after[key] != before[key]} == {("a", 0), ("a", 1)}
    again = place.build("//:solve")
    assert (again["executed"], fake.count) == (0, 12)


def test_why_names_the_sampling_that_changed(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake, sampling={"temperature": 0.5}), params={"calls": 1})
    place.build("//:solve")
    place.edit("BUILD.yaml", '"temperature": 0.5', '"temperature": 0.75')
    place.build("//:solve")
    assert fake.count == 4
    said = place.mrp("why", "//:solve[a]").stdout
    assert "temperature" in said and "0.75" in said, said


def test_answers_that_were_lost_in_part_are_asked_for_again(tmp_path: Path, fake: FakeOpenAI) -> None:
    place = asking(tmp_path, openai_model(fake))
    place.build("//:solve")
    with Store.open(place.cache) as store:
        rows = store.index.read("SELECT hex(key) FROM actions WHERE kind = 'call' LIMIT 1")
        assert rows
        store.index.transact(
            lambda c: c.execute("DELETE FROM actions WHERE kind = 'call' AND hex(key) = ?", (rows[0][0],))
        )
    assert place.build("--rebuild", "//:solve", "//:solve")["executed"] == 2
    assert 5 <= fake.count <= 6, "what follows another answer is another question"
    assert place.mrp("replay").returncode == 0


def test_what_calls_reserve_does_not_keep_other_trials_from_starting(tmp_path: Path, fake: FakeOpenAI) -> None:
    fake.before = lambda number: time.sleep(0.7)
    model = openai_model(fake, price={"output": 195})
    place = asking(tmp_path, model, samples=2, cost={"usd": 0.22}, params={"calls": 1})
    place.edit(
        "BUILD.yaml", '"solve": {', '"all": {"kind": "job", "of": [":solve"], "budget": {"usd": 1}},\n"solve": {'
    )
    report = place.build("-j2", "//:all")
    assert (report["status"], fake.count) == ("ok", 4), "each call reserves 0.8 of 1 usd, and needs a thousandth"

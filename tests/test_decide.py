"""Hit or run, by what is known of an entry."""

from typing import Any

from mrp.cache.digest import ActionKey
from mrp.cache.store import ActionEntry
from mrp.runtime.decide import Demand, Hit, Run, decide


def entry(**fields: Any) -> ActionEntry:
    known: dict[str, Any] = {
        "key": ActionKey("0" * 64),
        "kind": "trial",
        "preimage": b"",
        "result": {"outcome": "ok", "reproducible": True},
        "byproducts": [],
        "blobs": (),
        "trees": (),
        "isolation": "namespaces",
        "provenance": {},
        "created": 0.0,
    }
    return ActionEntry(**{**known, **fields})


def test_a_whole_entry_is_a_hit() -> None:
    found = entry()
    assert decide(found, whole=True, demand=Demand("namespaces")) == Hit(found)


def test_nothing_under_the_key_runs() -> None:
    assert decide(None, whole=False, demand=Demand()) == Run("not in the cache")


def test_a_lost_output_runs() -> None:
    assert isinstance(decide(entry(), whole=False, demand=Demand()), Run)


def test_weaker_isolation_than_policy_asks_for_runs() -> None:
    weak = decide(entry(isolation="none"), whole=True, demand=Demand("namespaces"))
    assert weak == Run("made under isolation none, and policy asks for namespaces")
    assert isinstance(decide(entry(isolation="vm"), whole=True, demand=Demand("namespaces")), Hit)


def test_what_the_engine_made_itself_needs_no_isolation() -> None:
    assert isinstance(decide(entry(isolation="engine"), whole=True, demand=Demand("vm")), Hit)


def test_rebuild_and_retry_limits_run_again() -> None:
    limited = entry(result={"outcome": "limit", "reproducible": False})
    assert isinstance(decide(limited, whole=True, demand=Demand()), Hit)
    assert isinstance(decide(limited, whole=True, demand=Demand(retry_limits=True)), Run)
    assert isinstance(decide(entry(), whole=True, demand=Demand(rebuild=True)), Run)

"""Hit or run: the decision, made from what is known, without clock, thread, disk or network."""

from dataclasses import dataclass
from typing import TypeAlias

from mrp.cache.store import ActionEntry
from mrp.specs.work import ENGINE, ISOLATION


@dataclass(frozen=True)
class Hit:
    """The entry answers for the action."""

    entry: ActionEntry


@dataclass(frozen=True)
class Run:
    """The action must run; `reason` is for people."""

    reason: str


Decision: TypeAlias = Hit | Run


@dataclass(frozen=True)
class Demand:
    """What a build asks of an entry beyond its key.

    isolation: the weakest level that policy allows. rebuild: run it whatever the cache says. retry_limits: results
    that a wall limit made do not count.
    """

    isolation: str = "none"
    rebuild: bool = False
    retry_limits: bool = False


def decide(entry: ActionEntry | None, *, whole: bool, demand: Demand) -> Decision:
    """`entry` is what the cache holds under the key; `whole` tells that every blob that a hit needs is there."""
    if demand.rebuild:
        return Run("asked to rebuild")
    if entry is None:
        return Run("not in the cache")
    if not whole:
        return Run("its outputs are no longer in the cache")
    if entry.isolation != ENGINE and ISOLATION.index(entry.isolation) < ISOLATION.index(demand.isolation):
        return Run(f"made under isolation {entry.isolation}, and policy asks for {demand.isolation}")
    if demand.retry_limits and not entry.result.get("reproducible", True):
        return Run("ended at a wall limit, and --retry-limits was given")
    return Hit(entry)

"""The plan of a run, as its record names it: a whole plan, or an earlier one with the sources that have moved since.

So an edit of one file of 100,000 keeps a few bytes, and not another copy of the whole plan.
"""

from collections.abc import Mapping
from typing import Any

from mrp.cache.canonical import Json, canonical_bytes, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.specs.ir import Plan, parse_plan

Moved = Mapping[str, tuple[str, bool]]
"""Sources that have other bytes: path -> (hex digest, executable)."""


def put_moved(base: str, moved: Moved, store: Store) -> Digest:
    """Keep what the plan `base` has become."""
    files = {path: list(now) for path, now in moved.items()}
    return store.put_bytes(canonical_bytes({"base": base, "moved": files}))


def read_plan(digest: Digest, store: Store) -> Plan:
    """The plan that a record names. Raises MissingBlob, and ValueError on what is no plan of this version."""
    data = store.get_bytes(digest)
    value = parse_canonical(data)
    if not isinstance(value, dict) or value.keys() != {"base", "moved"}:
        return parse_plan(data)
    moved = {path: (now[0], now[1]) for path, now in value["moved"].items()}
    base = parse_canonical(store.get_bytes(Digest(value["base"])))
    return parse_plan(canonical_bytes(with_sources(base, moved)))


def plan_blobs(digest: Digest, store: Store) -> list[Digest]:
    """The blobs that `read_plan` reads, as far as they are there."""
    found = store.get_many([digest]).get(digest)
    value = parse_canonical(found) if found is not None else None
    if isinstance(value, dict) and value.keys() == {"base", "moved"}:
        return [digest, Digest(value["base"])]
    return [digest]


def with_sources(value: Json, moved: Moved) -> Any:
    """A task's JSON, or a plan's, with what moved in place of what it was."""
    if isinstance(value, dict):
        if value.keys() == {"path", "digest", "executable"} and value["path"] in moved:
            digest, executable = moved[value["path"]]
            return {"path": value["path"], "digest": digest, "executable": executable}
        return {
            name: with_sources(item, moved) if isinstance(item, dict | list) else item for name, item in value.items()
        }
    return [with_sources(item, moved) if isinstance(item, dict | list) else item for item in value]

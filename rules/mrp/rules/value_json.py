"""Values of tasks as JSON and back: what is remembered of a build for the next one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.rules.rule import TrialsValue, Value
from mrp.specs.decode import decode

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in get_args(Value)}


def value_to_json(value: Value) -> Json:
    """`value` with the name of its type; the keys of trajectories, which are pairs, become the first two of three."""
    plain = {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, TrialsValue):
        del plain["dropped"]
        plain["trajectories"] = [[*key, digest] for key, digest in sorted(value.trajectories.items())]
    return {**plain, "value": type(value).__name__}


def value_from_json(plain: Mapping[str, Json]) -> Value:
    """The inverse of `value_to_json`, for values that it wrote."""
    kind = _KINDS[plain["value"]]
    if kind is not TrialsValue:
        value: Value = decode(kind, plain)
        return value
    trials = decode(TrialsValue, {**plain, "trajectories": {}})
    found = {(record, sample): Digest(digest) for record, sample, digest in plain["trajectories"]}
    return dataclasses.replace(trials, trajectories=found)


def _plain(value: Any) -> Json:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()} if all(type(key) is str for key in value) else {}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value

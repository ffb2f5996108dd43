"""Reading what a process left: its outcome, its byproducts, and the JSON files of the contract.

Nothing here raises for what a process wrote: a malformed file is the task's own failure, with a reason.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import lru_cache

from mrp.cache.canonical import Json, canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.errors import CacheError
from mrp.cache.store import Store
from mrp.specs.results import Byproducts, Outcome, Usage
from mrp.specs.work import Completed

MAX_DOCUMENT = 16 * 2**20
"""Bytes of a result.json or reward.json beyond which it is refused."""

MAX_DEPTH = 100
"""Levels of nesting beyond which a document is refused."""

_REASON_BYTES = 4096

_SHORT = 1024
"""Bytes up to which a document is remembered with its value."""


def outcome_of(completed: Completed) -> Outcome:
    """ok for exit 0, limit for a limit, else failed."""
    if completed.limit is not None:
        return Outcome.LIMIT
    return Outcome.OK if completed.exit_code == 0 else Outcome.FAILED


def reproducible(completed: Completed) -> bool:
    """False when the wall clock ended it: that depends on the machine."""
    return completed.limit != "wall"


def byproducts_of(
    completed: Completed,
    reason: str = "",
    *,
    metrics: Mapping[str, Json] | None = None,
    trajectory: Digest | None = None,
    diff: Digest | None = None,
) -> Byproducts:
    """What is kept of a process beside its result."""
    return Byproducts(
        exit_code=completed.exit_code,
        reason=reason,
        stdout=completed.stdout,
        stderr=completed.stderr,
        diff=diff,
        trajectory=trajectory,
        metrics=metrics or {},
        isolation=completed.isolation,
        usage=Usage(wall_s=completed.wall_s, cpu_s=completed.cpu_s, max_rss=completed.max_rss),
    )


def failure_reason(completed: Completed, store: Store, byproducts: Byproducts) -> Byproducts:
    """`byproducts` with one sentence on why the process did not succeed: the limit, or its last line of stderr."""
    if byproducts.reason:
        return byproducts
    if completed.limit is not None:
        return dataclasses.replace(byproducts, reason=f"went over its {completed.limit} limit")
    last = _last_line(store, completed.stderr) or _last_line(store, completed.stdout)
    reason = f"exit code {completed.exit_code}" + (f": {last}" if last else "")
    return dataclasses.replace(byproducts, reason=reason)


def read_document(store: Store, folder: Digest, name: str) -> tuple[dict[str, Json] | None, str]:
    """The JSON object in file `name` of a tree, as (object, ""); or (None, why not); (None, "") when it is absent."""
    entry = store.subtree(folder, name)
    if entry is None:
        return None, ""
    if entry.digest is None or entry.kind not in "fx":
        return None, f"{name} is not a file"
    if store.size(entry.digest) > MAX_DOCUMENT:
        return None, f"{name} is larger than {MAX_DOCUMENT} bytes"
    try:
        data = store.get_bytes(entry.digest)
        value = _parsed_short(data) if len(data) <= _SHORT else _parsed(data)
    except (ValueError, ArithmeticError, RecursionError, UnicodeDecodeError) as error:
        return None, f"{name} is not valid JSON: {error}"
    return (value, "") if isinstance(value, dict) else (None, f"{name} does not hold an object")


def file_digest(store: Store, folder: Digest, name: str) -> Digest | None:
    """The digest of file `name` in a tree, or None."""
    entry = store.subtree(folder, name)
    return entry.digest if entry is not None and entry.kind in "fx" else None


def numbers(value: Json) -> dict[str, Json] | None:
    """`value` if it is an object of finite numbers (booleans count as 0 and 1), else None."""
    if not isinstance(value, dict) or not value:
        return None
    found = {name: number(item) for name, item in value.items()}
    return None if None in found.values() else found


def number(value: Json) -> Json:
    """`value` if it is a finite number (a boolean counts as 0 or 1), else None."""
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, int | Decimal) and Decimal(value).is_finite() else None


def _parsed(data: bytes) -> Json:
    """The JSON value; raises ValueError also for what could be stored nowhere: half characters, deep nesting."""
    value = json.loads(data, parse_float=Decimal, parse_constant=_refuse)
    level = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            break
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if b"\\u" in data:
        try:
            canonical_bytes(value)
        except UnicodeEncodeError:
            raise ValueError("it holds half of a surrogate pair, which is no text") from None
    return value


# Many items leave the same few words. Nobody changes a document that was read.
_parsed_short = lru_cache(256)(_parsed)


def _inside(value: Json) -> Iterable[Json]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _refuse(word: str) -> Json:
    raise ValueError(f"{word} is not a JSON number")


def _last_line(store: Store, blob: Digest) -> str:
    try:
        tail = store.get_bytes(blob)[-_REASON_BYTES:].decode(errors="replace")
    except CacheError:
        return ""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return one_line(lines[-1][:300]) if lines else ""


def one_line(text: str) -> str:
    """A process's own words as part of a sentence: without what would break the line or move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text).strip()

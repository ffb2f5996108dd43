"""Which record is which: ids, and what follows from an id alone."""

from collections.abc import Mapping
from decimal import Decimal

from blake3 import blake3

from mrp.cache.canonical import Json, canonical_digest, canonical_text, number_text
from mrp.rules.formats import BadData
from mrp.rules.views import Row, Views
from mrp.specs.ir import DatasetTask
from mrp.specs.suggest import did_you_mean

MAX_ID = 200
"""Characters of an id; it stands in labels, logs and file names."""

_DIGITS_OF_ID = 16


def record_id(task: DatasetTask, row: Row, views: Views) -> str:
    """The id of a row: its `id` field, else its own name, else the digest of what agents see of it.

    What agents cannot see must not change an id, since they are told it: else a changed test would run them again.
    Raises BadData, and ValueError or RecursionError for what has no canonical form.
    """
    if task.id is None:
        if task.generate is not None and task.generate.range is not None:
            return str(row.fields["id"])
        if row.natural_id is None:
            return canonical_digest(views.public(row))[:_DIGITS_OF_ID]
        identity: Json = row.natural_id
    elif task.id not in row.fields:
        hint = did_you_mean(task.id, row.fields)
        raise BadData(f"has no field {task.id!r}, which `id` of {task.label} names", hint=hint)
    else:
        identity = row.fields[task.id]
    if isinstance(identity, int | Decimal) and not isinstance(identity, bool):
        number = number_text(identity)
        identity = identity if "." in number or "e" in number else number
    if not isinstance(identity, str):
        raise BadData(f"the id {canonical_text(identity)[:MAX_ID]} must be text or a whole number")
    if not identity:
        raise BadData("the id is empty")
    if len(identity) > MAX_ID:
        raise BadData(f"the id {identity[:40]!r}... has {len(identity)} characters, and may have {MAX_ID}")
    if not identity.isprintable() and any(ord(character) < 32 or 127 <= ord(character) < 160 for character in identity):
        raise BadData(f"the id {identity!r} holds a control character")
    identity.encode()
    return identity


def part_of(identity: str, split: Mapping[str, Decimal]) -> str:
    """The part of a split that the record with this id is in; no other record and no order has a say in it."""
    point = Decimal(int.from_bytes(blake3(b"mrp-split-1\0" + identity.encode()).digest()[:8], "big"))
    names = sorted(split)
    reached = Decimal(0)
    for name in names[:-1]:
        reached += split[name]
        if point < reached * 2**64:
            return name
    return names[-1]

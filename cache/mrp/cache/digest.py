"""A digest names bytes: 64 lower-case hex digits of BLAKE3-256."""

import re
from typing import NewType

from blake3 import blake3

Digest = NewType("Digest", str)
"""The BLAKE3-256 of a blob's bytes, or of a tree's canonical entries (see mrp.cache.trees)."""

ActionKey = NewType("ActionKey", str)
"""The BLAKE3-256 of an action's canonical preimage (see mrp.cache.canonical)."""

_HEX = re.compile(r"[0-9a-f]{64}\Z")


def digest_bytes(data: bytes | bytearray) -> Digest:
    """The digest of `data`, in one thread (right for small blobs; files go through mrp.cache.hashing)."""
    return Digest(blake3(data).hexdigest())


def parse_digest(text: str) -> Digest:
    """`text` as a digest; raises ValueError when it is not 64 lower-case hex digits."""
    if not _HEX.match(text):
        raise ValueError(f"not a digest (64 lower-case hex digits expected): {text[:80]!r}")
    return Digest(text)

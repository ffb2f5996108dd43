"""The contract of sinks: places outside the store that hold what was produced."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.specs.results import Ref

Content = list[Json] | Ref
"""Rows, or a tree in the store."""


@dataclass(frozen=True)
class Staged:
    """A change that is decided and not yet made. After `apply`, the sink's digest is `digest`.

    `apply` may be killed at any moment and called again from a new `stage`: the sink then holds the old content or
    the new (a files sink in mode append: some of the new files).
    """

    digest: Digest
    apply: Callable[[], None]


class Sink(Protocol):
    """One place. The caller holds the lock of the workspace's sinks, so that nobody else of mrp writes meanwhile.

    Methods raise BuildFailed for content that does not fit, which no retry helps, and OSError when the disk fails.
    """

    def digest(self) -> Digest | None:
        """The digest of what the place holds now, whoever wrote it; None when it holds nothing."""

    def stage(self, content: Content) -> Staged:
        """Decide what the place must hold; writes nothing. In mode create, other content there is BuildFailed."""

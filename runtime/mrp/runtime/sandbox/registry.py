"""Which sandbox backends there are: the visible list."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mrp.cache.store import Store
from mrp.runtime.sandbox.protocol import Backend
from mrp.runtime.sandbox.provider import Owner


@dataclass(frozen=True)
class BackendSettings:
    """What a backend is started with.

    scratch: a folder for scratch files, which dead runs may have left things in. require: the weakest isolation that
    policy accepts. owner: the tags of sandboxes that a service keeps. alive: whether a run of this workspace, by its
    id, still goes on, so that its sandboxes must stay; None when nothing is to be swept.
    """

    store: Store
    scratch: Path
    require: str
    owner: Owner
    alive: Callable[[str], bool] | None = None


def _local(settings: BackendSettings) -> Backend:
    from mrp.runtime.sandbox.local import LocalBackend

    return LocalBackend(settings.store, settings.scratch, require=settings.require)


BACKENDS: dict[str, Callable[[BackendSettings], Backend]] = {"local": _local}
"""Name -> how to start it. Each imports its vendor's SDK when it is started; a missing extra is an InfraError."""

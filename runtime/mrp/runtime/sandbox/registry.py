"""Which sandbox backends there are: the visible list."""

from collections.abc import Callable
from pathlib import Path

from mrp.cache.store import Store
from mrp.runtime.sandbox.protocol import Backend


def _local(store: Store, scratch: Path, require: str) -> Backend:
    from mrp.runtime.sandbox.local import LocalBackend

    return LocalBackend(store, scratch, require=require)


BACKENDS: dict[str, Callable[[Store, Path, str], Backend]] = {"local": _local}
"""Name -> how to start it, given the store, a folder for scratch files and the isolation that policy asks for."""

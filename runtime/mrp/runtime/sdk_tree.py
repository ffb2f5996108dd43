"""The tree of mrp.sdk that is mounted beside Python operators; its bytes are part of their keys."""

from pathlib import Path

import mrp.sdk
from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store


def sdk_tree(store: Store) -> Digest:
    """mrp/sdk/*.py as a tree that can stand on an import path; the testing harness is not part of it."""
    folder = Path(mrp.sdk.__file__).parent
    entries = {
        f"mrp/sdk/{path.name}": Entry("f", store.put_bytes(path.read_bytes()), None)
        for path in sorted(folder.glob("*.py"))
        if path.name != "testing.py"
    }
    return store.put_tree(entries)

"""Memos: answers that may be forgotten at any moment, such as parsed packages and rendered pages.

Kept with diskcache, as JSON and never pickled, each with a checksum. Whatever goes wrong is a miss; the folder may
be deleted at any time.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrp.cache.canonical import Json, canonical_text, parse_canonical
from mrp.cache.digest import Digest, digest_bytes

SIZE_LIMIT = 256 * 1024 * 1024
"""Bytes; the least recently stored memos go first."""

_MAX_FAILURES = 3


class Memo:
    """Memos in one folder. Safe to use from many threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache: Any = None
        self._failures = 0

    def get(self, key: Digest) -> Json | None:
        """The value under `key`, or None."""
        stored = self._attempt(lambda cache: cache.get(key))
        try:
            check, text = stored
            if digest_bytes(f"{key}{text}".encode()) == check:
                return parse_canonical(text)
        except (TypeError, ValueError):
            pass
        return None

    def put(self, key: Digest, value: Json) -> None:
        """Remember `value`, if that is possible. Raises TypeError and ValueError for what has no canonical form."""
        text = canonical_text(value)
        check = digest_bytes(f"{key}{text}".encode())
        self._attempt(lambda cache: cache.set(key, [check, text]))

    def close(self) -> None:
        """Close the files. Idempotent."""
        if self._cache is not None:
            with suppress(Exception):
                self._cache.close()
            self._cache = None

    def _attempt(self, work: Callable[[Any], Any]) -> Any:
        if self._failures >= _MAX_FAILURES:
            return None
        try:
            if self._cache is None:
                self._cache = _open(self._folder)
            return work(self._cache)
        except Exception:
            # Which exceptions a damaged diskcache raises is not documented; all of them mean "not known".
            import shutil

            self._failures += 1
            self.close()
            shutil.rmtree(self._folder, ignore_errors=True)
        return None


def _open(folder: Path) -> Any:
    import diskcache

    return diskcache.Cache(
        str(folder),
        disk=diskcache.JSONDisk,
        disk_compress_level=1,
        eviction_policy="least-recently-stored",
        size_limit=SIZE_LIMIT,
        timeout=10,
        # A mapped database that is cut short would kill the process.
        sqlite_mmap_size=0,
    )

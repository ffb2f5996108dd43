"""Memos: answers that may be forgotten at any moment, such as parsed packages and rendered pages.

Kept with diskcache, as JSON and never pickled, each with a checksum. Whatever goes wrong is a miss; the folder may
be deleted at any time.
"""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrp.cache.canonical import Json, canonical_text, parse_canonical
from mrp.cache.digest import Digest, digest_bytes

SIZE_LIMIT = 256 * 1024 * 1024
"""Bytes; the least recently stored memos go first."""


class Memo:
    """Memos in one folder. Safe to use from many threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache: Any = None
        self._broken = False

    def get(self, key: Digest) -> Json | None:
        """The value under `key`, or None."""
        try:
            stored = self._opened().get(key)
            if stored is None:
                return None
            check, text = stored
            if digest_bytes(f"{key}{text}".encode()) == check:
                return parse_canonical(text)
        except Exception:
            # Which exceptions a damaged diskcache raises is not documented; all of them mean "not known".
            self._start_anew()
        return None

    def put(self, key: Digest, value: Json) -> None:
        """Remember `value`, if that is possible. Raises TypeError and ValueError for what has no canonical form."""
        text = canonical_text(value)
        check = digest_bytes(f"{key}{text}".encode())
        try:
            self._opened().set(key, [check, text])
        except Exception:
            self._start_anew()

    def close(self) -> None:
        """Close the files. Idempotent."""
        if self._cache is not None:
            with suppress(Exception):
                self._cache.close()
            self._cache = None

    def _opened(self) -> Any:
        if self._cache is None:
            if self._broken:
                raise OSError("the memos of this process were damaged twice")
            import diskcache

            self._cache = diskcache.Cache(
                str(self._folder),
                disk=diskcache.JSONDisk,
                disk_compress_level=1,
                eviction_policy="least-recently-stored",
                size_limit=SIZE_LIMIT,
                timeout=5,
                # A mapped database that is cut short would kill the process.
                sqlite_mmap_size=0,
            )
        return self._cache

    def _start_anew(self) -> None:
        self._broken = self._cache is None
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

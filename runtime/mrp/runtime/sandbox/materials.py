"""Trees laid out once and shared, read-only, by all sandboxes of a backend that need them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.runtime.sandbox.scratch import remove_folder

_IDLE_FOLDERS = 256
"""How many folders that nobody uses at the moment are kept for the next."""


class Materials:
    """Folders by name below `root`, each made by whoever needs it first. Safe from any thread."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}
        self._users: dict[str, int] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._made = 0

    @contextmanager
    def use(self, name: str, make: Callable[[Path], object]) -> Iterator[Path]:
        """The folder `name`, filled by `make` when it is not there; it stays while the context is open."""
        with self._lock:
            self._users[name] = self._users.get(name, 0) + 1
            self._idle.pop(name, None)
            making = self._making.setdefault(name, threading.Lock())
        folder = self.root / name
        try:
            with making:
                if not folder.exists():
                    self._make(folder, make)
            yield folder
        finally:
            self._release(name)

    def tree(self, tree: Digest, store: Store) -> AbstractContextManager[Path]:
        """The folder with a stored tree."""
        return self.use(tree, lambda folder: store.checkout(tree, folder, writable=False))

    def _make(self, folder: Path, make: Callable[[Path], object]) -> None:
        with self._lock:
            self._made += 1
            unfinished = self.root / f".{self._made}"
        try:
            make(unfinished)
            # A folder that may not be written to may not be renamed by all file systems' rules either.
            mode = unfinished.stat().st_mode
            unfinished.chmod(0o755)
            unfinished.rename(folder)
            folder.chmod(mode & 0o777)
        except BaseException:
            remove_folder(unfinished)
            raise

    def _release(self, name: str) -> None:
        with self._lock:
            self._users[name] -= 1
            if self._users[name]:
                return
            del self._users[name]
            self._idle[name] = None
            if len(self._idle) <= _IDLE_FOLDERS:
                return
            oldest, _ = self._idle.popitem(last=False)
            del self._making[oldest]
            self._made += 1
            discarded = self.root / f".{self._made}"
            if not (self.root / oldest).exists():
                return
            (self.root / oldest).chmod(0o755)
            (self.root / oldest).rename(discarded)
        remove_folder(discarded)

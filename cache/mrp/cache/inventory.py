"""Going through everything that a cache holds."""

from collections.abc import Iterator
from pathlib import Path

from mrp.cache.actions import ActionEntry
from mrp.cache.digest import ActionKey, Digest
from mrp.cache.layout import is_digest_name
from mrp.cache.store import Store

_PAGE = 500


def small_blobs(store: Store) -> Iterator[tuple[Digest, bytes]]:
    """The rows of small blobs, not verified."""
    last = 0
    while rows := store.index.read(
        "SELECT id, digest, data FROM blobs WHERE id > ? ORDER BY id LIMIT ?", (last, _PAGE)
    ):
        for _, name, data in rows:
            yield Digest(name.hex()), data
        last = rows[-1][0]


def action_entries(store: Store, after: int = 0) -> Iterator[tuple[ActionEntry, int]]:
    """All whole entries with the number of their row; damaged rows are dropped."""
    last = after
    while rows := store.index.read("SELECT id, key FROM actions WHERE id > ? ORDER BY id LIMIT ?", (last, _PAGE)):
        numbers = {ActionKey(Digest(name.hex())): number for number, name in rows}
        for key, entry in store.actions.lookup(list(numbers), mark=False).items():
            yield entry, numbers[key]
        last = rows[-1][0]


def blob_files(store: Store, strangers: list[str] | None = None) -> Iterator[tuple[Digest, Path]]:
    """The files of large blobs; with a list for `strangers`, what is none is put aside and named there."""
    for folder in listed(store.layout.blobs):
        inside = listed(folder) if folder.is_dir() and not folder.is_symlink() else [folder]
        for path in inside:
            named = path.name.startswith(folder.name) and is_digest_name(path.name)
            if named and path.is_file() and not path.is_symlink():
                yield Digest(path.name), path
            elif strangers is not None:
                strangers.append(str(path.relative_to(store.root)))
                store.layout.put_aside(path)


def listed(folder: Path) -> Iterator[Path]:
    """What is directly in a folder, sorted; nothing when it is none."""
    try:
        yield from sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return

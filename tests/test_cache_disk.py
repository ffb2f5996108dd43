"""Disks that are full or read-only: a clear error, and nothing that was committed is lost."""

from support.stores import entry_of, run_on_disk_of, run_on_readonly

from mrp.cache.store import Store

FILL = """
import sys
from pathlib import Path
from mrp.cache.store import CacheError, Store
from support.stores import entry_of

size = int(sys.argv[2])
root = Path(sys.argv[1]) / "cache"
kept = []
with Store.open(root) as store:
    try:
        for number in range(10_000):
            entry = entry_of(store, f"{number}", small=b"%d" % number, large=b"%d" % number * size)
            store.commit([entry])
            kept.append(entry)
    except CacheError as error:
        message = str(error)
    assert message.startswith(f"The disk that holds the cache {root} is full; free some space there"), message
    assert "MRP_CACHE" in message
    for big in (root / "blobs").rglob("*" * 1):
        if big.is_file() and big.name == kept[0].blobs[1]:
            big.unlink()
    del kept[0]
    found = store.lookup([entry.key for entry in kept])
    assert len(found) == len(kept) > 3, len(kept)
    assert store.missing_deep([ref for entry in kept for ref in entry.refs()]) == set()
    assert not list((root / "tmp").iterdir())

    # With space again, what could not be written is.
    (Path(sys.argv[1]) / "ballast").unlink()
    store.commit([entry])
with Store.open(root) as store:
    kept.append(entry)
    assert store.lookup([entry.key for entry in kept]).keys() == {entry.key for entry in kept}
    assert store.missing_deep([ref for entry in kept for ref in entry.refs()]) == set()
"""

PRELUDE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
(Path(sys.argv[1]) / "ballast").write_bytes(bytes(400_000))
"""


def test_a_disk_that_large_blobs_fill(tmp_path, request):
    run_on_disk_of("2m", tmp_path, PRELUDE + FILL, tmp_path, "30000", request.config.rootpath / "tests")


def test_a_disk_that_small_blobs_fill(tmp_path, request):
    run_on_disk_of("2m", tmp_path, PRELUDE + FILL, tmp_path, "1000", request.config.rootpath / "tests")


OPEN = """
import sys
from pathlib import Path
from mrp.cache.store import CacheError, Store
try:
    Store.open(Path(sys.argv[1]))
except CacheError as error:
    print(error)
"""


def test_a_read_only_cache_says_what_to_do(tmp_path):
    root = tmp_path / "cache"
    with Store.open(root) as store:
        store.commit([entry_of(store, "one")])
    said = run_on_readonly(tmp_path, OPEN, root)
    assert said.startswith(f"The cache {root} cannot be written to")
    assert "set MRP_CACHE to another folder" in said


def test_a_cache_that_cannot_be_made_says_what_to_do(tmp_path):
    said = run_on_readonly(tmp_path, OPEN, tmp_path / "cache")
    assert said.startswith(f"The cache {tmp_path / 'cache'} cannot be written to")
    said = run_on_disk_of("16k", tmp_path, OPEN, tmp_path / "cache")
    assert said.startswith(f"The disk that holds the cache {tmp_path / 'cache'} is full")

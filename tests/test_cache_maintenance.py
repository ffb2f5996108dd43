"""Looking after a cache: stats, verify and gc."""

import fcntl
import json
import os
import threading
import time
from dataclasses import replace

import pytest
from support.stores import LARGE, SMALL, entry_of, run_python, settle

from mrp.cache.canonical import action_key, canonical_text
from mrp.cache.digest import digest_bytes
from mrp.cache.maintenance import gc, stats, verify
from mrp.cache.store import Entry, Store


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "cache") as store:
        yield store


def age(store, key, seconds):
    """Let an entry have been used last so many seconds ago."""
    when = int(time.time()) - seconds
    name = bytes.fromhex(key)
    store.index.transact(
        lambda connection: connection.execute("UPDATE actions SET used = ? WHERE key = ?", (when, name))
    )


def test_stats_count_what_is_there(store):
    store.commit([entry_of(store, "one"), entry_of(store, "two")])
    document = json.loads(canonical_text(stats(store)))
    assert document["format"] == 1
    assert document["actions"] == {"count": 2, "kinds": {"trial": 2}}
    assert document["blobs"]["large"] == {"count": 1, "bytes": len(LARGE)}
    # The small blob, two logs, and three folders.
    assert document["blobs"]["small"]["count"] == 6
    assert document["bytes"] == document["index_bytes"] + len(LARGE)


def test_verify_finds_nothing_wrong_with_a_whole_cache(store):
    store.commit([entry_of(store, "one")])
    report = verify(store)
    assert report.ok
    assert (report.blobs, report.actions) == (6, 1)
    assert canonical_text(report.to_json())


def test_verify_finds_what_only_reading_everything_can(store):
    whole, spoilt, changed = (entry_of(store, name, large=name.encode() * 9000) for name in ("one", "two", "three"))
    store.commit([whole, spoilt, changed])
    path = store.blob_path(spoilt.blobs[1])
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"!")
    log = bytes.fromhex(whole.extra[0])

    def damage(connection):
        connection.execute("UPDATE blobs SET data = x'00' WHERE digest = ?", (log,))
        connection.execute("UPDATE actions SET kind = 'image' WHERE key = ?", (bytes.fromhex(changed.key),))

    store.index.transact(damage)
    (store.layout.blobs / "ab").mkdir(exist_ok=True)
    (store.layout.blobs / "ab" / "notes.txt").write_bytes(b"")
    report = verify(store)
    assert report.damaged_blobs == tuple(sorted([spoilt.blobs[1], whole.extra[0]]))
    assert report.damaged_actions == 1
    assert report.incomplete == (spoilt.key,)
    assert report.strangers == ("blobs/ab/notes.txt",)
    assert not report.ok
    assert len(list(store.layout.quarantine.iterdir())) == 3
    assert store.lookup([whole.key, changed.key]).keys() == {whole.key}
    store.forget([spoilt.key])
    assert verify(store).ok


def test_gc_drops_what_no_entry_needs(store):
    entry = entry_of(store, "one")
    orphan, large_orphan = store.put_bytes(b"orphan"), store.put_bytes(b"orphan" * 10_000)
    store.commit([entry])
    report = gc(store, grace_s=-1)
    assert (report.actions, report.blobs, report.bytes) == (0, 2, 60_006)
    assert store.missing([orphan, large_orphan]) == {orphan, large_orphan}
    assert store.missing_deep(entry.refs()) == set()
    assert store.missing(entry.extra) == set()
    assert verify(store).ok


def test_gc_spares_what_was_put_a_short_while_ago(store):
    orphans = {store.put_bytes(b"orphan"), store.put_bytes(b"orphan" * 10_000)}
    assert gc(store).blobs == 0
    assert store.missing(orphans) == set()


def test_putting_a_blob_again_spares_it(store, tmp_path):
    data = (b"orphan", b"orphan" * 10_000)
    (tmp_path / "file").write_bytes(b"as a file")
    digests = {*map(store.put_bytes, data), store.put_file(tmp_path / "file")}
    store.commit([])
    long_ago = int(time.time()) - 10**6
    for table in ("blobs", "files"):
        sql = f"UPDATE {table} SET touched = {long_ago}"
        store.index.transact(lambda connection, sql=sql: connection.execute(sql))
    os.utime(store.blob_path(digest_bytes(data[1])), (long_ago, long_ago))
    again = {*map(store.put_bytes, data), store.put_file(tmp_path / "file", digest=digest_bytes(b"as a file"))}
    assert again == digests
    assert gc(store).blobs == 0
    assert store.missing(digests) == set()


def test_gc_keeps_what_it_is_told_to(store):
    kept = store.put_tree({"a/b": Entry("f", store.put_bytes(b"kept")), "c": Entry("f", store.put_bytes(LARGE))})
    blob, orphan = store.put_bytes(b"kept blob"), store.put_bytes(b"orphan")
    gc(store, keep=[("tree", kept), ("blob", blob)], grace_s=-1)
    assert store.missing_deep([("tree", kept), ("blob", blob), ("blob", orphan)]) == {orphan}


def test_old_entries_go_and_what_newer_ones_share_with_them_stays(store):
    old = entry_of(store, "old", large=b"only old" * 9000)
    new = entry_of(store, "new")
    store.commit([old, new])
    age(store, old.key, 10 * 86400)
    assert gc(store, max_age_s=11 * 86400, grace_s=0).actions == 0
    report = gc(store, max_age_s=9 * 86400, grace_s=-1)
    assert report.actions == 1
    assert store.lookup([old.key, new.key]).keys() == {new.key}
    assert store.missing_deep(new.refs()) == set()
    assert store.get_bytes(new.blobs[0]) == SMALL
    assert store.missing(old.blobs) == {old.blobs[1]}


def test_the_longest_unused_go_when_there_is_too_much(store):
    entries = [entry_of(store, f"{number}", large=b"%d" % number * 100_000) for number in range(5)]
    store.commit(entries)
    for days, entry in enumerate(entries, start=2):
        age(store, entry.key, days * 86400)
    report = gc(store, max_bytes=350_000, grace_s=-1)
    assert report.actions == 2
    assert report.remaining_bytes <= 350_000
    assert store.lookup([entry.key for entry in entries]).keys() == {entry.key for entry in entries[:3]}
    assert store.missing_deep([ref for entry in entries[:3] for ref in entry.refs()]) == set()


def test_looking_an_entry_up_counts_as_a_use(tmp_path):
    with Store.open(tmp_path) as store:
        entry = entry_of(store, "one")
        store.commit([entry])
        age(store, entry.key, 10 * 86400)
        store.lookup([entry.key])
    with Store.open(tmp_path) as store:
        assert gc(store, max_age_s=9 * 86400, grace_s=-1).actions == 0


def test_a_tree_that_is_also_kept_as_a_blob_keeps_what_it_holds(store):
    entry = entry_of(store, "one")
    (root,) = entry.trees
    store.commit([entry])
    gc(store, keep=[("blob", root), *(("blob", digest) for digest in entry.blobs)], grace_s=-1)
    assert store.missing_deep(entry.refs()) == set()


def test_leftovers_of_killed_processes_are_swept(store):
    (store.layout.tmp / "leftover").write_bytes(b"half a blob")
    (store.layout.quarantine / "damaged").mkdir()
    gc(store)
    assert (store.layout.tmp / "leftover").exists()
    gc(store, grace_s=-1)
    assert not (store.layout.tmp / "leftover").exists()
    assert not (store.layout.quarantine / "damaged").exists()


def test_the_index_shrinks(store):
    for number in range(2000):
        store.put_bytes(b"%d" % number * 1000)
    store.commit([])
    gc(store, grace_s=86400)
    before = store.layout.index.stat().st_size
    gc(store, grace_s=-1)
    assert store.layout.index.stat().st_size < before / 10


COLLECT = """
import sys
from pathlib import Path
from mrp.cache.maintenance import gc
from mrp.cache.store import CacheError, Store
with Store.open(Path(sys.argv[1])) as store:
    try:
        for _ in range(20):
            print(gc(store, grace_s=60).blobs)
    except CacheError as error:
        print(error)
"""


def test_one_gc_at_a_time(store):
    with (store.root / "gc").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "Another gc is at work" in run_python(COLLECT, store.root)


def test_gc_in_another_process_takes_nothing_from_a_build(store):
    collector = threading.Thread(target=run_python, args=(COLLECT, store.root))
    collector.start()
    entries = []
    while collector.is_alive():
        entry = entry_of(store, f"{len(entries)}", small=b"%d" % len(entries), large=b"%d " % len(entries) * 9000)
        store.commit([entry])
        entries.append(entry)
    collector.join()
    assert store.lookup([entry.key for entry in entries]).keys() == {entry.key for entry in entries}
    assert store.missing_deep([ref for entry in entries for ref in entry.refs()]) == set()
    settle()
    assert verify(store).ok


def test_gc_keeps_what_a_kept_preimage_speaks_of(store):
    """`why` and replay follow digests in the preimage: a description, and the tree and blob that it names in turn."""
    tree = store.put_tree({"task.json": Entry("f", store.put_bytes(b"a record"))})
    script = store.put_bytes(b"print('agent')")
    base = store.put_bytes(canonical_text({"agent": script, "box": {"view": tree}}).encode())
    nobody = store.put_bytes(b"named by nothing")
    key, preimage = action_key({"base": base})
    store.commit([replace(entry_of(store, "one"), key=key, preimage=preimage)])
    gc(store, grace_s=-60)
    assert store.missing_deep([("tree", tree), ("blob", script), ("blob", base)]) == set()
    assert store.missing([nobody]) == {nobody}

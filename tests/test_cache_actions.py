"""Action entries: found again as they were, kept by the first writer, and never believed when damaged."""

import dataclasses
import sqlite3
from contextlib import closing
from decimal import Decimal

import pytest
from support.stores import entry_of

from mrp.cache.canonical import action_key, canonical_bytes, parse_canonical
from mrp.cache.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "cache") as store:
        yield store


def test_an_entry_is_found_again_as_it_was(store):
    entry = dataclasses.replace(
        entry_of(store, "one"),
        result={"values": {"reward": Decimal("0.25")}, "outputs": {}},
        provenance={"host": "here"},
        created=1234.5,
    )
    assert store.commit([entry]) == {}
    found = store.lookup([entry.key])
    assert found == {entry.key: dataclasses.replace(entry, preimage=b"")}
    assert store.preimage(entry.key) == entry.preimage
    assert store.missing_deep(found[entry.key].refs()) == set()


def test_only_known_keys_are_found(store):
    entries = [entry_of(store, f"{number}") for number in range(2500)]
    store.commit(entries)
    unknown, _ = action_key({"name": "unknown"})
    found = store.lookup([unknown, *(entry.key for entry in entries), entries[0].key])
    assert found.keys() == {entry.key for entry in entries}
    assert store.preimage(unknown) is None


def test_a_key_must_be_the_digest_of_its_preimage(store):
    entry = dataclasses.replace(entry_of(store, "one"), preimage=b"{}")
    with pytest.raises(ValueError, match="not the digest of its preimage"):
        store.commit([entry])


def test_the_first_writer_wins_and_the_second_is_told(store):
    first = entry_of(store, "sampled")
    second = dataclasses.replace(first, result={"outcome": "failed"})
    store.commit([first])
    assert store.commit([second]) == {first.key: dataclasses.replace(first, preimage=b"")}
    assert store.lookup([first.key])[first.key].result == first.result


def test_among_many_entries_only_the_one_that_came_second_is_told(store):
    entries = [entry_of(store, f"{number}") for number in range(350)]
    first = dataclasses.replace(entries[333], result={"outcome": "failed"})
    store.commit([first])
    assert store.commit(entries) == {first.key: dataclasses.replace(first, preimage=b"")}
    found = store.lookup([entry.key for entry in entries])
    assert len(found) == 350
    assert found[first.key].result == first.result
    assert found[entries[332].key].result == entries[332].result


def test_entries_keep_each_their_own_provenance(store):
    hosts = ("here", "here", "there")
    entries = [
        dataclasses.replace(entry_of(store, f"{number}"), provenance={"host": host})
        for number, host in enumerate(hosts)
    ]
    plain = dataclasses.replace(entry_of(store, "plain"), provenance=None)
    store.commit([*entries, plain])
    found = store.lookup([entry.key for entry in (*entries, plain)])
    assert [found[entry.key].provenance for entry in (*entries, plain)] == [{"host": host} for host in hosts] + [None]


def test_a_stored_body_is_canonical(store, tmp_path):
    store.commit([dataclasses.replace(entry_of(store, "one"), provenance={"host": "h\u00e9re"}, isolation="name")])
    with closing(sqlite3.connect(tmp_path / "cache" / "index.sqlite")) as index:
        (body,) = index.execute("SELECT body FROM actions").fetchone()
    assert canonical_bytes(parse_canonical(body)) == body


def test_an_entry_that_lost_a_blob_is_replaced(store):
    first = entry_of(store, "sampled", large=b"old" * 10_000)
    store.commit([first])
    store.blob_path(first.blobs[1]).unlink()
    second = dataclasses.replace(entry_of(store, "sampled"), result={"outcome": "failed"})
    assert store.commit([second]) == {}
    assert store.lookup([first.key]) == {first.key: dataclasses.replace(second, preimage=b"")}


def test_a_forgotten_entry_is_absent_and_can_be_made_anew(store):
    entry, other = entry_of(store, "one"), entry_of(store, "two")
    store.commit([entry, other])
    store.forget([entry.key])
    assert store.lookup([entry.key, other.key]).keys() == {other.key}
    assert store.commit([entry]) == {}
    assert store.lookup([entry.key]).keys() == {entry.key}


@pytest.mark.parametrize(
    "damage",
    [
        "body = replace(body, '\"ok\"', '\"no\"')",
        "body = substr(body, 2)",
        "kind = 'image'",
        "created = created + 1",
        "checksum = x'00'",
        "body = 7",
        "created = 'x'",
    ],
)
def test_a_row_that_was_changed_is_dropped(store, damage):
    entry, other = entry_of(store, "one"), entry_of(store, "two")
    store.commit([entry, other])
    name = bytes.fromhex(entry.key)
    store.index.transact(lambda connection: connection.execute(f"UPDATE actions SET {damage} WHERE key = ?", (name,)))
    assert store.lookup([entry.key, other.key]).keys() == {other.key}
    assert store.commit([entry]) == {}
    assert store.lookup([entry.key]).keys() == {entry.key}


def test_a_preimage_that_was_changed_is_not_shown(store):
    entry = entry_of(store, "one")
    store.commit([entry])
    store.index.transact(lambda connection: connection.execute("UPDATE actions SET preimage = x'7b7d'"))
    assert store.preimage(entry.key) is None


def test_blobs_are_never_named_by_an_entry_before_they_are_there(store, tmp_path):
    entry = entry_of(store, "one")
    with Store.open(tmp_path / "cache") as other:
        assert other.lookup([entry.key]) == {}
        store.commit([entry])
        assert other.missing_deep(other.lookup([entry.key])[entry.key].refs()) == set()


def test_what_was_put_is_kept_when_the_store_is_closed(tmp_path):
    with Store.open(tmp_path) as store:
        digest = store.put_bytes(b"never committed")
    with Store.open(tmp_path) as store:
        assert store.get_bytes(digest) == b"never committed"

"""Trees: a folder survives being kept and laid out, and no stored object leads outside of one."""

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stores import LARGE, SMALL

from mrp.cache.canonical import canonical_bytes
from mrp.cache.checkout import CHECKOUT_TIME, remove_checkout
from mrp.cache.digest import Digest, digest_bytes
from mrp.cache.store import CacheError, Entry, MissingBlob, Store, TreeError, TreeTooLarge
from mrp.cache.trees import decode_node, encode_node

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
nodes = st.recursive(
    st.tuples(st.sampled_from("fx"), st.binary(max_size=20)) | st.tuples(st.just("l"), names),
    lambda inner: st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
folders = st.dictionaries(names, nodes, max_size=5)


def flat(folder: dict, store: Store, prefix: str = "") -> dict[str, Entry]:
    """The flat view that `folder`, made by the strategy, must have."""
    entries: dict[str, Entry] = {}
    for name, node in folder.items():
        path = prefix + name
        if isinstance(node, dict):
            entries |= flat(node, store, path + "/") or {path: Entry("d")}
        elif node[0] == "l":
            entries[path] = Entry("l", target=node[1])
        else:
            entries[path] = Entry(node[0], store.put_bytes(node[1]))
    return dict(sorted(entries.items()))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Store.open(tmp_path_factory.mktemp("cache")) as store:
        yield store


@given(folders)
def test_a_flat_view_survives_being_kept(shared, folder):
    entries = flat(folder, shared)
    digest = shared.put_tree(entries)
    assert shared.read_tree(digest) == entries
    assert list(shared.read_tree(digest)) == sorted(entries)
    assert shared.put_tree(dict(reversed(entries.items()))) == digest
    assert shared.missing_deep([("tree", digest)]) == set()


@given(folders)
def test_tree_objects_are_canonical_json(shared, folder):
    names = shared.subtree(shared.put_tree(flat(folder, shared)), "")
    assert names is not None
    data = shared.get_bytes(names.digest)
    assert canonical_bytes(json.loads(data)) == data


@settings(max_examples=40)
@given(folders, st.booleans())
def test_a_tree_survives_being_laid_out_and_kept_again(shared, tmp_path_factory, folder, writable):
    digest = shared.put_tree(flat(folder, shared))
    place = tmp_path_factory.mktemp("place") / "folder"
    shared.checkout(digest, place, writable=writable)
    assert shared.put_folder(place) == digest
    remove_checkout(place)
    assert not place.exists()


@given(st.lists(folders, min_size=1, max_size=3))
def test_merging_is_laying_one_over_the_other(shared, layers):
    merged: dict = {}
    for layer in layers:
        merged = laid_over(merged, layer)
    digests = [shared.put_tree(flat(layer, shared)) for layer in layers]
    assert shared.read_tree(shared.merge_trees(digests)) == flat(merged, shared)


def laid_over(below: dict, above: dict) -> dict:
    both = dict(below)
    for name, node in above.items():
        present = both.get(name)
        both[name] = laid_over(present, node) if isinstance(present, dict) and isinstance(node, dict) else node
    return both


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "cache") as store:
        yield store


@pytest.fixture
def folder(tmp_path):
    """A folder with one of everything."""
    folder = tmp_path / "folder"
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "sub" / "small").write_bytes(SMALL)
    (folder / "large").write_bytes(LARGE)
    (folder / "run").write_bytes(b"#!/bin/sh\n")
    (folder / "run").chmod(0o711)
    (folder / "out").symlink_to("/etc/passwd")
    return folder


def test_names_bytes_the_executable_bit_and_symlinks_are_kept(store, folder):
    assert store.read_tree(store.put_folder(folder)) == {
        "large": Entry("f", digest_bytes(LARGE)),
        "out": Entry("l", target="/etc/passwd"),
        "run": Entry("x", digest_bytes(b"#!/bin/sh\n")),
        "sub/empty": Entry("d"),
        "sub/small": Entry("f", digest_bytes(SMALL)),
    }


def test_times_owners_and_other_mode_bits_are_not_kept(store, folder):
    digest = store.put_folder(folder)
    (folder / "large").chmod(0o4640)
    (folder / "sub").chmod(0o1770)
    os.utime(folder / "run", (1, 1))
    os.link(folder / "large", folder.parent / "second name")
    assert store.put_folder(folder) == digest


@pytest.mark.parametrize(("writable", "modes"), [(True, (0o644, 0o755)), (False, (0o444, 0o555))])
def test_what_is_laid_out_depends_on_nothing_but_the_tree(store, folder, tmp_path, writable, modes):
    previous = os.umask(0o077)
    try:
        store.checkout(store.put_folder(folder), tmp_path / "place", writable=writable)
    finally:
        os.umask(previous)
    for path in [tmp_path / "place", *(tmp_path / "place").rglob("*")]:
        status = path.lstat()
        assert status.st_mtime_ns == CHECKOUT_TIME * 10**9
        if not path.is_symlink():
            assert status.st_mode & 0o7777 == modes[path.is_dir() or path.name == "run"]
            assert path.is_dir() or status.st_nlink == 1


def test_writing_into_a_laid_out_folder_changes_nothing_stored(store, folder, tmp_path):
    digest = store.put_folder(folder)
    store.checkout(digest, tmp_path / "place", writable=True)
    (tmp_path / "place" / "large").write_bytes(b"overwritten")
    (tmp_path / "place" / "sub" / "small").write_bytes(b"overwritten")
    assert store.missing_deep([("tree", digest)]) == set()
    assert store.get_bytes(digest_bytes(LARGE)) == LARGE


def test_a_name_that_is_taken_is_an_error(store, folder, tmp_path):
    digest = store.put_folder(folder)
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "large").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match=r"already holds 'large'.*use an empty folder"):
        store.checkout(digest, tmp_path / "place", writable=True)
    assert not (tmp_path / "elsewhere").exists()


def test_pipes_and_sockets_are_left_out_and_named(store, folder):
    digest = store.put_folder(folder)
    os.mkfifo(folder / "sub" / "pipe")
    previous = Path.cwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.chdir(previous)
    skipped: list[str] = []
    assert store.put_folder(folder, skipped=skipped) == digest
    assert skipped == ["socket", "sub/pipe"]


def test_names_that_are_not_utf8_are_an_error_that_names_them(store, folder):
    (folder / "sub" / os.fsdecode(b"caf\xe9")).write_bytes(b"")
    with pytest.raises(TreeError, match=r"not UTF-8: sub/b'caf\\xe9'"):
        store.put_folder(folder)


def test_symlink_targets_that_are_not_utf8_are_an_error(store, folder):
    (folder / "link").symlink_to(os.fsdecode(b"caf\xe9"))
    with pytest.raises(ValueError, match="not UTF-8"):
        store.put_folder(folder)


def test_a_folder_may_be_too_large(store, folder):
    size = len(LARGE) + len(SMALL) + len("#!/bin/sh\n")
    store.put_folder(folder, max_bytes=size, max_files=6)
    with pytest.raises(TreeTooLarge, match=f"more than {size - 1} bytes") as caught:
        store.put_folder(folder, max_bytes=size - 1)
    assert caught.value.what == "bytes"
    with pytest.raises(TreeTooLarge, match="more than 5 files"):
        store.put_folder(folder, max_files=5)


def test_a_huge_sparse_file_is_refused_without_being_read(store, folder):
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(TreeTooLarge):
        store.put_folder(folder, max_bytes=1 << 30)


def test_folders_too_deep_to_lay_out_are_refused(store, folder):
    place = Path.cwd()
    os.chdir(folder)
    try:
        for _ in range(450):
            Path("d").mkdir()
            os.chdir("d")
    finally:
        os.chdir(place)
    with pytest.raises(TreeError, match="deeper than 400 folders"):
        store.put_folder(folder)
    with pytest.raises(TreeError, match="deeper than 400 folders"):
        store.put_tree({"/".join("d" * 450): Entry("l", target="x")})


@pytest.mark.parametrize("path", ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", "a\0b", "a/\ud800"])
def test_paths_that_are_none_are_refused(store, path):
    with pytest.raises(TreeError):
        store.put_tree({path: Entry("l", target="x")})


@pytest.mark.parametrize(
    "entries",
    [
        {"a": Entry("f")},
        {"a": Entry("f", Digest("short"))},
        {"a": Entry("l")},
        {"a": Entry("l", target="")},
        {"a": Entry("l", target="x\0y")},
        {"a": Entry("t")},
        {"a": Entry("t", digest_bytes(b"{}")), "a/b": Entry("d")},
        {"a": Entry("?", digest_bytes(b""))},
        {"a": Entry("f", digest_bytes(b"")), "a/b": Entry("f", digest_bytes(b""))},
        {"a": Entry("d"), "a/b/c": Entry("d"), "a/b": Entry("l", target="x")},
    ],
)
def test_entries_that_no_folder_can_have_are_refused(store, entries):
    with pytest.raises(TreeError):
        store.put_tree(entries)


EMPTY = digest_bytes(b"{}")


def test_a_stored_tree_can_stand_in_another(store):
    inner = store.put_tree({"a.txt": Entry("f", store.put_bytes(b"a")), "sub": Entry("d")})
    outer = store.put_tree({"in/one": Entry("t", inner), "in/two": Entry("t", inner), "b": Entry("l", target="in")})
    assert list(store.read_tree(outer)) == ["b", "in/one/a.txt", "in/one/sub", "in/two/a.txt", "in/two/sub"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b'{"..":["t","%s"]}' % EMPTY.encode(),
        b'{"a/b":["f","%s"]}' % EMPTY.encode(),
        b'{"":["f","%s"]}' % EMPTY.encode(),
        b'{"a\\u0000":["f","%s"]}' % EMPTY.encode(),
        b'{"a":["f","../../etc/passwd"]}',
        b'{"a":["d","%s"]}' % EMPTY.encode(),
        b'{"a":["f"]}',
        b'{"a":"f"}',
        b'{"a":["f",7]}',
        b'{ "a":["f","%s"]}' % EMPTY.encode(),
        b'{"b":["f","%s"],"a":["f","%s"]}' % (EMPTY.encode(), EMPTY.encode()),
        b'{"a":["f","%s"],"a":["l","x"]}' % EMPTY.encode(),
        b'{"a":["l",""]}',
        b"[" * 100_000,
    ],
)
def test_a_hostile_tree_object_is_refused_wherever_it_is_read(store, tmp_path, data):
    hostile = store.put_bytes(data)
    good = store.put_tree({"a": Entry("l", target="x")})
    for read in (
        store.read_tree,
        lambda digest: store.subtree(digest, "a"),
        lambda digest: store.merge_trees([good, digest]),
        lambda digest: store.checkout(digest, tmp_path / "place", writable=True),
    ):
        with pytest.raises(TreeError, match="is not a tree"):
            read(hostile)
    assert store.missing_deep([("tree", hostile)]) == {hostile}
    assert not (tmp_path / "place" / "a").exists()


def test_what_lies_at_a_path_is_found(store, folder):
    digest = store.put_folder(folder)
    sub = store.subtree(digest, "sub")
    assert store.subtree(digest, "") == Entry("t", digest)
    assert sub is not None
    assert sub.kind == "t"
    assert store.read_tree(sub.digest) == {"empty": Entry("d"), "small": Entry("f", digest_bytes(SMALL))}
    assert store.subtree(digest, "sub/small") == Entry("f", digest_bytes(SMALL))
    assert store.subtree(digest, "sub/empty") == Entry("t", EMPTY)
    for path in ("nothing", "large/x", "out/x", "sub/", "/sub", "sub/../large"):
        assert store.subtree(digest, path) is None


def test_every_missing_part_of_a_tree_is_found(store):
    here, gone, link = store.put_bytes(b"here"), digest_bytes(b"gone"), Entry("l", target="x")
    tree = store.put_tree({"a/here": Entry("f", here), "a/b/gone": Entry("x", gone), "link": link})
    nothing = digest_bytes(b"no such tree")
    assert store.missing_deep([("tree", tree), ("blob", here), ("tree", nothing)]) == {gone, nothing}
    with pytest.raises(MissingBlob):
        store.read_tree(nothing)


def test_trees_that_share_folders_share_their_objects(store, folder):
    store.put_folder(folder)
    store.commit([])
    before = store.index.read("SELECT count(*) FROM blobs")[0][0]
    (folder / "new").write_bytes(b"")
    store.put_folder(folder)
    store.commit([])
    # The new root and the new file.
    assert store.index.read("SELECT count(*) FROM blobs")[0][0] == before + 2


member_names = st.sampled_from(
    ["a", "b", "b.txt", ".", "..", "é", "\x7f", "a/b", "\\", '"', "\n", "\u2028", "z" * 300, ""]
)
member_values = st.tuples(st.sampled_from("fxtld"), st.sampled_from(["0" * 64, "ab" * 32, "AB" * 32, "target", ""]))


@given(st.lists(st.tuples(member_names, member_values), max_size=4), st.sampled_from(["", " ", "\n", "\ufeff"]))
def test_a_tree_object_is_what_would_be_written_for_it_or_is_refused(members, around):
    """Whichever way it is read; names may come twice and in any order here."""
    inside = ",".join(f"{json.dumps(n, ensure_ascii=False)}:{json.dumps(v, separators=(',', ':'))}" for n, v in members)
    data = f"{around}{{{inside}}}".encode()
    try:
        items = json.loads(data)
        node = {n: Entry(k, None, v) if k == "l" else Entry(k, v) for n, (k, v) in items.items()}
        right = encode_node(node) == data
    except (ValueError, TreeError):
        right = False
    if right:
        assert decode_node(data, "d") == node
    else:
        with pytest.raises(TreeError):
            decode_node(data, "d")

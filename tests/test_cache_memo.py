"""Memos may be forgotten at any moment, are never wrong, and never pickled."""

from decimal import Decimal

import pytest

from mrp.cache.digest import digest_bytes
from mrp.cache.memo import Memo

KEY, OTHER = digest_bytes(b"one"), digest_bytes(b"other")
VALUE = {"name": "é", "numbers": [1, Decimal("0.25"), None, True], "long": "x" * 100_000}


def test_a_memo_is_remembered_by_the_next_process(tmp_path):
    memo = Memo(tmp_path / "memo")
    assert memo.get(KEY) is None
    memo.put(KEY, VALUE)
    assert memo.get(KEY) == VALUE
    memo.close()
    memo = Memo(tmp_path / "memo")
    assert memo.get(KEY) == VALUE
    assert memo.get(OTHER) is None
    memo.close()


def test_a_value_that_has_no_json_is_refused(tmp_path):
    with pytest.raises(TypeError):
        Memo(tmp_path / "memo").put(KEY, 0.5)


def test_nothing_is_pickled(tmp_path):
    memo = Memo(tmp_path / "memo")
    memo.put(KEY, VALUE)
    memo.close()
    for path in (tmp_path / "memo").rglob("*"):
        if path.is_file():
            assert b"\x80\x04\x95" not in path.read_bytes()
            assert b"\x80\x05\x95" not in path.read_bytes()


def test_damaged_memos_are_forgotten(tmp_path):
    folder = tmp_path / "memo"
    small = {"name": "small"}
    for step in range(0, 100, 7):
        memo = Memo(folder)
        memo.put(KEY, VALUE)
        memo.put(OTHER, small)
        memo.close()
        for path in [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]:
            data = bytearray(path.read_bytes())
            data[len(data) * step // 100] ^= 0x10
            path.write_bytes(data)
        memo = Memo(folder)
        assert memo.get(KEY) in (None, VALUE)
        assert memo.get(OTHER) in (None, small)
        memo.put(KEY, VALUE)
        memo.close()


def test_a_folder_that_vanishes_or_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    memo = Memo(tmp_path / "file" / "memo")
    for _ in range(5):
        memo.put(KEY, VALUE)
        assert memo.get(KEY) is None
    memo.close()

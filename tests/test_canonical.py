"""Canonical JSON: one spelling for every value."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrp.cache.canonical import action_key, canonical_bytes, canonical_text, number_text, parse_canonical
from mrp.cache.digest import digest_bytes, parse_digest

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | decimals | text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
    max_leaves=20,
)


@given(values)
def test_a_value_survives_being_written_and_read(value):
    assert parse_canonical(canonical_bytes(value)) == value


@given(values)
def test_what_was_read_is_written_the_same_again(value):
    data = canonical_bytes(value)
    assert canonical_bytes(parse_canonical(data)) == data


@given(st.dictionaries(text, values, max_size=8))
def test_the_order_of_keys_does_not_matter(value):
    assert canonical_text(dict(reversed(value.items()))) == canonical_text(value)


@given(st.integers() | decimals, st.integers(0, 60))
def test_equal_numbers_have_one_spelling(number, zeros):
    sign, digits, exponent = Decimal(number).as_tuple()
    padded = Decimal((sign, digits + (0,) * zeros, exponent - zeros))
    assert padded == number
    assert number_text(padded) == number_text(number)


@given(st.integers(0, 80))
def test_large_integers_are_spelled_like_the_decimals_that_equal_them(exponent):
    assert number_text(10**exponent) == number_text(Decimal(f"1e{exponent}"))
    assert number_text(10**exponent + 1) == str(10**exponent + 1)


@given(values)
def test_any_json_reader_reads_it(value):
    json.loads(canonical_bytes(value))


@pytest.mark.parametrize(
    ("value", "spelling"),
    [
        (Decimal("0.70"), "0.7"),
        (Decimal("1.0"), "1"),
        (Decimal("-0"), "0"),
        (Decimal("1e-7"), "0.0000001"),
        (Decimal("1e39"), "1" + "0" * 39),
        (Decimal("1e100"), "1e100"),
        (Decimal("-12.50e-50"), "-125e-51"),
        (True, "true"),
        ({"b": 1, "a": [None, "é\n\u2028"]}, '{"a":[null,"é\\n\u2028"],"b":1}'),
    ],
)
def test_spellings_that_keys_depend_on(value, spelling):
    assert canonical_text(value) == spelling


@pytest.mark.parametrize("value", [0.5, [0.5], {"a": 0.5}, {1: "a"}, b"bytes", {"a"}, object()])
def test_what_has_no_one_spelling_is_refused(value):
    with pytest.raises(TypeError):
        canonical_text(value)


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity")])
def test_numbers_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="not a finite number"):
        canonical_text({"a": value})


def test_a_key_is_the_digest_of_its_explanation():
    key, preimage = action_key({"kind": "command", "argv": ["true"]})
    assert digest_bytes(preimage) == key
    assert parse_canonical(preimage) == {"v": "mrp-key-1", "kind": "command", "argv": ["true"]}


@pytest.mark.parametrize("word", ["", "abc", "A" * 64, "g" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
def test_only_64_lower_case_hex_digits_are_a_digest(word):
    with pytest.raises(ValueError, match="not a digest"):
        parse_digest(word)

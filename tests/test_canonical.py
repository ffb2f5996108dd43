"""Canonical JSON: one spelling for every value."""

import json
from decimal import Context, Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mrp.cache.canonical import (
    Shape,
    Spelled,
    action_key,
    canonical_bytes,
    canonical_text,
    number_text,
    parse_canonical,
)
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


# -- the quick ways against the slow one ------------------------------------------------------------------------------


def spelled_slowly(value):
    """Canonical JSON as its description says it, a piece at a time."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | Decimal):
        return number_spelled_slowly(Decimal(value))
    if isinstance(value, dict):
        members = (f"{json.dumps(name, ensure_ascii=False)}:{spelled_slowly(value[name])}" for name in sorted(value))
        return "{" + ",".join(members) + "}"
    return "[" + ",".join(map(spelled_slowly, value)) + "]"


def number_spelled_slowly(value):
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    while text.endswith("0"):
        text, exponent = text[:-1], exponent + 1
    if not text:
        return "0"
    minus = "-" if sign else ""
    if exponent == 0 or (exponent > 0 and len(text) + exponent <= 40):
        return minus + text + "0" * exponent
    if exponent < 0 and max(len(text), -exponent) <= 40:
        padded = text.rjust(1 - exponent, "0")
        return f"{minus}{padded[:exponent]}.{padded[exponent:]}"
    return f"{minus}{text}e{exponent}"


@given(values)
def test_quick_and_slow_spell_alike(value):
    assert canonical_text(value) == spelled_slowly(value)


@given(st.integers(-(10**45), 10**45), st.integers(-60, 60))
@example(10**40 + 1, 0)
@example(-(10**39), -1)
def test_quick_and_slow_spell_numbers_alike(digits, exponent):
    value = Decimal(digits).scaleb(exponent, Context(prec=60))
    assert number_text(value) == number_spelled_slowly(value)


names = st.text(st.sampled_from("abcdefghij_"), min_size=1, max_size=4)


@given(st.dictionaries(names, values, max_size=5), st.dictionaries(names, values, max_size=5))
def test_a_shape_makes_the_text_of_the_whole_object(constant, varying):
    shape = Shape({name: value for name, value in constant.items() if name not in varying}, *varying)
    members = {name: canonical_text(value) for name, value in varying.items()}
    assert shape.text(members) == canonical_text({**constant, **varying})


def test_a_shape_keeps_what_looks_like_a_place_to_fill():
    assert Shape({"a": "%(b)s 100%"}, "b").text({"b": '"%s"'}) == '{"a":"%(b)s 100%","b":"%s"}'


@given(values)
def test_what_is_spelled_already_stands_for_its_value(value):
    assert canonical_text([Spelled(canonical_text(value)), "x"]) == canonical_text([value, "x"])

"""Canonical JSON: one spelling for every value, so that equal values have equal digests.

Objects have sorted string keys, there is no white space, text is UTF-8 unescaped where JSON allows it, and a number
is the shortest decimal text of its exact value: `1.0`, `1` and `1.00` are all `1`. Binary floats are refused, since
their text depends on who prints them; use Decimal.
"""

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from mrp.cache.digest import ActionKey, Digest, digest_bytes

Json: TypeAlias = Any
"""None, bool, int, Decimal, str, list/tuple of Json, mapping from str to Json."""

KEY_VERSION = "mrp-key-1"
"""First component of every action key; raising it makes every older entry a miss."""

_MAX_PLAIN_DIGITS = 40
_PLAIN_INT = 10**_MAX_PLAIN_DIGITS

_quote = json.encoder.encode_basestring


def number_text(value: int | Decimal) -> str:
    """The shortest decimal text of `value`: `0.7` for 0.70, `1e+100` style only beyond 40 digits.

    Raises ValueError for NaN and infinities, which are no numbers that a key can hold.
    """
    if isinstance(value, int):
        if -_PLAIN_INT < value < _PLAIN_INT:
            return str(value)
        # Spelled like the Decimal that equals it.
        value = Decimal(value)
    if not value.is_finite():
        raise ValueError(f"{value} is not a finite number")
    if value == 0:
        return "0"
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    stripped = text.rstrip("0")
    exponent += len(text) - len(stripped)
    text = stripped.lstrip("0")
    minus = "-" if sign else ""
    if exponent == 0:
        return minus + text
    if exponent >= 0 and len(text) + exponent <= _MAX_PLAIN_DIGITS:
        return minus + text + "0" * exponent
    if exponent < 0 and max(len(text), -exponent) <= _MAX_PLAIN_DIGITS:
        whole, fraction = text[:exponent] or "0", text[exponent:].rjust(-exponent, "0")
        return f"{minus}{whole}.{fraction}"
    return f"{minus}{text}e{exponent}"


def canonical_text(value: Json) -> str:
    """`value` in canonical JSON. Raises TypeError for floats and foreign types, ValueError for NaN."""
    parts: list[str] = []
    _write(value, parts)
    return "".join(parts)


def canonical_bytes(value: Json) -> bytes:
    """`canonical_text` in UTF-8. Raises also UnicodeEncodeError for lone surrogates."""
    return canonical_text(value).encode()


def parse_canonical(data: bytes | str) -> Json:
    """The value that `data` spells, with fractions as Decimal; the inverse of `canonical_bytes`."""
    return json.loads(data, parse_float=Decimal)


def canonical_digest(value: Json) -> Digest:
    """The digest of a value's canonical form; stored under it, the value can be followed by `mrp why`."""
    return digest_bytes(canonical_bytes(value))


def action_key(preimage: Mapping[str, Json]) -> tuple[ActionKey, bytes]:
    """The key of an action and the very bytes that were hashed for it, which are stored as its explanation."""
    data = canonical_bytes({"v": KEY_VERSION, **preimage})
    return ActionKey(digest_bytes(data)), data


def _write(value: Json, parts: list[str]) -> None:
    # The exact types come first: they are nearly all that occurs, and isinstance of an ABC is slow.
    kind = type(value)
    if kind is str:
        parts.append(_quote(value))
    elif kind is dict:
        _write_object(value, parts)
    elif kind is list or kind is tuple:
        _write_array(value, parts)
    elif value is None:
        parts.append("null")
    elif value is True:
        parts.append("true")
    elif value is False:
        parts.append("false")
    elif isinstance(value, int | Decimal):
        parts.append(number_text(value))
    elif isinstance(value, str):
        parts.append(_quote(value))
    elif isinstance(value, Mapping):
        _write_object(value, parts)
    elif isinstance(value, list | tuple):
        _write_array(value, parts)
    else:
        raise TypeError(f"{kind.__name__} has no canonical form")


def _write_object(value: Mapping[str, Json], parts: list[str]) -> None:
    if not value:
        parts.append("{}")
        return
    separator = "{"
    for key in sorted(value):
        if not isinstance(key, str):
            raise TypeError(f"object keys must be text, not {type(key).__name__}")
        item = value[key]
        if type(item) is str:
            parts.append(f"{separator}{_quote(key)}:{_quote(item)}")
        else:
            parts.append(f"{separator}{_quote(key)}:")
            _write(item, parts)
        separator = ","
    parts.append("}")


def _write_array(value: Sequence[Json], parts: list[str]) -> None:
    if not value:
        parts.append("[]")
        return
    separator = "["
    for item in value:
        if type(item) is str:
            parts.append(separator + _quote(item))
        else:
            parts.append(separator)
            _write(item, parts)
        separator = ","
    parts.append("]")

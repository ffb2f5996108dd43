"""Canonical JSON: one spelling for every value, so that equal values have equal digests.

Objects have sorted string keys, there is no white space, text is UTF-8 unescaped where JSON allows it, and a number
is the shortest decimal text of its exact value: `1.0`, `1` and `1.00` are all `1`. Binary floats are refused, since
their text depends on who prints them; use Decimal.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from mrp.cache.digest import ActionKey, Digest, digest_bytes

Json: TypeAlias = Any
"""None, bool, int, Decimal, str, list/tuple of Json, mapping from str to Json; Spelled, where it is only written."""

KEY_VERSION = "mrp-key-1"
"""First component of every action key; raising it makes every older entry a miss."""

_MAX_PLAIN_DIGITS = 40
_PLAIN_INT = 10**_MAX_PLAIN_DIGITS


class Spelled(str):
    """The canonical text of a value, which stands for that value: its maker has spelled it out already."""

    __slots__ = ()


quoted: Callable[[str], str] = json.encoder.encode_basestring
"""A text as it stands in canonical JSON."""


def number_text(value: int | Decimal) -> str:
    """The shortest decimal text of `value`: `0.7` for 0.70, `1e+100` style only beyond 40 digits.

    Raises ValueError for NaN and infinities, which are no numbers that a key can hold.
    """
    if not value:
        return "0"
    if isinstance(value, int):
        if -_PLAIN_INT < value < _PLAIN_INT:
            return str(value)
        # Spelled like the Decimal that equals it.
        value = Decimal(value)
    if not value.is_finite():
        raise ValueError(f"{value} is not a finite number")
    text = str(value)
    # Most are short and written without an exponent: then only zeros at the end are too many.
    if len(text) <= _MAX_PLAIN_DIGITS and "E" not in text:
        return text.rstrip("0").rstrip(".") if "." in text else text
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
    # The exact types come first: they are nearly all that occurs, and isinstance of an ABC is slow.
    kind = type(value)
    if kind is str:
        return quoted(value)
    if kind is dict:
        return _object_text(value)
    if kind is list or kind is tuple:
        return _array_text(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int | Decimal):
        return number_text(value)
    if kind is Spelled:
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return _object_text(value)
    if isinstance(value, list | tuple):
        return _array_text(value)
    raise TypeError(f"{kind.__name__} has no canonical form")


def canonical_bytes(value: Json) -> bytes:
    """`canonical_text` in UTF-8. Raises also UnicodeEncodeError for lone surrogates."""
    return canonical_text(value).encode()


def parse_canonical(data: bytes | str) -> Json:
    """The value that `data` spells, with fractions as Decimal; the inverse of `canonical_bytes`."""
    return _decode(data if isinstance(data, str) else str(data, "utf-8"))


_decode = json.JSONDecoder(parse_float=Decimal).decode


def canonical_digest(value: Json) -> Digest:
    """The digest of a value's canonical form; stored under it, the value can be followed by `mrp why`."""
    return digest_bytes(canonical_bytes(value))


def action_key(preimage: Mapping[str, Json]) -> tuple[ActionKey, bytes]:
    """The key of an action and the very bytes that were hashed for it, which are stored as its explanation."""
    data = canonical_bytes({"v": KEY_VERSION, **preimage})
    return ActionKey(digest_bytes(data)), data


class Shape:
    """Canonical objects that differ in a few members: the text of the other members is made once."""

    def __init__(self, constant: Mapping[str, Json], *varying: str) -> None:
        """constant: the members that are the same for all; varying: the names of the others."""
        members = {name: canonical_text(value).replace("%", "%%") for name, value in constant.items()}
        members |= {name: f"%({name})s" for name in varying}
        self._format = "{" + ",".join(f"{quoted(name)}:{members[name]}" for name in sorted(members)) + "}"

    def text(self, members: Mapping[str, str]) -> str:
        """The canonical text of the object with these members, which are given in canonical text."""
        return self._format % members


def _object_text(value: Mapping[str, Json]) -> str:
    # quoted refuses what is no text, so keys need no look of their own.
    members = [
        f"{quoted(name)}:{quoted(item) if type(item) is str else canonical_text(item)}"
        for name, item in sorted(value.items())
    ]
    return "{" + ",".join(members) + "}"


def _array_text(value: Sequence[Json]) -> str:
    return "[" + ",".join([quoted(item) if type(item) is str else canonical_text(item) for item in value]) + "]"

"""What an unquoted word of YAML means: YAML 1.2's core schema, with exact numbers and without the risky ones."""

import re
from collections.abc import Mapping
from decimal import Decimal

MAX_DIGITS = 400
MAX_EXPONENT = 1000

_WORDS: Mapping[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_NUMBER = re.compile(r"[-+]?(?:(\d+)|(?:\.\d+|\d+(?:\.\d*)?)(?:[eE]([-+]?\d+))?)\Z", re.ASCII)
_OTHER_BASE = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_LEADING_ZERO = re.compile(r"[-+]?0\d")


def resolve_plain(text: str) -> str | bool | int | Decimal | None:
    """What an unquoted word means. Raises ValueError with a sentence for what is refused."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "0123456789+-.":
        return text
    number = _NUMBER.match(text)
    if number is None:
        if _OTHER_BASE.match(text):
            _refuse_long(text)
            return int(text, 0)
        if _NOT_FINITE.match(text):
            raise ValueError(f"`{text}` is not a number that a result can depend on; write a finite one, or null")
        return text
    _refuse_long(text)
    if _LEADING_ZERO.match(text):
        raise ValueError(f'a number cannot start with 0: write "{text}" with quotes, or without the zeros')
    if number[1]:
        return int(text)
    if number[2] and abs(int(number[2])) > MAX_EXPONENT:
        raise ValueError(f"the exponent of `{text}` is beyond {MAX_EXPONENT}; write the number as text in quotes")
    return Decimal(text)


def _refuse_long(text: str) -> None:
    if len(text) > MAX_DIGITS:
        message = f"a number of {len(text)} digits; at most {MAX_DIGITS} are read"
        raise ValueError(f"{message}, so write it as text in quotes")

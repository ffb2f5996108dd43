"""JSON as operators write it: numbers keep their exact text, and what is no JSON is named by its place."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def json_text(value: Any) -> str:
    """`value` as one line of JSON with sorted keys; floats as their repr, Decimals as their text.

    Raises ValueError for NaN, infinities and other types than None, bool, int, float, Decimal, str, list, tuple and
    dict with text keys; the message says where in the value.
    """
    parts: list[str] = []
    _write(value, "$", parts)
    return "".join(parts)


def is_number(value: Any) -> bool:
    """True for int, float and Decimal, false for bool and anything else."""
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    return _is_decimal(value)


def _write(value: Any, place: str, parts: list[str]) -> None:
    if isinstance(value, str):
        parts.append(encode_basestring_ascii(value))
    elif value is None or value is True or value is False:
        parts.append({None: "null", True: "true", False: "false"}[value])
    elif is_number(value):
        parts.append(_number(value, place))
    elif isinstance(value, dict):
        parts.append("{")
        for index, key in enumerate(sorted(value, key=_text_key(place))):
            parts.append(", " if index else "")
            parts.append(encode_basestring_ascii(key) + ": ")
            _write(value[key], f"{place}.{key}", parts)
        parts.append("}")
    elif isinstance(value, (list, tuple)):
        parts.append("[")
        for index, item in enumerate(value):
            parts.append(", " if index else "")
            _write(item, f"{place}[{index}]", parts)
        parts.append("]")
    else:
        raise ValueError(f"{place} is a {type(value).__name__}; use plain numbers, text, lists and dicts")


def _number(value: Any, place: str) -> str:
    # The plain types' own repr: subclasses such as numpy's print themselves with their class.
    if isinstance(value, int):
        return int.__repr__(value)
    text = float.__repr__(value) if isinstance(value, float) else str(value)
    if text.lower().lstrip("-")[:3] in ("nan", "inf", "sna"):
        raise ValueError(f"{place} is {text}, which is no JSON number")
    return text


def _is_decimal(value: Any) -> bool:
    # By name, so that an operator without Decimals need not load the module.
    return any(
        base.__name__ == "Decimal" and base.__module__ in ("decimal", "_decimal") for base in type(value).__mro__
    )


def _text_key(place: str) -> Any:
    def check(key: Any) -> str:
        if not isinstance(key, str):
            raise ValueError(f"{place} has the key {key!r}; keys must be text")
        return key

    return check

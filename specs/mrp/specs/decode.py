"""Frozen dataclasses from the plain JSON that they were written as, by their types: for files of our own making.

It converts and does not check; what comes from elsewhere goes through pydantic.
"""

import dataclasses
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")
_Convert = Callable[[Any], Any]


def decode(kind: type[_T], value: Any) -> _T:
    """`value` as a `kind`: tuples for arrays, Decimals for numbers, dataclasses for objects, as its fields say."""
    wanted: Any = kind
    result: _T = _converter(wanted)(value)
    return result


@cache
def _converter(kind: Any) -> _Convert:
    if dataclasses.is_dataclass(kind):
        return _fields(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return _tuple(arguments)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        convert = _converter(arguments[1])
        return _same if convert is _same else lambda value: {key: convert(item) for key, item in value.items()}
    if origin in (Union, UnionType):
        return _union([argument for argument in arguments if argument is not NoneType])
    if kind is Decimal:
        return Decimal
    return _same


def _fields(kind: Any) -> _Convert:
    hints = get_type_hints(kind)
    converters = [(item.name, _converter(hints[item.name])) for item in dataclasses.fields(kind)]

    def convert(value: Any) -> Any:
        return kind(**{name: converter(value[name]) for name, converter in converters if name in value})

    return convert


def _tuple(arguments: tuple[Any, ...]) -> _Convert:
    if len(arguments) == 2 and arguments[1] is ...:
        convert = _converter(arguments[0])
        return tuple if convert is _same else lambda value: tuple([convert(item) for item in value])
    converters = [_converter(argument) for argument in arguments]
    return lambda value: tuple([convert(item) for convert, item in zip(converters, value, strict=True)])


def _union(arguments: list[Any]) -> _Convert:
    """The members that JSON spells as arrays or objects are told by that; texts stay texts."""
    arrays = next((_converter(kind) for kind in arguments if get_origin(kind) is tuple), _same)
    objects = next((_fields(kind) for kind in arguments if dataclasses.is_dataclass(kind)), _same)
    number = Decimal if Decimal in arguments else _same

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return arrays(value)
        if isinstance(value, dict):
            return objects(value)
        if value is None or isinstance(value, str | bool):
            return value
        return number(value)

    return convert


def _same(value: Any) -> Any:
    return value

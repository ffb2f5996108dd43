"""What expressions compute with: six types of value, and operations on them that never raise.

Where an operation has no answer it gives null, and a question about values that do not fit is answered false. Numbers
are exact decimals of at most 34 digits (IEEE decimal128, half to even), so that every machine computes the same.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from mrp.cache.canonical import Json

Type: TypeAlias = Literal["null", "boolean", "number", "text", "list", "object"]

DIGITS = 34
MAX_EXPONENT = 6144
_CONTEXT = Context(
    prec=DIGITS, rounding=ROUND_HALF_EVEN, Emin=1 - MAX_EXPONENT, Emax=MAX_EXPONENT, capitals=1, clamp=0, traps=[]
)


def as_value(value: Any) -> Json:
    """A caller's value as one of the six types: floats through their shortest text, NaN and foreign types as null."""
    if value is None or isinstance(value, bool | int | str | list | tuple | Mapping):
        return value
    if isinstance(value, Decimal):
        return value if value.is_finite() else None
    if isinstance(value, float):
        return Decimal(repr(float(value))) if math.isfinite(value) else None
    return None


def type_of(value: Json) -> Type:
    """The type of a value that went through `as_value`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | Decimal):
        return "number"
    if isinstance(value, str):
        return "text"
    return "object" if isinstance(value, Mapping) else "list"


def equal(left: Json, right: Json) -> bool:
    """Whether both are the same value of the same type, lists and objects included; 1 and 1.0 are the same."""
    pairs = [(left, right)]
    while pairs:
        a, b = (as_value(value) for value in pairs.pop())
        kind = type_of(a)
        if kind != type_of(b):
            return False
        if kind == "list":
            if len(a) != len(b):
                return False
            pairs.extend(zip(a, b, strict=True))
        elif kind == "object":
            if set(a) != set(b):
                return False
            pairs.extend((a[key], b[key]) for key in a)
        elif a != b:
            return False
    return True


def ordered(left: Json, right: Json) -> bool:
    """Whether the two have an order: both numbers, or both text (by code point)."""
    kind = type_of(left)
    return kind in ("number", "text") and kind == type_of(right)


def member(item: Json, container: Json) -> bool:
    """Text in text, a value in a list, a name in an object; false for everything else."""
    match type_of(container):
        case "list":
            return any(equal(item, other) for other in container)
        case "text":
            return isinstance(item, str) and item in container
        case "object":
            return isinstance(item, str) and item in container
    return False


COMPARISONS: dict[str, Callable[[Json, Json], bool]] = {
    "==": equal,
    "!=": lambda left, right: not equal(left, right),
    "<": lambda left, right: ordered(left, right) and left < right,
    "<=": lambda left, right: ordered(left, right) and left <= right,
    ">": lambda left, right: ordered(left, right) and left > right,
    ">=": lambda left, right: ordered(left, right) and left >= right,
    "in": member,
    "not in": lambda left, right: not member(left, right),
}

_ARITHMETIC: dict[str, Callable[[Decimal, Decimal], Decimal]] = {
    "+": _CONTEXT.add,
    "-": _CONTEXT.subtract,
    "*": _CONTEXT.multiply,
    "/": _CONTEXT.divide,
    "%": _CONTEXT.remainder,
}


def arithmetic(operator: str, left: Json, right: Json) -> Decimal | None:
    """`left operator right`; null when either is no number, when dividing by zero, and on overflow.

    A remainder has the sign of `left`.
    """
    if type_of(left) != "number" or type_of(right) != "number":
        return None
    return _finite(_ARITHMETIC[operator](Decimal(left), Decimal(right)))


def negate(value: Json) -> Decimal | None:
    """`-value`, or null when it is no number."""
    return _finite(_CONTEXT.minus(Decimal(value))) if type_of(value) == "number" else None


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> Any:
    """The RE2 program of `pattern`; raises ValueError that says what is wrong with it."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(reason) from None


def search(pattern: str, text: str) -> bool:
    """Whether `pattern` (RE2 syntax) matches anywhere in `text`; false for a pattern that is wrong."""
    try:
        return compile_pattern(pattern).search(text) is not None
    except (ValueError, UnicodeError):
        return False


@dataclass(frozen=True)
class Function:
    """A function of the language. `takes` holds, for each argument, the types that can be meant; null always may.

    Arguments beyond `takes` are of its last kind; `least` and `most` bound their number (no bound when None).
    """

    takes: tuple[tuple[Type, ...], ...]
    gives: Type | None
    apply: Callable[..., Json]
    least: int
    most: int | None

    def types_at(self, position: int) -> tuple[Type, ...]:
        return self.takes[min(position, len(self.takes) - 1)]

    def takes_many(self, count: int) -> bool:
        """Whether it can be called with `count` arguments."""
        return self.least <= count and (self.most is None or count <= self.most)

    @property
    def arity(self) -> str:
        """How many arguments it takes, in words."""
        if self.most is None:
            return f"{self.least} or more values"
        if self.least < self.most:
            return f"{self.least} or {self.most} values"
        return "1 value" if self.least == 1 else f"{self.least} values"


def _finite(value: Decimal) -> Decimal | None:
    return value if value.is_finite() else None


def _length(value: Json) -> Json:
    return len(value) if type_of(value) in ("text", "list", "object") else None


def _on_text(function: Callable[..., Json], otherwise: Json) -> Callable[..., Json]:
    return lambda *values: function(*values) if all(isinstance(value, str) for value in values) else otherwise


def _extreme(choose: Callable[..., Json]) -> Callable[..., Json]:
    def extreme(*values: Json) -> Json:
        if len(values) == 1 and type_of(values[0]) == "list":
            values = tuple(as_value(value) for value in values[0])
        kinds = {type_of(value) for value in values}
        return choose(values) if kinds in ({"number"}, {"text"}) else None

    return extreme


def _absolute(value: Json) -> Json:
    return _finite(_CONTEXT.abs(Decimal(value))) if type_of(value) == "number" else None


def _round(value: Json, places: Json = 0) -> Json:
    if type_of(value) != "number" or type_of(places) != "number" or not -MAX_EXPONENT <= places <= MAX_EXPONENT:
        return None
    if _CONTEXT.remainder(Decimal(places), Decimal(1)) != 0:
        return None
    return _finite(_CONTEXT.quantize(Decimal(value), Decimal((0, (1,), -int(places)))))


_TEXT: tuple[Type, ...] = ("text",)
_NUMBER: tuple[Type, ...] = ("number",)
_CONTAINER: tuple[Type, ...] = ("text", "list", "object")
_ANY: tuple[Type, ...] = ("null", "boolean", "number", "text", "list", "object")
_ORDERED: tuple[Type, ...] = ("number", "text", "list")

FUNCTIONS: dict[str, Function] = {
    "len": Function((_CONTAINER,), "number", _length, 1, 1),
    "lower": Function((_TEXT,), "text", _on_text(str.lower, None), 1, 1),
    "upper": Function((_TEXT,), "text", _on_text(str.upper, None), 1, 1),
    "startswith": Function((_TEXT, _TEXT), "boolean", _on_text(str.startswith, False), 2, 2),
    "endswith": Function((_TEXT, _TEXT), "boolean", _on_text(str.endswith, False), 2, 2),
    "contains": Function((_CONTAINER, _ANY), "boolean", lambda container, item: member(item, container), 2, 2),
    "matches": Function((_TEXT, _TEXT), "boolean", _on_text(lambda text, pattern: search(pattern, text), False), 2, 2),
    "min": Function((_ORDERED,), None, _extreme(min), 1, None),
    "max": Function((_ORDERED,), None, _extreme(max), 1, None),
    "abs": Function((_NUMBER,), "number", _absolute, 1, 1),
    "round": Function((_NUMBER, _NUMBER), "number", _round, 1, 2),
}

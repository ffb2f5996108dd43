"""The syntax tree of an expression: each node knows its parts, its value over fields, and its text.

`column` is where the node's word stands in the text that was parsed, counted from 1; it plays no part in equality.
Chains such as `a + b - c` are one flat node, so that only brackets, signs and `not` add depth.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeAlias

from mrp.cache.canonical import Json, number_text
from mrp.specs.expression_values import COMPARISONS, FUNCTIONS, Type, arithmetic, as_value, negate, type_of

KEYWORDS = frozenset(("and", "or", "not", "in", "true", "false", "null"))
ROOT = "fields"
"""`fields['odd name']` reads a field whose name is no word."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _SIGNED, _ATOM = range(8)


@dataclass(frozen=True)
class Literal:
    """A value written down. `type` keeps `true` and `1` apart, which Python holds for equal."""

    value: bool | int | Decimal | str | None
    type: Type
    column: int = field(default=0, compare=False)

    strength = _ATOM

    def children(self) -> Sequence["Node"]:
        return ()

    def evaluate(self, fields: Mapping[str, Json]) -> Json:
        return self.value

    def text(self) -> str:
        if isinstance(self.value, str):
            return quoted(self.value)
        if isinstance(self.value, int | Decimal) and not isinstance(self.value, bool):
            return number_text(self.value)
        return "null" if self.value is None else str(self.value).lower()


@dataclass(frozen=True)
class Field:
    """What stands at `path` in the fields; null when a step is missing or leads through something without fields."""

    path: tuple[str, ...]
    column: int = field(default=0, compare=False)

    strength = _ATOM

    def children(self) -> Sequence["Node"]:
        return ()

    def evaluate(self, fields: Mapping[str, Json]) -> Json:
        value: Json = fields
        for name in self.path:
            if not isinstance(value, Mapping):
                return None
            value = value.get(name)
        return as_value(value)

    def text(self) -> str:
        first = self.path[0]
        plain = is_word(first) and not (first == ROOT and len(self.path) > 1 and not is_word(self.path[1]))
        steps = [f".{name}" if is_word(name) else f"[{quoted(name)}]" for name in self.path[1:]]
        return (first if plain else f"{ROOT}[{quoted(first)}]") + "".join(steps)


@dataclass(frozen=True)
class ListOf:
    """`[a, b]`."""

    items: tuple["Node", ...]
    column: int = field(default=0, compare=False)

    strength = _ATOM

    def children(self) -> Sequence["Node"]:
        return self.items

    def evaluate(self, fields: Mapping[str, Json]) -> Json:
        return [item.evaluate(fields) for item in self.items]

    def text(self) -> str:
        return f"[{', '.join(item.text() for item in self.items)}]"


@dataclass(frozen=True)
class Call:
    """A function of mrp.specs.expression_values.FUNCTIONS on its arguments."""

    function: str
    arguments: tuple["Node", ...]
    column: int = field(default=0, compare=False)

    strength = _ATOM

    def children(self) -> Sequence["Node"]:
        return self.arguments

    def evaluate(self, fields: Mapping[str, Json]) -> Json:
        return FUNCTIONS[self.function].apply(*(argument.evaluate(fields) for argument in self.arguments))

    def text(self) -> str:
        return f"{self.function}({', '.join(argument.text() for argument in self.arguments)})"


@dataclass(frozen=True)
class Negative:
    """`-a`."""

    operand: "Node"
    column: int = field(default=0, compare=False)

    strength = _SIGNED

    def children(self) -> Sequence["Node"]:
        return (self.operand,)

    def evaluate(self, fields: Mapping[str, Json]) -> Json:
        return negate(self.operand.evaluate(fields))

    def text(self) -> str:
        return "-" + _inside(self.operand, _SIGNED)


@dataclass(frozen=True)
class Arithmetic:
    """`a + b - c` or `a * b / c`, from left to right; one level of precedence a node."""

    first: "Node"
    rest: tuple[tuple[str, "Node"], ...]
    column: int = field(default=0, compare=False)

    @property
    def strength(self) -> int:
        return _SUM if self.rest[0][0] in "+-" else _PRODUCT

    def children(self) -> Sequence["Node"]:
        return (self.first, *(operand for _, operand in self.rest))

    def evaluate(self, fields: Mapping[str, Json]) -> Json:
        value = self.first.evaluate(fields)
        for operator, operand in self.rest:
            value = arithmetic(operator, value, operand.evaluate(fields))
        return value

    def text(self) -> str:
        rest = (f" {operator} {_inside(operand, self.strength + 1)}" for operator, operand in self.rest)
        return _inside(self.first, self.strength + 1) + "".join(rest)


@dataclass(frozen=True)
class Comparison:
    """`a < b`, `a not in b`: always true or false."""

    operator: str
    left: "Node"
    right: "Node"
    column: int = field(default=0, compare=False)

    strength = _COMPARISON

    def children(self) -> Sequence["Node"]:
        return (self.left, self.right)

    def evaluate(self, fields: Mapping[str, Json]) -> bool:
        return COMPARISONS[self.operator](self.left.evaluate(fields), self.right.evaluate(fields))

    def text(self) -> str:
        return f"{_inside(self.left, _SUM)} {self.operator} {_inside(self.right, _SUM)}"


@dataclass(frozen=True)
class Not:
    """`not a`: true for everything but true."""

    operand: "Node"
    column: int = field(default=0, compare=False)

    strength = _NOT

    def children(self) -> Sequence["Node"]:
        return (self.operand,)

    def evaluate(self, fields: Mapping[str, Json]) -> bool:
        return self.operand.evaluate(fields) is not True

    def text(self) -> str:
        return "not " + _inside(self.operand, _NOT)


@dataclass(frozen=True)
class Logical:
    """`a and b and c`, or the same with `or`. Only true counts as true: null and other types count as false."""

    operator: str
    operands: tuple["Node", ...]
    column: int = field(default=0, compare=False)

    @property
    def strength(self) -> int:
        return _AND if self.operator == "and" else _OR

    def children(self) -> Sequence["Node"]:
        return self.operands

    def evaluate(self, fields: Mapping[str, Json]) -> bool:
        truths = (operand.evaluate(fields) is True for operand in self.operands)
        return all(truths) if self.operator == "and" else any(truths)

    def text(self) -> str:
        return f" {self.operator} ".join(_inside(operand, self.strength + 1) for operand in self.operands)


Node: TypeAlias = Literal | Field | ListOf | Call | Negative | Arithmetic | Comparison | Not | Logical


def literal(value: bool | int | Decimal | str | None, column: int = 0) -> Literal:
    """The literal of `value`, with its type."""
    return Literal(value, type_of(value), column)


def depth(root: Node) -> int:
    """How many nodes stand above each other, counted without recursion."""
    deepest = 0
    waiting = [(root, 1)]
    while waiting:
        node, level = waiting.pop()
        deepest = max(deepest, level)
        waiting.extend((child, level + 1) for child in node.children())
    return deepest


def is_word(name: str) -> bool:
    """Whether `name` can stand in an expression without quotes."""
    return _WORD.match(name) is not None and name not in KEYWORDS and name not in ("True", "False", "None")


def quoted(text: str) -> str:
    """`text` as a literal in single quotes."""
    return "'" + "".join(_ESCAPES.get(c) or (c if c >= " " else f"\\u{ord(c):04x}") for c in text) + "'"


def _inside(node: Node, least: int) -> str:
    return node.text() if node.strength >= least else f"({node.text()})"

"""The expressions of `where`, `gate`, `expect`, `select` and policy rules: parsed and checked once, evaluated totally.

Whatever parses can be evaluated over any fields and never raises: a missing field is null, arithmetic with null or
division by zero gives null, an ordering of values that have none is false, and only true counts as true. What can be
known to be wrong without the fields (an unknown function, `1 < 'a'`, `not 5`) is an error at parse time.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from mrp.cache.canonical import Json, number_text
from mrp.specs.expression_tree import (
    ROOT,
    Arithmetic,
    Call,
    Comparison,
    Field,
    ListOf,
    Literal,
    Logical,
    Negative,
    Node,
    Not,
    depth,
    literal,
)
from mrp.specs.expression_values import DIGITS, FUNCTIONS, MAX_EXPONENT, Type, compile_pattern
from mrp.specs.parsing import MAX_DEPTH, Grammar
from mrp.specs.suggest import did_you_mean


class ExpressionError(ValueError):
    """An expression is wrong. `column` counts the characters of the expression from 1; `hint` is a next step or ""."""

    def __init__(self, message: str, column: int, hint: str = "") -> None:
        self.message = message
        self.column = column
        self.hint = hint
        super().__init__(f"column {column}: {message}{f' ({hint})' if hint else ''}")


@dataclass(frozen=True)
class Expression:
    """A parsed expression. `type` is the type of all its values where the text alone tells, else None.

    Two expressions are equal when they read the same, whatever their white space; str() gives that reading, which
    parses to an equal expression.
    """

    root: Node
    type: Type | None = field(default=None, compare=False)

    def evaluate(self, fields: Mapping[str, Json]) -> Json:
        """The value over `fields`, JSON-like values by name; floats are taken as the decimals that they print as."""
        return self.root.evaluate(fields)

    def holds(self, fields: Mapping[str, Json]) -> bool:
        """Whether the value is true; null and values of other types are not."""
        return self.root.evaluate(fields) is True

    def paths(self) -> frozenset[tuple[str, ...]]:
        """The fields that are read, each as the names that lead to it."""
        found: set[tuple[str, ...]] = set()
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, Field):
                found.add(node.path)
            waiting.extend(node.children())
        return frozenset(found)

    def names(self) -> set[str]:
        """The fields that are read, as dotted names: `reward.mean`."""
        return {".".join(path) for path in self.paths()}

    def __str__(self) -> str:
        return self.root.text()


@lru_cache(maxsize=1024)
def parse_expression(text: str) -> Expression:
    """The expression that `text` spells; raises ExpressionError.

    More than 10,000 characters and more than 100 levels of nesting are errors.
    """
    root: Node = _grammar().parse(text)
    if depth(root) > MAX_DEPTH:
        raise ExpressionError(f"the expression nests more than {MAX_DEPTH} levels", 1, "nest it less")
    return Expression(root, _type_of(root))


def parse_condition(text: str) -> Expression:
    """As `parse_expression`, for places that ask a question: an expression that can never be true is an error."""
    expression = parse_expression(text)
    if expression.type not in (None, "boolean"):
        message = f"a condition is expected, and this is always {_named(expression.type)}"
        raise ExpressionError(message, 1, "compare it with something")
    return expression


@cache
def _grammar() -> Grammar:
    return Grammar(Path(__file__).with_name("expression.lark"), _Builder(), "expression", ExpressionError, _HINTS)


_HINTS = {
    "=": "to compare, write `==`",
    "&": "write `and`",
    "|": "write `or`",
    "!": "write `not` or `!=`",
    **{
        word: f"`{word}` stands {where}, in small letters; a field of that name is {ROOT}['{word}']"
        for word, where in (
            ("and", "between two conditions"),
            ("or", "between two conditions"),
            ("not", "before a condition"),
            ("in", "between two values"),
        )
    },
}


# -- from tokens to the tree -------------------------------------------------------------------------------------

_PYTHON_NAMES = {"True": "true", "False": "false", "None": "null"}
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_UNESCAPED = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "t": "\t", "r": "\r"}


class _Builder:
    """One method a rule of expression.lark; each takes the parts that the rule found."""

    def literal(self, parts: Sequence[Any]) -> Literal:
        (token,) = parts
        column = token.start_pos + 1
        if token.type == "TEXT":
            return literal(_unquote(token), column)
        if token.type == "NUMBER":
            return literal(_number(token), column)
        return literal({"true": True, "false": False, "null": None}[str(token)], column)

    def list(self, parts: Sequence[Any]) -> ListOf:
        bracket, *items = parts
        return ListOf(tuple(items), bracket.start_pos + 1)

    def call(self, parts: Sequence[Any]) -> Call:
        name, *arguments = parts
        column = name.start_pos + 1
        function = FUNCTIONS.get(name)
        if function is None:
            hint = did_you_mean(name, FUNCTIONS) or f"the functions are {', '.join(FUNCTIONS)}"
            raise ExpressionError(f"`{name}` is not a function", column, hint)
        if not function.takes_many(len(arguments)):
            message = f"`{name}` takes {function.arity} in its brackets, not {len(arguments)}"
            raise ExpressionError(message, column)
        return Call(str(name), tuple(arguments), column)

    def field(self, parts: Sequence[Any]) -> Field:
        column = parts[0].start_pos + 1
        steps = [part for part in parts if part.type != "LBRACKET"]
        path = tuple(_unquote(step) if step.type == "TEXT" else str(step) for step in steps)
        if path[0] in _PYTHON_NAMES:
            hint = f"write `{_PYTHON_NAMES[path[0]]}`, or {ROOT}['{path[0]}'] for the field"
            raise ExpressionError(f"`{path[0]}` is not a word of the language", column, hint)
        if path[0] == ROOT and len(steps) > 1 and steps[1].type == "TEXT":
            path = path[1:]
        return Field(path, column)

    def negative(self, parts: Sequence[Any]) -> Negative:
        minus, operand = parts
        return Negative(operand, minus.start_pos + 1)

    def inversion(self, parts: Sequence[Any]) -> Not:
        word, operand = parts
        return Not(operand, word.start_pos + 1)

    def comparator(self, parts: Sequence[Any]) -> tuple[str, int]:
        return " ".join(parts), parts[0].start_pos + 1

    def comparison(self, parts: Sequence[Any]) -> Comparison:
        left, (operator, column), right, *more = parts
        if more:
            hint = "write `a < b and b < c`, or use brackets"
            raise ExpressionError("comparisons cannot be chained", more[0][1], hint)
        return Comparison(operator, left, right, column)

    def sum(self, parts: Sequence[Any]) -> Arithmetic:
        operators = parts[1::2]
        rest = tuple(zip((str(operator) for operator in operators), parts[2::2], strict=True))
        return Arithmetic(parts[0], rest, operators[0].start_pos + 1)

    product = sum

    def conjunction(self, parts: Sequence[Any]) -> Logical:
        return Logical("and", tuple(parts), parts[0].column)

    def disjunction(self, parts: Sequence[Any]) -> Logical:
        return Logical("or", tuple(parts), parts[0].column)


def _number(token: Any) -> int | Decimal:
    column = token.start_pos + 1
    mantissa, _, exponent = token.lower().partition("e")
    digits = mantissa.replace(".", "").lstrip("0") or "0"
    if len(digits) > DIGITS:
        raise ExpressionError(f"the number has more than {DIGITS} digits", column)
    if token.isdigit():
        return int(digits)
    if len(exponent.lstrip("+-0")) <= len(str(MAX_EXPONENT)):
        value = Decimal(str(token))
        if abs(int(number_text(value).partition("e")[2] or 0)) <= MAX_EXPONENT:
            return value
    raise ExpressionError(f"`{token}` has an exponent beyond {MAX_EXPONENT}", column)


def _unquote(token: Any) -> str:
    def unescaped(match: re.Match[str]) -> str:
        code, letter = match.groups()
        if code is not None and not 0xD800 <= int(code, 16) <= 0xDFFF:
            return chr(int(code, 16))
        if code is not None or letter == "u":
            column = token.start_pos + 2 + match.start()
            hint = "write four hexadecimal digits, or `\\\\u` for a backslash and a u"
            raise ExpressionError(f"`{match[0]}` names no character", column, hint)
        # Other letters keep their backslash, so that a pattern can be written as it is: '\d+'.
        return _UNESCAPED.get(letter, match[0])

    return _ESCAPE.sub(unescaped, token[1:-1])


# -- what the text alone tells -----------------------------------------------------------------------------------

_NAMES: dict[Type, str] = {
    "null": "null",
    "boolean": "true or false",
    "number": "a number",
    "text": "text",
    "list": "a list",
    "object": "an object",
}


_BOOLEAN: tuple[Type, ...] = ("boolean",)
_NUMBER: tuple[Type, ...] = ("number",)
_ORDERED: tuple[Type, ...] = ("number", "text")
_CONTAINER: tuple[Type, ...] = ("text", "list", "object")


def _type_of(node: Node) -> Type | None:
    """The type of all values of `node`, None when that depends on the fields; raises ExpressionError."""
    match node:
        case Literal():
            return node.type
        case Field():
            return None
        case ListOf():
            for item in node.items:
                _type_of(item)
            return "list"
        case Call():
            return _call_type(node)
        case Negative():
            _require(_type_of(node.operand), _NUMBER, "`-`", node.operand.column)
            return "number"
        case Arithmetic():
            operators = [node.rest[0][0], *(operator for operator, _ in node.rest)]
            for operator, operand in zip(operators, node.children(), strict=True):
                _require(_type_of(operand), _NUMBER, f"`{operator}`", operand.column)
            return "number"
        case Comparison():
            _check_comparison(node, _type_of(node.left), _type_of(node.right))
            return "boolean"
        case Not():
            _require(_type_of(node.operand), _BOOLEAN, "`not`", node.operand.column)
            return "boolean"
        case Logical():
            for operand in node.operands:
                _require(_type_of(operand), _BOOLEAN, f"`{node.operator}`", operand.column)
            return "boolean"


def _call_type(node: Call) -> Type | None:
    function = FUNCTIONS[node.function]
    types = [_type_of(argument) for argument in node.arguments]
    for position, (argument, found) in enumerate(zip(node.arguments, types, strict=True)):
        _require(found, function.types_at(position), f"`{node.function}`", argument.column)
    if node.function == "matches":
        _check_pattern(node.arguments[1])
    if node.function == "contains":
        _check_member(types[1], types[0], node.column)
    return function.gives


def _check_comparison(node: Comparison, left: Type | None, right: Type | None) -> None:
    if node.operator in ("in", "not in"):
        _require(right, _CONTAINER, f"the right side of `{node.operator}`", node.right.column)
        _check_member(left, right, node.column)
    elif node.operator not in ("==", "!="):
        _require(left, _ORDERED, f"`{node.operator}`", node.left.column)
        _require(right, _ORDERED, f"`{node.operator}`", node.right.column)
        if left != right and not {left, right} & {None, "null"}:
            raise ExpressionError(f"{_named(left)} and {_named(right)} have no order", node.column)


def _check_member(item: Type | None, container: Type | None, column: int) -> None:
    if container == "text" and item not in ("text", "null", None):
        hint = "write the value as text, or look in a list"
        raise ExpressionError(f"{_named(item)} cannot be in {_named(container)}", column, hint)


def _check_pattern(node: Node) -> None:
    if isinstance(node, Literal) and isinstance(node.value, str):
        try:
            compile_pattern(node.value)
        except ValueError as error:
            raise ExpressionError(f"the pattern is wrong: {error}", node.column, "patterns are RE2") from None


def _require(found: Type | None, types: tuple[Type, ...], user: str, column: int) -> None:
    """Nothing is known of None, and null may stand anywhere."""
    if found is not None and found != "null" and found not in types:
        wanted = " or ".join(_named(wanted) for wanted in types)
        raise ExpressionError(f"{user} needs {wanted}, and this is {_named(found)}", column)


def _named(of: Type | None) -> str:
    return _NAMES[of or "null"]

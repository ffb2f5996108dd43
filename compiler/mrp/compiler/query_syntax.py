"""The text of a query as a tree, and the error that says where a query is wrong."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from mrp.specs.errors import UsageError
from mrp.specs.parsing import MAX_DEPTH, Grammar

KEYWORDS = ("let", "in", "set", "union", "except", "intersect")

_BARE = re.compile(r"[A-Za-z0-9_/@.:$~%#\[\]][A-Za-z0-9_/@.:$~%#\[\]*\-]*\Z")


class QueryError(UsageError):
    """A query is wrong. `column` counts its characters from 1; `hint` is a next step or ""."""

    def __init__(self, message: str, column: int, hint: str = "") -> None:
        self.message = message
        self.column = column
        self.hint = hint
        super().__init__(f"query, column {column}: {message}{f' ({hint})' if hint else ''}")


@dataclass(frozen=True)
class Word:
    """A label, a pattern, `$variable`, a number, or the text that a function asks for."""

    text: str
    column: int
    quoted: bool = False

    def children(self) -> Sequence["Query"]:
        return ()


@dataclass(frozen=True)
class Call:
    """A function and its arguments; `column` is where its name stands."""

    function: str
    arguments: tuple["Query", ...]
    column: int

    def children(self) -> Sequence["Query"]:
        return self.arguments


@dataclass(frozen=True)
class SetOf:
    """`set(a b c)`."""

    words: tuple[Word, ...]
    column: int

    def children(self) -> Sequence["Query"]:
        return self.words


@dataclass(frozen=True)
class Chain:
    """`first + a - b`, from left to right; the operators are `+`, `-` and `^`, whatever their spelling was."""

    first: "Query"
    rest: tuple[tuple[str, "Query"], ...]
    column: int

    def children(self) -> Sequence["Query"]:
        return (self.first, *(operand for _, operand in self.rest))


@dataclass(frozen=True)
class Let:
    """`let name = value in body`."""

    name: str
    value: "Query"
    body: "Query"
    column: int

    def children(self) -> Sequence["Query"]:
        return (self.value, self.body)


Query: TypeAlias = Word | Call | SetOf | Chain | Let


@lru_cache(maxsize=256)
def parse_query(text: str) -> Query:
    """The tree of `text`; raises QueryError. Functions and labels are looked up when it runs."""
    query: Query = _grammar().parse(text)
    _refuse_depth(query)
    return query


def quote(text: str) -> str:
    """`text` as one word of a query, in quotes where it needs them."""
    if _BARE.match(text) and text not in KEYWORDS:
        return text
    if "'" in text and '"' in text:
        raise QueryError(f"{text} holds both kinds of quotes, which no query can", 1, "write a `.` for one of them")
    return f'"{text}"' if "'" in text else f"'{text}'"


@cache
def _grammar() -> Grammar:
    return Grammar(Path(__file__).with_name("query.lark"), _Builder(), "query", QueryError, _HINTS)


_HINTS = {
    "-": "a word that begins with `-` needs quotes; to leave something out, write `e - x`",
    "*": "a word that begins with `*` needs quotes",
    "=": "quote a label with `@axis=value`",
    ",": "quote a label with `,`",
    "|": "write `+` or `union`",
    "&": "write `^` or `intersect`",
    **{word: f"`{word}` is a word of the language; quote it where a label is meant" for word in KEYWORDS},
}
_OPERATORS = {"union": "+", "except": "-", "intersect": "^"}


class _Builder:
    """One method a rule of query.lark; each takes the parts that the rule found."""

    def start(self, parts: Sequence[Any]) -> Query:
        query: Query = parts[0]
        return query

    def word(self, parts: Sequence[Any]) -> Word:
        (token,) = parts
        quoted = token.type == "QUOTED"
        return Word(str(token[1:-1] if quoted else token), token.start_pos + 1, quoted)

    def call(self, parts: Sequence[Any]) -> Call:
        name, *arguments = parts
        return Call(str(name), tuple(arguments), name.start_pos + 1)

    def set(self, parts: Sequence[Any]) -> SetOf:
        keyword, *words = parts
        return SetOf(tuple(words), keyword.start_pos + 1)

    def let(self, parts: Sequence[Any]) -> Let:
        name, value, body = parts
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            hint = "a name is letters, digits and `_`; the `$` comes only where it is used"
            raise QueryError(f"`{name}` cannot be a variable", name.start_pos + 1, hint)
        return Let(str(name), value, body, name.start_pos + 1)

    def operator(self, parts: Sequence[Any]) -> str:
        (token,) = parts
        return _OPERATORS.get(token, str(token))

    def chain(self, parts: Sequence[Any]) -> Chain:
        return Chain(parts[0], tuple(zip(parts[1::2], parts[2::2], strict=True)), parts[0].column)


def _refuse_depth(query: Query) -> None:
    waiting = [(query, 1)]
    while waiting:
        node, level = waiting.pop()
        if level > MAX_DEPTH:
            raise QueryError(f"the query nests more than {MAX_DEPTH} levels", node.column, "nest it less")
        waiting.extend((child, level + 1) for child in node.children())

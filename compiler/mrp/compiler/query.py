"""Asking the target graph: a query in Bazel's language in, a set of labels in total order out.

A query is read (query_syntax), its words become labels (query_words), its functions sets of labels (query_functions);
query_output prints them. Nothing here reads a disk: the graph, and for some functions the past, are handed in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from mrp.compiler.graph import TargetGraph
from mrp.compiler.query_functions import FUNCTIONS, Found, FunctionError, Parameter, Past, World
from mrp.compiler.query_syntax import Call, Chain, Let, Query, QueryError, SetOf, Word, parse_query, quote
from mrp.compiler.query_words import find
from mrp.specs.expression_values import compile_pattern
from mrp.specs.suggest import did_you_mean

__all__ = ["Past", "QueryError", "QueryResult", "from_words", "run_query"]

_MAX_COUNT_DIGITS = 9


@dataclass(frozen=True)
class QueryResult:
    """`labels` by label, or along the path where the query asks for one; `costs` in US dollars, where `cost` asked."""

    labels: tuple[str, ...]
    costs: Mapping[str, Decimal] = field(default_factory=dict)


def run_query(
    text: str, graph: TargetGraph, *, patterns_base_package: str = "", past: Past | None = None
) -> QueryResult:
    """The answer to `text`; raises QueryError.

    patterns_base_package: the package of relative labels such as `:name`. past: what `cached stale failed cost` ask.
    """
    world = World(graph, past)
    found = _Evaluation(world, patterns_base_package).value(parse_query(text), {})
    labels = tuple(found if isinstance(found, list) else sorted(found))
    return QueryResult(labels, {label: world.costs[label] for label in labels if label in world.costs})


def from_words(words: Sequence[str]) -> str:
    """The query that a command line means: `deps //jobs:eval 1` is `deps(//jobs:eval, 1)`.

    When the first word is no function that others follow, the words are joined as they are.
    """
    if len(words) > 1 and words[0] == "set":
        return f"set({' '.join(quote(word) for word in words[1:])})"
    if len(words) < 2 or words[0] not in FUNCTIONS:
        return " ".join(words)
    function = FUNCTIONS[words[0]]
    arguments = [_argument(word, function.parameter_at(position)) for position, word in enumerate(words[1:])]
    return f"{words[0]}({', '.join(arguments)})"


def _argument(word: str, parameter: Parameter) -> str:
    if parameter in ("pattern", "text"):
        return quote(word)
    if not any(character.isspace() for character in word):
        # One label with `@axis=value` is no query as it stands.
        try:
            parse_query(word)
        except QueryError:
            return quote(word)
    return word


class _Evaluation:
    """One reading of a query. Variables travel as a mapping, since each `let` sees only those around it."""

    def __init__(self, world: World, package: str) -> None:
        self._world = world
        self._package = package

    def value(self, query: Query, variables: Mapping[str, Found]) -> Found:
        match query:
            case Word():
                return self._word(query, variables)
            case SetOf():
                return {label for word in query.words for label in self._word(word, variables)}
            case Let():
                return self.value(query.body, {**variables, query.name: self.value(query.value, variables)})
            case Chain():
                found = set(self.value(query.first, variables))
                for operator, operand in query.rest:
                    other = set(self.value(operand, variables))
                    found = found | other if operator == "+" else found - other if operator == "-" else found & other
                return found
            case Call():
                return self._call(query, variables)

    def _word(self, word: Word, variables: Mapping[str, Found]) -> Found:
        if not word.text.startswith("$"):
            return find(word, self._world.graph, self._package)
        if word.text[1:] not in variables:
            hint = did_you_mean(word.text, [f"${name}" for name in variables]) or "bind it: `let x = e in $x`"
            raise QueryError(f"the variable `{word.text}` is not bound here", word.column, hint)
        return variables[word.text[1:]]

    def _call(self, call: Call, variables: Mapping[str, Found]) -> Found:
        function = FUNCTIONS.get(call.function)
        if function is None:
            hint = did_you_mean(call.function, FUNCTIONS) or f"the functions are {', '.join(FUNCTIONS)}"
            raise QueryError(f"`{call.function}` is not a function", call.column, hint)
        if not function.takes_many(len(call.arguments)):
            given = "1 argument" if len(call.arguments) == 1 else f"{len(call.arguments)} arguments"
            message = f"`{call.function}` does not take {given}"
            raise QueryError(message, call.column, f"write `{function.usage(call.function)}`")
        arguments: list[Any] = []
        for position, argument in enumerate(call.arguments):
            parameter = function.parameter_at(position)
            arguments.append(
                self.value(argument, variables)
                if parameter == "targets"
                else _plain(argument, parameter, f"`{function.usage(call.function)}`")
            )
        try:
            return function.apply(self._world, *arguments)
        except FunctionError as error:
            raise QueryError(error.message, call.column, error.hint) from None


def _plain(argument: Query, parameter: Parameter, usage: str) -> Any:
    """The number, pattern or text that a function asks for."""
    if not isinstance(argument, Word):
        raise QueryError(f"a {parameter} is expected here, as one word", argument.column, f"write {usage}")
    if parameter == "text":
        return argument.text
    if parameter == "count":
        if not argument.text.isascii() or not argument.text.isdigit() or len(argument.text) > _MAX_COUNT_DIGITS:
            raise QueryError(f"`{argument.text}` is not a number from 0", argument.column, f"write {usage}")
        return int(argument.text)
    try:
        return compile_pattern(argument.text)
    except ValueError as error:
        message = f"the pattern `{argument.text}` is wrong: {error}"
        raise QueryError(message, argument.column, "patterns are RE2") from None

"""Templates: text in which `${record.prompt}` stands for a value; parsed once, rendered for each item.

`$${` is a literal `${`, and any other `$` is itself. Which first words (record, params, matrix, ...) may stand in a
template is for its caller to check, with `names`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from mrp.cache.canonical import Json, canonical_text, number_text

_OPENING = re.compile(r"\$\$\{|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*\Z")
_MAX_SHOWN = 60


class TemplateError(ValueError):
    """A template that is malformed, or names something that its scope lacks.

    `column` counts from 1 within the template's text, and is 0 for errors of rendering.
    """

    def __init__(self, message: str, column: int = 0) -> None:
        self.message = message
        self.column = column
        super().__init__(message)


@dataclass(frozen=True)
class Name:
    """A value to be filled in: `path` is the dotted name, split; `column` where its `${` stands, from 1."""

    path: tuple[str, ...]
    column: int

    def __str__(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Template:
    """Literal text and names, in order."""

    parts: tuple[str | Name, ...]

    def names(self) -> tuple[str, ...]:
        """The dotted names that it uses, in order of first use, each once."""
        return tuple(dict.fromkeys(str(part) for part in self.parts if isinstance(part, Name)))

    def render(self, scope: Mapping[str, Json]) -> str:
        """The text with each name's value: text as it is, null as nothing, objects and lists in canonical JSON.

        Raises TemplateError when a name is not in `scope`: an empty text in its place would hide a typing error.
        """
        if len(self.parts) == 1 and isinstance(self.parts[0], str):
            return self.parts[0]
        return "".join(part if isinstance(part, str) else value_text(_look_up(part, scope)) for part in self.parts)


def parse_template(text: str) -> Template:
    """`text` as a template; raises TemplateError with the column of the first malformed `${`."""
    parts: list[str | Name] = []
    literal: list[str] = []
    position = 0
    while opening := _OPENING.search(text, position):
        literal.append(text[position : opening.start()])
        if opening[0] == "$${":
            literal.append("${")
            position = opening.end()
            continue
        column = opening.start() + 1
        end = text.find("}", opening.end())
        if end < 0:
            raise TemplateError("`${` has no closing `}`; write `$${` for a literal `${`", column)
        word = text[opening.end() : end]
        if not _NAME.match(word):
            raise TemplateError(f"`${{{word[:_MAX_SHOWN]}}}` is no name; write it like ${{record.prompt}}", column)
        if any(literal):
            parts.append("".join(literal))
        literal = []
        parts.append(Name(tuple(word.split(".")), column))
        position = end + 1
    literal.append(text[position:])
    if any(literal):
        parts.append("".join(literal))
    return Template(tuple(parts))


def value_text(value: Json) -> str:
    """A value as it stands in a text: numbers in their shortest decimal form, true, false, "" for null."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):
        return number_text(value)
    return canonical_text(value)


def _look_up(name: Name, scope: Mapping[str, Json]) -> Json:
    value: Json = scope
    for depth, word in enumerate(name.path):
        if not isinstance(value, Mapping) or word not in value:
            outer = ".".join(name.path[:depth])
            raise TemplateError(f"`${{{name}}}`: {outer or 'the scope'} has no `{word}`")
        value = value[word]
    return value

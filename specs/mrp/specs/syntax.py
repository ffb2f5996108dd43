"""libyaml's errors of syntax, each as one plain sentence with a next step."""

import re
from collections.abc import Callable

from yaml.error import Mark, MarkedYAMLError

from mrp.specs.errors import Span

_WORD_AT = re.compile(r"[^\s,\[\]{}]+")
_QUOTE = "put the text in quotes"
_INDENT = "check the indentation of this line and of the one before"

_PLAIN: dict[str, tuple[str, str]] = {
    "found unexpected end of stream": ("a quote is opened here and never closed", "close it"),
    "found unexpected document indicator": ("a quote is still open where a line `---` or `...` stands", "close it"),
    "did not find expected '-' indicator": ("this line is neither an item of the list around it nor its end", _INDENT),
    "block sequence entries are not allowed in this context": (
        "a list cannot start here",
        "start it on a line of its own, or write it as [a, b]",
    ),
    "mapping keys are not allowed in this context": ("a key cannot start here", _INDENT),
    "did not find expected hexdecimal number": ("the escape needs hexadecimal digits", r"write `\\` for a backslash"),
    "found invalid Unicode character escape code": ("the escape names no character", r"write `\\` for a backslash"),
    "found a tab character that violates indentation": ("a tab cannot indent", "use spaces"),
    "found a tab character where an indentation space is expected": ("a tab cannot indent", "use spaces"),
    "did not find expected comment or line break": (
        "only a comment may follow here",
        "start the text on the next line",
    ),
    "found unknown directive name": ("`%` directives are not part of the language", "delete the line"),
    "found incompatible YAML document": ("`%` directives are not part of the language", "delete the line"),
    "did not find expected <document start>": ("this line fits nowhere in the document", _INDENT),
    "did not find expected alphabetic or numeric character": ("a name is missing here", _QUOTE),
}


def explain_syntax(error: MarkedYAMLError, path: str, line_at: Callable[[Span], str]) -> tuple[Span, str, str]:
    """Place, sentence and next step for an error that libyaml raised; `line_at` gives the text of a span's line."""
    problem = error.problem or ""
    span = _span(path, error.problem_mark or error.context_mark)
    opened = _span(path, error.context_mark or error.problem_mark)
    line = line_at(span)
    if problem in _PLAIN:
        message, hint = _PLAIN[problem]
        return (opened if "quote" in message else span), message, hint
    if problem == "found character that cannot start any token":
        return _cannot_start(span, line)
    if problem == "did not find expected node content":
        return _no_content(span, line, at_end=not line_at(span._replace(line=span.line + 1)))
    if problem == "could not find expected ':'":
        return _no_colon(opened, line_at(opened))
    if problem == "mapping values are not allowed in this context":
        if re.search(r":\s", line[: span.column - 1]):
            return span, "a second `:` in one value", f"{_QUOTE}, or start the mapping on a line of its own"
        return span, "a key cannot stand here", f"{_INDENT}; a `:` needs a space after it"
    if problem == "found unknown escape character":
        word = line[span.column - 1 : span.column + 1]
        return span, f"`{word}` is no escape in a double-quoted text", "use single quotes, or double the backslash"
    if problem == "did not find expected key":
        if line[: span.column - 1].strip():
            return span, "nothing may follow the value before this", "put the whole value in one pair of quotes"
        return span, "this line does not fit the mapping around it", _INDENT
    if problem in ("did not find expected ',' or ']'", "did not find expected ',' or '}'"):
        bracket = "[" if problem.endswith("']'") else "{"
        message = f"`{bracket}` is opened here, but `{problem[-2]}` or `,` does not follow in line {span.line}"
        return opened, message, "close it, or quote what stands inside"
    if problem == "found undefined tag handle":
        word = _word(span, line)
        return _wide(span, word), f"the tag `{word}` is not part of the language", "delete it; write a text in quotes"
    return span, f"this is not YAML: {problem or 'unreadable'}", _QUOTE


def _cannot_start(span: Span, line: str) -> tuple[Span, str, str]:
    character = line[span.column - 1 : span.column]
    if character == "\t":
        return span, "a tab cannot indent", "use spaces"
    shown = "a backquote" if character == "`" else f"`{character}`"
    return _wide(span, character), f"{shown} cannot start a value", _QUOTE


def _no_content(span: Span, line: str, *, at_end: bool) -> tuple[Span, str, str]:
    word = _word(span, line)
    if at_end and not line[span.column - 1 :].strip():
        return span, "the file ends where a value is expected", "close every `[` and `{` that is open"
    if len(word) > 1 and word.startswith(":"):
        message = f"YAML forbids a bare `{word}` inside [ ] and {{ }}"
        return _wide(span, word), message, f'write it with quotes: "{word}"'
    character = line[span.column - 1 : span.column]
    return span, f"a value is missing before `{character}`" if character else "a value is missing here", _QUOTE


def _no_colon(span: Span, line: str) -> tuple[Span, str, str]:
    word = _word(span, line)
    shown = word if len(word) <= 60 else word[:57] + "..."
    message = f"`{shown}` starts a line here, but no `:` follows it"
    if word.startswith("-") and len(word) > 1:
        return _wide(span, word), message, f"an item of a list needs a space: `- {shown[1:]}`"
    return _wide(span, word), message, "write `key: value`, or indent the line if it continues the one before"


def _word(span: Span, line: str) -> str:
    match = _WORD_AT.match(line, span.column - 1)
    return match[0] if match else ""


def _wide(span: Span, word: str) -> Span:
    return span._replace(end_column=span.column + len(word))


def _span(path: str, mark: Mark | None) -> Span:
    return Span(path, mark.line + 1, mark.column + 1) if mark else Span(path, 1, 1)

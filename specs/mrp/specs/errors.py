"""What can go wrong, as types.

    MrpError                     has `exit_code`; its text is one sentence and a next step
      SpecError                  2: the user's documents; carries every Diagnostic found
      UsageError                 2: the command line
      PolicyError                3: policy refused; carries Diagnostics
      BudgetError                3: the estimate or the money spent is over the budget
      BuildFailed                1: an action that must succeed did not
      InfraError                 4: the machine, a backend or a provider failed; may be retried, is never a score

mrp.cache, which stands below this room, raises its own CacheError; the command line maps it to exit code 4.
"""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple


class Span(NamedTuple):
    """A place in a document: workspace-relative path, 1-based line and column, and the column after the word.

    Columns count characters. `end_column` is 0 where the thing ends on a later line, `line` is 0 for all of a folder
    or target. A tuple, since a large workspace has a million of them.
    """

    path: str
    line: int
    column: int
    end_column: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}" if self.line else self.path


@dataclass(frozen=True)
class Diagnostic:
    """One error: where, what (one sentence with the offending word), the next step, and the source line.

    `hint` is a "did you mean" or another next step; `source` the text of the line, without its newline.
    """

    span: Span
    message: str
    hint: str = ""
    source: str = field(default="", compare=False)

    def render(self) -> str:
        """The diagnostic as file:line:column, message, the source line with a caret, and the hint."""
        lines = [_printable(f"{self.span}: error: {self.message}")]
        if self.source:
            lines.extend(_caret_lines(self.source, self.span))
        if self.hint:
            lines.append(_printable(f"  {self.hint}"))
        return "\n".join(lines)


class MrpError(Exception):
    """Base of all errors that mrp explains to its user without a traceback."""

    exit_code = 4


class SpecError(MrpError):
    """The workspace's documents are wrong; `diagnostics` holds all that was found, sorted by place."""

    exit_code = 2

    def __init__(self, diagnostics: list[Diagnostic]) -> None:
        self.diagnostics = sorted(set(diagnostics), key=lambda d: (d.span, d.message))
        super().__init__("\n".join(d.render() for d in self.diagnostics))


class UsageError(MrpError):
    """The command line asks for something that does not exist or does not fit."""

    exit_code = 2


class PolicyError(MrpError):
    """Policy refuses the plan."""

    exit_code = 3

    def __init__(self, diagnostics: list[Diagnostic]) -> None:
        self.diagnostics = sorted(set(diagnostics), key=lambda d: (d.span, d.message))
        super().__init__("\n".join(d.render() for d in self.diagnostics))


class BudgetError(MrpError):
    """The run would cost, or has cost, more than its budget."""

    exit_code = 3


class BuildFailed(MrpError):
    """An action that the build needs did not succeed."""

    exit_code = 1


class InfraError(MrpError):
    """The machine, a backend or a provider failed; the task did not. `retryable` says whether again may help."""

    exit_code = 4

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        self.retryable = retryable
        super().__init__(message)


_MAX_SHOWN = 160


def _caret_lines(source: str, span: Span) -> list[str]:
    start = max(0, span.column - 1 - 60) if len(source) > _MAX_SHOWN else 0
    shown = source[start : start + _MAX_SHOWN]
    first = max(0, span.column - 1 - start)
    word = shown[first : max(first + 1, span.end_column - 1 - start)]
    return [f"  {_visible(shown)}", "  " + " " * _width(shown[:first]) + "^" * max(1, _width(word))]


def _visible(text: str) -> str:
    """The text as a terminal can show it: nothing in it moves the cursor or changes colours."""
    return "".join(letter if letter.isprintable() else " " if letter == "\t" else "\ufffd" for letter in text)


def _printable(text: str) -> str:
    """A sentence on one line, with what a document's words hold of control characters as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _width(text: str) -> int:
    """How many columns of a terminal the text takes: none for combining marks, two for wide letters."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def safe_relative(path: str) -> PurePosixPath | None:
    """`path` as a normal relative path, or None when it is absolute, empty, climbs out or holds a NUL or backslash."""
    if not path or path.startswith("/") or "\0" in path or "\\" in path:
        return None
    parts = PurePosixPath(path).parts
    if ".." in parts or not parts:
        return None
    return PurePosixPath(*parts)


def is_plain_relative(path: str) -> bool:
    """Whether `path` is a relative path just as `safe_relative` would write it."""
    if "\\" in path or "\0" in path:
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))

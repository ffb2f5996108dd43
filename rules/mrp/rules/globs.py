"""Globs over a record's files: what `tests/**` means.

`*` and `?` and `[abc]` stay within one folder, `**` as a whole segment spans any number of them, hidden names are
names like any other, and case counts. A glob names files, never folders: `tests` is not `tests/**`.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from mrp.specs.errors import safe_relative

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Glob:
    """One pattern, relative to a record's folder."""

    pattern: str

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(_translate(self.pattern))

    @cached_property
    def folder(self) -> str:
        """The literal folder before the first wildcard, or before the file's own name; "" for the record's folder."""
        parts = self.pattern.split("/")[:-1]
        literal = 0
        while literal < len(parts) and not _WILD.search(parts[literal]):
            literal += 1
        return "/".join(parts[:literal])

    def matches(self, path: str) -> bool:
        return self._regex.match(path) is not None

    def stripped(self, path: str) -> str:
        """`path`, which matches, without the literal folder."""
        return path[len(self.folder) + 1 :] if self.folder else path


def parse_glob(text: str) -> Glob:
    """`text` as a glob; raises ValueError when it is empty, absolute or climbs out of the record's folder."""
    path = safe_relative(text)
    if path is None or str(path) == ".":
        raise ValueError(f"{text!r} must be a glob below the record's folder, like tests/**")
    return Glob(str(path))


def _translate(pattern: str) -> str:
    parts = pattern.split("/")
    written: list[str] = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            written.append(".+" if last else "(?:[^/]+/)*")
        else:
            written.append(_segment(part) + ("" if last else "/"))
    return "(?s:" + "".join(written) + r")\Z"


def _segment(text: str) -> str:
    written: list[str] = []
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "*":
            written.append("[^/]*")
        elif character == "?":
            written.append("[^/]")
        elif character == "[" and (end := _class_end(text, position)) > 0:
            body = text[position:end]
            negated = body.startswith("!")
            body = re.sub(r"([\\\[\]^&~|])", r"\\\1", body[negated:])
            written.append(f"(?!/)[{'^' if negated else ''}{body}]")
            position = end + 1
        else:
            written.append(re.escape(character))
    return "".join(written)


def _class_end(text: str, start: int) -> int:
    """Where the `]` of a class stands whose content starts at `start`; -1 when there is none."""
    first = start + 1 if text.startswith("!", start) else start
    return text.find("]", first + 1)

"""The context of a Dockerfile: a folder without what its .dockerignore names, which is read as Docker reads it."""

import posixpath
import re
from collections.abc import Iterator
from typing import Any

from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.specs.errors import BuildFailed
from mrp.specs.expression_values import compile_pattern

_IGNORE = ".dockerignore"
_OUTSIDE = ".mrp.Dockerfile"
_TOKEN = re.compile(r"\*\*/?|\\.|.", re.DOTALL)
_LITERAL = ".+()|{}$"
"""What is not special in a pattern, and is in an expression."""


def docker_context(tree: Digest, folder: str, dockerfile: str, store: Store) -> tuple[Digest, str]:
    """The context, `folder` in a tree, and the Dockerfile's place in it: its own or, from outside, one of mrp's.

    The Dockerfile and .dockerignore always stay, as the engine needs them. Raises BuildFailed for a .dockerignore that
    cannot be read.
    """
    entries = store.read_tree(tree)
    prefix = f"{folder}/" if folder else ""
    context = {path.removeprefix(prefix): entry for path, entry in entries.items() if path.startswith(prefix)}
    name = dockerfile.removeprefix(prefix) if dockerfile.startswith(prefix) else _OUTSIDE
    if _IGNORE in context and (digest := context[_IGNORE].digest) is not None:
        ignored = _Ignored(store.get_bytes(digest), f"{prefix}{_IGNORE}")
        context = {path: entry for path, entry in context.items() if path in (name, _IGNORE) or path not in ignored}
    context[name] = entries[dockerfile]
    return store.put_tree(context), name


class _Ignored:
    """The paths that a .dockerignore names: its last line that matches a path, or a folder above it, decides."""

    def __init__(self, data: bytes, shown: str) -> None:
        self._lines = list(_lines(data, shown))
        self._folders: dict[str, list[bool]] = {"": [False] * len(self._lines)}

    def __contains__(self, path: str) -> bool:
        ignored = False
        for (exception, _), matches in zip(self._lines, self._matches(path), strict=True):
            if matches and exception == ignored:
                ignored = not exception
        return ignored

    def _matches(self, path: str) -> list[bool]:
        """Whether each line matches the path or a folder above it."""
        folder = posixpath.dirname(path)
        if folder not in self._folders:
            self._folders[folder] = self._matches(folder)
        return [
            above or pattern.fullmatch(path) is not None
            for (_, pattern), above in zip(self._lines, self._folders[folder], strict=True)
        ]


def _lines(data: bytes, shown: str) -> Iterator[tuple[bool, Any]]:
    """Whether each line is an exception, which begins with `!`, and its pattern."""
    try:
        for line in data.decode("utf-8-sig").splitlines():
            text = line.strip()
            if not text or line.startswith("#"):
                continue
            exception = text.startswith("!")
            text = text.removeprefix("!").strip()
            if not text:
                raise ValueError("a line has nothing but `!`")
            pattern = posixpath.normpath(posixpath.normpath(text).lstrip("/").strip())
            yield exception, compile_pattern(_expression(pattern))
    except ValueError as error:
        raise BuildFailed(f"{shown} cannot be read ({error}); correct its patterns") from None


def _expression(pattern: str) -> str:
    r"""The expression for a pattern: `*` and `?` stay within a name, `**` does not, `\` takes the next for itself."""
    literal_end = not any(letter in pattern[2:] for letter in "*?[]\\")
    found = []
    for token in _TOKEN.finditer(pattern):
        text = token[0]
        if text.startswith("**"):
            # `**.py` is any path with that end, and `**[.]py` is not: so it is in Docker.
            anything = token.end() == len(pattern) or (text == "**" and token.start() == 0 and literal_end)
            found.append(".*" if anything else "(.*/)?")
        elif text in _LITERAL:
            found.append(f"\\{text}")
        else:
            found.append({"*": "[^/]*", "?": "[^/]"}.get(text, text))
    return "".join(found)

"""Running a lark grammar over text that anybody may have written: bounded in size and depth, with errors for people.

lark is imported here and only when something is parsed. Grammars are LALR with the plain lexer, so a keyword is a
keyword everywhere, and the tree is built bottom-up by a builder object whose methods are named after the rules.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

MAX_LENGTH = 10_000
MAX_DEPTH = 100

Fail: TypeAlias = Callable[[str, int, str], Exception]
"""Makes the error of a language from its message, its column (from 1) and a hint ("" for none)."""


class Grammar:
    """One language: its grammar file, the builder of its tree, and the error that it raises."""

    def __init__(
        self, path: Path, builder: object, what: str, fail: Fail, hints: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`what` names a text of the language in messages, like `expression`.

        `hints` are next steps by the word or character, in small letters, that does not fit where it stands.
        """
        import lark

        self._what = what
        self._fail = fail
        self._hints = hints
        self._unexpected = lark.UnexpectedInput
        self._parser = lark.Lark(
            path.read_text(encoding="utf-8"),
            parser="lalr",
            lexer="basic",
            transformer=builder,
            postlex=_Brackets(self._too_deep),
            maybe_placeholders=False,
        )

    def parse(self, text: str) -> Any:
        """What the builder made of `text`; raises the language's error."""
        if len(text) > MAX_LENGTH:
            message = f"the {self._what} has {len(text)} characters, more than {MAX_LENGTH}"
            raise self._fail(message, MAX_LENGTH + 1, "split it, or compute part of it beforehand")
        if not text.strip():
            raise self._fail(f"the {self._what} is empty", 1, "")
        try:
            return self._parser.parse(text)
        except self._unexpected as error:
            raise self._explain(text, error) from None

    def _explain(self, text: str, error: Any) -> Exception:
        token = getattr(error, "token", None)
        if token is not None and token.type == "$END":
            return self._fail(f"the {self._what} ends too early", len(text) + 1, "")
        if token is not None:
            return self._fail(
                f"`{token}` does not fit here", token.start_pos + 1, self._hints.get(str(token).lower(), "")
            )
        character = text[error.pos_in_stream]
        if character in "'\"":
            return self._fail(f"the text that {character} opens is not closed", error.pos_in_stream + 1, "")
        hint = self._hints.get(character, "")
        return self._fail(f"`{character}` does not fit here", error.pos_in_stream + 1, hint)

    def _too_deep(self, column: int) -> Exception:
        return self._fail(f"more than {MAX_DEPTH} brackets are open here", column, f"nest the {self._what} less")


class _Brackets:
    """Watches the token stream for brackets that nest too deep."""

    always_accept = ()

    def __init__(self, fail: Callable[[int], Exception]) -> None:
        self._fail = fail

    def process(self, stream: Iterator[Any]) -> Iterator[Any]:
        level = 0
        for token in stream:
            if token in ("(", "["):
                level += 1
                if level > MAX_DEPTH:
                    raise self._fail(token.start_pos + 1)
            elif token in (")", "]"):
                level -= 1
            yield token

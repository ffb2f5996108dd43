"""YAML as mrp reads it: plain data with the place of every value and key, and nothing that has to be guessed.

The subset is YAML 1.2's core schema without anchors, aliases, tags, merge keys and directives. Keys are text and
unique. Numbers are int or Decimal, read exactly. `yes`, `no`, `on` and `off` are text.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from yaml.cyaml import CSafeLoader
from yaml.error import MarkedYAMLError, YAMLError
from yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from mrp.cache.canonical import Json
from mrp.specs.collector import paused_collector
from mrp.specs.errors import Diagnostic, Span, SpecError
from mrp.specs.scalars import resolve_plain
from mrp.specs.syntax import explain_syntax

MAX_BYTES = 16 * 2**20
MAX_LINE = 100_000
MAX_DEPTH = 100

Value: TypeAlias = "str | bool | int | Decimal | list[Node] | dict[str, Node] | None"

_HOLDERS = (dict, list)
_new = tuple.__new__
"""Makes a Node or Span without the call in Python that its own constructor is."""

_NO_KEYS: Mapping[str, Span] = MappingProxyType({})


class Node(NamedTuple):
    """A value, its place, and for a mapping the place of each key. A tuple for speed; never changed."""

    value: Value
    span: Span
    key_spans: Mapping[str, Span] = _NO_KEYS


class Sources:
    """The texts of the documents in hand, by path, so that a diagnostic can show its line."""

    def __init__(self, texts: Mapping[str, bytes] | None = None) -> None:
        self._texts = dict(texts or {})
        self._lines: dict[str, list[str]] = {}

    def add(self, path: str, text: bytes) -> None:
        """Remembers the bytes of the document at `path`."""
        self._texts[path] = text
        self._lines.pop(path, None)

    def text(self, path: str) -> bytes:
        """The bytes of the document at `path`; raises KeyError when it is not here."""
        return self._texts[path]

    def line(self, span: Span) -> str:
        """The line that `span` points to, or "" when its document is not here."""
        lines = self._lines.get(span.path)
        if lines is None:
            lines = self._texts.get(span.path, b"").decode("utf-8-sig", "replace").splitlines()
            self._lines[span.path] = lines
        return lines[span.line - 1] if 0 < span.line <= len(lines) else ""

    def word(self, span: Span) -> str:
        """The text that `span` covers on its line."""
        return self.line(span)[span.column - 1 : max(span.column, span.end_column) - 1]

    def diagnostic(self, span: Span, message: str, hint: str = "") -> Diagnostic:
        """A diagnostic with its source line filled in."""
        return Diagnostic(span, message, hint, self.line(span))


def parse_yaml(text: bytes, path: str) -> Node:
    """The one document in `text`, which was read from workspace-relative `path`; an empty one is null.

    Raises SpecError with everything that is wrong, up to the first error of syntax.
    """
    sources = Sources({path: text})
    _check_text(text, path, sources)
    reader = _Reader(path, sources)
    with paused_collector():
        node = reader.read(text.removeprefix(b"\xef\xbb\xbf"))
    if reader.diagnostics:
        raise SpecError(reader.diagnostics)
    return node


def plain(node: Node) -> Json:
    """The value without places: str, bool, None, int, Decimal, list, dict."""
    value = node.value
    # Scalars are taken without a call: a large workspace has a million of them.
    if isinstance(value, dict):
        return {key: plain(item) if isinstance(item.value, _HOLDERS) else item.value for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) if isinstance(item.value, _HOLDERS) else item.value for item in value]
    return value


def find(node: Node, location: Sequence[str | int]) -> tuple[Node, int]:
    """Follows keys and indices as far as they exist: the node reached, and how many steps were taken."""
    for taken, step in enumerate(location):
        value = node.value
        if isinstance(value, dict) and isinstance(step, str):
            inner = value.get(step)
        else:
            inner = value[step] if isinstance(value, list) and isinstance(step, int) and step < len(value) else None
        if inner is None:
            return node, taken
        node = inner
    return node, len(location)


def span_at(node: Node, location: Sequence[str | int]) -> Span:
    """The place of the value at `location` (keys and indices), or of the nearest one around it that exists."""
    return find(node, location)[0].span


def key_span_at(node: Node, location: Sequence[str | int]) -> Span | None:
    """The place of the key that the last step of `location` names; None for items of lists and missing keys."""
    around, taken = find(node, location[:-1])
    if not location or taken < len(location) - 1:
        return None
    return around.key_spans.get(str(location[-1]))


def node_to_json(node: Node) -> Json:
    """A compact JSON form of a tree of one document, for a memo of parsed packages."""
    places: list[int] = []
    value = _pack(node, places)
    return {"path": node.span.path, "value": value, "places": places}


def node_from_json(packed: Json) -> Node:
    """The inverse of `node_to_json`. Raises KeyError, TypeError, ValueError or StopIteration on anything else."""
    with paused_collector():
        return _unpack(packed["value"], packed["path"], iter(packed["places"]))


# -- the memo's form: scalars as they are, lists as lists, {"k": keys, "v": values}, {"d": decimal text} ---------


def _pack(node: Node, places: list[int]) -> Json:
    value, span, keys = node
    places += span[1:]
    if isinstance(value, dict):
        for key in value:
            places += keys[key][1:]
        return {"k": list(value), "v": [_pack(item, places) for item in value.values()]}
    if isinstance(value, list):
        return [_pack(item, places) for item in value]
    return {"d": str(value)} if isinstance(value, Decimal) else value


def _unpack(value: Json, path: str, places: Iterator[int]) -> Node:
    span = Span(path, next(places), next(places), next(places))
    if isinstance(value, dict):
        if "d" in value:
            return Node(Decimal(value["d"]), span)
        keys = {key: Span(path, next(places), next(places), next(places)) for key in value["k"]}
        return Node({k: _unpack(v, path, places) for k, v in zip(keys, value["v"], strict=True)}, span, keys)
    if isinstance(value, list):
        return Node([_unpack(item, path, places) for item in value], span)
    return Node(value, span)


# -- the text ----------------------------------------------------------------------------------------------------

_ASCII_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def _check_text(text: bytes, path: str, sources: Sources) -> None:
    """Refuses what is no text that a person wrote: wrong encodings, control characters, endless lines, huge files."""

    def refuse(line: int, column: int, message: str, hint: str, *, show: bool = True) -> SpecError:
        span = Span(path, line, column, column + 1)
        return SpecError([sources.diagnostic(span, message, hint) if show else Diagnostic(span, message, hint)])

    if len(text) > MAX_BYTES:
        message = f"the file has {len(text)} bytes; at most {MAX_BYTES} are read"
        raise refuse(1, 1, message, "split the package, or keep data in data files", show=False)
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (3 if text.startswith(b"\xef\xbb\xbf") else 0)
        before = text[:start].decode("utf-8-sig", "replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"the byte 0x{text[start]:02x} is not UTF-8"
        raise refuse(line, column, message, "save the file as UTF-8") from None
    longest = max(map(len, decoded.splitlines()), default=0)
    if longest > MAX_LINE:
        line = next(n for n, content in enumerate(decoded.splitlines(), 1) if len(content) > MAX_LINE)
        length = len(decoded.splitlines()[line - 1])
        message = f"a line of {length} characters; at most {MAX_LINE} are read"
        raise refuse(line, 1, message, "keep data in data files", show=False)
    if _ASCII_CONTROL.search(text) or (not decoded.isascii() and _CONTROL.search(decoded)):
        bad = _CONTROL.search(decoded)
        assert bad is not None
        before = decoded[: bad.start()]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"the control character U+{ord(bad[0]):04X} is not allowed"
        hint = f'write it as "\\u{ord(bad[0]):04x}" in double quotes' if bad[0] != "\0" else "is this a text file?"
        raise refuse(line, column, message, hint)


# -- the tree ----------------------------------------------------------------------------------------------------

_MAX_DIAGNOSTICS = 100


class _Stop(Exception):
    """Enough is known to be wrong with this file."""


class _Reader:
    """Turns the events of libyaml into nodes, and collects what is refused on the way."""

    def __init__(self, path: str, sources: Sources) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._path = path
        self._sources = sources
        self._depth = 0
        self._words: dict[str, str | bool | int | Decimal | None] = {}
        self._keys: dict[str, str] = {}  # one text for each, however often it is written
        self._aliases: set[str] = set()

    def read(self, text: bytes) -> Node:
        """The root node; what it holds counts only when `diagnostics` is empty."""
        self._next: Callable[[], Any] = CSafeLoader(text).get_event
        root = Node(None, Span(self._path, 1, 1))
        try:
            self._next()
            documents = 0
            while type(event := self._next()) is not StreamEndEvent:
                documents += 1
                if documents > 1:
                    message = "a second document starts here; a file holds one"
                    self._report(self._span(event), message, "move it to a file of its own, or delete the `---`")
                    break
                self._check_directives(event)
                root = self._node(self._next())
                self._next()
        except MarkedYAMLError as error:
            self.diagnostics.append(self._sources.diagnostic(*explain_syntax(error, self._path, self._sources.line)))
        except YAMLError as error:
            self._report(root.span, f"this is not YAML: {error}".splitlines()[0])
        except _Stop:
            pass
        return root

    def _node(self, event: Any) -> Node:
        if event.__class__ is ScalarEvent:
            if event.anchor is not None or event.tag is not None:
                self._refuse_properties(event)
            text: str = event.value
            value = text if event.style and "\0" not in text else self._scalar(event)
            return _new(Node, (value, self._span(event), _NO_KEYS))
        if event.__class__ is AliasEvent:
            name = str(event.anchor)
            if name not in self._aliases:
                self._aliases.add(name)
                message = f"the alias `*{_shown(name)}` is not part of the language"
                self._report(self._span(event), message, "write the value out")
            return Node(None, self._span(event))
        if event.anchor is not None or event.tag is not None:
            self._refuse_properties(event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._report(self._span(event), f"values are nested more than {MAX_DEPTH} levels deep", "flatten them")
            raise _Stop
        node = self._mapping(event) if event.__class__ is MappingStartEvent else self._sequence(event)
        self._depth -= 1
        return node

    def _sequence(self, start: Any) -> Node:
        items: list[Node] = []
        while (event := self._next()).__class__ is not SequenceEndEvent:
            items.append(self._node(event))
        return Node(items, self._collection_span(start, event))

    def _mapping(self, start: Any) -> Node:
        items: dict[str, Node] = {}
        spans: dict[str, Span] = {}
        while (event := self._next()).__class__ is not MappingEndEvent:
            span = self._span(event)
            key = self._key(event, span)
            value_event = self._next()
            value = self._node(value_event)
            if key is None:
                continue
            if key in items:
                message = f"`{_shown(key)}` is written twice here; the first is in line {spans[key].line}"
                self._report(span, message, "remove one of the two")
                continue
            if start.flow_style and value.value is None and ":" in key and not event.style and not value_event.value:
                name, _, rest = key.partition(":")
                message = f"`{_shown(key)}` is one word to YAML, with nothing after it"
                self._report(span, message, f"write `{name}: {rest}` with a space, or quote it")
            items[key] = value
            spans[key] = span
        return Node(items, self._collection_span(start, event), spans)

    def _key(self, event: Any, span: Span) -> str | None:
        """The key's text, or None after reporting what stands there instead."""
        if event.__class__ is not ScalarEvent:
            self._node(event)
            if event.__class__ is not AliasEvent:
                self._report(span, "a list or mapping cannot be a key", "write the key as text")
            return None
        if event.anchor is not None or event.tag is not None:
            self._refuse_properties(event)
        text: str = event.value
        if event.style:
            return text
        known = self._keys.get(text)
        if known is not None:
            return known
        if text == "<<":
            self._report(span, "the merge key `<<` is not part of the language", "write the fields out")
            return None
        if not text:
            self._report(span, "a key is missing before `:`", 'write a key; write "" for the empty text')
            return None
        try:
            resolved = resolve_plain(text)
        except ValueError:
            resolved = None
        if isinstance(resolved, str):
            self._keys[text] = text
            return text
        self._report(span, f"the key `{_shown(text)}` is not text", f'write "{_shown(text)}" with quotes')
        return None

    def _scalar(self, event: Any) -> str | bool | int | Decimal | None:
        text: str = event.value
        if event.style:
            if "\0" in text:
                self._report(self._span(event), 'the character "\\0" is not allowed in a text', "leave it out")
            return text
        try:
            return self._words[text]
        except KeyError:
            pass
        try:
            value = self._words[text] = resolve_plain(text)
        except ValueError as error:
            self._report(self._span(event), str(error), "")
            return None
        return value

    def _check_directives(self, event: Any) -> None:
        if event.version or event.tags:
            self._report(self._span(event), "`%` directives are not part of the language", "delete the line")

    def _refuse_properties(self, event: Any) -> None:
        span = self._span(event)
        rest = self._sources.line(span)[span.column - 1 :]
        for word in re.findall(r"[&!][^\s,\[\]{}]*", rest)[:2]:
            place = span._replace(column=span.column + rest.index(word), end_column=0)
            place = place._replace(end_column=place.column + len(word))
            if word[0] == "&" and event.anchor is not None:
                self._report(place, f"the anchor `{_shown(word)}` is not part of the language", "delete it")
            elif word[0] == "!" and event.tag is not None:
                hint = "delete it; write a text in quotes"
                self._report(place, f"the tag `{_shown(word)}` is not part of the language", hint)

    def _span(self, event: Any) -> Span:
        start, end = event.start_mark, event.end_mark
        line: int = start.line
        return _new(Span, (self._path, line + 1, start.column + 1, end.column + 1 if end.line == line else 0))

    def _collection_span(self, start: Any, end: Any) -> Span:
        first, last = start.start_mark, end.end_mark
        return Span(self._path, first.line + 1, first.column + 1, last.column + 1 if last.line == first.line else 0)

    def _report(self, span: Span, message: str, hint: str = "") -> None:
        self.diagnostics.append(self._sources.diagnostic(span, message, hint))
        if len(self.diagnostics) >= _MAX_DIAGNOSTICS:
            raise _Stop


def _shown(text: str) -> str:
    """A word of the document as a message shows it: on one line, and not endless."""
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return text if len(text) <= 60 else text[:57] + "..."

"""From nodes to documents, with every fault at its place and in the words of the language.

Pydantic decides what is valid. When it refuses, the types are walked beside the nodes: that finds all faults of a
document at once, gives one sentence where a union fails, and lets each sentence say what was expected.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, TypeVar, get_args

from pydantic import BeforeValidator, ValidationError

from mrp.cache.canonical import Json
from mrp.specs.documents import KINDS, BuildFile, Document, LabelRef, Target
from mrp.specs.errors import Diagnostic, Span
from mrp.specs.expectation import Type, at_least, bounds, document_fields, expected, listed, noun, pattern
from mrp.specs.suggest import did_you_mean, nearest
from mrp.specs.yaml import Node, Sources, find, plain

__all__ = ["RawTarget", "did_you_mean", "split_build", "validate", "validate_build", "validate_target"]

AnyDocument = TypeVar("AnyDocument", bound=Document)

TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}\Z")
_VERSION_HINT = "this mrp reads version 1: write `mrp: 1` as the first line"


@dataclass(frozen=True, slots=True)
class RawTarget:
    """A target as written: its name, its kind, and its other fields, which nothing has looked at yet."""

    name: str
    name_span: Span
    kind: str
    kind_span: Span
    node: Node


@dataclass(frozen=True)
class BuildTarget:
    """A valid target of a BUILD.yaml and where it is written."""

    name: str
    name_span: Span
    kind: str
    document: Target
    node: Node


def validate(
    model: type[AnyDocument], node: Node, sources: Sources, place: Span | None = None
) -> tuple[AnyDocument | None, list[Diagnostic]]:
    """The document that `node` spells, or None and everything that is wrong with it.

    `place` is where the document itself is pointed at, when a field is missing: a target's name, say. Without it,
    that is where the node starts.
    """
    value = plain(node)
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        explainer = _Explainer(sources)
        explainer.document(model, node, noun(model), place or _start(node))
        if not explainer.diagnostics:
            explainer.in_pydantic_words(error, node, noun(model), place or _start(node))
        return None, explainer.diagnostics


def validate_target(raw: RawTarget, sources: Sources) -> tuple[Target | None, list[Diagnostic]]:
    """The document of a target whose `select` and `${matrix...}` are resolved, or None and all that is wrong."""
    return validate(KINDS[raw.kind], raw.node, sources, raw.name_span)


def split_build(node: Node, sources: Sources) -> tuple[list[RawTarget], list[Diagnostic]]:
    """The targets of a BUILD.yaml whose name and kind are right, and what is wrong with the others and the file."""
    targets = node.value.get("targets") if isinstance(node.value, dict) else None
    whole = node
    if targets is not None and isinstance(node.value, dict) and isinstance(targets.value, dict):
        whole = node._replace(value={**node.value, "targets": Node({}, targets.span)})
    diagnostics = validate(BuildFile, whole, sources)[1]
    raw: list[RawTarget] = []
    if targets is None or not isinstance(targets.value, dict):
        return raw, diagnostics
    for name, target in targets.value.items():
        found, problems = _split_target(name, targets.key_spans[name], target, sources)
        diagnostics += problems
        if found:
            raw.append(found)
    return raw, diagnostics


def validate_build(node: Node, sources: Sources) -> tuple[list[BuildTarget], list[Diagnostic]]:
    """The valid targets of a BUILD.yaml (as they stand: nothing is selected or filled in), and all faults."""
    valid: list[BuildTarget] = []
    raw_targets, diagnostics = split_build(node, sources)
    for raw in raw_targets:
        document, problems = validate_target(raw, sources)
        diagnostics += problems
        if document is not None:
            valid.append(BuildTarget(raw.name, raw.name_span, raw.kind, document, raw.node))
    return valid, diagnostics


def _split_target(name: str, span: Span, target: Node, sources: Sources) -> tuple[RawTarget | None, list[Diagnostic]]:
    problems: list[Diagnostic] = []
    if not TARGET_NAME.match(name):
        message = f"`{name[:60]}` cannot name a target"
        hint = "use letters, digits and _ . + -, starting with a letter or digit, at most 128"
        problems.append(sources.diagnostic(span, message, hint))
    if not isinstance(target.value, dict):
        explainer = _Explainer(sources)
        explainer.wrong(f"the target `{name}`", "a mapping with a `kind`", target, span)
        return None, problems + explainer.diagnostics
    kind = target.value.get("kind")
    kinds = f"a kind is one of {listed(sorted(KINDS), 'or')}"
    if kind is None:
        near = nearest("kind", target.value)
        hint = f"did you mean `kind` for `{near}`?" if near and near not in ("kind",) else kinds
        return None, [*problems, sources.diagnostic(span, f"the target `{name}` needs a `kind`", hint)]
    if not isinstance(kind.value, str) or kind.value not in KINDS:
        word = sources.word(kind.span) if not isinstance(kind.value, str) else kind.value
        message = f"unknown kind `{word[:60]}`" if word else "the kind is not a word"
        return None, [*problems, sources.diagnostic(kind.span, message, did_you_mean(word, KINDS) or kinds)]
    if problems:
        return None, problems
    fields = {field: value for field, value in target.value.items() if field != "kind"}
    keys = {field: place for field, place in target.key_spans.items() if field != "kind"}
    return RawTarget(name, span, kind.value, kind.span, Node(fields, target.span, keys)), problems


def _start(node: Node) -> Span:
    return node.span if node.span.end_column else node.span._replace(end_column=node.span.column + 1)


class _Explainer:
    """Walks types beside nodes and collects what does not fit."""

    def __init__(self, sources: Sources) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._sources = sources

    def document(self, model: type[Document], node: Node, name: str, place: Span) -> None:
        """`name` is what a sentence calls the document: `a rollout`, `limits`."""
        if node.value is None and place == _start(node):
            self._report(place, f"{name} is empty", _VERSION_HINT)
            return
        if not isinstance(node.value, dict):
            self.wrong(name, expected(Type(model)), node, place)
            return
        before = len(self.diagnostics)
        fields = document_fields(model)
        meant = self._unknown_fields(node, fields, name)
        for field, (wanted, required) in fields.items():
            if field in node.value:
                self._value(wanted, node.value[field], f"`{field}`", node.key_spans.get(field, place))
            elif required and field not in meant:
                self._missing(name, field, wanted, place)
        if len(self.diagnostics) == before:
            self._own_rules(model, node, place)

    def _unknown_fields(self, node: Node, fields: dict[str, tuple[Type, bool]], name: str) -> set[str]:
        """Reports unknown fields; returns the known ones that were probably meant by them."""
        assert isinstance(node.value, dict)
        meant: set[str] = set()
        free = [field for field in fields if field not in node.value]
        for field in node.value:
            if field not in fields:
                near = nearest(field, free) or nearest(field, fields)
                meant.update([near] if near else [])
                hint = f"did you mean `{near}`?" if near else f"the fields here are {listed(list(fields), 'and')}"
                self._report(node.key_spans.get(field, node.span), f"unknown field `{_cut(field)}` in {name}", hint)
        return meant

    def _missing(self, name: str, field: str, wanted: Type, place: Span) -> None:
        hint = _VERSION_HINT if field == "mrp" else f"write `{field}:` with {expected(wanted)}"
        self._report(place, f"{name} needs `{field}`", hint)

    def _own_rules(self, model: type[Document], node: Node, place: Span) -> None:
        """What the model itself checks across its fields, once each field is right."""
        try:
            model.model_validate(plain(node))
        except ValidationError as error:
            for item in error.errors(include_url=False):
                if item["type"] == "value_error" and not item["loc"]:
                    self._report(place, _sentence(item))

    def _value(self, wanted: Type, node: Node, name: str, place: Span) -> None:
        value = node.value
        if wanted.base is Any or (value is None and wanted.admits_null):
            return
        for mark in wanted.marks(BeforeValidator):
            self._converted(mark, wanted, node, name, place)
            return
        fitting = [branch for branch in wanted.branches if _has_shape(branch, value)]
        if len(fitting) != 1:
            if not fitting:
                self.wrong(name, expected(wanted), node, place, wanted)
            return
        (branch,) = fitting
        if branch.model:
            self.document(branch.model, node, name, place)
        elif isinstance(value, list):
            if len(value) < at_least(branch):
                self._report(node.span, f"{name} is empty; it needs at least one entry")
            for number, item in enumerate(value, 1):
                self._value(branch.arguments[0], item, f"item {number} of {name}", item.span)
        elif isinstance(value, dict):
            for key, item in value.items():
                self._value(branch.arguments[1], item, f"`{_cut(key)}`", node.key_spans.get(key, place))
        else:
            self._scalar(branch, wanted, node, name, place)

    def _converted(self, mark: BeforeValidator, wanted: Type, node: Node, name: str, place: Span) -> None:
        """A value that the model turns into another first: sizes, durations, numbers."""
        convert: Any = mark.func
        try:
            number = convert(plain(node))
        except ValueError as error:
            if isinstance(node.value, str) and str(error).startswith("`"):
                self._report(node.span, f"{name}: {error}")
            else:
                self.wrong(name, expected(wanted), node, place, wanted)
            return
        if not _within(wanted, number):
            self.wrong(name, expected(wanted), node, place, wanted)

    def _scalar(self, branch: Type, wanted: Type, node: Node, name: str, place: Span) -> None:
        value = node.value
        if branch.origin is Literal:
            choices = get_args(branch.base)
            if not any(value == choice and type(value) is type(choice) for choice in choices):
                hint = did_you_mean(value, map(str, choices)) if isinstance(value, str) else ""
                self.wrong(name, expected(wanted), node, place, wanted, hint)
        elif isinstance(value, str):
            expression = pattern(branch)
            if expression and not re.search(re.sub(r"\$\Z", r"\\Z", expression), value):
                self.wrong(name, expected(wanted), node, place, wanted)
        elif isinstance(value, int | Decimal) and not _within(branch, value):
            self.wrong(name, expected(wanted), node, place, wanted)

    def wrong(self, name: str, words: str, node: Node, place: Span, wanted: Type | None = None, hint: str = "") -> None:
        """Reports that `name`, whose value is `node`, must be `words`; the hint says how to write it."""
        value = node.value
        if name == "`mrp`":
            hint = _VERSION_HINT
        if value is None and not self._sources.word(node.span):
            self._report(
                place,
                f"{name} must be {words}, but nothing is written after it",
                hint or "write it, or delete the line",
            )
            return
        if isinstance(value, list | dict):
            found = "a list" if isinstance(value, list) else "a mapping"
            self._report(_start(node), f"{name} must be {words}, not {found}", hint or self._nesting_hint(wanted, node))
            return
        word = value if isinstance(value, str) else self._sources.word(node.span) or str(plain(node))
        hint = hint or _spelling_hint(wanted, value, word)
        found = f"`{_cut(word)}`" if word else "the empty text"
        found = f"the text {found}" if hint.endswith("without quotes") else found
        self._report(node.span, f"{name} must be {words}, not {found}", hint)

    def _nesting_hint(self, wanted: Type | None, node: Node) -> str:
        if isinstance(node.value, dict) and wanted and any(branch.base is str for branch in wanted.branches):
            return "a text that holds `: ` must stand in quotes"
        return ""

    def in_pydantic_words(self, error: ValidationError, node: Node, name: str, place: Span) -> None:
        """The last resort, for a fault that the walk does not know."""
        for item in error.errors(include_url=False):
            found, taken = find(node, item["loc"])
            self._report(found.span if taken else place, f"{name}: {_sentence(item)}")

    def _report(self, span: Span, message: str, hint: str = "") -> None:
        self.diagnostics.append(self._sources.diagnostic(span, message, hint))


def _has_shape(wanted: Type, value: Any) -> bool:
    """Whether `value` is at least the right kind of thing for a type that is no union."""
    if wanted.base is Any:
        return True
    if wanted.origin is Literal:
        return isinstance(value, str) and any(isinstance(choice, str) for choice in get_args(wanted.base))
    if wanted.model or wanted.origin is dict:
        return isinstance(value, dict)
    if wanted.origin is list:
        return isinstance(value, list)
    return type(value) is wanted.base


def _within(wanted: Type, number: Any) -> bool:
    least, greatest = bounds(wanted)
    return (least is None or number >= least) and (greatest is None or number <= greatest)


def _spelling_hint(wanted: Type | None, value: Json, word: str) -> str:
    """How to write a scalar so that it is read as what is wanted."""
    if wanted is None:
        key, _, rest = word.partition(":")
        return f"write `{key}: {rest}`, with a space" if isinstance(value, str) and key and rest else ""
    types = {branch.origin or branch.base for branch in wanted.branches}
    if str in types and not isinstance(value, str) and not wanted.marks(LabelRef):
        return f'write "{word}" with quotes'
    if bool in types and isinstance(value, str) and value.lower() in _YES_AND_NO:
        meant = "true" if value.lower() in ("yes", "on", "y", "true") else "false"
        return f"write {meant} without quotes" if value.lower() == meant else f"write {meant}"
    if types & {int, Decimal} and isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        return f"write {value} without quotes"
    if list in types and isinstance(value, str):
        words = value.split()
        if words and re.match(r"-[^-]", words[0]):
            return f"an item of a list needs a space: `- {_cut(words[0][1:])}`"
        several = len(words) > 1 and all(map(_PLAIN_WORD.match, words))
        return f"write [{_cut(', '.join(words))}]" if several else f'write ["{_cut(word)}"]'
    return ""


_PLAIN_WORD = re.compile(r"[A-Za-z./_-][A-Za-z0-9./_-]*\Z")
_YES_AND_NO = frozenset(["yes", "no", "on", "off", "y", "n", "true", "false"])


def _cut(word: str) -> str:
    return word if len(word) <= 60 else word[:57] + "..."


def _sentence(item: Any) -> str:
    text = str(item["msg"])
    return text.removeprefix("Value error, ")

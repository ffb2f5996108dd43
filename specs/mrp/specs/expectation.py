"""The words for what a type of mrp.specs.documents wants: `a whole number of at least 1`, `the label of a dataset`."""

import types
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, MinLen
from pydantic.fields import FieldInfo

from mrp.cache.canonical import number_text
from mrp.specs.documents import (
    BuildFile,
    Document,
    Expect,
    LabelRef,
    OperatorFile,
    OperatorsLock,
    PolicyFile,
    Target,
    WorkspaceFile,
)

_FEW_FIELDS = 3
_NOUNS: dict[type[Document], str] = {
    WorkspaceFile: "mrp.yaml",
    BuildFile: "BUILD.yaml",
    PolicyFile: "policy.yaml",
    OperatorFile: "operator.yaml",
    OperatorsLock: "operators.lock",
}


@dataclass(frozen=True)
class Type:
    """An annotation taken apart: what is left without Annotated, and its metadata, innermost first."""

    base: Any
    metadata: tuple[Any, ...] = ()

    def marks(self, *kinds: type) -> list[Any]:
        """The metadata that are instances of `kinds`, outermost first."""
        return [item for item in reversed(self.metadata) if isinstance(item, kinds)]

    @property
    def words(self) -> str:
        """The words that are marked for this type, or ""."""
        return next((mark.words for mark in self.marks(Expect)), "")

    @property
    def origin(self) -> Any:
        """`list`, `dict`, `Literal`, `Union` (also for X | Y), or None for what has no arguments."""
        origin = get_origin(self.base)
        return Union if origin is types.UnionType else origin

    @property
    def arguments(self) -> list["Type"]:
        """The types that this one is made of; the choices of a Literal are not types and do not count."""
        return [] if self.origin is Literal else [take_apart(item) for item in get_args(self.base)]

    @property
    def branches(self) -> list["Type"]:
        """The members of a union except None; a type that is no union is its only member."""
        return [item for item in self.arguments if item.base is not types.NoneType] if self.origin is Union else [self]

    @property
    def admits_null(self) -> bool:
        return self.base is Any or (self.origin is Union and types.NoneType in get_args(self.base))

    @property
    def model(self) -> type[Document] | None:
        """The model, when this type is one."""
        return self.base if isinstance(self.base, type) and issubclass(self.base, Document) else None


def take_apart(annotation: Any, metadata: tuple[Any, ...] = ()) -> Type:
    """`annotation` without Annotated and without pydantic's wrapping."""
    while get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        metadata = (*inner, *metadata)
    flat: list[Any] = []
    for item in metadata:
        flat.extend(item.metadata if isinstance(item, FieldInfo) else (item,))
    return Type(annotation, tuple(flat))


def document_fields(model: type[Document]) -> dict[str, tuple[Type, bool]]:
    """The fields by the names that users write: their type, and whether they must be given."""
    return {
        field.alias or name: (take_apart(field.annotation, tuple(field.metadata)), field.is_required())
        for name, field in model.model_fields.items()
    }


def noun(model: type[Document]) -> str:
    """What a sentence calls a document: `a rollout`, `mrp.yaml`."""
    return with_article(model.kind) if issubclass(model, Target) else _NOUNS.get(model, model.__name__.lower())


def with_article(word: str) -> str:
    """`an agent`, `a rollout`."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def listed(words: list[str], last: str) -> str:
    """`a, b or c`, with `last` as the last word between."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def expected(wanted: Type) -> str:
    """The words for what `wanted` takes; null is not mentioned."""
    if wanted.words:
        return wanted.words + (_bounds(wanted) if wanted.words == "a number" else "")
    for mark in wanted.marks(LabelRef):
        return f"the label of {listed([with_article(kind) for kind in mark.kinds], 'or')}" if mark.kinds else "a label"
    if wanted.origin is Literal:
        return listed(_choices(wanted), "or")
    if wanted.origin is Union:
        return listed([words for branch in wanted.branches for words in _choices(branch) or [expected(branch)]], "or")
    if wanted.origin is list:
        (item,) = wanted.arguments
        return "a list of labels" if item.marks(LabelRef) else "a list of texts" if item.base is str else "a list"
    if wanted.model is not None:
        names = [f"`{name}`" for name in document_fields(wanted.model)]
        return f"a mapping with {listed(names, 'and')}" if len(names) <= _FEW_FIELDS else "a mapping"
    words = {str: "text", bool: "true or false", int: "a whole number", Decimal: "a number", dict: "a mapping"}
    return words.get(wanted.origin or wanted.base, "a value") + _bounds(wanted)


def bounds(wanted: Type) -> tuple[Decimal | None, Decimal | None]:
    """The least and the greatest number that `wanted` takes."""
    least = next((Decimal(mark.ge) for mark in wanted.marks(Ge)), None)
    greatest = next((Decimal(mark.le) for mark in wanted.marks(Le)), None)
    return least, greatest


def at_least(wanted: Type) -> int:
    """How many entries a list or text must have."""
    return next((mark.min_length for mark in wanted.marks(MinLen)), 0)


def pattern(wanted: Type) -> str | None:
    """The regular expression that a text must match."""
    return next((mark.pattern for mark in reversed(wanted.metadata) if getattr(mark, "pattern", None)), None)


def _bounds(wanted: Type) -> str:
    least, greatest = bounds(wanted)
    if least is None:
        return "" if greatest is None else f" of at most {number_text(greatest)}"
    if greatest is None:
        return f" of at least {number_text(least)}"
    return f" from {number_text(least)} to {number_text(greatest)}"


def _choices(wanted: Type) -> list[str]:
    return [f"`{choice}`" for choice in get_args(wanted.base)] if wanted.origin is Literal else []

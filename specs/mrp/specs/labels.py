"""Labels name targets, cells of a matrix, items and samples; one canonical text for each.

    //jobs:solve                        a target, and all its cells
    //jobs:solve@temperature=0.7        a cell: axes sorted, numbers in their shortest form
    //jobs:solve@temperature=0.7[HumanEval/3#2]     the third sample of an item
    //:all  :solve  //jobs  builtin:nop   root package, same package, //jobs:jobs, what mrp brings

In ids and cell values everything is percent-encoded but letters, digits and `_ . + - ~ / :` (letters: ASCII, Latin,
Greek, Cyrillic, kana, Han and Hangul). When read, only what would be ambiguous must be encoded.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache, lru_cache, total_ordering
from typing import Any

from mrp.cache.canonical import number_text
from mrp.specs.label_text import BELOW, PLAIN, LabelError, Parts, read_parts

__all__ = [
    "Label",
    "LabelError",
    "Pattern",
    "Patterns",
    "cell_text",
    "encode_text",
    "parse_label",
    "parse_pattern",
    "parse_patterns",
]

MAX_NAME = 128

_UNRESERVED = re.compile(r"[A-Za-z0-9_.+~/:-]*\Z")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?\Z", re.ASCII)


@total_ordering
@dataclass(frozen=True, slots=True)
class Label:
    """A name in canonical form: made by `parse_label`, and from others by `of_cell` and `item`.

    package: folder, "" for the root. cell: (axis, value text), sorted by axis. record: a dataset's id, with `sample`
    counted from 0. builtin: something that mrp brings; then only `name` counts.
    """

    package: str
    name: str
    cell: tuple[tuple[str, str], ...] = ()
    record: str | None = None
    sample: int | None = None
    builtin: bool = False

    def __str__(self) -> str:
        if self.builtin:
            return f"builtin:{self.name}"
        text = f"//{self.package}:{self.name}"
        if self.cell:
            text += "@" + ",".join(f"{axis}={encode_text(value)}" for axis, value in self.cell)
        if self.record is not None:
            text += (
                f"[{encode_text(self.record)}]"
                if self.sample is None
                else f"[{encode_text(self.record)}#{self.sample}]"
            )
        return text

    def __lt__(self, other: "Label") -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[Any, ...]:
        sample = -1 if self.sample is None else self.sample
        return (self.builtin, self.package, self.name, self.cell, self.record is not None, self.record or "", sample)

    @property
    def target(self) -> "Label":
        """The target alone, without cell and item."""
        return self if not self.cell and self.record is None else Label(self.package, self.name, builtin=self.builtin)

    @property
    def task(self) -> "Label":
        """The target or cell, without the item."""
        return self if self.record is None else replace(self, record=None, sample=None)

    def of_cell(self, values: Mapping[str, Any]) -> "Label":
        """The cell with these values (text, bool, None, int or Decimal) added to the cell that this already is."""
        cell = {**dict(self.cell), **{axis: cell_text(value) for axis, value in values.items()}}
        return replace(self, cell=tuple(sorted(cell.items())))

    def item(self, record: str, sample: int | None = None) -> "Label":
        """The item for a record, or one sample of it."""
        return Label(self.package, self.name, self.cell, record, sample, self.builtin)


def cell_text(value: str | bool | int | Decimal | None) -> str:
    """A matrix value as it stands, decoded, in a label: `true`, `null`, `0.7` for 0.70 and for the text "0.70"."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return number_text(Decimal(value)) if _DECIMAL.match(value) else value
    return number_text(value)


def encode_text(text: str) -> str:
    """`text` with every reserved character percent-encoded as UTF-8."""
    return (
        text
        if _UNRESERVED.match(text)
        else _reserved().sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)
    )


@cache
def _reserved() -> re.Pattern[str]:
    """Made when it is needed: a set of letters this large takes milliseconds to compile."""
    return re.compile(r"[^A-Za-z0-9_.+~/:À-ÖØ-öø-ɏͰ-ϿЀ-ԯ぀-ヿ一-鿿가-힣-]")


@lru_cache(maxsize=65536)
def parse_label(text: str, package: str = "", *, bare: bool = False) -> Label:
    """The label that `text` means in `package`; `bare` admits `name` for `:name`.

    Raises LabelError, which is a ValueError.
    """
    plain = PLAIN.match(text)
    if plain and len(plain[2]) <= MAX_NAME:
        return Label(package if text[0] == ":" else plain[1] or "", plain[2])
    parts = read_parts(text, "label")
    if parts.form == "builtin":
        return Label("", _checked_name(text, parts.name), builtin=True)
    found_package, name = _address(text, parts, package, bare)
    cell, record = _axes(text, parts), parts.record
    name = _checked_name(text, name)
    values = tuple(sorted((axis, cell_text(_decode(text, value))) for axis, value in cell))
    return Label(found_package, name, values, None if record is None else _decode(text, record), parts.sample)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A set of labels: what `matches` says. `exclude` is a leading `-`; how to combine patterns is `Patterns`'.

    package, name, cell and record are globs as written, still percent-encoded; name None is every name; `below` takes
    the packages under `package` too.
    """

    text: str
    package: str = ""
    name: str | None = None
    cell: tuple[tuple[str, str], ...] = ()
    record: str | None = None
    sample: int | None = None
    below: bool = False
    builtin: bool = False
    exclude: bool = False
    label: Label | None = None
    """The one label that the text names when there is no glob in it; `//p:all` names the target `all`, if any."""

    def matches(self, label: Label) -> bool:
        """Whether `label` is in the set; a target's pattern takes its cells and items, a cell's its items."""
        if label.builtin is not self.builtin or not _package_glob(self.package, self.below).match(label.package):
            return False
        if self.name is not None and not _glob(self.name).match(label.name):
            return False
        values = dict(label.cell)
        if any(axis not in values or not _glob(value).match(values[axis]) for axis, value in self.cell):
            return False
        if self.record is not None and (label.record is None or not _glob(self.record).match(label.record)):
            return False
        return self.sample is None or self.sample == label.sample

    @property
    def task(self) -> "Pattern":
        """The pattern of the targets and cells whose items this one takes."""
        label = self.label.task if self.label else None
        return replace(self, record=None, sample=None, label=label)


@dataclass(frozen=True, slots=True)
class Patterns:
    """Several patterns: a label is in when one takes it and none with `-` does."""

    patterns: tuple[Pattern, ...]

    def matches(self, label: Label) -> bool:
        taken = any(pattern.matches(label) for pattern in self.patterns if not pattern.exclude)
        return taken and not any(pattern.matches(label) for pattern in self.patterns if pattern.exclude)


def parse_patterns(texts: Iterable[str], package: str = "", *, bare: bool = False) -> Patterns:
    """The patterns of a command line or a list field. Raises LabelError; also when all of them only exclude."""
    patterns = tuple(parse_pattern(text, package, bare=bare) for text in texts)
    if patterns and all(pattern.exclude for pattern in patterns):
        raise LabelError("all patterns leave out, so that nothing is left", "put `//...` before them")
    return Patterns(patterns)


@lru_cache(maxsize=4096)
def parse_pattern(text: str, package: str = "", *, bare: bool = False) -> Pattern:
    """The pattern that `text` means in `package`; `bare` admits `name` for `:name`. Raises LabelError."""
    plain = PLAIN.match(text)
    if plain and plain[2] != "all" and len(plain[2]) <= MAX_NAME:
        label = parse_label(text, package)
        return Pattern(text, label.package, label.name, label=label)
    below = BELOW.match(text)
    if below:
        return Pattern(text, below[1] or "", below=True)
    parts = read_parts(text, "pattern")
    return replace(_pattern(text, parts, package, bare), exclude=parts.exclude)


def _pattern(text: str, parts: Parts, package: str, bare: bool) -> Pattern:
    if parts.form == "below":
        return Pattern(text, parts.package, below=True)
    if parts.form == "builtin":
        name = _checked_name(text, parts.name)
        return Pattern(text, "", name, builtin=True, label=None if _has_glob(name) else Label("", name, builtin=True))
    found_package, name = _address(text, parts, package, bare)
    name = _checked_name(text, name)
    axes, record, sample = _axes(text, parts), parts.record, parts.sample
    cell = tuple((axis, value if _has_glob(value) else cell_text(_decode(text, value))) for axis, value in axes)
    label = None
    if not any(map(_has_glob, [found_package, name, record or "", *(value for _, value in axes)])):
        label = Label(found_package, name, cell, None if record is None else _decode(text, record), sample)
    cell = tuple((axis, value if _has_glob(value) else encode_text(value)) for axis, value in cell)
    every = name == "all" and parts.form != "short"
    return Pattern(text, found_package, None if every else name, cell, record, sample, label=label)


# -- from text to parts ------------------------------------------------------------------------------------------


def _address(text: str, parts: Parts, package: str, bare: bool) -> tuple[str, str]:
    """The package and the name that an address means in `package`."""
    if parts.form in ("full", "short"):
        return parts.package, parts.name
    if parts.form == "bare" and not bare:
        raise LabelError(f"`{text}` is not a label", f"did you mean `:{text}`?")
    return package, parts.name


def _axes(text: str, parts: Parts) -> list[tuple[str, str]]:
    """Axes and values, sorted, still percent-encoded."""
    cell = dict(parts.cell)
    if len(cell) < len(parts.cell):
        names = [name for name, _ in parts.cell]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise LabelError(f"`{text}` gives the axis `{twice}` twice", "remove one of the two")
    return sorted(cell.items())


def _checked_name(text: str, name: str) -> str:
    if len(name) > MAX_NAME:
        raise LabelError(f"`{text[:40]}...` has a name of {len(name)} characters", f"at most {MAX_NAME} are allowed")
    if not re.match("[A-Za-z0-9*?]", name):
        raise LabelError(f"`{text}` means a target `{name}`, which is no name", "write the name after `:`")
    return name


def _decode(text: str, encoded: str) -> str:
    try:
        return _unquote(encoded)
    except UnicodeDecodeError:
        message = f"`{text}` holds percent-encoded bytes that are not UTF-8"
        raise LabelError(message, "encode characters as UTF-8") from None


def _unquote(encoded: str) -> str:
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), encoded.encode()).decode()


# -- globs -------------------------------------------------------------------------------------------------------


def _has_glob(text: str) -> bool:
    return "*" in text or "?" in text


@lru_cache(maxsize=4096)
def _glob(glob: str) -> re.Pattern[str]:
    """In ids and values `*` takes any characters."""
    return re.compile(_expression(glob, ".*") + r"\Z", re.DOTALL)


@lru_cache(maxsize=4096)
def _package_glob(glob: str, below: bool) -> re.Pattern[str]:
    """In packages `*` stays inside one folder's name."""
    return re.compile(_expression(glob, "[^/]*") + (r"(?:/.*)?\Z" if below and glob else ".*" if below else r"\Z"))


def _expression(glob: str, star: str) -> str:
    pieces = re.split(r"([*?])", glob)
    return "".join({"*": star, "?": "."}.get(piece) or re.escape(_unquote(piece)) for piece in pieces)

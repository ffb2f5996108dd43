"""A raw target becomes valid documents: selects settled, the matrix spread into cells, every field checked."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from mrp.cache.canonical import Json
from mrp.compiler.load import RawTarget
from mrp.compiler.matrix import WHOLE, Cell, fill_cell, matrix_cells
from mrp.compiler.problems import Problems
from mrp.compiler.select import check_selects, has_select, resolve_selects
from mrp.specs.documents import KINDS, Target
from mrp.specs.errors import Span
from mrp.specs.labels import parse_label
from mrp.specs.validate import validate
from mrp.specs.yaml import Node, key_span_at, plain, span_at


@dataclass(frozen=True, slots=True)
class Unit:
    """What becomes one task: a target, or one cell of its matrix, with its document and the node it was read from."""

    label: str
    target: RawTarget
    cell: Cell
    node: Node
    document: Target

    @property
    def package(self) -> str:
        return self.target.package

    @property
    def kind(self) -> str:
        return self.target.kind

    def span(self, *location: str | int) -> Span:
        """The place of the value at `location`; the target's name when the field is not written."""
        if location and key_span_at(self.node, location[:1]) is None:
            return self.target.span
        return span_at(self.node, location) if location else self.target.span


@dataclass(frozen=True, slots=True)
class Declared:
    """A target under the chosen configs: its node with selects settled, and its units, sorted by label."""

    target: RawTarget
    node: Node
    units: tuple[Unit, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of its units."""
        return tuple([unit.label for unit in self.units])

    def attributes(self) -> Json:
        """The document as plain data, with the defaults that are plain data themselves filled in."""
        model = KINDS[self.target.kind]
        defaults = {
            field.alias or name: field.default
            for name, field in model.model_fields.items()
            if isinstance(field.default, str | bool | int | list | dict)
        }
        return {**defaults, **plain(self.node)}


def declare(
    target: RawTarget, chosen: Collection[str], known: Collection[str] | None, problems: Problems
) -> tuple[Declared | None, tuple[Declared, ...]]:
    """`target` under the chosen configs, or None when it is wrong, and what it is under every other config.

    `known` are the names of all configs; None when mrp.yaml cannot say.
    """
    if not target.may_select or not has_select(target.node):
        return _declare(target, target.node, problems), ()
    check_selects(target.node, known, problems)
    node = resolve_selects(target.node, chosen, problems)
    settled = None if node is None else _declare(target, node, problems)
    others = []
    for config in ((), *((name,) for name in sorted(known or ()))):
        other = resolve_selects(target.node, config, None)
        variant = None if other is None or other == node else _declare(target, other, problems)
        others.extend([variant] if variant is not None else [])
    return settled, tuple(others)


def _declare(target: RawTarget, node: Node, problems: Problems) -> Declared | None:
    if target.kind != "rollout":
        document, diagnostics = validate(KINDS[target.kind], node, problems.sources, target.span)
        problems.extend(diagnostics)
        if document is None:
            return None
        return Declared(target, node, (Unit(target.label, target, WHOLE, node, document),))
    before = len(problems)
    units = tuple(_cells(target, node, problems))
    return Declared(target, node, units) if len(problems) == before else None


def _cells(target: RawTarget, node: Node, problems: Problems) -> Iterator[Unit]:
    for cell in matrix_cells(node, problems):
        filled = fill_cell(node, cell, problems)
        document, diagnostics = validate(KINDS["rollout"], filled, problems.sources, target.span)
        problems.extend(diagnostics)
        if document is not None:
            label = parse_label(target.label).of_cell(dict(cell.texts)) if cell.texts else parse_label(target.label)
            yield Unit(str(label), target, cell, filled, document)

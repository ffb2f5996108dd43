"""A rollout's matrix becomes cells: one for each combination of axis values, with `${matrix.axis}` filled in.

Axes are sorted by name and cells by their text, so that the order in which a person writes them changes nothing.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from mrp.cache.canonical import Json
from mrp.compiler.problems import Problems
from mrp.specs.labels import cell_text
from mrp.specs.suggest import did_you_mean
from mrp.specs.yaml import Node

MAX_CELLS = 10_000

_REFERENCE = re.compile(r"(?<!\$)\$\{matrix\.([^}]*)\}")


@dataclass(frozen=True)
class Cell:
    """One combination: `values` as written, by axis; `texts` as they stand in the label. No axes: the only cell."""

    values: Mapping[str, Json]
    texts: tuple[tuple[str, str], ...]


WHOLE = Cell({}, ())
"""The only cell of what has no matrix."""


def matrix_cells(node: Node, problems: Problems) -> list[Cell]:
    """The cells of the rollout `node`, sorted; axes of a wrong shape, which validation reports, are left out."""
    matrix = _field(node, "matrix")
    if matrix is None or not isinstance(matrix.value, dict):
        return [WHOLE]
    axes = {name: _values(name, axis, problems) for name, axis in sorted(matrix.value.items())}
    axes = {name: values for name, values in axes.items() if values}
    _check_params(node, matrix, problems)
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MAX_CELLS:
        problems.add(matrix.span, f"the matrix has {count} cells; at most {MAX_CELLS} are planned", "split the rollout")
        return [WHOLE]
    cells = (
        Cell(
            {name: value for name, (_, value) in zip(axes, combination, strict=True)},
            tuple((name, text) for name, (text, _) in zip(axes, combination, strict=True)),
        )
        for combination in product(*(values.items() for values in axes.values()))
    )
    return sorted(cells, key=lambda cell: cell.texts)


def fill_cell(node: Node, cell: Cell, problems: Problems) -> Node:
    """`node` with each `${matrix.axis}` replaced by the cell's text, everywhere but in `matrix` itself."""
    assert isinstance(node.value, dict)
    texts = {axis: value if isinstance(value, str) else cell_text(value) for axis, value in cell.values.items()}
    fields = {key: item if key == "matrix" else _filled(item, texts, problems) for key, item in node.value.items()}
    return node._replace(value=fields)


def _values(name: str, axis: Node, problems: Problems) -> dict[str, Json]:
    """An axis' values by their text."""
    if not isinstance(axis.value, list):
        return {}
    values: dict[str, Json] = {}
    for item in axis.value:
        if isinstance(item.value, dict | list):
            continue
        text = cell_text(item.value)
        if text in values:
            problems.add(item.span, f"the axis `{name}` has the value {text} twice", "remove one of them")
        values[text] = item.value
    return values


def _check_params(node: Node, matrix: Node, problems: Problems) -> None:
    params = _field(node, "params")
    if params is None or not isinstance(params.value, dict):
        return
    for name in params.value:
        if name in matrix.key_spans:
            problems.add(params.key_spans[name], f"`{name}` is an axis of the matrix and a param", "remove one of them")


def _filled(node: Node, texts: Mapping[str, str], problems: Problems) -> Node:
    value = node.value
    if isinstance(value, str):
        if "${matrix." not in value:
            return node
        for axis in _unknown(value, texts):
            hint = did_you_mean(axis, texts) or f"the axes are {', '.join(texts) or 'none'}"
            problems.add(node.span, f"the matrix has no axis `{axis}`", hint)
        return node._replace(value=_REFERENCE.sub(lambda match: texts.get(match[1], match[0]), value))
    if isinstance(value, dict):
        return node._replace(value={key: _filled(item, texts, problems) for key, item in value.items()})
    if isinstance(value, list):
        return node._replace(value=[_filled(item, texts, problems) for item in value])
    return node


def _unknown(text: str, texts: Mapping[str, str]) -> Iterator[str]:
    return (match[1] for match in _REFERENCE.finditer(text) if match[1] not in texts)


def _field(node: Node, name: str) -> Node | None:
    return node.value.get(name) if isinstance(node.value, dict) else None

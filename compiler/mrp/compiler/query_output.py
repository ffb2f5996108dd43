"""Printing the answer to a query: the same labels in ten notations, each with one spelling."""

import json
import re
from collections.abc import Callable, Mapping
from itertools import groupby

from mrp.cache.canonical import Json, canonical_text, number_text
from mrp.compiler.graph import TargetGraph, Vertex
from mrp.compiler.query import QueryResult
from mrp.specs.errors import UsageError
from mrp.specs.suggest import did_you_mean


def render(result: QueryResult, graph: TargetGraph, output: str = "label") -> str:
    """`result` in the notation `output` (one of OUTPUTS), each line ended by a newline; raises UsageError."""
    if output not in OUTPUTS:
        hint = did_you_mean(output, OUTPUTS) or f"the outputs are {', '.join(OUTPUTS)}"
        raise UsageError(f"`{output}` is no output of a query ({hint})")
    return "".join(f"{line}\n" for line in OUTPUTS[output](result, graph))


# -- lists -------------------------------------------------------------------------------------------------------


def _label(result: QueryResult, graph: TargetGraph) -> list[str]:
    """Targets whose cost was asked for are followed by it, in US dollars."""
    costs = {label: f" {number_text(cost)}" for label, cost in result.costs.items()}
    return [label + costs.get(label, "") for label in result.labels]


def _label_kind(result: QueryResult, graph: TargetGraph) -> list[str]:
    return [f"{graph[label].kind} {label}" for label in result.labels]


def _location(result: QueryResult, graph: TargetGraph) -> list[str]:
    return [f"{graph[label].span}: {graph[label].kind} {label}" for label in result.labels]


def _package(result: QueryResult, graph: TargetGraph) -> list[str]:
    return [f"//{package}" for package in sorted({graph[label].package for label in result.labels})]


def _minrank(result: QueryResult, graph: TargetGraph) -> list[str]:
    return _ranks(result, graph, min)


def _maxrank(result: QueryResult, graph: TargetGraph) -> list[str]:
    return _ranks(result, graph, max)


def _ranks(result: QueryResult, graph: TargetGraph, choose: Callable[[list[int]], int]) -> list[str]:
    """Each label after its distance from a root of the result, the shortest or the longest, by rank."""
    inside = set(result.labels)
    rank: dict[str, int] = {}
    for label in reversed(graph.topological()):
        if label in inside:
            above = [rank[user] + 1 for user in graph.rdeps(label) if user in inside]
            rank[label] = choose(above) if above else 0
    return [f"{number} {label}" for number, label in sorted((rank[label], label) for label in inside)]


# -- drawings ----------------------------------------------------------------------------------------------------


def _edges(result: QueryResult, graph: TargetGraph) -> list[tuple[str, str]]:
    inside = set(result.labels)
    return [(label, dep) for label in sorted(inside) for dep in graph.deps(label) if dep in inside]


def _dot(result: QueryResult, graph: TargetGraph) -> list[str]:
    def quoted(label: str) -> str:
        return '"' + label.replace("\\", "\\\\").replace('"', '\\"') + '"'

    notes = {label: " [shape=note]" for label in result.labels if graph[label].is_file}
    return [
        "digraph mrp {",
        "  node [shape=box];",
        *(f"  {quoted(label)}{notes.get(label, '')};" for label in sorted(result.labels)),
        *(f"  {quoted(label)} -> {quoted(dep)};" for label, dep in _edges(result, graph)),
        "}",
    ]


_MERMAID = str.maketrans({c: f"#{ord(c)};" for c in '#"&<>`\\\n\r'})


def _mermaid(result: QueryResult, graph: TargetGraph) -> list[str]:
    names = {label: f"n{number}" for number, label in enumerate(sorted(result.labels))}
    return [
        "flowchart TD",
        *(f'  {name}["{label.translate(_MERMAID)}"]' for label, name in names.items()),
        *(f"  {names[label]} --> {names[dep]}" for label, dep in _edges(result, graph)),
    ]


# -- documents ---------------------------------------------------------------------------------------------------


def _json(result: QueryResult, graph: TargetGraph) -> list[str]:
    lines = _jsonl(result, graph)
    return ["[", *(f"{line}," for line in lines[:-1]), *lines[-1:], "]"]


def _jsonl(result: QueryResult, graph: TargetGraph) -> list[str]:
    return [canonical_text(_object(graph[label], result)) for label in result.labels]


def _object(vertex: Vertex, result: QueryResult) -> Json:
    described: dict[str, Json] = {
        "label": vertex.label,
        "kind": vertex.kind,
        "package": vertex.package,
        "name": vertex.name,
        "location": str(vertex.span),
        "attributes": vertex.attributes,
        "deps": [{"role": role, "label": label} for role, label in sorted(vertex.deps)],
    }
    if vertex.label in result.costs:
        described["cost"] = {"usd": result.costs[vertex.label]}
    return described


def _build(result: QueryResult, graph: TargetGraph) -> list[str]:
    """One BUILD.yaml a package, as a stream of YAML documents; files are comments."""
    lines: list[str] = []
    vertices = sorted((graph[label] for label in result.labels), key=lambda v: (v.package, v.is_file, v.label))
    for package, members in groupby(vertices, key=lambda vertex: vertex.package):
        lines += ["---", f"# {package}/BUILD.yaml" if package else "# BUILD.yaml"]
        targets: dict[str, Json] = {}
        files = []
        for vertex in members:
            if vertex.is_file:
                files.append(f"# {vertex.kind} {json.dumps(vertex.label)[1:-1]}")
            else:
                targets[vertex.name] = {**vertex.attributes, "kind": vertex.kind}
        lines += _block({"mrp": 1, "targets": targets}) if targets else []
        lines += files
    return lines[1:]


def _block(value: Json) -> list[str]:
    """A mapping or list that is not empty, in block style; names are sorted, `kind` apart, which comes first."""
    lines: list[str] = []
    if isinstance(value, Mapping):
        for key, item in sorted(value.items(), key=lambda entry: (entry[0] != "kind", entry[0])):
            if _is_block(item):
                lines += [f"{_scalar(key)}:", *(f"  {line}" for line in _block(item))]
            else:
                lines.append(f"{_scalar(key)}: {_scalar(item)}")
    else:
        for item in value:
            first, *rest = _block(item) if _is_block(item) else [_scalar(item)]
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
    return lines


def _is_block(value: Json) -> bool:
    return isinstance(value, Mapping | list | tuple) and len(value) > 0


_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*\Z")
_NOT_TEXT = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n"))


def _scalar(value: Json) -> str:
    if isinstance(value, str):
        if _PLAIN.match(value) and value.lower() not in _NOT_TEXT:
            return value
        text = json.dumps(value, ensure_ascii=False)
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    return canonical_text(value)


OUTPUTS: dict[str, Callable[[QueryResult, TargetGraph], list[str]]] = {
    "label": _label,
    "label_kind": _label_kind,
    "build": _build,
    "location": _location,
    "package": _package,
    "minrank": _minrank,
    "maxrank": _maxrank,
    "graph": _dot,
    "mermaid": _mermaid,
    "json": _json,
    "jsonl": _jsonl,
}

"""Small target graphs for tests."""

from collections.abc import Iterable

from mrp.cache.canonical import Json
from mrp.compiler.graph import BUILD_FILE, SOURCE_FILE, TargetGraph, Vertex
from mrp.specs.errors import Span


def vertex(
    label: str, kind: str = "rollout", deps: Iterable[tuple[str, str]] = (), line: int = 1, **attributes: Json
) -> Vertex:
    """A target declared in its package's BUILD.yaml, or a file that begins in its own first line."""
    package, name = label.removeprefix("//").split(":", 1)
    here = "BUILD.yaml" if kind not in (SOURCE_FILE, BUILD_FILE) else name
    span = Span(f"{package}/{here}" if package else here, line, 3 if here == "BUILD.yaml" else 1)
    return Vertex(label, kind, package, name, span, attributes, tuple(deps))


def graph_of(edges: dict[str, str]) -> TargetGraph:
    """A graph from single letters: `{"a": "bc"}` says that //:a depends on //:b and //:c."""
    return TargetGraph(vertex(f"//:{name}", deps=[("of", f"//:{dep}") for dep in deps]) for name, deps in edges.items())


def letters(labels: Iterable[str]) -> str:
    """The labels of `graph_of` as letters again."""
    return "".join(label.removeprefix("//:") for label in labels)

"""The target graph: one vertex a target or file, one edge a dependency, in plain dicts and lists.

The compiler fills it, queries and plans read it. Vertices are numbered in label order, so that every walk that takes
the smallest number first is in label order without comparing text. networkx is loaded only when somebody asks for it.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from mrp.cache.canonical import Json
from mrp.specs.errors import Span

if TYPE_CHECKING:
    import networkx

SOURCE_FILE = "source file"
BUILD_FILE = "build file"
FILE_KINDS = frozenset((SOURCE_FILE, BUILD_FILE))


@dataclass(frozen=True)
class Vertex:
    """A target, or a file that a target names.

    label: canonical text, `//pkg:name`; of a file `//pkg:path/below/pkg`. kind: a name in mrp.specs.documents.KINDS,
    SOURCE_FILE or BUILD_FILE. span: where a target is declared; of a file its first line. attributes: the target's
    document as the YAML reader gives it, `kind` apart, with select and defaults settled and sizes still with their
    units, so that it can be written down and read again; empty for files. deps: (role, label), where the role is the
    field that names the label, like `over` or `grade.operator`.
    """

    label: str
    kind: str
    package: str
    name: str
    span: Span
    attributes: Json = field(default_factory=dict)
    deps: tuple[tuple[str, str], ...] = ()

    @property
    def is_file(self) -> bool:
        return self.kind in FILE_KINDS

    @property
    def path(self) -> str:
        """The workspace-relative path of a file; of a target, the place its outputs would take."""
        return f"{self.package}/{self.name}" if self.package else self.name


class TargetGraph:
    """Vertices by label. A dependency whose label is no vertex (a builtin, or a label that is wrong) is no edge."""

    def __init__(self, vertices: Iterable[Vertex]) -> None:
        """Raises ValueError when two vertices have one label."""
        by_label: dict[str, Vertex] = {}
        for vertex in vertices:
            if vertex.label in by_label:
                raise ValueError(f"{vertex.label} is in the graph twice")
            by_label[vertex.label] = vertex
        self._labels = sorted(by_label)
        self._number = {label: number for number, label in enumerate(self._labels)}
        self._vertices = {label: by_label[label] for label in self._labels}
        self._deps = [self._numbers_of(vertex) for vertex in self._vertices.values()]

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, label: object) -> bool:
        return label in self._number

    def __iter__(self) -> Iterator[Vertex]:
        """All vertices in label order."""
        return iter(self._vertices.values())

    def __getitem__(self, label: str) -> Vertex:
        """The vertex of `label`; raises KeyError."""
        return self._vertices[label]

    def get(self, label: str) -> Vertex | None:
        return self._vertices.get(label)

    @property
    def labels(self) -> list[str]:
        """All labels, sorted."""
        return list(self._labels)

    def deps(self, label: str) -> list[str]:
        """The direct dependencies of `label`, each once, in label order; raises KeyError."""
        return [self._labels[number] for number in self._deps[self._number[label]]]

    def rdeps(self, label: str) -> list[str]:
        """What depends directly on `label`, in label order; raises KeyError."""
        return [self._labels[number] for number in self._rdeps[self._number[label]]]

    def reach(
        self, labels: Iterable[str], *, depth: int | None = None, reverse: bool = False, within: set[str] | None = None
    ) -> set[str]:
        """`labels` and all that they depend on, at most `depth` edges away (all when None).

        `reverse` follows the edges against their direction; a walk never leaves `within`, its start included.
        """
        edges = self._rdeps if reverse else self._deps
        allowed = None if within is None else {self._number[label] for label in within}
        found = {self._number[label] for label in labels}
        if allowed is not None:
            found &= allowed
        frontier = found
        while frontier and (depth is None or depth > 0):
            reached = {number for start in frontier for number in edges[start]} - found
            frontier = reached if allowed is None else reached & allowed
            found |= frontier
            depth = None if depth is None else depth - 1
        return {self._labels[number] for number in found}

    def topological(self) -> list[str]:
        """All labels, dependencies first; of those that are free to come next, the first by label comes.

        Raises ValueError that shows a cycle when there is one.
        """
        order = self._order()
        if len(order) < len(self._labels):
            raise ValueError("a cycle: " + " -> ".join(self.find_cycle() or []))
        return [self._labels[number] for number in order]

    def find_cycle(self) -> list[str] | None:
        """A cycle as `[a, b, a]`, begun at its first label, or None. Of the cycles through `a` it is a shortest.

        The answer depends on the labels and edges alone.
        """
        left = set(range(len(self._labels))).difference(self._order())
        if not left:
            return None
        # Every vertex that is left depends on one that is left, so this walk must come round.
        walk: dict[int, None] = {}
        number = min(left)
        while number not in walk:
            walk[number] = None
            number = next(dep for dep in self._deps[number] if dep in left)
        steps = list(walk)
        start = min(steps[steps.index(number) :])
        cycle = self._way_back(start)
        first = cycle.index(min(cycle))
        turned = cycle[first:] + cycle[:first]
        return [self._labels[number] for number in [*turned, turned[0]]]

    def shortest_path(self, starts: Iterable[str], ends: Iterable[str]) -> list[str]:
        """The labels of a shortest path along dependencies from one of `starts` to one of `ends`; empty when none.

        Of several the one whose labels come first, compared from its start.
        """
        wanted = {self._number[label] for label in ends}
        distance = self._distances(wanted)
        reachable = [number for label in starts if (number := self._number[label]) in distance]
        if not reachable:
            return []
        path = [min(reachable, key=lambda number: (distance[number], number))]
        while distance[path[-1]] > 0:
            closer = distance[path[-1]] - 1
            path.append(next(dep for dep in self._deps[path[-1]] if distance.get(dep) == closer))
        return [self._labels[number] for number in path]

    def to_networkx(self) -> "networkx.DiGraph[str]":
        """The graph for path finding and drawing at the edge: `kind` on nodes, sorted `roles` on edges."""
        import networkx

        graph: networkx.DiGraph[str] = networkx.DiGraph()
        for vertex in self:
            graph.add_node(vertex.label, kind=vertex.kind)
        for vertex in self:
            for dep in self.deps(vertex.label):
                graph.add_edge(vertex.label, dep, roles=sorted({role for role, label in vertex.deps if label == dep}))
        return graph

    @cached_property
    def _rdeps(self) -> list[list[int]]:
        rdeps: list[list[int]] = [[] for _ in self._labels]
        for number, deps in enumerate(self._deps):
            for dep in deps:
                rdeps[dep].append(number)
        return rdeps

    def _numbers_of(self, vertex: Vertex) -> list[int]:
        numbers = {self._number[label] for _, label in vertex.deps if label in self._number}
        return sorted(numbers)

    def _order(self) -> list[int]:
        waiting = [len(deps) for deps in self._deps]
        ready = [number for number, count in enumerate(waiting) if count == 0]
        order: list[int] = []
        while ready:
            number = heapq.heappop(ready)
            order.append(number)
            for user in self._rdeps[number]:
                waiting[user] -= 1
                if waiting[user] == 0:
                    heapq.heappush(ready, user)
        return order

    def _way_back(self, start: int) -> list[int]:
        """The vertices of a shortest cycle through `start`, which must lie on one, beginning with it."""
        came_from: dict[int, int] = {}
        queue = deque([start])
        while start not in came_from:
            number = queue.popleft()
            for dep in self._deps[number]:
                if dep not in came_from:
                    came_from[dep] = number
                    queue.append(dep)
        back = [start]
        while (number := came_from[back[-1]]) != start:
            back.append(number)
        return [start, *reversed(back[1:])]

    def _distances(self, ends: set[int]) -> dict[int, int]:
        distance = dict.fromkeys(ends, 0)
        queue = deque(sorted(ends))
        while queue:
            number = queue.popleft()
            for user in self._rdeps[number]:
                if user not in distance:
                    distance[user] = distance[number] + 1
                    queue.append(user)
        return distance

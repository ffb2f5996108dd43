"""The functions of the query language: one visible table, each a plain function over sets of labels."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol, TypeAlias

from mrp.cache.canonical import Json, number_text
from mrp.compiler.graph import BUILD_FILE, TargetGraph, Vertex

Found: TypeAlias = set[str] | list[str]
"""Labels: a set, or a list where their order is the answer (a path)."""

Parameter: TypeAlias = Literal["targets", "count", "pattern", "text"]
"""What an argument is: a query, a number from 0, a pattern (RE2, found anywhere in the text), or a word."""


class Past(Protocol):
    """What earlier builds left behind, as far as the cache and the ledger know; targets only, never files."""

    def is_cached(self, label: str) -> bool:
        """Whether a build now would find every result of `label`."""

    def is_stale(self, label: str) -> bool:
        """Whether `label` was built before, and a build now would execute some of it."""

    def is_failed(self, label: str) -> bool:
        """Whether the last build of `label` failed."""

    def cost(self, label: str) -> Decimal | None:
        """US dollars that the last build of `label` was charged, its dependencies apart; None when not known."""


class FunctionError(Exception):
    """A function has no answer; `hint` is a next step."""

    def __init__(self, message: str, hint: str) -> None:
        self.message = message
        self.hint = hint
        super().__init__(message)


@dataclass
class World:
    """What a query is asked of. `costs` collects what `cost` was asked about."""

    graph: TargetGraph
    past: Past | None = None
    costs: dict[str, Decimal] = field(default_factory=dict)

    def vertices(self, found: Found) -> list[Vertex]:
        """The vertices of `found`, by label."""
        return [self.graph[label] for label in sorted(found)]

    def asked_of_past(self, found: Found, function: str) -> tuple[Past, list[str]]:
        """The past, and the targets among `found`."""
        if self.past is None:
            hint = "ask in a workspace that was built before, with `mrp query`"
            raise FunctionError(f"`{function}` needs the record of earlier builds, and there is none here", hint)
        return self.past, [vertex.label for vertex in self.vertices(found) if not vertex.is_file]


@dataclass(frozen=True)
class Function:
    """`takes` names the arguments in order; the last `optional` may be left out, and `repeated` repeats the last."""

    takes: tuple[Parameter, ...]
    apply: Callable[..., Found]
    optional: int = 0
    repeated: bool = False

    def parameter_at(self, position: int) -> Parameter:
        return self.takes[min(position, len(self.takes) - 1)]

    def takes_many(self, count: int) -> bool:
        return len(self.takes) - self.optional <= count and (self.repeated or count <= len(self.takes))

    def usage(self, name: str) -> str:
        """How it is written, like `deps(targets[, count])`."""
        words = [f", {parameter}" if position else parameter for position, parameter in enumerate(self.takes)]
        split = len(words) - self.optional
        rest = "".join(words[split:])
        more = ", ..." if self.repeated else ""
        return f"{name}({''.join(words[:split])}{f'[{rest}]' if rest else ''}{more})"


# -- along the edges ---------------------------------------------------------------------------------------------


def _deps(world: World, targets: Found, depth: int | None = None) -> Found:
    return world.graph.reach(targets, depth=depth)


def _rdeps(world: World, universe: Found, targets: Found, depth: int | None = None) -> Found:
    return world.graph.reach(targets, depth=depth, reverse=True, within=world.graph.reach(universe))


def _allrdeps(world: World, targets: Found, depth: int | None = None) -> Found:
    return world.graph.reach(targets, depth=depth, reverse=True)


def _allpaths(world: World, starts: Found, ends: Found) -> Found:
    return world.graph.reach(ends, reverse=True, within=world.graph.reach(starts))


def _somepath(world: World, starts: Found, ends: Found) -> Found:
    return world.graph.shortest_path(starts, ends)


def _same_pkg_direct_rdeps(world: World, targets: Found) -> Found:
    graph = world.graph
    return {user for label in targets for user in graph.rdeps(label) if graph[user].package == graph[label].package}


# -- by what a target is -----------------------------------------------------------------------------------------


def _kind(world: World, pattern: Any, targets: Found) -> Found:
    return {vertex.label for vertex in world.vertices(targets) if pattern.search(vertex.kind)}


def _filter(world: World, pattern: Any, targets: Found) -> Found:
    return {label for label in targets if pattern.search(label)}


def _attr(world: World, name: str, pattern: Any, targets: Found) -> Found:
    found = set()
    for vertex in world.vertices(targets):
        text = attribute_text(vertex, name)
        if text is not None and pattern.search(text):
            found.add(vertex.label)
    return found


def _labels(world: World, name: str, targets: Found) -> Found:
    return {
        label
        for vertex in world.vertices(targets)
        for role, label in vertex.deps
        if (role == name or role.startswith(f"{name}.")) and label in world.graph
    }


def _some(world: World, targets: Found, count: int = 1) -> Found:
    if not targets:
        raise FunctionError("`some` found nothing to choose from", "its argument is an empty set")
    return set(sorted(targets)[:count])


def _tests(world: World, targets: Found) -> Found:
    """Rollouts, reductions and evaluations with an `expect`, and those among the members of jobs."""
    found, seen = set(), set(targets)
    waiting = list(targets)
    while waiting:
        vertex = world.graph[waiting.pop()]
        expects = vertex.kind in ("reduction", "evaluation") and vertex.attributes.get("expect") is not None
        if expects or vertex.kind == "rollout":
            found.add(vertex.label)
        elif vertex.kind == "job":
            members = {label for role, label in vertex.deps if role == "of" and label in world.graph} - seen
            seen |= members
            waiting.extend(members)
    return found


# -- by files and packages ---------------------------------------------------------------------------------------


def _siblings(world: World, targets: Found) -> Found:
    packages = {vertex.package for vertex in world.vertices(targets)}
    return {vertex.label for vertex in world.graph if vertex.package in packages}


def _buildfiles(world: World, targets: Found) -> Found:
    vertices = world.vertices(targets)
    packages = {vertex.package for vertex in vertices}
    paths = {vertex.span.path for vertex in vertices}
    return {
        vertex.label
        for vertex in world.graph
        if vertex.kind == BUILD_FILE and (vertex.package in packages or vertex.path in paths)
    }


def _rbuildfiles(world: World, *paths: str) -> Found:
    named = _files_at(world, paths)
    build_files = {vertex.label for vertex in named if vertex.kind == BUILD_FILE}
    users = {user for vertex in named if vertex.kind != BUILD_FILE for user in world.graph.rdeps(vertex.label)}
    return build_files | set(_buildfiles(world, users))


def _owner(world: World, *paths: str) -> Found:
    owners = {user for vertex in _files_at(world, paths) for user in world.graph.rdeps(vertex.label)}
    declared = {vertex.label for vertex in world.graph if vertex.span.path in _workspace_paths(paths)}
    return {label for label in owners | declared if not world.graph[label].is_file}


def _files_at(world: World, paths: Iterable[str]) -> list[Vertex]:
    wanted = _workspace_paths(paths)
    return [vertex for vertex in world.graph if vertex.is_file and (vertex.path in wanted or vertex.label in wanted)]


def _workspace_paths(paths: Iterable[str]) -> set[str]:
    return {path.removeprefix("./") for path in paths}


# -- by what happened before -------------------------------------------------------------------------------------


def _cached(world: World, targets: Found) -> Found:
    past, labels = world.asked_of_past(targets, "cached")
    return {label for label in labels if past.is_cached(label)}


def _stale(world: World, targets: Found) -> Found:
    past, labels = world.asked_of_past(targets, "stale")
    return {label for label in labels if past.is_stale(label)}


def _failed(world: World, targets: Found) -> Found:
    past, labels = world.asked_of_past(targets, "failed")
    return {label for label in labels if past.is_failed(label)}


def _cost(world: World, targets: Found) -> Found:
    """The targets whose cost is known; the result carries the costs."""
    past, labels = world.asked_of_past(targets, "cost")
    known = {label: cost for label in labels if (cost := past.cost(label)) is not None}
    world.costs.update(known)
    return set(known)


FUNCTIONS: dict[str, Function] = {
    "deps": Function(("targets", "count"), _deps, optional=1),
    "rdeps": Function(("targets", "targets", "count"), _rdeps, optional=1),
    "allrdeps": Function(("targets", "count"), _allrdeps, optional=1),
    "allpaths": Function(("targets", "targets"), _allpaths),
    "somepath": Function(("targets", "targets"), _somepath),
    "same_pkg_direct_rdeps": Function(("targets",), _same_pkg_direct_rdeps),
    "kind": Function(("pattern", "targets"), _kind),
    "filter": Function(("pattern", "targets"), _filter),
    "attr": Function(("text", "pattern", "targets"), _attr),
    "labels": Function(("text", "targets"), _labels),
    "some": Function(("targets", "count"), _some, optional=1),
    "tests": Function(("targets",), _tests),
    "siblings": Function(("targets",), _siblings),
    "buildfiles": Function(("targets",), _buildfiles),
    "rbuildfiles": Function(("text",), _rbuildfiles, repeated=True),
    "owner": Function(("text",), _owner, repeated=True),
    "cached": Function(("targets",), _cached),
    "stale": Function(("targets",), _stale),
    "failed": Function(("targets",), _failed),
    "cost": Function(("targets",), _cost),
}


def attribute_text(vertex: Vertex, name: str) -> str | None:
    """The text that `attr` searches: the field at the dotted `name`, None when the target does not have it.

    A list reads `[a, b]`, a mapping `{name: value}`, a number as its shortest decimal; files have `name` alone.
    """
    value: Json = {"name": vertex.name, **({} if vertex.is_file else {"kind": vertex.kind}), **vertex.attributes}
    for step in name.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return None
        value = value[step]
    return None if value is None else _text(value)


def _text(value: Json) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return number_text(value)

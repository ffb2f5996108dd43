"""A second reading of queries, written naively over sets of edges, to compare the real one with.

A query is a nested tuple: ("deps", q), ("deps", q, 2), ("kind", "^r", q), ("chain", q, ("+", q), ...), ("let", name, q,
q), ("set", label, ...), ("label", text), ("variable", name). `write` spells it, `read` answers it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

Query: TypeAlias = tuple[Any, ...]
Labels: TypeAlias = frozenset[str]


class NothingToChoose(Exception):
    """`some` of an empty set."""


@dataclass(frozen=True)
class Picture:
    """A graph as bare facts: kind, package and attributes by label, and (label, role, label) for each edge."""

    kinds: dict[str, str]
    packages: dict[str, str]
    attributes: dict[str, dict[str, str]]
    edges: frozenset[tuple[str, str, str]]

    def after(self, label: str) -> set[str]:
        return {b for a, _, b in self.edges if a == label}

    def before(self, label: str) -> set[str]:
        return {a for a, _, b in self.edges if b == label}


def write(query: Query) -> str:
    """The query as text, with no bracket that the grammar does not need."""
    match query:
        case ("label", text):
            return str(text)
        case ("variable", name):
            return f"${name}"
        case ("set", *words):
            return f"set({' '.join(words)})"
        case ("let", name, value, body):
            return f"let {name} = {write(value)} in {write(body)}"
        case ("chain", first, *rest):
            return " ".join([_operand(first), *(f"{operator} {_operand(operand)}" for operator, operand in rest)])
        case (name, *arguments):
            written = (write(a) if isinstance(a, tuple) else f"'{a}'" for a in arguments)
            return f"{name}({', '.join(written)})"
    raise AssertionError(query)


def read(query: Query, picture: Picture, variables: dict[str, Labels]) -> Labels:
    """The answer, as a set."""
    match query:
        case ("label", "//..."):
            return frozenset(label for label, kind in picture.kinds.items() if not kind.endswith("file"))
        case ("label", text):
            return frozenset([text])
        case ("variable", name):
            return variables[name]
        case ("set", *words):
            return frozenset(words)
        case ("let", name, value, body):
            return read(body, picture, {**variables, name: read(value, picture, variables)})
        case ("chain", first, *rest):
            found = read(first, picture, variables)
            for operator, operand in rest:
                other = read(operand, picture, variables)
                if operator in ("+", "union"):
                    found |= other
                elif operator in ("-", "except"):
                    found -= other
                else:
                    found &= other
            return found
        case (name, *arguments):
            ready = [read(a, picture, variables) if isinstance(a, tuple) else a for a in arguments]
            return frozenset(_FUNCTIONS[name](picture, *ready))
    raise AssertionError(query)


def paths(picture: Picture, start: str, end: str) -> Iterator[list[str]]:
    """Every path from `start` to `end`; the graph has no cycles."""
    if start == end:
        yield [start]
        return
    for step in picture.after(start):
        for rest in paths(picture, step, end):
            yield [start, *rest]


def best_path(picture: Picture, starts: Labels, ends: Labels) -> list[str]:
    """The shortest path, of several the first by labels."""
    found = [path for start in starts for end in ends for path in paths(picture, start, end)]
    return min(found, key=lambda path: (len(path), path), default=[])


def ranks(picture: Picture, labels: Labels, longest: bool) -> set[tuple[int, str]]:
    """Each label with the length of the shortest or longest way to it from a label that nothing inside needs."""

    def lengths(label: str) -> list[int]:
        users = picture.before(label) & labels
        return [length + 1 for user in users for length in lengths(user)] if users else [0]

    return {((max if longest else min)(lengths(label)), label) for label in labels}


def _operand(query: Query) -> str:
    return f"({write(query)})" if query[0] in ("chain", "let") else write(query)


def _walk(picture: Picture, starts: Labels, steps: int, within: Labels, back: bool) -> Labels:
    found = starts & within
    for _ in range(steps):
        near = {step for label in found for step in (picture.before(label) if back else picture.after(label))}
        found |= near & within
    return found


def _all(picture: Picture) -> Labels:
    return frozenset(picture.kinds)


def _deps(picture: Picture, found: Labels, depth: int = 99) -> Labels:
    return _walk(picture, found, depth, _all(picture), back=False)


def _rdeps(picture: Picture, universe: Labels, found: Labels, depth: int = 99) -> Labels:
    return _walk(picture, found, depth, _deps(picture, universe), back=True)


def _allpaths(picture: Picture, starts: Labels, ends: Labels) -> set[str]:
    return {label for start in starts for end in ends for path in paths(picture, start, end) for label in path}


def _some(picture: Picture, found: Labels, count: int = 1) -> list[str]:
    if not found:
        raise NothingToChoose
    return sorted(found)[:count]


def _tests(picture: Picture, found: Labels) -> set[str]:
    result = set()
    for label in found:
        kind = picture.kinds[label]
        if kind == "rollout" or (kind in ("reduction", "evaluation") and "expect" in picture.attributes[label]):
            result.add(label)
        if kind == "job":
            result |= _tests(picture, frozenset(b for a, role, b in picture.edges if a == label and role == "of"))
    return result


def _siblings(picture: Picture, found: Labels) -> set[str]:
    return {label for label in picture.kinds for other in found if picture.packages[label] == picture.packages[other]}


def _buildfiles(picture: Picture, found: Labels) -> set[str]:
    return {label for label in _siblings(picture, found) if picture.kinds[label] == "build file"}


def _same_pkg_direct_rdeps(picture: Picture, found: Labels) -> set[str]:
    return {a for a, _, b in picture.edges if b in found and picture.packages[a] == picture.packages[b]}


_FUNCTIONS: dict[str, Any] = {
    "deps": _deps,
    "rdeps": _rdeps,
    "allrdeps": lambda picture, found, depth=99: _rdeps(picture, _all(picture), found, depth),
    "allpaths": _allpaths,
    "somepath": best_path,
    "kind": lambda picture, pattern, found: {label for label in found if re.search(pattern, picture.kinds[label])},
    "filter": lambda picture, pattern, found: {label for label in found if re.search(pattern, label)},
    "attr": lambda picture, name, pattern, found: {
        label
        for label in found
        if name in picture.attributes[label] and re.search(pattern, picture.attributes[label][name])
    },
    "labels": lambda picture, name, found: {b for a, role, b in picture.edges if a in found and role == name},
    "some": _some,
    "tests": _tests,
    "siblings": _siblings,
    "buildfiles": _buildfiles,
    "same_pkg_direct_rdeps": _same_pkg_direct_rdeps,
}

"""All of a workspace that can be known without reading a single data file: valid, resolved, and a graph.

Every package is looked at, whatever is asked for, so that nothing runs while anything is wrong anywhere.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from posixpath import dirname

from mrp.cache.digest import Digest
from mrp.compiler.checks import Checker
from mrp.compiler.declare import Declared, Unit, declare
from mrp.compiler.graph import BUILD_FILE, SOURCE_FILE, TargetGraph, Vertex
from mrp.compiler.load import Memory, Packages, load_packages
from mrp.compiler.lower import builtin_task, lower, split_part, unread
from mrp.compiler.pins import check_lock
from mrp.compiler.policy import check_policy_file
from mrp.compiler.problems import Problems
from mrp.compiler.references import role_of
from mrp.compiler.resolve import BUILTIN, Index, Resolved, resolve_unit
from mrp.compiler.workspace import Workspace, check_configs, open_workspace
from mrp.specs import ir
from mrp.specs.collector import paused_collector
from mrp.specs.errors import Span
from mrp.specs.labels import parse_label

_MOST_CYCLES = 20


@dataclass(frozen=True)
class Analysis:
    """A workspace without errors under the chosen configs. `resolved` holds every unit by label."""

    workspace: Workspace
    packages: Packages
    chosen: tuple[str, ...]
    declared: dict[str, Declared]
    resolved: dict[str, Resolved]
    index: Index
    problems: Problems
    _tasks: dict[str, ir.Task | None] = field(default_factory=dict)

    @cached_property
    def graph(self) -> TargetGraph:
        """All targets and files, for queries. A plan is made without it."""
        return TargetGraph(_vertices(self.packages, self.declared, self.resolved))

    def task(self, label: str) -> ir.Task | None:
        """The task behind `label`, with sources that nobody has read yet; None for a unit that is no whole task."""
        if label not in self._tasks:
            self._tasks[label] = self._lower(label)
        return self._tasks[label]

    def forget(self, label: str) -> None:
        """Let go of the task behind `label`, which is made anew when it is asked for again."""
        self._tasks.pop(label, None)

    def documents(self) -> dict[str, Digest]:
        """The digests of all documents that were read, by path."""
        return dict(sorted({**self.workspace.documents, **self.packages.documents}.items()))

    def _lower(self, label: str) -> ir.Task | None:
        if label.startswith(BUILTIN):
            return builtin_task(label)
        resolved = self.resolved.get(label)
        if resolved is not None:
            document = resolved.unit.document
            return None if document.kind == "sink" or not resolved.whole else lower(resolved, self._find, unread)
        whole = self.task(str(parse_label(label).target))
        return split_part(whole, label) if isinstance(whole, ir.DatasetTask) else None

    def _find(self, label: str) -> Resolved:
        return self.resolved[label]


@paused_collector()
def analyse(root: Path, config: Sequence[str] = (), memory: Memory | None = None) -> Analysis:
    """Reads and checks the workspace at `root` with the configs chosen.

    Raises SpecError with everything that is wrong in any document, UsageError for an unknown config.
    """
    problems = Problems()
    workspace = open_workspace(root, problems)
    chosen = tuple(dict.fromkeys(config))
    readable = workspace.file.name != "" or not len(problems)
    if readable:
        check_configs(chosen, workspace.file.configs)
    check_policy_file(workspace, problems)
    packages = load_packages(root, workspace.tree, problems, memory)
    check_lock(workspace, packages.targets, problems)
    known = tuple(workspace.file.configs) if readable else None
    declared: dict[str, Declared] = {}
    others: list[Declared] = []
    for label, target in sorted(packages.targets.items()):
        chosen_form, other_forms = declare(target, chosen, known, problems)
        others.extend(other_forms)
        if chosen_form is not None:
            declared[label] = chosen_form
    index = Index(packages, declared)
    resolved = {unit.label: resolve_unit(unit, index, workspace.tree, problems) for unit in _units(declared.values())}
    for unit in _units(others):
        resolve_unit(unit, index, workspace.tree, problems)
    analysis = Analysis(workspace, packages, chosen, declared, resolved, index, problems)
    _check_names(packages, resolved.values(), problems)
    if _has_cycle(resolved.values()):
        _report_cycles(analysis.graph, problems)
    checker = Checker(root, analysis.task, resolved.get, problems)
    for one in resolved.values():
        checker.check(one)
    problems.raise_if_any()
    return analysis


def load_graph(root: Path, config: Sequence[str] = (), memory: Memory | None = None) -> TargetGraph:
    """The graph over all targets and files of the workspace at `root`, for queries; no data file is read.

    Raises as `analyse` does.
    """
    return analyse(root, config, memory).graph


def _units(declared: Iterable[Declared]) -> Iterator[Unit]:
    return (unit for one in declared for unit in one.units)


def _check_names(packages: Packages, resolved: Iterable[Resolved], problems: Problems) -> None:
    """No label may mean both a target and a file that some target names, or that declares targets."""
    paths = {path for one in resolved for expansion in one.files.values() for path in expansion.files}
    paths.update(packages.documents)
    for label, target in packages.targets.items():
        path = f"{target.package}/{target.name}" if target.package else target.name
        if path in paths:
            message = f"the target {label} has the name of the file {path}, so that the label could mean both"
            problems.add(target.span, message, "rename the target")


def _vertices(
    packages: Packages, declared: Mapping[str, Declared], resolved: Mapping[str, Resolved]
) -> Iterator[Vertex]:
    """A vertex for each valid target, with the dependencies of all its cells, and one for each file."""
    files: dict[str, Vertex] = {}
    for path in packages.documents:
        vertex = _file_vertex(path, BUILD_FILE, packages)
        files[vertex.label] = vertex
    for label, one in declared.items():
        deps: dict[tuple[str, str], None] = {}
        for unit in one.units:
            found = resolved[unit.label]
            for location, labels in found.labels.items():
                deps.update(((role_of(location), str(parse_label(text).target)), None) for text in labels)
            for location, expansion in found.files.items():
                for path in expansion.files:
                    vertex = _file_vertex(path, SOURCE_FILE, packages)
                    files.setdefault(vertex.label, vertex)
                    if vertex.label not in packages.targets:
                        deps[role_of(location), vertex.label] = None
        target = one.target
        yield Vertex(label, target.kind, target.package, target.name, target.span, one.attributes(), tuple(deps))
    yield from (vertex for label, vertex in files.items() if label not in packages.targets)


def _file_vertex(path: str, kind: str, packages: Packages) -> Vertex:
    """A file belongs to the innermost package around it; the root is one for files that no package holds."""
    package = dirname(path)
    while package and package not in packages.known:
        package = dirname(package)
    name = path[len(package) + 1 :] if package else path
    return Vertex(f"//{package}:{name}", kind, package, name, Span(path, 1, 1))


def _has_cycle(resolved: Iterable[Resolved]) -> bool:
    """Whether some target needs itself. A cell stands for its whole target, as it does in the graph."""
    needs: dict[str, set[str]] = {}
    for one in resolved:
        found = needs.setdefault(one.unit.target.label, set())
        for labels in one.labels.values():
            found.update(label if "@" not in label else str(parse_label(label).target) for label in labels)
    waiting: dict[str, int] = {}
    users: dict[str, list[str]] = {}
    for label, found in needs.items():
        inside = [needed for needed in found if needed in needs]
        waiting[label] = len(inside)
        for needed in inside:
            users.setdefault(needed, []).append(label)
    free = [label for label, count in waiting.items() if count == 0]
    for label in free:
        for user in users.get(label, ()):
            waiting[user] -= 1
            if waiting[user] == 0:
                free.append(user)
    return len(free) < len(waiting)


def _report_cycles(graph: TargetGraph, problems: Problems) -> None:
    """Reports cycles, each once, by cutting those that were found."""
    for _ in range(_MOST_CYCLES):
        cycle = graph.find_cycle()
        if cycle is None:
            return
        start = graph[cycle[0]]
        problems.add(
            start.span,
            f"a cycle: {' -> '.join(cycle)}",
            "a target cannot need itself; remove one of these dependencies",
        )
        cut = tuple((role, label) for role, label in start.deps if label != cycle[1])
        graph = TargetGraph(replace(start, deps=cut) if vertex.label == cycle[0] else vertex for vertex in graph)

"""From a workspace to a plan: what the requested targets need, in order, with the digest of every source."""

import dataclasses
import heapq
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrp.cache.canonical import KEY_VERSION, Json, canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.filestats import FileDigests
from mrp.compiler.analysis import Analysis, analyse
from mrp.compiler.load import Memory
from mrp.compiler.lower import Params, lower, sealed, split_part
from mrp.compiler.params import check_params
from mrp.compiler.pins import check_pins, check_versions
from mrp.compiler.places import misplaced
from mrp.compiler.policy import Subject, check_policy, policy_spec
from mrp.compiler.requests import Request, matrix_aliases, read_request
from mrp.compiler.resolve import BUILTIN, Resolved
from mrp.compiler.workspace import Workspace
from mrp.specs import ir
from mrp.specs.backends import Place
from mrp.specs.collector import paused_collector
from mrp.specs.documents import Config
from mrp.specs.errors import Diagnostic, Span, SpecError, UsageError
from mrp.specs.labels import LabelError, parse_label
from mrp.specs.suggest import did_you_mean

LANGUAGE_VERSION = 1

_WITH_PARAMS = ("rollout", "reduction", "evaluation")


@dataclass(frozen=True)
class Compiled:
    """A plan and how it came about. `settings` is what the chosen configs set.

    `listed`: the folders whose entries were read, so that a new or removed file in one of them may change the plan.
    `documents`: the YAML files that were read, with their digests. Sources of the plan stand in its tasks.
    """

    plan: ir.Plan
    manifest: Json
    policy_report: Json
    workspace: Workspace
    settings: Config
    listed: tuple[str, ...]
    documents: Mapping[str, Digest]


@paused_collector()
def compile_workspace(
    root: Path,
    targets: Sequence[str],
    *,
    config: Sequence[str] = (),
    params: Mapping[str, Params] | None = None,
    digests: FileDigests,
    memory: Memory | None = None,
    place: Callable[[Config], Place] | None = None,
) -> Compiled:
    """The plan for `targets` of the workspace at `root`; `params` override those of targets or cells, by label.

    `place` says, from what the chosen configs set, where the plan will run, so that what cannot run there is refused.

    Every document of the workspace is checked; only the files of needed targets are read. Raises SpecError,
    PolicyError, and UsageError for targets, configs and params that do not exist.
    """
    analysis = analyse(root, config, memory)
    request = read_request(targets, analysis)
    overrides = _overrides(params or {}, analysis)
    order = _ordered(request, analysis)
    paths = frozenset(path for label in order for path in _paths(label, analysis))
    # What is refused is refused before a data file is read. Overridden params are no concern of policy.
    drafts = [task for label in order if (task := analysis.task(label)) is not None]
    report = check_policy(analysis.workspace, _subjects(drafts, analysis), paths, analysis.problems)
    check_versions(analysis.workspace, drafts, analysis.problems)
    settings = analysis.workspace.settings(analysis.chosen)
    if place is not None:
        _check_place(drafts, place(settings), analysis)
    analysis.problems.raise_if_any()
    del drafts
    sources = _Sources(root, digests)
    sources.prepare(paths)
    tasks = tuple(_final(label, analysis, request, overrides, sources) for label in order)
    check_pins(analysis.workspace, tasks, analysis.problems)
    for task in tasks:
        if task.label in overrides:
            check_params(root, analysis.resolved[task.label].unit, task, analysis.task, analysis.problems)
    analysis.problems.raise_if_any()
    plan = ir.Plan(
        workspace=analysis.workspace.file.name,
        tasks=tasks,
        requested=request.requested,
        aliases={**matrix_aliases(analysis.resolved, order), **request.jobs},
        policy=policy_spec(analysis.workspace.policy),
        secrets=analysis.workspace.file.secrets.model_dump(),
        config=analysis.chosen,
    )
    return Compiled(
        plan=plan,
        manifest=_manifest(plan, analysis, sources, params or {}),
        policy_report=report,
        workspace=analysis.workspace,
        settings=settings,
        listed=tuple(analysis.workspace.tree.listed),
        documents=analysis.documents(),
    )


def _check_place(tasks: Iterable[ir.Task], place: Place, analysis: Analysis) -> None:
    for found in misplaced(tasks, place):
        analysis.problems.add(_unit_of(found.label, analysis).unit.span(*found.location), found.message, found.hint)


def write_compiled(compiled: Compiled, folder: Path) -> None:
    """Writes ir.json, manifest.json and policy_report.json into `folder`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "ir.json", ir.plan_bytes(compiled.plan) + b"\n")
    _write(folder / "manifest.json", canonical_bytes(compiled.manifest) + b"\n")
    _write(folder / "policy_report.json", canonical_bytes(compiled.policy_report) + b"\n")


class _Sources:
    """The digests of sources, each file read at most once. It is the seal of tasks (see mrp.compiler.lower)."""

    def __init__(self, root: Path, digests: FileDigests) -> None:
        self._root, self._digests = root, digests
        self._known: dict[str, ir.SourceFile] = {}

    def prepare(self, paths: Iterable[str]) -> None:
        """Reads all of `paths` in one go; raises SpecError for those that cannot be read."""
        wanted = sorted({path for path in paths if path not in self._known})
        try:
            for path, (digest, executable) in self._digests.sources(self._root, wanted).items():
                self._known[path] = ir.SourceFile(path, digest, executable)
        except OSError as error:
            path = os.path.relpath(error.filename or "", self._root)
            message = f"the source {path} cannot be read: {error.strerror}"
            raise SpecError([Diagnostic(Span(path, 1, 1), message, "check its permissions")]) from error

    def __call__(self, paths: Iterable[str]) -> tuple[ir.SourceFile, ...]:
        wanted = sorted(set(paths))
        if any(path not in self._known for path in wanted):
            self.prepare(wanted)
        return tuple([self._known[path] for path in wanted])

    def to_json(self) -> Json:
        return {path: source.digest for path, source in self._known.items()}


def _ordered(request: Request, analysis: Analysis) -> list[str]:
    """The labels of all tasks that are needed, dependencies first, ties by label."""
    waiting = [*(label.partition("[")[0] for label in request.requested), *request.jobs]
    needs: dict[str, tuple[str, ...]] = {}
    while waiting:
        label = waiting.pop()
        if label in needs:
            continue
        task = analysis.task(label)
        assert task is not None, f"{label} is needed and is no task"
        needs[label] = request.jobs[label] if label in request.jobs else ir.dependencies(task)
        waiting.extend(needs[label])
    users: dict[str, list[str]] = {label: [] for label in needs}
    missing = {label: len(set(found)) for label, found in needs.items()}
    for label, found in needs.items():
        for needed in set(found):
            users[needed].append(label)
    ready = [label for label, count in missing.items() if count == 0]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        label = heapq.heappop(ready)
        order.append(label)
        for user in users[label]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, user)
    return order


def _final(
    label: str, analysis: Analysis, request: Request, overrides: Mapping[str, Params], sources: _Sources
) -> ir.Task:
    """The task of `label` as it stands in the plan."""
    if label.startswith(BUILTIN):
        task = analysis.task(label)
        assert task is not None
        return task
    resolved = _unit_of(label, analysis)
    draft = analysis.task(label)
    if isinstance(draft, ir.CommandTask):
        analysis.forget(label)
        return sealed(draft, sources)
    task = lower(resolved, analysis.resolved.__getitem__, sources, overrides.get(label))
    if isinstance(task, ir.DatasetTask) and label != task.label:
        return split_part(task, label)
    if isinstance(task, ir.JobTask):
        return dataclasses.replace(task, of=request.jobs[label])
    return task


def _unit_of(label: str, analysis: Analysis) -> Resolved:
    """The unit behind a label, which may be a part of a dataset's split."""
    return analysis.resolved.get(label) or analysis.resolved[str(parse_label(label).target)]


def _paths(label: str, analysis: Analysis) -> list[str]:
    if label.startswith(BUILTIN):
        return []
    resolved = _unit_of(label, analysis)
    sinks = [analysis.resolved[sink] for sink in resolved.labels_below("sink")]
    return [path for one in (resolved, *sinks) for found in one.files.values() for path in found.files]


def _subjects(tasks: Iterable[ir.Task], analysis: Analysis) -> list[Subject]:
    """What policy looks at: the units of the plan, and the sinks that its produce targets write to."""
    subjects: dict[str, Subject] = {}
    users: dict[str, list[str]] = {}
    for task in tasks:
        if not task.label.startswith(BUILTIN):
            subjects[task.label] = Subject(_unit_of(task.label, analysis).unit, task)
        if isinstance(task, ir.ProduceTask):
            users.setdefault(task.sink.label, []).append(task.label)
    for sink, found in users.items():
        subjects[sink] = Subject(analysis.resolved[sink].unit, None, tuple(sorted(found)))
    return list(subjects.values())


def _overrides(params: Mapping[str, Params], analysis: Analysis) -> dict[str, dict[str, Json]]:
    """The params of `--param`, by unit; those of a cell go over those of its target."""
    found: dict[str, dict[str, Json]] = {}
    for text in sorted(params, key=lambda text: ("@" in text, text)):
        try:
            label = parse_label(text)
            kind = analysis.index.kind(analysis.index.known(label))
            units = analysis.index.stands_for(label.task)
        except LabelError as error:
            raise UsageError(f"--param {text}: {error}") from None
        if kind not in _WITH_PARAMS or label.record is not None:
            raise UsageError(f"--param {text}: a {kind} takes no params; name a {', '.join(_WITH_PARAMS)}")
        for unit in units:
            _check_axes(text, params[text], analysis.resolved[unit])
            found.setdefault(unit, {}).update(params[text])
    return found


def _check_axes(text: str, params: Params, resolved: Resolved) -> None:
    axes = dict(resolved.unit.cell.texts)
    for name in params:
        if name in axes:
            raise UsageError(f"--param {text}:{name}: `{name}` is an axis of the matrix; choose a cell instead")
    written = getattr(resolved.unit.document, "params", {})
    for name in params:
        near = did_you_mean(name, written) if name not in written else ""
        if near:
            raise UsageError(f"--param {text}:{name}: {resolved.unit.target.label} has no param `{name}`; {near}")


def _manifest(plan: ir.Plan, analysis: Analysis, sources: _Sources, params: Mapping[str, Params]) -> Json:
    return {
        "name": plan.workspace,
        "versions": {"language": LANGUAGE_VERSION, "ir": ir.IR_VERSION, "key": KEY_VERSION},
        "config": list(plan.config),
        "requested": list(plan.requested),
        "params": {label: dict(values) for label, values in params.items()},
        "documents": analysis.documents(),
        "sources": sources.to_json(),
    }


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

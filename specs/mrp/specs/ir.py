"""The plan: what the compiler hands to the runtime, with no YAML, no path of this machine and no clock in it.

A plan is a list of tasks in dependency order (ties by label). A task is one target, or one cell of its matrix. Tasks
name each other by label. What stands in a task is known at compile time; the digests of built things (a dataset made
by a command, say) are filled in at run time by mrp.rules, which also turns a MapTask into one action per item.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from typing import Any, TypeAlias, get_args

from mrp.cache.canonical import Json, canonical_bytes, parse_canonical
from mrp.cache.digest import Digest

IR_VERSION = 1


@dataclass(frozen=True, order=True, slots=True)
class SourceFile:
    """A file of the workspace as it was when the plan was made; `path` is workspace-relative, with `/`."""

    path: str
    digest: Digest
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Files:
    """Sources, sorted by path, and labels of tasks whose outputs join them at their own workspace paths."""

    sources: tuple[SourceFile, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """cpus in cores, memory and disk in bytes, wall in seconds; gpus is (count, type) or None; resources by name."""

    cpus: Decimal = Decimal(1)
    memory: int = 2 * 2**30
    wall: Decimal = Decimal(600)
    pids: int = 256
    disk: int = 2**30
    gpus: tuple[int, str | None] | None = None
    resources: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class FetchSpec:
    """A pinned download; exactly one of url, pypi, git, path is set."""

    url: str | None = None
    pypi: str | None = None
    git: str | None = None
    path: str | None = None
    sha256: str | None = None
    rev: str | None = None
    size: int | None = None
    secret: str | None = None
    downloaded_at: str | None = None


@dataclass(frozen=True)
class GenerateSpec:
    """A computed dataset: `range` records, or what a command or operator prints as JSON lines."""

    range: int | None = None
    command: tuple[str, ...] | None = None
    operator: str | None = None
    files: Files = Files()
    package: str = ""
    sandbox: str = "builtin:host"
    params: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class ViewSpec:
    """Which part of a record a view takes: `globs` for folders, `fields` and `files` (path -> template) for rows."""

    globs: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetTask:
    """Records from exactly one origin: files, fetch, generate or other datasets.

    `roots` are the folders that are the records of formats `dir` and `harbor`. `take` selects one part of the split.
    """

    label: str
    package: str
    format: str
    files: Files | None = None
    roots: tuple[str, ...] = ()
    fetch: FetchSpec | None = None
    generate: GenerateSpec | None = None
    of: tuple[str, ...] = ()
    id: str | None = None
    schema: SourceFile | None = None
    where: str | None = None
    dedupe: tuple[str, ...] = ()
    split: Mapping[str, Decimal] = field(default_factory=dict)
    take: str | None = None
    starter: ViewSpec = ViewSpec()
    private: ViewSpec = ViewSpec()
    solution: ViewSpec = ViewSpec()
    metadata: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerSpec:
    """One layer: `kind` is copy, pip, npm, deb, tar, dirs, links or run.

    `copy` maps guest destination to Files plus `strip`, the workspace folder that is cut off; `value` holds what the
    other kinds need, as JSON; `files` their locks or archives.
    """

    kind: str
    copy: tuple[tuple[str, Files, str], ...] = ()
    value: Json = None
    files: Files = Files()


@dataclass(frozen=True)
class ImageTask:
    """`base` is host, scratch, a label, or a source such as name@sha256:..., or {"dockerfile":..., "context":...}."""

    label: str
    base: Json
    toolchain: tuple[str, ...] = ()
    layers: tuple[LayerSpec, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = "1000:1000"
    context: Files = Files()


@dataclass(frozen=True)
class SandboxTask:
    """`network` is "none", "open" or a tuple of host:port; `volumes` maps guest path to volume name."""

    label: str
    image: str
    network: str | tuple[str, ...] = "none"
    limits: Limits = Limits()
    allow: tuple[str, ...] | None = None
    setup: tuple[tuple[str, ...], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    volumes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OperatorTask:
    """User code: `kind` is agent, reducer, producer or evaluator; exactly one of entry, command is set.

    `files` are laid out with the workspace folder `package` cut off, so that `entry` imports from the package.
    `io` is (input, output) for agents that read and write one file.
    """

    label: str
    kind: str
    version: str
    package: str
    entry: str | None = None
    command: tuple[str, ...] | None = None
    files: Files = Files()
    sees: str = "public"
    pure: bool = False
    sandbox: str | None = None
    schema: SourceFile | None = None
    io: tuple[str, str] | None = None


@dataclass(frozen=True)
class ModelTask:
    """A model; `spec` is the document with defaults filled in, `files` its weights or script."""

    label: str
    spec: Mapping[str, Json]
    files: Files = Files()


@dataclass(frozen=True)
class GradeSpec:
    """How a trial is scored: exactly one of command, operator (a label), result (a metric's name)."""

    command: tuple[str, ...] | None = None
    operator: str | None = None
    result: str | None = None
    sandbox: str | None = None
    timeout: Decimal | None = None


@dataclass(frozen=True)
class CostSpec:
    usd: Decimal = Decimal(0)
    tokens: int = 0
    wall: Decimal | None = None


@dataclass(frozen=True)
class MapTask:
    """A rollout, or one cell of its matrix: an action for each record of `over` and each sample."""

    label: str
    over: str
    agent: str
    sandbox: str
    model: str | None = None
    samples: int = 1
    epoch: int = 0
    seed: int = 0
    params: Mapping[str, Json] = field(default_factory=dict)
    matrix: Mapping[str, Json] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    calls: int | None = None
    tokens: int | None = None
    usd: Decimal | None = None
    timeout: Decimal | None = None
    retries: int = 2
    max_parallel: int | None = None
    grade: GradeSpec | None = None
    cost: CostSpec = CostSpec()


@dataclass(frozen=True)
class ReduceTask:
    """`reducer` is builtin:NAME or a label. `expect` and `min_success` judge the result, and are not in its key."""

    label: str
    of: tuple[str, ...]
    reducer: str
    params: Mapping[str, Json] = field(default_factory=dict)
    group_by: tuple[str, ...] = ()
    min_success: Decimal = Decimal(1)
    expect: str | None = None
    select: str | None = None
    sandbox: str = "builtin:host"


@dataclass(frozen=True)
class EvaluateTask:
    label: str
    of: str
    evaluator: str
    model: str | None = None
    params: Mapping[str, Json] = field(default_factory=dict)
    sandbox: str = "builtin:host"
    expect: str | None = None


@dataclass(frozen=True)
class SinkSpec:
    """A sink, resolved: `path` is workspace-relative for json, parquet and files."""

    label: str
    type: str
    path: str
    schema: SourceFile | None = None
    mode: str = "replace"
    secret: str | None = None


@dataclass(frozen=True)
class ProduceTask:
    label: str
    of: str
    rows: str
    sink: SinkSpec
    gate: str | None = None
    producer: str | None = None
    sandbox: str = "builtin:host"


@dataclass(frozen=True, slots=True)
class CommandTask:
    """Runs in a mirror of the workspace that holds `files`, in folder `package`; `outs` are package-relative."""

    label: str
    package: str
    command: tuple[str, ...]
    outs: tuple[str, ...]
    files: Files = Files()
    sandbox: str = "builtin:host"
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SessionTask:
    """A conversation; `spec` is the document with defaults filled in."""

    label: str
    agent: str
    sandbox: str
    model: str | None
    spec: Mapping[str, Json]
    files: Files = Files()


@dataclass(frozen=True)
class JobTask:
    """A named group with a budget: usd, tokens, wall seconds; None means no cap of its own."""

    label: str
    of: tuple[str, ...]
    usd: Decimal | None = None
    tokens: int | None = None
    wall: Decimal | None = None


Task: TypeAlias = (
    DatasetTask
    | ImageTask
    | SandboxTask
    | OperatorTask
    | ModelTask
    | MapTask
    | ReduceTask
    | EvaluateTask
    | ProduceTask
    | CommandTask
    | SessionTask
    | JobTask
)

TASKS: dict[str, type[Any]] = {
    task.__name__: task
    for task in (
        DatasetTask,
        ImageTask,
        SandboxTask,
        OperatorTask,
        ModelTask,
        MapTask,
        ReduceTask,
        EvaluateTask,
        ProduceTask,
        CommandTask,
        SessionTask,
        JobTask,
    )
}


@dataclass(frozen=True)
class PolicySpec:
    """What the runtime must hold to; the rest of the policy was checked when the plan was made."""

    isolation: str = "namespaces"
    max_workers: int = 64
    max_wall: Decimal = Decimal(24 * 3600)
    max_usd: Decimal | None = None
    secrets: tuple[str, ...] = ()
    sink_paths: tuple[str, ...] = ("**",)


@dataclass(frozen=True)
class Plan:
    """Tasks in dependency order; `requested` are the labels asked for, with jobs and matrices expanded to cells.

    `aliases` maps each label that stands for several (a matrix, a job) to those it stands for.
    """

    workspace: str
    tasks: tuple[Task, ...]
    requested: tuple[str, ...]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    policy: PolicySpec = PolicySpec()
    secrets: Mapping[str, Json] = field(default_factory=dict)
    config: tuple[str, ...] = ()


def dependencies(task: Task) -> tuple[str, ...]:
    """The labels that `task` needs before it can run, sorted, each once."""
    found: set[str] = set()
    _collect(task, found)
    found.discard(task.label)
    return tuple(sorted(found))


def needed_labels(plan: Plan, labels: Iterable[str]) -> set[str]:
    """These labels of a plan with all that they depend on."""
    needs = {task.label: dependencies(task) for task in plan.tasks}
    found: set[str] = set()
    queue = list(labels)
    while queue:
        label = queue.pop()
        if label not in found:
            found.add(label)
            queue.extend(needs.get(label, ()))
    return found


def plan_bytes(plan: Plan) -> bytes:
    """`ir.json`: the plan in canonical JSON, the same bytes on every machine and Python."""
    return canonical_bytes({"ir": IR_VERSION, **_plain(plan)})


def plan_head(plan: Plan) -> dict[str, Json]:
    """What `plan_bytes` writes besides the tasks."""
    head: dict[str, Json] = {"ir": IR_VERSION, **_plain(dataclasses.replace(plan, tasks=()))}
    del head["tasks"]
    return head


def parse_plan(data: bytes) -> Plan:
    """The inverse of `plan_bytes`; raises ValueError on anything that is no plan of this version."""
    from pydantic import TypeAdapter

    value = parse_canonical(data)
    if not isinstance(value, dict) or value.pop("ir", None) != IR_VERSION:
        raise ValueError(f"not a plan of version {IR_VERSION}")
    tasks = [TypeAdapter(TASKS[task.pop("task")]).validate_python(task) for task in value.pop("tasks")]
    plan = TypeAdapter(Plan).validate_python({**value, "tasks": []})
    return dataclasses.replace(plan, tasks=tuple(tasks))


def task_json(task: Task) -> Json:
    """One task as it stands in ir.json."""
    return _plain(task)


_LABEL_FIELDS = {"over", "agent", "sandbox", "model", "image", "operator", "reducer", "evaluator", "producer"}


def _collect(value: Any, found: set[str]) -> None:
    kind: Any = type(value)
    for name in _leading_fields(kind):
        content = getattr(value, name)
        if content is None:
            continue
        if name == "of":
            found.update((content,) if isinstance(content, str) else content)
        elif name == "outputs":
            found.update(content)
        elif name in _LABEL_FIELDS and isinstance(content, str):
            if not (name == "reducer" and content.startswith("builtin:")):
                found.add(content)
        elif name == "base" and isinstance(content, str) and content.startswith("//"):
            found.add(content)
        elif name == "layers":
            for layer in content:
                _collect(layer, found)
        elif name == "copy":
            for _, files, _ in content:
                _collect(files, found)
        elif dataclasses.is_dataclass(content):
            _collect(content, found)


@cache
def _leading_fields(kind: type) -> tuple[str, ...]:
    """The fields of a task, or of a part of one, that hold labels or parts that may."""
    named = {*_LABEL_FIELDS, "of", "outputs", "base", "layers", "copy"}
    return tuple(f.name for f in dataclasses.fields(kind) if f.name in named or _is_part(f.type))


def _is_part(annotation: Any) -> bool:
    return dataclasses.is_dataclass(annotation) or any(map(_is_part, get_args(annotation)))


def _plain(value: Any) -> Json:
    if dataclasses.is_dataclass(value):
        plain = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if type(value).__name__ in TASKS:
            plain["task"] = type(value).__name__
        return plain
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value

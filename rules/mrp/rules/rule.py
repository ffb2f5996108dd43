"""The contract of rules: how one task becomes actions, and actions a value for the tasks that need it.

A rule is a small state machine without clock, thread or process. The runtime calls `start` once all dependencies have
values, `settled` for each action that came to an end, and `value` when none is left.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.store import ActionEntry, Entry, Store
from mrp.rules.action import Action
from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.ir import Files, ModelTask, OperatorTask, SandboxTask, Task, dependencies
from mrp.specs.results import Outcome, Ref, Result, result_from_json
from mrp.specs.work import Box


@dataclass(frozen=True)
class FilesValue:
    """A command's or fetch's outputs: a tree with each file at its workspace path."""

    tree: Digest
    outputs: Mapping[str, Ref]
    reproducible: bool = True


@dataclass(frozen=True)
class DatasetValue:
    """Records, by the digest of their index (see mrp.rules.records).

    `own_images` tells that records bring images, limits and graders of their own, as those of format harbor do.
    """

    index: Digest
    count: int
    outputs: Mapping[str, Ref]
    reproducible: bool = True
    own_images: bool = False


@dataclass(frozen=True)
class ImageValue:
    """An image, by the digest of its description."""

    image: Digest
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    reproducible: bool = True


@dataclass(frozen=True)
class SandboxValue:
    """A box, its description in the store, and the tree that its set-up left in the working folder, if it has one."""

    task: SandboxTask
    box: Box
    description: Digest
    setup: Digest | None = None
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    reproducible: bool = True


@dataclass(frozen=True)
class OperatorValue:
    """User code, pinned: `digest` covers version, entry and files; `tree` is what stands at /opt/mrp/operator.

    `argv` is its command, with its own files by their paths there; empty for Python operators.
    """

    task: OperatorTask
    digest: Digest
    tree: Digest
    argv: tuple[str, ...] = ()
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    reproducible: bool = True


@dataclass(frozen=True)
class ModelValue:
    """A model. `identity`: all of it that can change an answer, sampling apart, with files by their digests.

    `tree` holds its files at their workspace paths, which are the ones in the task's document.
    """

    task: ModelTask
    identity: Mapping[str, Json]
    tree: Digest
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    reproducible: bool = True


@dataclass(frozen=True)
class TrialsValue:
    """A rollout's trials: `trials` is a JSON-lines blob in canonical order.

    `scored` of `count` came to an outcome, and to a reward where a grader is to give one; `problem` is why the first
    of the others did not. `trajectories` are by record id and sample; they are byproducts, and in no digest.
    `index` and `shape` tell of which records and how the trials were made. `dropped`: items of the build before that
    are no part of this value, where rows of it were kept (see mrp.rules.kept); None when none was.
    """

    trials: Digest
    count: int
    scored: int
    outputs: Mapping[str, Ref]
    reproducible: bool = True
    partial: bool = False
    problem: str = ""
    trajectories: Mapping[tuple[str, int], Digest] = field(default_factory=dict, compare=False, repr=False)
    index: Digest | None = field(default=None, compare=False)
    shape: str = field(default="", compare=False)
    dropped: frozenset[str] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class DocumentValue:
    """A reduction's or evaluation's result.json."""

    document: Json
    outputs: Mapping[str, Ref]
    reproducible: bool = True
    partial: bool = False


@dataclass(frozen=True)
class ProducedValue:
    """What a produce did: written (its sink holds the content) or held (its gate was false)."""

    status: str
    outputs: Mapping[str, Ref]
    reproducible: bool = True


@dataclass(frozen=True)
class GroupValue:
    """A job: nothing of its own."""

    outputs: Mapping[str, Ref] = field(default_factory=dict)
    reproducible: bool = True


Value: TypeAlias = (
    FilesValue
    | DatasetValue
    | ImageValue
    | SandboxValue
    | OperatorValue
    | ModelValue
    | TrialsValue
    | DocumentValue
    | ProducedValue
    | GroupValue
)


@dataclass(frozen=True, slots=True)
class Settled:
    """How an action ended: with a result, or without one (`result` None) and the outcome that says why.

    `trajectory` is a byproduct of trials: the blob of their trajectory.jsonl.
    """

    action: Action
    outcome: Outcome
    result: Result | None
    reason: str = ""
    trajectory: Digest | None = None


def settled_by(action: Action, entry: ActionEntry) -> Settled:
    """How an action ended that `entry` of the cache answers for."""
    result = result_from_json(entry.result)
    last = entry.byproducts[-1] if isinstance(entry.byproducts, list) and entry.byproducts else {}
    trajectory = last.get("trajectory")
    return Settled(action, result.outcome, result, trajectory=Digest(trajectory) if trajectory else None)


@dataclass(frozen=True)
class Selection:
    """Which items of rollouts to build: encoded ids or `id#sample` texts by label, globs over ids, a first-N limit."""

    items: Mapping[str, frozenset[str]] = field(default_factory=dict)
    globs: tuple[str, ...] = ()
    limit: int | None = None


_V = TypeVar("_V")


@dataclass(frozen=True)
class RuleContext:
    """What rules may read: values of dependencies, the store, facts of the host as descriptions.

    `host` describes the machine's own /usr, or only a toolchain of it. `import_sources` makes the store hold workspace
    files that the plan names, after checking that they are still the ones that were compiled. `sdk` is the tree of
    mrp.sdk. `before`: what rollouts came to in the build before, by label, where that may be kept in part.
    """

    store: Store
    values: Mapping[str, Value]
    host: Callable[[tuple[str, ...]], Json]
    import_sources: Callable[[Files], None]
    sdk: Callable[[], Digest]
    selection: Selection = Selection()
    before: Mapping[str, TrialsValue] = field(default_factory=dict)

    def value(self, label: str, kind: type[_V]) -> _V:
        """The value of a dependency, which the plan guarantees to be of that kind."""
        value = self.values[label]
        if not isinstance(value, kind):
            raise BuildFailed(f"{label} does not give what is needed here ({kind.__name__})")
        return value

    def reproducible(self, task: Task) -> bool:
        """Whether nothing that `task` needs depended on the machine's speed."""
        return all(self.values[label].reproducible for label in dependencies(task))

    def files_tree(self, files: Files, strip: str = "") -> Digest:
        """One tree of sources and outputs at their workspace paths, with folder `strip` cut off where it leads."""
        return self.store.put_tree(self.files_entries(files, strip))

    def files_entries(self, files: Files, strip: str = "") -> dict[str, Entry]:
        """The entries of `files_tree`, by path; an empty folder among them may not be empty in the tree."""
        self.import_sources(files)
        entries = {
            _without(source.path, strip): Entry("x" if source.executable else "f", source.digest, None)
            for source in files.sources
        }
        for label in files.outputs:
            for path, entry in self.store.read_tree(self.value(label, FilesValue).tree).items():
                entries[_without(path, strip)] = entry
        return entries


class Rule(Protocol):
    """See the module's docstring. `value` raises BuildFailed when the target failed."""

    def start(self) -> Iterable[Action]: ...

    def settled(self, settled: Settled) -> Iterator[Action]: ...

    def value(self) -> Value: ...


def needed(settled: Settled, problem: str) -> Result:
    """The result of an action that must come to ok; else raises BuildFailed, or InfraError for the machine's fault.

    `problem` is the error's sentence, to which the reason is added.
    """
    if settled.result is not None and settled.outcome is Outcome.OK:
        return settled.result
    message = f"{problem}: {settled.reason}" if settled.reason else problem
    if settled.outcome is Outcome.INFRA_ERROR:
        raise InfraError(message)
    raise BuildFailed(message)


class OneAction:
    """Base of rules that have a single action; it must come to `ok`."""

    def __init__(self, action: Action) -> None:
        self._action = action
        self._settled: Settled | None = None

    def start(self) -> Iterable[Action]:
        return (self._action,)

    def settled(self, settled: Settled) -> Iterator[Action]:
        self._settled = settled
        return iter(())

    def result(self) -> Result:
        """The action's result; raises BuildFailed or InfraError unless its outcome is ok."""
        settled = self._settled
        assert settled is not None, "value() before the action settled"
        return needed(settled, f"{self._action.label} {settled.outcome.value}")


class NoAction:
    """A rule whose value is known as soon as its dependencies are."""

    def __init__(self, value: Value) -> None:
        self._value = value

    def start(self) -> Iterable[Action]:
        return ()

    def settled(self, settled: Settled) -> Iterator[Action]:
        raise AssertionError(f"no action to settle, got {settled.action.identity}")

    def value(self) -> Value:
        return self._value


def _without(path: str, folder: str) -> str:
    return path.removeprefix(f"{folder}/") if folder else path

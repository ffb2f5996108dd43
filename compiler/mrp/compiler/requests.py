"""What the command line asks for, as units: labels, cells, items and patterns, jobs opened to their members.

A wildcard takes everything that can be built except produce targets, which somebody must name, or name a job of.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mrp.compiler.analysis import Analysis
from mrp.compiler.references import BUILDABLE
from mrp.compiler.resolve import BUILTIN, Resolved
from mrp.specs.documents import Rollout
from mrp.specs.errors import UsageError
from mrp.specs.expectation import with_article
from mrp.specs.labels import Label, LabelError, Pattern, parse_label, parse_pattern
from mrp.specs.suggest import nearest

NOT_IN_WILDCARDS = ("produce", "session")


@dataclass
class Request:
    """`requested`: labels of units and items, sorted. `jobs`: the jobs opened on the way, with their members.

    `aliases`: what each job, and each target with a matrix, stands for.
    """

    requested: tuple[str, ...] = ()
    jobs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_request(targets: Sequence[str], analysis: Analysis) -> Request:
    """Raises UsageError for a target that does not exist, or of which nothing can be built."""
    if not targets:
        raise UsageError("no target is named; name one, like `//...` for all")
    patterns = [_pattern(text) for text in targets]
    left_out = [pattern for pattern in patterns if pattern.exclude]
    reader = _Reader(analysis, left_out)
    for pattern in patterns:
        if not pattern.exclude:
            reader.take(pattern)
    if not reader.found:
        raise UsageError(f"nothing is left to build of {' '.join(targets)}; leave out less")
    return reader.request()


def _pattern(text: str) -> Pattern:
    try:
        return parse_pattern(text)
    except LabelError as error:
        raise UsageError(str(error)) from None


class _Reader:
    """Gathers what the patterns take. `found` maps each label to whether it is the label of an item."""

    def __init__(self, analysis: Analysis, left_out: list[Pattern]) -> None:
        self._analysis, self._left_out = analysis, left_out
        self._targets = analysis.packages.targets
        self.found: dict[str, None] = {}
        self._jobs: dict[str, tuple[str, ...]] = {}

    def take(self, pattern: Pattern) -> None:
        label = pattern.label
        if label is not None and (label.name != "all" or str(label.target) in self._targets):
            self._take_label(label)
        elif pattern.record is not None:
            raise UsageError(f"{pattern.text} names items by wildcard; name the target, and use --items for the ids")
        else:
            self._take_all(pattern)

    def request(self) -> Request:
        whole = {label for label in self.found if "[" not in label}
        requested = {label for label in self.found if "[" not in label or label.partition("[")[0] not in whole}
        return Request(tuple(sorted(requested)), self._jobs, {**self._jobs})

    def _take_label(self, label: Label) -> None:
        if label.builtin:
            raise UsageError(f"{label} is part of mrp; there is nothing to build")
        try:
            kind = self._analysis.index.kind(self._analysis.index.known(label))
            units = self._analysis.index.stands_for(label.task)
        except LabelError as error:
            raise UsageError(str(error)) from None
        if kind not in BUILDABLE:
            raise UsageError(
                f"{label.target} is {with_article(kind)}, of which nothing is built; build a target that uses it"
            )
        if label.record is None:
            self._add(units, wildcard=False)
        elif kind != "rollout":
            message = f"{label} names an item, but {label.target} is {with_article(kind)}"
            raise UsageError(f"{message}; only rollouts have items")
        else:
            for unit in units:
                self._check_sample(label, unit)
            items = (parse_label(unit).item(label.record, label.sample) for unit in units)
            self.found.update((str(item), None) for item in items if self._wanted(item))

    def _check_sample(self, label: Label, unit: str) -> None:
        rollout = self._analysis.resolved[unit].unit.document
        assert isinstance(rollout, Rollout)
        if label.sample is not None and label.sample >= rollout.samples:
            samples = f"{rollout.samples} sample{'' if rollout.samples == 1 else 's'}"
            raise UsageError(f"there is no {label}: {unit} has {samples} a record, and the first is #0")

    def _take_all(self, pattern: Pattern) -> None:
        units = [
            resolved.unit.label
            for resolved in self._analysis.resolved.values()
            if resolved.unit.kind in BUILDABLE
            and resolved.unit.kind not in NOT_IN_WILDCARDS
            and pattern.matches(parse_label(resolved.unit.label))
        ]
        if not units:
            raise UsageError(self._nothing(pattern))
        self._add(units, wildcard=True)

    def _nothing(self, pattern: Pattern) -> str:
        """Why a wildcard takes nothing, and the next step."""
        packages = {target.package for target in self._targets.values()}
        if not packages:
            return f"{pattern.text} matches nothing: this workspace has no targets yet; declare them in a BUILD.yaml"
        near = nearest(pattern.package, packages)
        if near is not None and pattern.package not in packages and len(pattern.package) > 2:
            return f"there is no package //{pattern.package}; did you mean `//{near}`?"
        return f"{pattern.text} matches no target that can be built; `mrp query //...` lists all targets"

    def _add(self, units: Iterable[str], *, wildcard: bool) -> None:
        for unit in units:
            if self._wanted(parse_label(unit)):
                for label in self._opened(unit, wildcard):
                    self.found[label] = None

    def _opened(self, unit: str, wildcard: bool) -> Iterator[str]:
        """The unit itself, or the members of a job, and of jobs among them."""
        kind = self._kind(unit)
        if kind != "job":
            if not (wildcard and kind in NOT_IN_WILDCARDS):
                yield unit
            return
        members: dict[str, None] = {}
        for member in self._analysis.resolved[unit].labels_below("of"):
            if self._wanted(parse_label(member)):
                members.update((label, None) for label in self._opened(member, wildcard))
        earlier = self._jobs.get(unit, ())
        self._jobs[unit] = tuple(sorted({*earlier, *members}))
        yield from members

    def _kind(self, unit: str) -> str:
        return self._targets[str(parse_label(unit).target)].kind

    def _wanted(self, label: Label) -> bool:
        return not any(pattern.matches(label) for pattern in self._left_out)


def matrix_aliases(resolved: Mapping[str, Resolved], planned: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each target with a matrix, its cells in the plan."""
    aliases: dict[str, list[str]] = {}
    for label in sorted(planned):
        if not label.startswith(BUILTIN) and label in resolved and resolved[label].unit.cell.texts:
            aliases.setdefault(resolved[label].unit.target.label, []).append(label)
    return {label: tuple(cells) for label, cells in aliases.items()}

"""Names become what they name: labels become targets or cells that exist and fit, patterns become files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mrp.compiler.declare import Declared, Unit
from mrp.compiler.globs import Expansion, GlobError, WorkspaceTree, expand, expand_file
from mrp.compiler.load import Packages
from mrp.compiler.problems import Problems
from mrp.compiler.references import FileUse, LabelUse, Location, Want, uses
from mrp.rules.reducers import REDUCERS
from mrp.specs.documents import Dataset
from mrp.specs.expectation import listed, with_article
from mrp.specs.labels import Label, LabelError, parse_label
from mrp.specs.suggest import did_you_mean, nearest

BUILTIN = "builtin:"
BUILTINS: Mapping[str, tuple[str, ...]] = {
    "host": ("sandbox", "image"),
    "oracle": ("agent",),
    "nop": ("agent",),
    **dict.fromkeys(REDUCERS, ("reducer",)),
}
"""The names below `builtin:` and the kinds that each may stand for."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A unit with what its fields name: labels by place, and files by place."""

    unit: Unit
    labels: Mapping[Location, tuple[str, ...]] = field(default_factory=dict)
    files: Mapping[Location, Expansion] = field(default_factory=dict)
    whole: bool = True
    """Whether all that the unit names was found, so that it can become a task."""

    def label(self, *location: str | int) -> str | None:
        """The one label that the field at `location` names, None when it is not written."""
        found = self.labels.get(location)
        return found[0] if found else None

    def labels_below(self, *location: str | int) -> tuple[str, ...]:
        """All labels that stand at `location` or below, in the order written, each once."""
        found = (labels for place, labels in self.labels.items() if place[: len(location)] == location)
        return tuple(dict.fromkeys(label for labels in found for label in labels))

    def files_below(self, *location: str | int) -> list[Expansion]:
        """The expansions of all patterns that stand at `location` or below."""
        return [expansion for place, expansion in self.files.items() if place[: len(location)] == location]


class Index:
    """The targets of a workspace as labels see them: every name, and the cells of those that are valid."""

    def __init__(self, packages: Packages, declared: Mapping[str, Declared]) -> None:
        self._targets, self._unsure, self._declared = packages.targets, packages.unsure, declared

    def kind(self, label: str) -> str:
        return self._targets[label].kind

    def has(self, target: str) -> bool:
        return target in self._targets

    def beside(self, label: Label) -> list[str]:
        """The names of all targets in the package of `label`."""
        return [known.name for known in self._targets.values() if known.package == label.package]

    def may_have(self, label: Label) -> bool:
        """Whether `label` may name a target that could not be read, which is reported where it stands."""
        return label.package in self._unsure and str(label.target) not in self._targets

    def known(self, label: Label) -> str:
        """The text of `label`'s target, which exists; raises LabelError with the nearest one."""
        target = str(label.target)
        if target in self._targets:
            return target
        beside = {known.name: text for text, known in self._targets.items() if known.package == label.package}
        if beside:
            near = did_you_mean(label.name, beside).replace("`", f"`//{label.package}:", 1)
            hint = near or did_you_mean(target, self._targets)
            raise LabelError(f"there is no target {target}", hint or f"the package has {_some(sorted(beside))}")
        hint = did_you_mean(target, self._targets) or "a package is a folder with a BUILD.yaml"
        raise LabelError(f"there is no target {target}, and no package //{label.package}", hint)

    def stands_for(self, label: Label) -> tuple[str, ...]:
        """The units that `label` stands for: itself, the cells it selects, or a part of a dataset's split.

        Empty when the target exists but is wrong, which is reported where it is declared. Raises LabelError.
        """
        target = self.known(label)
        declared = self._declared.get(target)
        if declared is None:
            return ()
        if not label.cell:
            return declared.labels
        document = declared.units[0].document
        if isinstance(document, Dataset):
            return (_part(label, target, document),)
        return _cells(label, target, declared)


def resolve_unit(unit: Unit, index: Index, tree: WorkspaceTree, problems: Problems) -> Resolved:
    """What the fields of `unit` name; what is wrong goes to `problems`, and is left out."""
    before = len(problems)
    labels: dict[Location, tuple[str, ...]] = {}
    label_uses, file_uses = uses(unit, tree)
    for use in label_uses:
        try:
            labels[use.location] = _labels(use, unit, index)
        except LabelError as error:
            problems.add(use.span, error.message, error.hint)
    files: dict[Location, Expansion] = {}
    for file in file_uses:
        try:
            files[file.location] = _expansion(file, unit, tree)
        except GlobError as error:
            hint = f"write it with `mrp image lock {unit.label}`" if file.role == "layers.lock" else error.hint
            problems.add(file.span, f"`{file.role}` of {unit.target.label}: {error.message}", hint)
    return Resolved(unit, labels, files, whole=len(problems) == before and all(labels.values()))


def _labels(use: LabelUse, unit: Unit, index: Index) -> tuple[str, ...]:
    text = use.text
    if use.kinds == ("reducer",) and text in REDUCERS:
        text = BUILTIN + text
    if text.startswith(BUILTIN):
        return (_builtin(text, use, unit),)
    label = parse_label(text, unit.package, bare=True)
    target = str(label.target)
    if not index.has(target):
        if index.may_have(label):
            return ()
        if use.kinds == ("reducer",) and text == label.name:
            near = did_you_mean(text, REDUCERS) or did_you_mean(text, index.beside(label))
            hint = near or f"mrp brings {', '.join(REDUCERS)}; one of your own is a target of kind reducer"
            raise LabelError(f"there is no reducer `{text}`", hint)
    if label.record is not None:
        raise LabelError(f"`{use.role}` of {unit.target.label} names one item, {text}", "name the whole target")
    kind = index.kind(target if index.has(target) else index.known(label))
    if use.kinds and kind not in use.kinds:
        raise LabelError(_misfit(use, unit, str(label.target), (kind,)), "")
    found = index.stands_for(label)
    if len(found) > 1 and not use.many:
        message = f"`{use.role}` of {unit.target.label} takes one target, but {label} stands for {len(found)} cells"
        raise LabelError(message, f"name one of them, like `{found[0]}`")
    return found


def _builtin(text: str, use: LabelUse, unit: Unit) -> str:
    name = text.removeprefix(BUILTIN)
    kinds = BUILTINS.get(name)
    if kinds is None:
        fitting = [known for known, kinds in BUILTINS.items() if not use.kinds or set(use.kinds) & set(kinds)]
        near = nearest(name, fitting)
        there = f"mrp brings {', '.join(BUILTIN + known for known in fitting)}" if fitting else "name a target"
        raise LabelError(f"there is no {text}", f"did you mean `{BUILTIN}{near}`?" if near is not None else there)
    if use.kinds and not set(use.kinds) & set(kinds):
        raise LabelError(_misfit(use, unit, text, kinds), "")
    return text


def _misfit(use: LabelUse, unit: Unit, found: str, kinds: tuple[str, ...]) -> str:
    wanted = listed([with_article(kind) for kind in use.kinds], "or")
    is_kind = listed([with_article(kind) for kind in kinds], "or")
    return f"`{use.role}` of {unit.target.label} must be {wanted}, but {found} is {is_kind}"


def _part(label: Label, target: str, document: Dataset) -> str:
    cell = dict(label.cell)
    for axis in cell:
        if axis != "split":
            raise LabelError(f"{target} is a dataset, which has no axis `{axis}`", "a dataset has only `@split=...`")
    if cell["split"] not in document.split:
        hint = did_you_mean(cell["split"], document.split) or f"its parts are {_some(sorted(document.split)) or 'none'}"
        raise LabelError(f"{target} has no part `{cell['split']}` in its split", hint)
    return str(label)


def _cells(label: Label, target: str, declared: Declared) -> tuple[str, ...]:
    axes = dict(declared.units[0].cell.texts)
    for axis, value in label.cell:
        if axis not in axes:
            hint = did_you_mean(axis, axes) or (f"its axes are {_some(list(axes))}" if axes else "it has no matrix")
            raise LabelError(f"{target} has no axis `{axis}`", hint)
        values = sorted({dict(unit.cell.texts)[axis] for unit in declared.units})
        if value not in values:
            near = did_you_mean(value, values) if len(value) > 2 else ""
            hint = near or f"its values are {_some(values)}"
            raise LabelError(f"the axis `{axis}` of {target} has no value {value}", hint)
    wanted = set(label.cell)
    return tuple(unit.label for unit in declared.units if wanted <= set(unit.cell.texts))


def _expansion(use: FileUse, unit: Unit, tree: WorkspaceTree) -> Expansion:
    if use.want is Want.FILE:
        path = expand_file(tree, unit.package, use.pattern)
        return Expansion((path,))
    return expand(tree, unit.package, use.pattern, folders=use.want is Want.FOLDERS)


def _some(names: Iterable[str], most: int = 8) -> str:
    known = list(names)
    return ", ".join(known[:most]) + (", ..." if len(known) > most else "")

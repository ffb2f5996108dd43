"""What a target points to: labels, found by the types of its fields, and files of its package."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from posixpath import dirname, join, normpath

from mrp.compiler.declare import Unit
from mrp.compiler.globs import EntryKind, WorkspaceTree
from mrp.specs.documents import Dataset, Document, LabelRef, Operator
from mrp.specs.errors import Span, safe_relative
from mrp.specs.expectation import Type, document_fields
from mrp.specs.yaml import Node

OPERATORS = ("agent", "reducer", "producer", "evaluator")
BUILDABLE = ("dataset", "image", "command", "rollout", "reduction", "evaluation", "produce", "job", "session")
FOLDER_FORMATS = ("dir", "harbor")
DOCKERFILE = "dockerfile:///"

_WITH_SRCS = frozenset((*OPERATORS, "dataset", "command"))
_WITH_SINGLE_FILES = frozenset((*OPERATORS, "dataset", "sink", "model", "image"))

_NARROWED: dict[tuple[str, str], tuple[str, ...]] = {
    ("job", "of"): BUILDABLE,
    ("reduction", "of"): ("rollout", "dataset", "reduction", "evaluation"),
    ("rollout", "grade.operator"): ("evaluator",),
    ("dataset", "generate.operator"): OPERATORS,
}
"""Fields that take fewer kinds than their type says."""

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class LabelUse:
    """A label as written, where, and the kinds that fit there; `many`: it may stand for several targets."""

    location: Location
    text: str
    span: Span
    kinds: tuple[str, ...]
    many: bool = False

    @property
    def role(self) -> str:
        """The field, without positions in lists: `grade.operator`."""
        return role_of(self.location)


class Want(Enum):
    """What a pattern of a field may name."""

    FILES = "files"
    FOLDERS = "record folders"
    FILE = "one file"


@dataclass(frozen=True, slots=True)
class FileUse:
    """A pattern as written, and where."""

    location: Location
    pattern: str
    span: Span
    want: Want = Want.FILES

    @property
    def role(self) -> str:
        return role_of(self.location)


def role_of(location: Location) -> str:
    """The field that a location leads to, without positions in lists and keys of mappings: `layers.copy`."""
    words = [step for step in location if isinstance(step, str)]
    return ".".join(words[: words.index("copy") + 1] if "copy" in words else words)


def uses(unit: Unit, tree: WorkspaceTree) -> tuple[list[LabelUse], list[FileUse]]:
    """Every label that `unit` writes, in the order of its fields, and every file or pattern of files that it names.

    `tree` tells where an operator's module is.
    """
    kind, labels, files = unit.kind, list[LabelUse](), list[FileUse]()
    for use in _typed_uses(type(unit.document), unit.node, ()):
        narrowed = _NARROWED.get((kind, use.role))
        labels.append(use if narrowed is None else LabelUse(use.location, use.text, use.span, narrowed, use.many))
    folders = kind == "dataset" and _takes_folders(unit.document)
    for location, node, text in _patterns(unit):
        if _is_label(text):
            labels.append(LabelUse(location, text, node.span, ("command",), many=True))
        else:
            want = Want.FOLDERS if folders and location[0] == "srcs" else Want.FILES
            files.append(FileUse(location, text, node.span, want))
    if kind == "image":
        base = _at(unit.node, "base")
        if base is not None and isinstance(base.value, str) and _is_label(base.value):
            labels.append(LabelUse(("base",), base.value, base.span, ("image",)))
    if kind in OPERATORS:
        document = unit.document
        assert isinstance(document, Operator)
        if not document.srcs and document.entry is not None:
            files.append(FileUse(("entry",), _module(tree, unit.package, document.entry), unit.span("entry")))
    if kind in _WITH_SINGLE_FILES:
        files.extend(_single_files(unit, tree))
    return labels, files


def dockerfile_of(base: str) -> str | None:
    """The path, below the package, of the Dockerfile that a base like dockerfile:///path names; None for others."""
    return base.removeprefix(DOCKERFILE).strip("/") if base.startswith(DOCKERFILE) else None


def _takes_folders(document: Document) -> bool:
    assert isinstance(document, Dataset)
    return document.format in FOLDER_FORMATS


def _single_files(unit: Unit, tree: WorkspaceTree) -> Iterator[FileUse]:
    def one(node: Node | None, *location: str | int, want: Want = Want.FILE) -> Iterator[FileUse]:
        if node is not None and isinstance(node.value, str):
            yield FileUse(location, node.value, node.span, want)

    if unit.kind in (*OPERATORS, "dataset", "sink"):
        yield from one(_at(unit.node, "schema"), "schema")
    if unit.kind == "model":
        for field in ("script", "template"):
            yield from one(_at(unit.node, field), field)
        weights = _at(unit.node, "weights")
        if weights is not None and isinstance(weights.value, str) and _is_folder(tree, unit.package, weights.value):
            yield from one(weights, "weights", want=Want.FILES)
    if unit.kind == "image":
        base = _at(unit.node, "base")
        if base is not None and isinstance(base.value, dict):
            yield from one(base.value.get("dockerfile"), "base", "dockerfile")
            context = base.value.get("context")
            yield from _context(unit, tree, "." if context is None else str(context.value), (context or base).span)
        elif base is not None and isinstance(base.value, str) and (file := dockerfile_of(base.value)) is not None:
            yield FileUse(("base", "dockerfile"), file, base.span, Want.FILE)
            yield from _context(unit, tree, dirname(file) or ".", base.span)
        for number, layer in enumerate(_items(_at(unit.node, "layers"))):
            for field in ("pip", "npm", "lock", "tar"):
                node = _at(layer, field)
                if node is not None and isinstance(node.value, str) and "://" not in node.value:
                    yield from one(node, "layers", number, field)


def _context(unit: Unit, tree: WorkspaceTree, folder: str, span: Span) -> Iterator[FileUse]:
    """The files of a Dockerfile's context; its .dockerignore is one, although it is hidden."""
    yield FileUse(("base", "context"), "**" if folder in (".", "./") else folder, span)
    ignore = normpath(join(folder, ".dockerignore"))
    path = join(unit.package, ignore)
    if safe_relative(path) is not None and tree.entries(dirname(path)).get(".dockerignore") is EntryKind.FILE:
        yield FileUse(("base", "context", 0), ignore, span, Want.FILE)


def _patterns(unit: Unit) -> Iterator[tuple[Location, Node, str]]:
    """The texts of fields that take globs and labels of outputs alike."""
    if unit.kind in _WITH_SRCS:
        yield from _listed(_at(unit.node, "srcs"), "srcs")
    if unit.kind == "dataset":
        generate = _at(unit.node, "generate")
        if generate is not None:
            yield from _listed(_at(generate, "srcs"), "generate", "srcs")
    if unit.kind == "session":
        yield from _listed(_at(unit.node, "starter"), "starter")
    if unit.kind == "image":
        for number, layer in enumerate(_items(_at(unit.node, "layers"))):
            copy = _at(layer, "copy")
            if copy is not None and isinstance(copy.value, dict):
                for pattern in copy.value:
                    place = Node(pattern, copy.key_spans[pattern])
                    yield ("layers", number, "copy", pattern), place, pattern


def _listed(node: Node | None, *location: str | int) -> Iterator[tuple[Location, Node, str]]:
    for number, item in enumerate(_items(node)):
        if isinstance(item.value, str):
            yield (*location, number), item, item.value


def _typed_uses(model: type[Document], node: Node, location: Location) -> Iterator[LabelUse]:
    if isinstance(node.value, dict):
        for name, wanted in _label_fields(model).items():
            if name in node.value:
                yield from _uses_of(wanted, node.value[name], (*location, name))


def _uses_of(wanted: Type, node: Node, location: Location) -> Iterator[LabelUse]:
    for branch in (wanted, *wanted.branches):
        for mark in branch.marks(LabelRef):
            if isinstance(node.value, str):
                yield LabelUse(location, node.value, node.span, mark.kinds, many=isinstance(location[-1], int))
            return
    for branch in wanted.branches:
        if branch.model is not None and isinstance(node.value, dict):
            yield from _typed_uses(branch.model, node, location)
        elif branch.origin is list and isinstance(node.value, list):
            for number, item in enumerate(node.value):
                yield from _uses_of(branch.arguments[0], item, (*location, number))


@cache
def _label_fields(model: type[Document]) -> dict[str, Type]:
    """The fields below which a label may stand, so that the others are not looked at."""
    return {name: wanted for name, (wanted, _) in document_fields(model).items() if _holds_label(wanted)}


def _holds_label(wanted: Type) -> bool:
    if wanted.marks(LabelRef):
        return True
    if wanted.model is not None:
        return bool(_label_fields(wanted.model))
    return any(_holds_label(argument) for argument in wanted.arguments)


def _is_folder(tree: WorkspaceTree, package: str, text: str) -> bool:
    """Whether weights are a folder: it stands in the package, or `./` says that it should; else they are on a hub."""
    path = join(package, text)
    folder, name = path.rpartition("/")[::2]
    return text.startswith("./") or tree.entries(folder).get(name) is EntryKind.FOLDER


def _module(tree: WorkspaceTree, package: str, entry: str) -> str:
    """The file or folder of the package that `entry` imports from; the file's name when there is neither."""
    name = entry.partition(":")[0].partition(".")[0]
    entries = tree.entries(package)
    if f"{name}.py" not in entries and entries.get(name) is EntryKind.FOLDER:
        return name
    return f"{name}.py"


def module_files(package: str, entry: str) -> tuple[str, str]:
    """The two places where the module of `entry` may be: a file, or a folder."""
    name = entry.partition(":")[0].replace(".", "/")
    return join(package, f"{name}.py"), join(package, name)


def _is_label(text: str) -> bool:
    return text.startswith(("//", ":"))


def _at(node: Node, field: str) -> Node | None:
    return node.value.get(field) if isinstance(node.value, dict) else None


def _items(node: Node | None) -> list[Node]:
    return node.value if node is not None and isinstance(node.value, list) else []

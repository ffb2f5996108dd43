"""Packages: every BUILD.yaml (with the operator.yaml beside it) of a workspace, parsed to named targets, unresolved."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest, digest_bytes
from mrp.compiler.globs import BUILD_FILE, EntryKind, GlobError, WorkspaceTree, expand_file, visible
from mrp.compiler.problems import Problems
from mrp.compiler.select import has_select, resolve_selects
from mrp.specs.documents import OperatorFile
from mrp.specs.errors import Diagnostic, Span, SpecError
from mrp.specs.labels import parse_label
from mrp.specs.validate import TARGET_NAME, split_build, validate
from mrp.specs.yaml import Node, node_from_json, node_to_json, parse_yaml, span_at

OPERATOR_FILE = "operator.yaml"

_MEMO_VERSION = 1
_NOT_IN_TARGET = ("mrp", "kind", "name", "image", "resources")


class Memory(Protocol):
    """What may be remembered between runs, and may be forgotten at any time (mrp.cache.memo)."""

    def get(self, key: Digest) -> Json | None: ...

    def put(self, key: Digest, value: Json) -> None: ...


@dataclass(frozen=True, slots=True)
class RawTarget:
    """A target as it is written: `node` is its mapping without `kind`, `span` the place of its name.

    `may_select`: False when its document surely holds no select.
    """

    package: str
    name: str
    kind: str
    node: Node
    span: Span
    may_select: bool = True

    @property
    def label(self) -> str:
        return f"//{self.package}:{self.name}"


@dataclass(frozen=True)
class Packages:
    """All targets by label, the packages' folders (`known`), and the digests of the files that declare them.

    `unsure` are the folders of packages of which not everything could be read, so that they may hold more targets.
    """

    targets: dict[str, RawTarget]
    known: frozenset[str]
    documents: dict[str, Digest]
    unsure: frozenset[str]


def load_packages(root: Path, tree: WorkspaceTree, problems: Problems, memory: Memory | None = None) -> Packages:
    """Every package below `root`; what is wrong goes to `problems`, and all that can be read is returned."""
    loader = _Loader(root, tree, problems, memory)
    folders = tuple(_package_folders(tree, problems))
    unsure: set[str] = set()
    for folder in folders:
        before = len(problems)
        loader.package(folder)
        if len(problems) > before:
            unsure.add(folder)
    return Packages(loader.targets, frozenset(folders), loader.documents, frozenset(unsure))


def _package_folders(tree: WorkspaceTree, problems: Problems) -> Iterator[str]:
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            entries = tree.entries(folder)
        except GlobError as error:
            problems.add(Span(f"{folder or '.'}/", 1, 1), error.message, error.hint)
            continue
        if entries.get(BUILD_FILE) in (EntryKind.FILE, EntryKind.LINK):
            yield folder
        prefix = f"{folder}/" if folder else ""
        below = [prefix + name for name, kind in entries.items() if kind is EntryKind.FOLDER and visible(name)]
        waiting.extend(reversed(below))


class _Loader:
    def __init__(self, root: Path, tree: WorkspaceTree, problems: Problems, memory: Memory | None) -> None:
        self._root, self._tree, self._problems, self._memory = root, tree, problems, memory
        self.targets: dict[str, RawTarget] = {}
        self.documents: dict[str, Digest] = {}

    def package(self, folder: str) -> None:
        node = self._read(folder, BUILD_FILE)
        if node is not None:
            self._build_file(folder, node)
        if OPERATOR_FILE in self._tree.entries(folder):
            operator = self._read(folder, OPERATOR_FILE)
            if operator is not None:
                self._operator_file(folder, operator)

    def _read(self, folder: str, name: str) -> Node | None:
        """The document's tree, from memory when its bytes are known; None after reporting why not."""
        path = f"{folder}/{name}" if folder else name
        try:
            expand_file(self._tree, folder, name)
            text = (self._root / path).read_bytes()
            path.encode()
        except GlobError as error:
            self._problems.add(Span(path, 1, 1), error.message, error.hint)
            return None
        except (OSError, UnicodeEncodeError) as error:
            shown = path.encode(errors="replace").decode()
            reason = error.strerror if isinstance(error, OSError) else "its path is not UTF-8"
            self._problems.add(Span(shown, 1, 1), f"{shown} cannot be read: {reason}")
            return None
        digest = self.documents[path] = digest_bytes(text)
        self._problems.sources.add(path, text)
        key = digest_bytes(f"package:{_MEMO_VERSION}:{path}:{digest}".encode())
        known = self._memory.get(key) if self._memory is not None else None
        if known is not None:
            try:
                return node_from_json(known)
            except (KeyError, TypeError, ValueError, StopIteration):
                pass
        try:
            node = parse_yaml(text, path)
        except SpecError as error:
            self._problems.extend(error.diagnostics)
            return None
        if self._memory is not None:
            self._memory.put(key, node_to_json(node))
        return node

    def _build_file(self, folder: str, node: Node) -> None:
        try:
            parse_label(f"//{folder}:x")
        except ValueError:
            message = f"the folder `{folder}` cannot be a package, since its name does not fit into a label"
            hint = "rename it with letters, digits and _ . + -"
            self._problems.extend([Diagnostic(Span(node.span.path, 1, 1), message, hint)])
        targets, diagnostics = split_build(node, self._problems.sources)
        self._problems.extend(diagnostics)
        text = self._problems.sources.text(node.span.path)
        may_select = b"select" in text or b"\\" in text
        for target in targets:
            self._add(RawTarget(folder, target.name, target.kind, target.node, target.name_span, may_select))

    def _add(self, target: RawTarget) -> None:
        label = target.label
        earlier = self.targets.setdefault(label, target)
        if earlier is target:
            return
        message = f"{label} is declared twice; the first is at {earlier.span}"
        self._problems.add(target.span, message, "rename one of the two")

    def _operator_file(self, folder: str, node: Node) -> None:
        """An operator.yaml is a target like any other; its image and resources become a sandbox beside it."""
        default = resolve_selects(node, (), None) if has_select(node) else node
        document, diagnostics = validate(OperatorFile, default or node, self._problems.sources)
        self._problems.extend(diagnostics)
        if document is None or not isinstance(node.value, dict):
            return
        if not TARGET_NAME.match(document.name):
            hint = "use letters, digits and _ . + -, starting with a letter or digit"
            self._problems.add(span_at(node, ("name",)), f"`{document.name}` cannot name a target", hint)
            return
        target = _without(node, _NOT_IN_TARGET)
        span = node.value["name"].span
        image, resources = node.value.get("image"), node.value.get("resources")
        if image is not None or resources is not None:
            fields = {"image": image} if image is not None else {}
            fields |= {"limits": resources} if resources is not None else {}
            sandbox = Node(fields, node.span, {key: node.key_spans[_written(key)] for key in fields})
            self._add(RawTarget(folder, f"{document.name}.sandbox", "sandbox", sandbox, span))
            assert isinstance(target.value, dict)
            place = (image or resources or node).span
            target = target._replace(
                value={**target.value, "sandbox": Node(f":{document.name}.sandbox", place)},
                key_spans={**target.key_spans, "sandbox": place},
            )
        self._add(RawTarget(folder, document.name, document.kind, target, span))


def _written(field: str) -> str:
    return "resources" if field == "limits" else field


def _without(node: Node, keys: tuple[str, ...]) -> Node:
    assert isinstance(node.value, dict)
    return node._replace(
        value={key: item for key, item in node.value.items() if key not in keys},
        key_spans={key: span for key, span in node.key_spans.items() if key not in keys},
    )

"""The root of a workspace: where it is, and its own documents (mrp.yaml, the policy, operators.lock)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mrp.cache.digest import Digest, digest_bytes
from mrp.compiler.globs import GlobError, WorkspaceTree, expand_file
from mrp.compiler.problems import Problems
from mrp.specs.documents import Config, Document, OperatorsLock, PolicyFile, WorkspaceFile
from mrp.specs.errors import Span, SpecError, UsageError, safe_relative
from mrp.specs.suggest import did_you_mean
from mrp.specs.validate import validate
from mrp.specs.yaml import Node, key_span_at, parse_yaml

WORKSPACE_FILE = "mrp.yaml"
LOCK_FILE = "operators.lock"


@dataclass(frozen=True)
class Workspace:
    """A workspace's own documents; the strict built-in policy stands in where none is named.

    `policy_path` is the policy's file, or mrp.yaml for the built-in one. `documents` are the digests of what was read.
    """

    root: Path
    file: WorkspaceFile
    policy: PolicyFile
    policy_path: str
    policy_node: Node | None
    lock: OperatorsLock | None
    lock_node: Node | None
    tree: WorkspaceTree
    documents: dict[str, Digest] = field(default_factory=dict)

    def settings(self, chosen: tuple[str, ...]) -> Config:
        """What the chosen configs set, later ones over earlier ones."""
        merged: dict[str, object] = {}
        for name in chosen:
            merged |= self.file.configs[name].model_dump(exclude_none=True)
        return Config.model_validate(merged)


def find_root(folder: Path) -> Path:
    """The nearest folder with an mrp.yaml, from `folder` upwards; raises UsageError when there is none."""
    folder = folder.absolute()
    for candidate in (folder, *folder.parents):
        if (candidate / WORKSPACE_FILE).is_file():
            return candidate
    raise UsageError(f"there is no {WORKSPACE_FILE} in {folder} or above; run `mrp init` to start a workspace")


def open_workspace(root: Path, problems: Problems) -> Workspace:
    """Reads mrp.yaml and the documents that it names; what is wrong goes to `problems`, with defaults in its place."""
    tree = WorkspaceTree(root)
    documents: dict[str, Digest] = {}
    file, node = _document(tree, root, WORKSPACE_FILE, WorkspaceFile, problems, documents)
    if file is not None and node is not None and "default" in file.configs:
        span = key_span_at(node, ("configs", "default")) or node.span
        problems.add(span, "a config cannot be called `default`", "in `select`, default is what no config matches")
    policy, policy_path, policy_node = _policy(tree, root, file, node, problems, documents)
    lock, lock_node = None, None
    if LOCK_FILE in tree.entries(""):
        lock, lock_node = _document(tree, root, LOCK_FILE, OperatorsLock, problems, documents)
    file = file or WorkspaceFile(mrp=1, name="")
    return Workspace(root, file, policy, policy_path, policy_node, lock, lock_node, tree, documents)


def check_configs(chosen: tuple[str, ...], known: Mapping[str, Config]) -> None:
    """Raises UsageError when `--config` names something that mrp.yaml does not."""

    for name in chosen:
        if name not in known:
            hint = did_you_mean(name, known) or f"mrp.yaml has {', '.join(sorted(known)) or 'no configs'}"
            raise UsageError(f"there is no config `{name}`; {hint}")


def read_document(root: Path, path: str, problems: Problems, documents: dict[str, Digest]) -> Node | None:
    """Reads and parses one YAML file, remembers its digest; None after reporting why not."""
    try:
        text = (root / path).read_bytes()
    except OSError as error:
        problems.add(Span(path, 1, 1), f"{path} cannot be read: {error.strerror}")
        return None
    documents[path] = digest_bytes(text)
    problems.sources.add(path, text)
    try:
        return parse_yaml(text, path)
    except SpecError as error:
        problems.extend(error.diagnostics)
        return None


_D = TypeVar("_D", bound=Document)


def _document(
    tree: WorkspaceTree,
    root: Path,
    path: str,
    model: type[_D],
    problems: Problems,
    documents: dict[str, Digest],
) -> tuple[_D | None, Node | None]:
    try:
        expand_file(tree, "", path)
    except GlobError as error:
        problems.add(Span(path, 1, 1), error.message, error.hint)
        return None, None
    node = read_document(root, path, problems, documents)
    if node is None:
        return None, None
    document, diagnostics = validate(model, node, problems.sources)
    problems.extend(diagnostics)
    return document, node


def _policy(
    tree: WorkspaceTree,
    root: Path,
    file: WorkspaceFile | None,
    node: Node | None,
    problems: Problems,
    documents: dict[str, Digest],
) -> tuple[PolicyFile, str, Node | None]:
    strict = PolicyFile(mrp=1)
    named = node.value.get("policy") if node is not None and isinstance(node.value, dict) else None
    if node is None or named is None or not isinstance(named.value, str):
        return strict, WORKSPACE_FILE, None
    try:
        path = expand_file(tree, "", named.value)
    except GlobError as error:
        hint = "move the policy below mrp.yaml" if safe_relative(named.value) is None else error.hint
        problems.add(named.span, f"`policy`: {error.message}", hint)
        return strict, WORKSPACE_FILE, None
    policy, policy_node = _document(tree, root, path, PolicyFile, problems, documents)
    return policy or strict, path, policy_node

"""Lock files of Debian packages that a workspace names, whether they are there yet or not, and what they must hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from posixpath import join, normpath

from mrp.compiler.declare import declare
from mrp.compiler.load import load_packages
from mrp.compiler.problems import Problems
from mrp.compiler.workspace import open_workspace
from mrp.specs import documents
from mrp.specs.errors import safe_relative


def deb_locks(root: Path, config: Sequence[str] = ()) -> Mapping[str, Mapping[str, frozenset[str]]]:
    """Path of each lock -> label of each image with a layer that names it -> the packages that the layers want.

    Only the documents are read. Raises SpecError for documents that are wrong.
    """
    problems = Problems()
    workspace = open_workspace(root, problems)
    packages = load_packages(root, workspace.tree, problems)
    found: dict[str, dict[str, frozenset[str]]] = {}
    for label, target in sorted(packages.targets.items()):
        if target.kind != "image":
            continue
        declared, _ = declare(target, tuple(config), tuple(workspace.file.configs), problems)
        for unit in declared.units if declared is not None else ():
            image = unit.document
            assert isinstance(image, documents.Image)
            for number, layer in enumerate(image.layers):
                if layer.deb is not None and layer.lock is not None:
                    path = normpath(join(unit.package, layer.lock))
                    if safe_relative(path) is None or layer.lock.startswith("//"):
                        message = f"the lock `{layer.lock}` is no file below the workspace"
                        problems.add(unit.span("layers", number, "lock"), message, "write a path like debs.lock")
                        continue
                    users = found.setdefault(path, {})
                    users[label] = users.get(label, frozenset()) | frozenset(layer.deb)
    problems.raise_if_any()
    return found

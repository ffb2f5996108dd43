"""mrp-out: links into the read-only store for what was asked for."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mrp.cache.digest import digest_bytes
from mrp.cache.store import Store
from mrp.runtime.state import explained, locked, state_folder
from mrp.specs.labels import parse_label
from mrp.specs.results import Ref

FOLDER = "mrp-out"

_MAX_NAME = 200


def output_folder(workspace: Path, label: str) -> Path:
    """`mrp-out/<package>/<name>`, with a matrix cell as part of the name, and a `/` in it as `%2F`.

    Of a name that is too long for a folder, a digest stands for the end.
    """
    parsed = parse_label(label)
    name = str(parsed.task).partition(":")[2].replace("/", "%2F")
    if len(name.encode()) > _MAX_NAME:
        start = name.encode()[: _MAX_NAME - 17].decode(errors="ignore")
        name = f"{start}-{digest_bytes(name.encode())[:16]}"
    return workspace / FOLDER / parsed.package / name


def publish(workspace: Path, label: str, outputs: Mapping[str, Ref], store: Store) -> Path:
    """Make the label's folder hold links to exactly `outputs`; what is right already is left as it is.

    Two builds of one workspace take turns, so that neither removes what the other is placing. Raises InfraError when
    the links cannot be made, MissingBlob when the store lost what they lead to.
    """
    folder = output_folder(workspace, label)
    wanted = output_links(outputs, store)
    with locked(state_folder(workspace) / "publish.lock"), explained(folder):
        (workspace / FOLDER).mkdir(exist_ok=True)
        _make_folder(folder, workspace / FOLDER)
        for name, target in wanted.items():
            _link(folder / name, target, folder)
        _remove_others(folder, wanted, workspace)
    return folder


def output_links(outputs: Mapping[str, Ref], store: Store) -> dict[str, str]:
    """What stands below a label's folder: the path of each link, and where it leads. Raises MissingBlob."""
    wanted: dict[str, str] = {}
    for name, ref in outputs.items():
        if ref.kind == "blob":
            wanted[name] = str(store.blob_path(ref.digest))
            continue
        for path, entry in store.read_tree(ref.digest).items():
            if entry.digest is not None and entry.kind in "fx":
                wanted[f"{name}/{path}"] = str(store.blob_path(entry.digest))
            elif entry.target is not None:
                wanted[f"{name}/{path}"] = entry.target
    return wanted


def _make_folder(path: Path, top: Path) -> None:
    """Make a folder below `top`; all there is ours, so what stands in its place is removed."""
    if path == top or (path.is_dir() and not path.is_symlink()):
        return
    _make_folder(path.parent, top)
    path.unlink(missing_ok=True)
    path.mkdir(exist_ok=True)


def _link(path: Path, target: str, folder: Path) -> None:
    try:
        if path.readlink() == Path(target):
            return
    except OSError:
        if path.is_dir():
            shutil.rmtree(path)
    _make_folder(path.parent, folder)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def _remove_others(folder: Path, wanted: Mapping[str, str], workspace: Path) -> None:
    """Remove what is not wanted. The folder of `//:jobs` is also that of package `jobs`, whose targets keep theirs."""
    for current, folders, files in os.walk(folder):
        for name in [*files, *folders]:
            path = Path(current, name)
            is_ours = path.is_dir() and not path.is_symlink()
            if not is_ours and str(path.relative_to(folder)) not in wanted:
                path.unlink(missing_ok=True)
        if (workspace / Path(current).relative_to(workspace / FOLDER) / "BUILD.yaml").is_file():
            folders.clear()
    for current, _, _ in os.walk(folder, topdown=False):
        if Path(current) != folder and not any(Path(current).iterdir()):
            Path(current).rmdir()

"""Where a command works: the workspace's root, the package of the current folder, the state and the cache.

Light on purpose: nothing here reads YAML, so that a build with nothing to do stays quick.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.specs.errors import InfraError, UsageError

if TYPE_CHECKING:
    from mrp.cache.store import Store


def find_root() -> Path:
    """The nearest folder with an mrp.yaml, from the current one upwards; raises UsageError when there is none."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "mrp.yaml").is_file():
            return folder
    raise UsageError(f"there is no mrp.yaml in {here} or above; run `mrp init` to start a workspace")


def absolute(word: str, root: Path) -> str:
    """A label or pattern as seen from the workspace's root: `:eval` in folder jobs is `//jobs:eval`.

    Only the start of `word` is read; what else may be wrong with it is found where labels are parsed.
    """
    minus = "-" if word.startswith("-") else ""
    text = word.removeprefix("-")
    if not (text.startswith(":") or text == "..."):
        return word
    package = Path.cwd().relative_to(root).as_posix()
    package = "" if package == "." else package
    if text.startswith(":"):
        return f"{minus}//{package}{text}"
    return f"{minus}//{package}/..." if package else f"{minus}//..."


def state_folder(root: Path) -> Path:
    """Where a workspace keeps its runs and its ledger."""
    return root / ".mrp"


def cache_folder() -> Path:
    """$MRP_CACHE, else the user's cache folder."""
    chosen = os.environ.get("MRP_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mrp"


def open_store() -> "Store":
    """The cache's store. Raises CacheError."""
    from mrp.cache.store import Store

    return Store.open(cache_folder())


def write_file(path: Path, data: bytes) -> None:
    """Write a file that the user asked for; raises InfraError with its path when that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InfraError(f"cannot write {path}: {reason}; choose another place or make room", retryable=False) from None

"""Loading mrp.sdk in a warm process, with the parts of the standard library that operators are likely to import."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

PRELOADED = (
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "collections",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "io",
    "itertools",
    "json",
    "logging",
    "math",
    "pathlib",
    "random",
    "re",
    "shutil",
    "statistics",
    "string",
    "subprocess",
    "tempfile",
    "textwrap",
    "traceback",
    "typing",
)


def load_sdk(folder: str, guest: str) -> Callable[[Mapping[str, str]], int]:
    """Load mrp.sdk from `folder` as if it stood at `guest`, so that paths in it are those of the sandbox."""
    for name in PRELOADED:
        importlib.import_module(name)
    finder = _SdkFinder(folder, guest)
    sys.meta_path.insert(0, finder)
    try:
        runner = importlib.import_module("mrp.sdk.runner")
        for name in ("mrp.sdk", "mrp.sdk.builtin", "mrp.sdk.context"):
            importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
    function: Callable[[Mapping[str, str]], int] = runner.run_entry
    return function


class _SdkFinder(importlib.abc.MetaPathFinder):
    """Finds `mrp` and `mrp.sdk` in a folder of this machine, and says that they are in the sandbox's."""

    def __init__(self, folder: str, guest: str) -> None:
        self._folder = folder
        self._guest = guest

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "mrp" and not name.startswith("mrp."):
            return None
        place = name.replace(".", "/")
        for inner, package in ((f"{place}/__init__.py", True), (f"{place}.py", False)):
            if os.path.isfile(f"{self._folder}/{inner}"):
                loader = _SdkLoader(f"{self._folder}/{inner}", f"{self._guest}/{inner}")
                spec = importlib.machinery.ModuleSpec(name, loader, origin=f"{self._guest}/{inner}", is_package=package)
                spec.has_location = True
                break
        else:
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            package = True
        if package:
            spec.submodule_search_locations = [f"{self._guest}/{place}"]
        return spec


class _SdkLoader(importlib.abc.Loader):
    def __init__(self, path: str, guest: str) -> None:
        self._path = path
        self._guest = guest

    def exec_module(self, module: ModuleType) -> None:
        with open(self._path, "rb") as file:
            code = compile(file.read(), self._guest, "exec", dont_inherit=True)
        exec(code, module.__dict__)

"""`mrp fmt`: line ends, trailing blanks, tabs and blank lines of the workspace's YAML, with every comment kept.

A file is written only when it still means the same: its parsed value before and after must be equal.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root
from mrp.specs.errors import SpecError, UsageError

_NAMES = ("mrp.yaml", "BUILD.yaml", "policy.yaml", "operator.yaml")
_MAX_BLANK_LINES = 1
_NOT_OURS = (".mrp", "mrp-out", ".git", ".venv", "node_modules")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or folders (default: the whole workspace)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file would change")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    root = find_root()
    changed = []
    for path in _files([Path(word) for word in arguments.paths] or [root]):
        text = path.read_bytes()
        tidied = tidy(text, os.path.relpath(path))
        if tidied != text:
            changed.append(os.path.relpath(path))
            if not arguments.check:
                _replace(path, tidied)
    if screen.json:
        screen.document({"changed": changed, "written": not arguments.check})
    for name in changed:
        screen.answer(f"{'would tidy' if arguments.check else 'tidied'} {name}")
    return 1 if changed and arguments.check else 0


def tidy(data: bytes, path: str) -> bytes:
    """The tidied text of a document; raises SpecError when it cannot be read."""
    from mrp.specs.yaml import parse_yaml, plain

    before = plain(parse_yaml(data, path))
    lines = [line.rstrip(" \t") for line in data.decode().replace("\r\n", "\n").split("\n")]
    kept: list[str] = []
    blank = 0
    for line in lines:
        blank = 0 if line else blank + 1
        if blank <= _MAX_BLANK_LINES and (line or kept):
            kept.append(line)
    tidied = ("\n".join(kept).rstrip("\n") + "\n").encode()
    try:
        same = plain(parse_yaml(tidied, path)) == before
    except SpecError:
        same = False
    return tidied if same else data


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if name not in _NOT_OURS)
                yield from (Path(folder, name) for name in sorted(names) if name in _NAMES)
        else:
            raise UsageError(f"{path} is not there; name files or folders of the workspace")


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.chmod(path.stat().st_mode & 0o777)
    temporary.replace(path)

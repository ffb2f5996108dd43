"""The leaf files of W1, the same for all tools, with what people do to them, and what must come out at the root."""

import os
from itertools import count
from pathlib import Path

from benchmarks.terms import WrongWork

GROUP = 100
"""Leaves in a group."""


class Leaves:
    """`size` leaves below `root`, in folders of a group each. One leaf is edited, reverted and touched."""

    def __init__(self, root: Path, size: int) -> None:
        if size % GROUP:
            raise ValueError(f"{size} leaves do not make groups of {GROUP}")
        self.root, self.size = root, size
        self.groups = [f"g{number:03d}" for number in range(size // GROUP)]
        self._edited = root / self.groups[0] / leaf(5)
        self._edits = count(1)
        self._text = _text(self.groups[0], 5)

    def write(self) -> None:
        """Write all leaves as they are at first."""
        for group in self.groups:
            (self.root / group).mkdir(parents=True, exist_ok=True)
            for number in range(GROUP):
                (self.root / group / leaf(number)).write_text(_text(group, number))

    def edit(self) -> None:
        """Give one leaf a content that it never had."""
        self._write_leaf(f"edit {next(self._edits)} of one leaf\n")

    def revert(self) -> None:
        """Give the edited leaf its first content again."""
        self._write_leaf(_text(self.groups[0], 5))

    def touch(self) -> None:
        """Move the modification time of the leaf, and nothing else."""
        os.utime(self._edited)

    def expect_root(self, path: Path) -> None:
        """Raise WrongWork unless the file at `path` is what the leaves of now make."""
        expected = "".join(_text(group, number) for group in self.groups for number in range(GROUP))
        expected = expected.replace(_text(self.groups[0], 5), self._text, 1)
        if not path.is_file() or path.read_text() != expected:
            raise WrongWork(f"{path.name} is not what the leaves make")

    def _write_leaf(self, text: str) -> None:
        self._edited.write_text(text)
        self._text = text


def leaf(number: int) -> str:
    """The name of a leaf in its group."""
    return f"in{number:02d}.txt"


def made(number: int) -> str:
    """The name of what the command of a leaf makes."""
    return f"out{number:02d}.txt"


def _text(group: str, number: int) -> str:
    return f"leaf {number:02d} of {group}\n"

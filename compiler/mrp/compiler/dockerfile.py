"""What a Dockerfile brings from outside its context: the images it starts from or copies from, and downloads.

Where versions of Docker read a file differently, all of their readings count: nothing is let through unseen.
"""

import re
from collections.abc import Iterator
from pathlib import Path

_ADDRESS = re.compile(r"(?:https?|git|ssh)://\S+|git@\S+|\$\S+", re.IGNORECASE)
_MOUNTED = re.compile(r"\bfrom=([^\s,]*)", re.IGNORECASE)
_OTHER_ESCAPE = re.compile(r"\s*#\s*escape\s*=\s*[^\s\\].*", re.IGNORECASE)
_UNQUOTED = str.maketrans("", "", "\"'\\")


def bases_of(path: Path) -> list[str]:
    """The images that it names, without earlier stages of the same file, in order; also those with variables.

    What is no image's name stands for a line that cannot be read.
    """
    stages: set[str] = set()
    bases: list[str] = []

    def named(image: str) -> None:
        if image.lower() not in stages and image not in bases:
            bases.append(image)

    for name, words in _instructions(path):
        plain = [word for word in words if not word.startswith("--")]
        if name == "FROM":
            named(plain[0] if len(plain) in (1, 3) else " ".join([name, *plain]))
            if len(plain) == 3:
                stages.add(plain[2].lower())
        elif name == "#":
            named(" ".join(words))
        for image in _brought(name, words):
            if not image.isdigit():
                named(image)
    return bases


def downloads_of(path: Path) -> list[str]:
    """The addresses that ADD instructions name, and variables, which may hold one."""
    found = (_ADDRESS.search(" ".join(words)) for name, words in _instructions(path) if name == "ADD")
    return [address[0] for address in found if address is not None]


def _brought(name: str, words: list[str]) -> Iterator[str]:
    """The images that the flags of a COPY, ADD or RUN name; Docker drops the quotes in flags."""
    for word in words:
        flag, separator, value = word.translate(_UNQUOTED).partition("=")
        if separator and flag.lower() == "--from" and name in ("COPY", "ADD"):
            yield value
        elif flag.lower() == "--mount" and name == "RUN":
            yield from _MOUNTED.findall(value)


def _instructions(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each instruction's name in capitals and its other words; `#` for a directive that makes another escape."""
    text = path.read_bytes().decode("utf-8-sig", "replace")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    for line in lines:
        if _OTHER_ESCAPE.match(line):
            yield "#", line.split()
    for line in _joined(lines):
        name, *words = line.split()
        yield name.upper(), words


def _joined(lines: list[str]) -> Iterator[str]:
    r"""Lines with those joined that a `\` continues; comments and empty lines are none of them.

    An indented comment within ends the instruction for some versions of Docker, and not for others.
    """
    begun, ended = "", False
    for line in lines:
        comment = line.lstrip().startswith("#")
        if comment and begun and not line.startswith("#"):
            yield begun
            ended = True
        if comment or not line.strip():
            continue
        if ended:
            yield line
        end = line.rstrip(" \t")
        begun += end.removesuffix("\\")
        if not end.endswith("\\") or end.endswith("\\\\"):
            yield begun
            begun, ended = "", False
    if begun.strip():
        yield begun

"""What a Dockerfile brings from outside its context: the images it starts from or copies from, and downloads."""

import re
from pathlib import Path

_FROM = re.compile(r"^\s*FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*$", re.IGNORECASE)
_COPIED = re.compile(r"^\s*(?:COPY|ADD|RUN)\s.*?--(?:from=|mount=\S*?\bfrom=)([^\s,]+)", re.IGNORECASE)
_DOWNLOAD = re.compile(r"^\s*ADD\s+(?:--\S+\s+)*.*?((?:https?|git|ssh)://\S+|git@\S+)", re.IGNORECASE)
_CONTINUED = re.compile(r"\\[ \t]*\n")


def bases_of(path: Path) -> list[str]:
    """The images that it names, without earlier stages of the same file, in order; also those with variables."""
    stages: set[str] = set()
    bases: list[str] = []

    def named(image: str) -> None:
        if image.lower() not in stages and image not in bases:
            bases.append(image)

    for line in _lines(path):
        if started := _FROM.match(line):
            named(started[1])
            if started[2]:
                stages.add(started[2].lower())
        elif (copied := _COPIED.match(line)) and not copied[1].isdigit():
            named(copied[1])
    return bases


def downloads_of(path: Path) -> list[str]:
    """The addresses that ADD instructions name."""
    return [found[1] for line in _lines(path) if (found := _DOWNLOAD.match(line))]


def _lines(path: Path) -> list[str]:
    text = _CONTINUED.sub(" ", path.read_text(encoding="utf-8", errors="replace"))
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]

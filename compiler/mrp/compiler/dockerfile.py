"""The images that a Dockerfile starts from."""

import re
from pathlib import Path

_FROM = re.compile(r"^\s*FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*$", re.IGNORECASE | re.MULTILINE)
_CONTINUED = re.compile(r"\\[ \t]*\n")


def bases_of(path: Path) -> list[str]:
    """The images named by FROM, without earlier stages of the same file, in order; also those with variables."""
    text = _CONTINUED.sub(" ", path.read_text(encoding="utf-8", errors="replace"))
    stages: set[str] = set()
    bases: list[str] = []
    for image, stage in _FROM.findall(text):
        if image.lower() not in stages and image not in bases:
            bases.append(image)
        if stage:
            stages.add(stage.lower())
    return bases

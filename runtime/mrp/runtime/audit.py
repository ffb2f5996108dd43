"""The audit of a sink: one line before each write and one after, each holding the digest of the line before it.

A line that was changed, removed or put in between breaks the chain. The last lines can be cut off without a trace in
the file itself; compare its last digest with a copy kept elsewhere where that matters. A last line without a newline
is the remains of a crash, was never acted upon, and is cut off by the next write.
"""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

from mrp.cache.canonical import Json, canonical_bytes
from mrp.cache.digest import digest_bytes
from mrp.runtime.sinks.durable import make_folders, sync_folder
from mrp.specs.errors import BuildFailed

FIRST = "0" * 64
"""What the first line holds as the digest of the line before it."""


@dataclass(frozen=True)
class Audit:
    """The lines of one sink's audit, oldest first. The caller holds the lock of the workspace's audits."""

    path: Path
    lines: tuple[dict[str, Json], ...]
    head: str
    size: int

    def last(self, label: str) -> dict[str, Json]:
        """The last line that `label` wrote; {} when there is none."""
        return next((line for line in reversed(self.lines) if line["label"] == label), {})

    def append(self, event: str, fields: dict[str, Json]) -> "Audit":
        """The audit with one more line, which is on disk when this returns. Raises OSError."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = {"seq": len(self.lines) + 1, "event": event, "time": now, "previous": self.head, **fields}
        data = canonical_bytes(line)
        is_new = not self.path.exists()
        make_folders(self.path.parent)
        with self.path.open("r+b" if not is_new else "xb") as file:
            file.truncate(self.size)
            file.seek(self.size)
            file.write(data + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync_folder(self.path.parent)
        return Audit(self.path, (*self.lines, line), digest_bytes(data), self.size + len(data) + 1)


def audit_path(workspace: Path, sink: str) -> Path:
    """Where the audit of the sink with that label lies."""
    return workspace / ".mrp" / "audit" / f"{quote(sink.removeprefix('//'), safe=':@=,')}.jsonl"


def read_audit(path: Path) -> Audit:
    """The audit at `path`, empty when there is none; raises BuildFailed when its chain is broken."""
    lines, head, size, broken = _read(path)
    if broken is not None:
        raise BuildFailed(
            f"{path}:{broken}: the audit was changed here, so what this sink holds is not known;"
            " compare it with a copy, or move it away to begin a new one"
        )
    return Audit(path, tuple(lines), head, size)


def verify_audit(path: Path) -> int | None:
    """The number of the first line of the audit at `path` that breaks the chain, counted from 1; None: it holds."""
    return _read(path)[3]


def _read(path: Path) -> tuple[list[dict[str, Json]], str, int, int | None]:
    """Lines, digest of the last, bytes that they take, and the first broken line's number."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return [], FIRST, 0, 1
    data = path.read_bytes() if path.exists() else b""
    lines: list[dict[str, Json]] = []
    head, size = FIRST, 0
    for number, raw in enumerate(data.split(b"\n")[:-1], start=1):
        line = _parse(raw)
        if line is None or line.get("seq") != number or line.get("previous") != head or "label" not in line:
            return lines, head, size, number
        lines.append(line)
        head = digest_bytes(raw)
        size += len(raw) + 1
    return lines, head, size, None


def _parse(raw: bytes) -> dict[str, Json] | None:
    try:
        line = json.loads(raw, parse_float=Decimal)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None

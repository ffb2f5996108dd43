"""A broken workspace in one text file: its files, the call, and the exact error.

    --- jobs/BUILD.yaml                 the lines up to the next section are this file
    --- jobs/rows.jsonl (escaped)       the same, where `\\xff` is a byte and `\\{4*ab}` is `abababab`
    --- jobs/tests -> ../../outside     a symlink; `outside` and `outside.txt` stand beside the workspace
    --- jobs/pipe (pipe)                a named pipe
    --- mrp.yaml (absent)               there is no such file
    === mrp build //...                 the call
    === exit 2                          how it ends; all below is stderr

A mrp.yaml that is not there is two lines long. Paths are below the workspace; escapes may stand in them too.
"""

import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

MRP_YAML = b"mrp: 1\nname: broken\n"

_SECTION = re.compile(rb"^(---|===) (\S.*)\n", re.MULTILINE)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|\{([0-9]+)\*([^}]*)\}|(.))", re.DOTALL)
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"\\": b"\\"}


@dataclass(frozen=True)
class Broken:
    """One golden file. `sections` are the files as (header, lines), `words` the call after `mrp`."""

    path: Path
    sections: tuple[tuple[str, bytes], ...]
    call: str
    exit_code: int
    stderr: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.call)[1:]

    def lay_out(self, workspace: Path) -> None:
        """Make the workspace, and what stands beside it."""
        (workspace.parent / "outside").mkdir()
        (workspace.parent / "outside" / "secret.txt").write_text("not for you\n")
        (workspace.parent / "outside.txt").write_text("not for you\n")
        workspace.mkdir()
        (workspace / "mrp.yaml").write_bytes(MRP_YAML)
        for header, content in self.sections:
            _lay_out(workspace, header, content)

    def rewritten(self, exit_code: int, stderr: str) -> bytes:
        """The golden file with another ending."""
        parts = [b"--- %s\n%s" % (header.encode(), content) for header, content in self.sections]
        return b"".join(parts) + f"=== {self.call}\n=== exit {exit_code}\n{stderr}".encode()


def read_broken(path: Path) -> Broken:
    """The golden file at `path`."""
    text = path.read_bytes()
    marks = [*_SECTION.finditer(text)]
    assert marks and marks[0].start() == 0, f"{path} starts with no section"
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    found = [(mark[1], mark[2].decode(), text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]
    files = tuple((header, content) for kind, header, content in found if kind == b"---")
    (call, _), (ending, stderr) = ((header, content) for kind, header, content in found if kind == b"===")
    return Broken(path, files, call, int(ending.removeprefix("exit ")), stderr.decode())


def snapshot(folder: Path) -> dict[bytes, tuple[int, int, bytes]]:
    """Every path below `folder` with its mode, its change time and what it holds: bytes, or a symlink's target."""
    found: dict[bytes, tuple[int, int, bytes]] = {}
    waiting = [os.fsencode(folder)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            status = entry.stat(follow_symlinks=False)
            held = b""
            if entry.is_symlink():
                held = os.readlink(entry.path)
            elif entry.is_dir():
                waiting.append(entry.path)
            elif stat.S_ISREG(status.st_mode):
                held = Path(os.fsdecode(entry.path)).read_bytes()
            found[entry.path] = (status.st_mode, status.st_mtime_ns, held)
    return found


def _lay_out(workspace: Path, header: str, content: bytes) -> None:
    name, arrow, target = header.partition(" -> ")
    name, mark, kind = name.removesuffix(")").partition(" (")
    path = workspace / os.fsdecode(_unescaped(name.encode()))
    if kind == "absent":
        path.unlink()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if arrow:
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "escaped":
        path.write_bytes(_unescaped(content.removesuffix(b"\n")))
    else:
        assert not mark, f"{header}: what is ({kind})?"
        path.write_bytes(content)


def _unescaped(text: bytes) -> bytes:
    def meaning(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes.fromhex(match[1].decode())
        return _unescaped(match[3]) * int(match[2]) if match[2] else _LETTERS[match[4]]

    return _ESCAPE.sub(meaning, text)

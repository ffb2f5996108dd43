"""A small workspace with one of everything, and ways to damage what is stored of it."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.places import Place

from mrp.cache.errors import CacheError
from mrp.runtime.build import build
from mrp.runtime.options import BuildOptions
from mrp.runtime.report import BuildReport
from mrp.specs.errors import MrpError

TARGETS = ("//...", "//:publish")

_WORDS = ("good", "bad", "good")
_ROWS = "".join(json.dumps({"id": f"t{number}", "text": word}) + "\n" for number, word in enumerate(_WORDS))

_MAKE = """\
import json
for number, word in enumerate(open("words.txt").read().split()):
    print(json.dumps({"id": f"m{number}", "text": word}), file=open("rows.jsonl", "a"))
"""

_WRITER = """\
import json
word = json.load(open("/task/record.json"))["text"]
open("answer.txt", "w").write(word)
open("large.txt", "w").write(word * 10_000)
"""

_GRADE = {"command": ["grep", "-q", "good", "answer.txt"]}

_BUILD = {
    "rows": {
        "kind": "command",
        "srcs": ["make.py", "words.txt"],
        "outs": ["rows.jsonl"],
        "command": ["python3", "make.py"],
    },
    "made": {"kind": "dataset", "srcs": [":rows"], "id": "id"},
    "tasks": {"kind": "dataset", "srcs": ["plain.jsonl"], "id": "id"},
    "writer": {"kind": "agent", "version": "1", "command": ["python3", "writer.py"], "srcs": ["writer.py"]},
    "solve": {"kind": "rollout", "over": ":tasks", "agent": ":writer", "grade": _GRADE},
    "again": {"kind": "rollout", "over": ":made", "agent": ":writer", "grade": _GRADE},
    "eval": {"kind": "reduction", "of": [":solve", ":again"], "reducer": "stats"},
    "board": {"kind": "sink", "type": "json", "path": "board.json"},
    "publish": {"kind": "produce", "of": ":eval", "sink": ":board"},
}

FILES: dict[str, str | bytes] = {
    "mrp.yaml": "mrp: 1\nname: damage\n",
    "BUILD.yaml": json.dumps({"mrp": 1, "targets": _BUILD}, indent=1),
    "plain.jsonl": _ROWS,
    "words.txt": "good bad",
    "make.py": _MAKE,
    "writer.py": _WRITER,
}
"""A command, two datasets, two rollouts whose trials leave a file too large for the index, a reduction, a produce."""


def place_in(folder: Path) -> Place:
    """The workspace, not built yet."""
    return Place(folder / "ws").write(FILES)


def built(place: Place, *targets: str, **options: Any) -> BuildReport:
    """Build in this process; raises what `build` raises."""
    return build(BuildOptions(root=place.folder, cache=place.cache, targets=targets or TARGETS, **options))


def outcome(place: Place, **options: Any) -> tuple[int, str]:
    """Exit code and reason of a build that may end with an error that mrp explains; any other is a fault of mrp's."""
    try:
        report = built(place, **options)
    except MrpError as error:
        return error.exit_code, str(error)
    except CacheError as error:
        return 4, str(error)
    return report.exit_code, report.reason


def served(place: Place) -> dict[str, bytes]:
    """All that the last build gives: its digests, each file under mrp-out, and what the sink holds."""
    newest = max((place.folder / ".mrp" / "runs").glob("[0-9]*"))
    found = {"digests.jsonl": (newest / "digests.jsonl").read_bytes()}
    for path in [*(place.folder / "mrp-out").rglob("*"), place.folder / "board.json"]:
        if path.is_symlink() or not path.is_dir():
            found[str(path.relative_to(place.folder))] = path.read_bytes()
    return found


def stored(place: Place) -> Iterator[Path]:
    """Every file that mrp keeps: in the cache, and under .mrp."""
    for folder in (place.cache, place.folder / ".mrp"):
        yield from sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def flip(path: Path, offset: int) -> None:
    """Turn one bit over, in place."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1) or b"\0"
        file.seek(offset)
        file.write(bytes([old[0] ^ 1 << offset % 8]))


def cut(path: Path, size: int) -> None:
    """Cut a file off."""
    path.chmod(0o644)
    os.truncate(path, size)


def into_folder(path: Path) -> None:
    """What nobody can read as a file, root included."""
    path.unlink()
    path.mkdir()
    (path / "something").write_bytes(b"")


def into_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("leads-nowhere")


def into_other_file(path: Path) -> None:
    """A file of someone else's, larger than before."""
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(b"something else\n" * (1 + size // 10))


WAYS: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: cut(path, 0),
    "cut short": lambda path: cut(path, path.stat().st_size // 2),
    "first bit": lambda path: flip(path, 0),
    "middle bit": lambda path: flip(path, path.stat().st_size // 2),
    "last bit": lambda path: flip(path, max(0, path.stat().st_size - 1)),
    "a folder": into_folder,
    "a dangling link": into_dangling_link,
    "another file": into_other_file,
}


def rot(place: Place, blob: Path) -> None:
    """Change a bit of a large blob without a trace: what the index remembers of its file is true of the wrong one."""
    flip(blob, blob.stat().st_size // 2)
    status = blob.stat()
    database = sqlite3.connect(place.cache / "index.sqlite")
    with database:
        changed = database.execute(
            "UPDATE files SET size = ?, mtime_ns = ?, ctime_ns = ?, inode = ?, verified_ns = ? WHERE digest = ?",
            (
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                status.st_ino,
                status.st_ctime_ns + 10**9,
                bytes.fromhex(blob.name),
            ),
        )
        assert changed.rowcount == 1
    database.close()


def databases(place: Place) -> list[Path]:
    """The SQLite files of the cache and the workspace."""
    state = place.folder / ".mrp"
    return [place.cache / "index.sqlite", state / "ledger.sqlite"]


_HOLD = """
import sqlite3, sys
held = [sqlite3.connect(path) for path in sys.argv[1:]]
for database in held:
    database.execute("SELECT count(*) FROM sqlite_master").fetchall()
print("held", flush=True)
sys.stdin.read()
"""


def build_with_logs_left(place: Place, **options: Any) -> BuildReport:
    """Build, and leave the write-ahead logs of all databases as a crash leaves them: nothing is folded back."""
    for path in databases(place):
        assert path.exists(), "a first build makes the files"
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, *map(str, databases(place))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        return built(place, **options)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()


def settle() -> None:
    """Wait until the clock of the file system has moved on, so that what was written may be trusted by its stat."""
    time.sleep(0.03)


def copy(place: Place, folder: Path) -> Place:
    """The same workspace and cache at another path, each file as it is."""
    shutil.copytree(place.folder, folder / "ws", symlinks=True)
    shutil.copytree(place.cache, folder / "ws-cache", symlinks=True)
    return Place(folder / "ws")

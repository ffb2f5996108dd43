"""The program inside a sandbox that is elsewhere: it moves folders, and runs commands within their limits to their end.

Services start commands as root, move single files, and know nothing of limits, trees or what a command leaves running;
that is done here. The text of this file is run by the image's own python3 (3.8 or newer), so it imports the standard
library alone, and only what a job needs. A job is JSON; what it tells at its end is JSON, `error` in it when it failed.
What it sends before that is bytes of two kinds, OUT and ERR. There are two ways in, by what a service has:

- pipes, without arguments: stdin begins with the job, after its length in 4 bytes; stdout is frames (kind in one byte,
  length in 4, data), the last of which, END, has what the job tells;
- a folder, `FOLDER SECONDS`: job.json and in/ are files there; it is begun in the background, once however often that
  is asked for, and a line that starts with MARK says what it told, or that it still runs after SECONDS. What it sent
  are the files `1` and `2` there, which that line holds as base64 when they are small. `hello` and `stream FOLDER` come
  with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading

from mrp.runtime.sandbox.guest_commands import ERR, OUT, SUBREAPER, control, run, stream, write_all
from mrp.runtime.sandbox.guest_folders import lay, pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    Job = dict[str, Any]
    Source = Callable[[], IO[bytes]]
    Send = Callable[[int, bytes], None]

END = 0
MARK = "MRP "

_INLINE = 48 * 1024


def program() -> str:
    """The whole program as one text, on this side of it."""
    lines = []
    for part in ("guest_folders.py", "guest_commands.py", "guest.py"):
        with open(os.path.join(os.path.dirname(__file__), part), encoding="utf-8") as file:
            lines += [line for line in file if not line.startswith(("from __future__ ", "from mrp."))]
    return "from __future__ import annotations\n" + "".join(lines)


JOBS: dict[str, Callable[[Job, Source, Send], Job]] = {"unpack": unpack, "lay": lay, "pack": pack, "run": run}


def do(job: Job, source: Source, send: Send) -> Job:
    """Do a job; its failure is something to tell."""
    try:
        return JOBS[job["do"]](job, source, send)
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"}


def by_pipes() -> None:
    """Do the job on stdin, and answer on stdout."""

    def take(size: int) -> bytes:
        """So many bytes of stdin, and nothing of what comes after them."""
        data = b""
        while len(data) < size:
            piece = os.read(0, size - len(data))
            if not piece:
                raise EOFError("stdin ended")
            data += piece
        return data

    sending = threading.Lock()

    def send(kind: int, data: bytes) -> None:
        with sending:
            write_all(1, bytes([kind]) + len(data).to_bytes(4, "big") + data)

    job = json.loads(take(int.from_bytes(take(4), "big")))
    if job["do"] == "stream":
        # Its bytes are no frames, and neither is its end.
        stream(job, bytes, bytes)
    else:
        send(END, json.dumps(do(job, lambda: sys.stdin.buffer, send)).encode())
    os._exit(0)


def by_folder(folder: str, seconds: str) -> None:
    """Begin the job of a folder, unless it was, and say what it told, or after so long that it still runs."""
    import base64
    import fcntl

    _begin(folder)

    def give_up(number: int, frame: object) -> None:
        raise InterruptedError

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, float(seconds))
    try:
        with open(folder + "/lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except InterruptedError:
        return say(running=True)
    try:
        with open(folder + "/told", "rb") as file:
            told = json.load(file)
    except FileNotFoundError:
        return say(error="what looks after commands in the sandbox was killed")
    for name in ("1", "2"):
        with contextlib.suppress(FileNotFoundError), open(f"{folder}/{name}", "rb") as file:
            if os.fstat(file.fileno()).st_size <= _INLINE:
                told[name] = base64.b64encode(file.read()).decode()
    return say(**told)


def _begin(folder: str) -> None:
    import fcntl

    # Who has the lock runs the job; the child of the first one keeps it until it has told.
    lock = os.open(folder + "/lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.mkdir(folder + "/begun")
    except (BlockingIOError, FileExistsError):
        return os.close(lock)
    if os.fork():
        return os.close(lock)
    os.setsid()
    nowhere = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    with open(folder + "/job.json", "rb") as file:
        job = json.load(file)
    os.unlink(folder + "/job.json")
    sent = {kind: os.open(f"{folder}/{kind}", os.O_CREAT | os.O_WRONLY, 0o600) for kind in (OUT, ERR)}
    told = do(job, lambda: open(folder + "/in", "rb"), lambda kind, data: write_all(sent[kind], data))  # noqa: SIM115
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder + "/in")
    with open(folder + "/told.new", "w", encoding="utf-8") as file:
        json.dump(told, file)
    os.rename(folder + "/told.new", folder + "/told")
    os._exit(0)


def by_terminal(folder: str) -> None:
    """Do the stream of a folder on this terminal, as lines of base64, so that no terminal can change its bytes."""
    import base64
    import tty

    tty.setraw(0)
    with open(folder + "/job.json", "rb") as file:
        job = json.load(file)
    os.unlink(folder + "/job.json")
    rest = b""

    def decoded(data: bytes) -> bytes:
        nonlocal rest
        *lines, rest = (rest + data).split(b"\n")
        return b"".join(map(base64.b64decode, lines))

    say(ready=True)
    stream(job, decoded, lambda data: base64.b64encode(data) + b"\n")
    say(ended=True)


def say(**values: object) -> None:
    """One line for who asked; the shell, or the terminal, may write others."""
    print("\n" + MARK + json.dumps(values), flush=True)


def hello() -> None:
    """Make the folder of this program root's own; say whether processes can be told apart here."""
    os.chmod(os.path.dirname(os.path.abspath(__file__)), 0o700)
    say(reaper=control(SUBREAPER, 1))


if __name__ == "__main__":
    if len(sys.argv) == 1:
        by_pipes()
    elif sys.argv[1] == "hello":
        hello()
    elif sys.argv[1] == "stream":
        by_terminal(sys.argv[2])
    else:
        by_folder(sys.argv[1], sys.argv[2])

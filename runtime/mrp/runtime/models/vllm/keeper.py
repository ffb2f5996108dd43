"""The keeper of one server: whatever the server started ends with it, and all of it ends with the build.

It is a program of its own, which needs nothing but Python: `python keeper.py FOLDER COMMAND...`. FOLDER is
removed at the end. Stdin is the lifeline: when its other end is closed, by the build or by its death, the server is
asked to end, then killed. On stdout it says `ended N`, with the server's exit code, as soon as there is one. What the
server prints goes to the keeper's stderr.

The kernel's own means (PR_SET_PDEATHSIG) would not do: a vLLM server that is killed leaves its engine and workers
running. They become children of the keeper, which can find and kill them all.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time

ASK_SECONDS = 8.0
"""How long a server may take to end by itself when it is asked to."""

LEFT_SECONDS = 1.0
"""How long what a server started may outlive it."""

TRACKER_SECONDS = 15.0
"""How long Python's resource trackers may outlive that: they remove the shared memory of processes that were killed."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(folder: str, command: list[str]) -> int:
    """Run `command` to its end, or to that of the lifeline; gives its exit code, 128 + N for death by signal N."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakes, wake = os.pipe()
    os.set_blocking(wake, False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            # For the case that the keeper itself is killed.
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr, flush=True)
        return _said(127)
    try:
        code = _watch(server, wakes)
    finally:
        _end_all()
        shutil.rmtree(folder, ignore_errors=True)
    return code


def _watch(server: "subprocess.Popen[bytes]", wakes: int) -> int:
    """Wait for the server's end, and bring it about when the lifeline or a signal says so."""
    poll = select.poll()
    poll.register(wakes, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN)
    give_up: float | None = None
    while server.poll() is None:
        ready = dict(poll.poll(None if give_up is None else max(0.0, give_up - time.monotonic()) * 1000))
        stop = sys.stdin.fileno() in ready
        if wakes in ready:
            stop = stop or any(number != signal.SIGCHLD for number in os.read(wakes, 4096))
        if stop and give_up is None:
            poll.unregister(sys.stdin.fileno())
            give_up = time.monotonic() + ASK_SECONDS
            server.terminate()
            # A stopped process hears of nothing else.
            server.send_signal(signal.SIGCONT)
        elif give_up is not None and time.monotonic() >= give_up:
            server.kill()
            server.wait()
    return _said(server.returncode if server.returncode >= 0 else 128 - server.returncode)


def _said(code: int) -> int:
    try:
        print(f"ended {code}", flush=True)
    except OSError:
        # The build is gone, and with it the pipe's other end.
        sys.stdout = sys.stderr
    return code


def _end_all() -> None:
    """Reap every descendant; kill those that do not end soon. A killed one's children become ours in their turn."""
    ended = time.monotonic()
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        late = time.monotonic() - ended
        for child in _children() if late > LEFT_SECONDS else ():
            if late > LEFT_SECONDS + TRACKER_SECONDS or b"multiprocessing.resource_tracker" not in _words(child):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def _children() -> list[int]:
    ours, found = str(os.getpid()).encode(), []
    for name in os.listdir("/proc"):
        if name.isdigit() and _read(f"/proc/{name}/stat").rpartition(b")")[2].split()[1:2] == [ours]:
            found.append(int(name))
    return found


def _words(process: int) -> bytes:
    return _read(f"/proc/{process}/cmdline")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

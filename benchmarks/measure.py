"""One measurement: a child process from its start to its end.

Wall time is taken around the child, CPU time and peak memory are what the kernel says of it and of the children that it
waited for. Peak memory is that of the largest process, and never less than that of this harness, because a child
begins as a copy of its parent.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """A child that ended: seconds of wall and of CPU, bytes of peak memory, its exit code, all that it printed."""

    seconds: float
    cpu: float
    memory: int
    code: int
    output: str


# Tools written in Python keep their byte code, as they do wherever they are installed.
_OURS = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(command: Sequence[str], folder: Path, environment: Mapping[str, str], limit: float) -> Finished:
    """Run `command` in `folder` to its end, with `environment` added to ours; after `limit` seconds it is killed."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**_OURS, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        killer = threading.Timer(limit, os.killpg, (child.pid, signal.SIGKILL))
        killer.daemon = True
        killer.start()
        try:
            _, status, used = os.wait4(child.pid, 0)
            seconds = time.perf_counter() - started
        except BaseException:
            # The child has a session of its own: nobody else would end it.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        finally:
            killer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return Finished(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, child.returncode, text)

"""Killing a process at a chosen moment: before the n-th line that it runs in the modules named."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def killed_at(moment: int, files: tuple[str, ...], work: Callable[[], object]) -> bool:
    """Fork, run `work`, and send SIGKILL before line number `moment` of code in `files` (parts of their paths).

    True when the child was killed; False when it finished, because it ran fewer lines.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _run(moment, files, work)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed before its end"
    return False


def _run(moment: int, files: tuple[str, ...], work: Callable[[], object]) -> None:
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if not any(part in frame.f_code.co_filename for part in files):
            return None
        if event == "line":
            lines += 1
            if lines == moment:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)

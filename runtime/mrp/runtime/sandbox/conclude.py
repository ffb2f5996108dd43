"""Conclusion: from how a sandboxed process ended to the Completed that is kept of it."""

import errno
import os
from dataclasses import replace
from decimal import Decimal

from mrp.cache.store import Store
from mrp.runtime.sandbox.bubblewrap import why_not_started
from mrp.runtime.sandbox.capture import Redactor, keep_folder, keep_log
from mrp.runtime.sandbox.cgroups import Events
from mrp.runtime.sandbox.layout import Folders
from mrp.runtime.sandbox.supervise import Supervised, Watch, folder_bytes
from mrp.specs.work import Completed, Process

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_FILE_TOO_LARGE = 128 + 25


def limit_of(done: Supervised, events: Events, watch: Watch, used: int) -> str | None:
    """The limit that a process did not survive, or None; `used` is what its folders hold at the end.

    A limit that was hit by a process which then went on to succeed is none, but for disk: what is over that limit
    cannot be kept.
    """
    if done.killed is not None:
        return done.killed
    if used > watch.disk:
        return "disk"
    if done.ended.exit_code == 0:
        return None
    if events.memory:
        return "memory"
    if events.pids or watch.crowded:
        return "pids"
    if done.ended.exit_code == _FILE_TOO_LARGE or watch.full or used >= watch.disk:
        return "disk"
    return None


def complete(
    process: Process,
    done: Supervised,
    watch: Watch,
    events: Events,
    usage: tuple[float, int],
    folders: Folders,
    redact: Redactor,
    store: Store,
    isolation: str,
) -> Completed:
    """Keep the logs and outputs of a process that is dead with all that it started.

    `usage` is (seconds, bytes) as the control group counted, (0, 0) where none did. Raises InfraError when it was the
    sandbox that failed, and when this machine's disk was full, whose errors a process may have passed over.
    """
    note = ""
    if not done.ended.started and done.killed is None and not events.memory:
        error, stderr = why_not_started(done.stderr)
        done = replace(done, stderr=stderr, ended=replace(done.ended, exec_error=error))
    if done.ended.exec_error is not None:
        error = done.ended.exec_error
        code = _NOT_FOUND if error in (errno.ENOENT, errno.ENOTDIR) else _NOT_EXECUTABLE
        done = replace(done, ended=replace(done.ended, exit_code=code))
        note = f"mrp: {(process.argv or ('python3',))[0]}: {os.strerror(error)}\n"
    room = watch.disk + watch.base
    kept = {path: keep_folder(folders.writable[path], room, redact, store) for path in process.outputs}
    others = [folder for path, folder in folders.writable.items() if path not in kept]
    watch.left = sum(each.counted for each in kept.values()) + folder_bytes(others)
    used = watch.left - watch.base
    limit = limit_of(done, events, watch, used)
    if limit is None:
        watch.check_disk()
    for path, each in kept.items():
        note += "".join(f"mrp: {path}: {sentence}\n" for sentence in each.notes)
        limit = limit or ("disk" if each.too_large else None)
    return Completed(
        exit_code=None if limit else done.ended.exit_code,
        limit=limit,
        stdout=keep_log(done.stdout, redact, store),
        stderr=keep_log(done.stderr, redact, store, note),
        outputs={path: each.tree for path, each in kept.items()},
        wall_s=_rounded(done.wall_s),
        cpu_s=_rounded(usage[0] or done.ended.cpu_s),
        max_rss=done.ended.max_rss or usage[1],
        isolation=isolation,
    )


def _rounded(seconds: float) -> Decimal:
    return Decimal(f"{seconds:.3f}")

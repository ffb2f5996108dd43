"""The local backend: processes of this machine in namespaces of their own.

Commands go through bubblewrap where it works, else through our own launcher, which also runs Python operators, forked
from a warm process. Where neither can make namespaces, and only when it is allowed to, it runs plain processes.
"""

import base64
import errno
import itertools
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.runtime.sandbox.bubblewrap import (
    ArgumentsTooLong,
    find_bubblewrap,
    start_bubblewrap,
    why_not_started,
    works,
)
from mrp.runtime.sandbox.capture import Redactor, keep_folder, keep_log
from mrp.runtime.sandbox.cgroups import Events, Group, Hierarchy, find_hierarchy
from mrp.runtime.sandbox.launcher import Job
from mrp.runtime.sandbox.layout import (
    Folders,
    ImageView,
    environment,
    lay_out,
    lay_out_item,
    root_steps,
    system_files,
    view_image,
)
from mrp.runtime.sandbox.materials import Materials
from mrp.runtime.sandbox.plain import start_plain
from mrp.runtime.sandbox.protocol import Cancelled
from mrp.runtime.sandbox.pure import Pooled, SlotPool
from mrp.runtime.sandbox.scratch import Scratch, remove_folder
from mrp.runtime.sandbox.seccomp import filter_program
from mrp.runtime.sandbox.slot import READ_ONLY, WRITABLE
from mrp.runtime.sandbox.steps import Step
from mrp.runtime.sandbox.supervise import Ended, Running, Supervised, Wake, Watch, folder_bytes, supervise
from mrp.runtime.sandbox.warm import Zygotes
from mrp.specs.errors import InfraError
from mrp.specs.ir import Limits
from mrp.specs.work import ISOLATION, OPERATOR_DIR, SDK_DIR, Completed, Mount, Process

MEANS = ("bubblewrap", "launcher", "plain")
"""How processes are isolated, the preferred first; only `plain` means isolation `none`."""

_OPEN_FILES = 4096
_FILE_TOO_LARGE = 128 + 25
_PYTHON_DEFAULTS = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


class LocalBackend:
    """Runs processes on this machine; see mrp.runtime.sandbox.protocol.Backend.

    scratch: where its folder is made; require: the weakest isolation that it may use, below which every `run` raises
    InfraError; means: which of MEANS it may choose from.
    """

    name = "local"

    def __init__(
        self, store: Store, scratch: Path, *, require: str = "namespaces", means: Sequence[str] = MEANS
    ) -> None:
        self._store = store
        self._require = require
        self._allowed_means = tuple(means)
        self._scratch = Scratch(scratch)
        place = self._scratch.folder
        self._materials = Materials(place / "shared")
        self._zygotes = Zygotes(place)
        self._slots = SlotPool()
        self._jobs = place / "jobs"
        self._jobs.mkdir()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._views: dict[Digest, ImageView] = {}
        self._held = ExitStack()
        self._wakes: set[Wake] = set()
        self._closed = False
        self._choice: _Means | None = None

    @property
    def isolation(self) -> str:
        """`namespaces`, or `none` where this machine lets us make none."""
        return "none" if self._means().kind == "plain" else "namespaces"

    def run(self, process: Process, *, secrets: Mapping[str, str], tag: str) -> Completed:
        """See mrp.runtime.sandbox.protocol.Backend."""
        self._check(process, tag)
        try:
            with self._wake() as wake, self._job_folder() as place:
                if self._is_for_slot(process, secrets):
                    return self._run_item(process, place, wake)
                return self._run_alone(process, dict(secrets), place, wake)
        except OSError as error:
            raise InfraError(f"{tag} could not be run: {error}") from error

    def cancel(self) -> None:
        """See mrp.runtime.sandbox.protocol.Backend."""
        with self._lock:
            for wake in self._wakes:
                wake.set()

    def close(self) -> None:
        """See mrp.runtime.sandbox.protocol.Backend."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.cancel()
        self._slots.close()
        self._zygotes.close()
        self._held.close()
        self._scratch.close()

    def _check(self, process: Process, tag: str) -> None:
        box = process.box
        if ISOLATION.index(self.isolation) < ISOLATION.index(self._require):
            raise InfraError(
                f"{tag} needs isolation `{self._require}`, and this machine gives `{self.isolation}`; install "
                "bubblewrap and allow user namespaces, or allow the weaker level in the policy",
                retryable=False,
            )
        if isinstance(box.network, tuple):
            raise InfraError(f"{tag} allows single hosts, which this version cannot do; use none or open", retryable=False)
        if box.limits.gpus is not None:
            raise InfraError(f"{tag} asks for GPUs, which the local sandbox cannot give", retryable=False)
        if (process.entry is None) == (not process.argv):
            raise InfraError(f"{tag} has neither a command nor an entry, or both", retryable=False)

    @contextmanager
    def _wake(self) -> Iterator[Wake]:
        wake = Wake()
        with self._lock:
            if self._closed:
                wake.close()
                raise Cancelled
            self._wakes.add(wake)
        try:
            yield wake
        finally:
            with self._lock:
                self._wakes.discard(wake)
            wake.close()

    @contextmanager
    def _job_folder(self) -> Iterator[Path]:
        place = self._jobs / str(next(self._numbers))
        place.mkdir()
        try:
            yield place
        finally:
            remove_folder(place)

    def _run_alone(self, process: Process, secrets: dict[str, str], place: Path, wake: Wake) -> Completed:
        """A process in a sandbox of its own."""
        with ExitStack() as stack:
            view = self._view(process.box.image)
            allow = process.box.allow
            folders = lay_out(process, place, self._store, self._materials, stack, execute=allow is None)
            env = environment(process, view, secrets)
            watch = self._watch(folders.writable, process.box.limits)
            group = self._group(process.box.limits, place.name)
            try:
                job = self._job(process, view, folders, env, place, watch)
                redact = Redactor(secrets)
                done, running = self._start_and_supervise(process, job, folders, view, group, watch, wake, redact)
                events = group.events() if group is not None else Events()
                usage = group.usage() if group is not None else (0.0, 0)
            finally:
                if group is not None:
                    group.remove()
            return self._complete(process, done, watch, events, usage, folders, redact)

    def _run_item(self, process: Process, place: Path, wake: Wake) -> Completed:
        """An item of a pure operator, in a sandbox that it shares with others of the same operator."""
        key = _slot_key(process)
        pooled = self._slots.take(key, lambda: self._make_slot(process))
        try:
            number = str(next(pooled.numbers))
            folders = lay_out_item(process, pooled.folder / number, self._store)
            env = environment(process, self._view(process.box.image), {})
            watch = self._watch(folders.writable, process.box.limits)
            before = pooled.group.events() if pooled.group is not None else Events()
            mounts = [
                (path, str(folder.relative_to(pooled.folder)), path in folders.writable)
                for path, folder in sorted(folders.all().items())
            ]
            redact = Redactor({})
            logs, outputs = _pipes()
            try:
                item = pooled.slot.start(mounts, env, process.cwd, outputs)
            finally:
                _close(outputs)
            done = supervise(item, logs, float(process.timeout), watch, wake, redact.margin)
            after = pooled.group.events() if pooled.group is not None else Events()
            events = Events(after.memory - before.memory, after.pids - before.pids)
            if pooled.slot.dead:
                pooled.slot.close()
            completed = self._complete(process, done, watch, events, (0.0, 0), folders, redact)
            remove_folder(pooled.folder / number)
            return completed
        except BaseException:
            pooled.slot.dead = True
            raise
        finally:
            self._slots.give_back(key, pooled)

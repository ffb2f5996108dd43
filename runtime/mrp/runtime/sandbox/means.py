"""Means: by what this machine can isolate processes, and which of it runs a given process."""

import base64
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from mrp.runtime.images.host import HOST_FOLDERS
from mrp.runtime.sandbox.bubblewrap import find_bubblewrap, start_bubblewrap, works
from mrp.runtime.sandbox.cgroups import Group
from mrp.runtime.sandbox.launcher import Job
from mrp.runtime.sandbox.layout import DEFAULT_ENV, Folders, ImageView
from mrp.runtime.sandbox.plain import start_plain
from mrp.runtime.sandbox.seccomp import filter_program
from mrp.runtime.sandbox.steps import Step
from mrp.runtime.sandbox.supervise import Running, Wake, Watch, supervise
from mrp.runtime.sandbox.warm import Zygote, Zygotes
from mrp.specs.errors import InfraError
from mrp.specs.work import OPERATOR_DIR, SDK_DIR, Process

Kind: TypeAlias = Literal["bubblewrap", "launcher", "plain"]

ALL: tuple[Kind, ...] = ("bubblewrap", "launcher", "plain")
"""The preferred first. With bubblewrap, our launcher still runs operators and what only it can do."""

_PROBE_SECONDS = 20.0


@dataclass(frozen=True)
class Found:
    """What works here. `bubblewrap` is its path when it is used."""

    kind: Kind
    bubblewrap: str | None
    launcher: bool


class Means:
    """The means of one backend, of those that it may use. Safe from any thread."""

    def __init__(self, allowed: Sequence[Kind], place: Path) -> None:
        self._allowed = allowed
        self._place = place
        self._zygotes = Zygotes(place)
        self._lock = threading.Lock()
        self._found: Found | None = None

    def found(self) -> Found:
        """Find out, once, what works. Raises InfraError when nothing that is allowed does."""
        with self._lock:
            if self._found is None:
                self._found = self._probe()
            return self._found

    def can_fork(self, process: Process, view: ImageView) -> bool:
        """Whether an operator can be forked from a warm process, which has Python's own variables fixed already."""
        own = {**view.env, **process.box.env, **process.env}
        fixed = all(value == DEFAULT_ENV.get(name) for name, value in own.items() if name.startswith("PYTHON"))
        return self.found().launcher and fixed

    def operator_zygote(self, view: ImageView, sdk: Path) -> Zygote:
        """The warm process for Python operators in an image. Raises InfraError when the image has no Python."""
        return self._zygotes.get(_python(view), sdk)

    def start(
        self,
        process: Process,
        job: Job,
        view: ImageView,
        folders: Folders,
        outputs: tuple[int, int],
        group: Group | None,
    ) -> Running:
        """Start `process` as `job` describes it for a sandbox. Raises InfraError."""
        found = self.found()
        if found.kind == "plain":
            return _start_plain(process, job, view, folders, outputs, group)
        if job.argv is None:
            return self.operator_zygote(view, folders.read_only[SDK_DIR]).start(job, outputs, group)
        if found.bubblewrap is not None and job.allow is None:
            return start_bubblewrap(found.bubblewrap, job, outputs, group)
        if not found.launcher:
            raise InfraError("`allow` needs a Linux kernel with namespaces and Landlock", retryable=False)
        return self._zygotes.get(sys.executable, None).start(job, outputs, group)

    def close(self) -> None:
        """End the warm processes."""
        self._zygotes.close()

    def _probe(self) -> Found:
        bubblewrap = find_bubblewrap() if "bubblewrap" in self._allowed else None
        if bubblewrap is not None and not works(bubblewrap):
            bubblewrap = None
        launcher = ("launcher" in self._allowed or bubblewrap is not None) and self._launcher_works()
        if bubblewrap is not None:
            return Found("bubblewrap", bubblewrap, launcher)
        if launcher:
            return Found("launcher", None, True)
        if "plain" in self._allowed:
            return Found("plain", None, False)
        raise InfraError(
            "no sandbox can be made on this machine; install bubblewrap and allow user namespaces", retryable=False
        )

    def _launcher_works(self) -> bool:
        """Run one job that does nothing."""
        root = self._place / "probe"
        root.mkdir(exist_ok=True)
        job = _probe_job(str(root))
        wake = Wake()
        try:
            read, write = os.pipe()
            errors_read, errors_write = os.pipe()
            try:
                running = self._zygotes.get(sys.executable, None).start(job, (write, errors_write), None)
            finally:
                os.close(write)
                os.close(errors_write)
            watch = Watch([self._place], disk=2**62)
            done = supervise(running, (read, errors_read), _PROBE_SECONDS, watch, wake, 0)
            running.close()
            return done.killed is None and done.ended.exit_code == 0
        except InfraError:
            return False
        finally:
            wake.close()


def _probe_job(root: str) -> Job:
    steps = [Step("proc", "/proc"), Step("dev", "/dev", size=2**20)]
    for folder in HOST_FOLDERS:
        if os.path.islink(folder):
            steps.append(Step("link", folder, os.readlink(folder)))
        elif os.path.isdir(folder):
            steps.append(Step("bind", folder, folder))
    return Job(
        root=root,
        steps=steps,
        argv=["true"],
        env=DEFAULT_ENV,
        cwd="/",
        uid=1000,
        gid=1000,
        rlimits={},
        seccomp=base64.b64encode(filter_program()).decode(),
    )


def operator_argv(view: ImageView, sdk: str, operator: str) -> tuple[str, ...]:
    """The command that starts a Python operator anew. Raises InfraError when the image has no Python."""
    from mrp.sdk.runner import start_command

    return start_command(_python(view), sdk, operator)


def _python(view: ImageView) -> str:
    if view.python is None:
        raise InfraError(
            "the image has no python3, which Python operators need; add it to the image's toolchain", retryable=False
        )
    return view.python


def _start_plain(
    process: Process, job: Job, view: ImageView, folders: Folders, outputs: tuple[int, int], group: Group | None
) -> Running:
    if job.allow is not None or view.layers is not None:
        what = "`allow`" if job.allow is not None else "an image with layers"
        raise InfraError(f"{what} needs a sandbox, and this machine can make none", retryable=False)
    places = {path: str(folder) for path, folder in folders.all().items()}
    env = {name: places.get(value, value) for name, value in job.env.items()}
    env["TMPDIR"] = places["/tmp"]
    argv = job.argv
    if argv is None:
        argv = operator_argv(view, places[SDK_DIR], places[OPERATOR_DIR])
    return start_plain(argv, env, _outside(job.cwd, places), job.rlimits, outputs, group)


def _outside(path: str, places: Mapping[str, str]) -> Path:
    """Where a guest path lies on this machine when nothing is mounted."""
    best = max((place for place in places if f"{path}/".startswith(f"{place}/")), key=len, default=None)
    if best is None:
        raise InfraError(f"{path} is in no folder of the process; with isolation none use one that is", retryable=False)
    return Path(places[best] + path[len(best) :])

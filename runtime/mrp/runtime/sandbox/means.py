"""Means: by what this machine can isolate processes, and which of it runs a given process."""

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from mrp.runtime.images.host import HOST_FOLDERS
from mrp.runtime.sandbox.bubblewrap import find_bubblewrap, works
from mrp.runtime.sandbox.launcher import Job
from mrp.runtime.sandbox.layout import DEFAULT_ENV, Folders, ImageView
from mrp.runtime.sandbox.seccomp import filter_program
from mrp.runtime.sandbox.stages import Stage
from mrp.runtime.sandbox.steps import Step
from mrp.runtime.sandbox.supervise import Wake, Watch, supervise
from mrp.runtime.sandbox.warm import Zygote, Zygotes
from mrp.specs.errors import InfraError
from mrp.specs.work import OPERATOR_DIR, SDK_DIR, Process

Kind: TypeAlias = Literal["bubblewrap", "launcher", "plain"]

ALL: tuple[Kind, ...] = ("launcher", "bubblewrap", "plain")
"""The preferred first."""

_PROBE_SECONDS = 20.0


Way: TypeAlias = Literal["stage", "bubblewrap", "hand"]
"""How a process is run: in a sandbox of ours that stands ready, in one of bubblewrap, or without walls."""


@dataclass(frozen=True)
class Found:
    """What works here: the path of bubblewrap, and whether our launcher does."""

    bubblewrap: str | None
    launcher: bool


class Means:
    """The means of one backend, of those that it may use. Safe from any thread.

    require: the weakest isolation that will do; with `none`, a command is run without walls, which is cheapest.
    """

    def __init__(self, allowed: Sequence[Kind], require: str, place: Path) -> None:
        self._allowed = allowed
        self._require = require
        self._place = place
        self._zygotes = Zygotes(place)
        self._lock = threading.Lock()
        self._found: Found | None = None

    @property
    def isolation(self) -> str:
        """The weakest level that a process may get. Raises InfraError when nothing that is allowed works."""
        if self._goes_without_walls:
            return "none"
        found = self.found()
        return "namespaces" if found.launcher or found.bubblewrap else "none"

    def found(self) -> Found:
        """Find out, once, what works. Raises InfraError when nothing that is allowed does."""
        with self._lock:
            if self._found is None:
                self._found = self._probe()
            return self._found

    def way(self, process: Process, view: ImageView) -> Way:
        """The cheapest way that will do for a process. Raises InfraError."""
        needs_walls = process.box.allow is not None or view.needs_walls or isinstance(process.box.network, tuple)
        if self._goes_without_walls and process.entry is None and not needs_walls:
            return "hand"
        found = self.found()
        if found.bubblewrap is not None and process.box.allow is None and not (found.launcher and process.entry):
            return "bubblewrap"
        if found.launcher:
            return "stage"
        if needs_walls or self._require != "none":
            what = "an image with files of its own" if view.needs_walls else "policy"
            if process.box.allow is not None or isinstance(process.box.network, tuple):
                what = "`allow`"
            raise InfraError(f"{what} needs a sandbox, and this machine can make none", retryable=False)
        return "hand"

    @property
    def _goes_without_walls(self) -> bool:
        return self._require == "none" and "plain" in self._allowed

    def can_fork(self, process: Process, view: ImageView) -> bool:
        """Whether an operator can be forked from a warm process, which has Python's own variables fixed already.

        That process has no walls around it, and so is never a Python that came with a portable image.
        """
        if view.root is not None:
            return False
        own = {**view.env, **process.box.env, **process.env}
        fixed = all(value == DEFAULT_ENV.get(name) for name, value in own.items() if name.startswith("PYTHON"))
        return fixed and self.found().launcher

    def operator_zygote(self, view: ImageView, sdk: Path) -> Zygote:
        """The warm process for Python operators in an image. Raises InfraError when the image has no Python."""
        return self._zygotes.get(_python(view), sdk)

    def zygote(self) -> Zygote:
        """The warm process that commands are started from."""
        return self._zygotes.get(sys.executable, None)

    def close(self) -> None:
        """End the warm processes."""
        self._zygotes.close()

    def _probe(self) -> Found:
        """Our launcher is preferred. With bubblewrap alone it still runs operators, and what only it can do."""
        if "launcher" in self._allowed and self._launcher_works():
            return Found(None, True)
        bubblewrap = find_bubblewrap() if "bubblewrap" in self._allowed else None
        if bubblewrap is not None and works(bubblewrap):
            return Found(bubblewrap, "launcher" not in self._allowed and self._launcher_works())
        if "plain" in self._allowed:
            return Found(None, False)
        raise InfraError(
            "no sandbox can be made on this machine; install bubblewrap and allow user namespaces", retryable=False
        )

    def _launcher_works(self) -> bool:
        """Run one job that does nothing."""
        root = self._place / "probe"
        root.mkdir(exist_ok=True)
        wake = Wake()
        try:
            stage = Stage(self.zygote().start_stage(_probe_job(str(root)), None), root, None, walled=True)
            try:
                (read, write), (errors_read, errors_write) = os.pipe(), os.pipe()
                try:
                    told = {"mounts": [], "argv": ["true"], "env": DEFAULT_ENV, "cwd": "/", "rlimits": {}}
                    running = stage.start(told, (write, errors_write))
                finally:
                    os.close(write)
                    os.close(errors_write)
                watch = Watch([self._place], disk=2**62)
                done = supervise(running, (read, errors_read), _PROBE_SECONDS, watch, wake, 0)
                return done.killed is None and done.ended.exit_code == 0
            finally:
                stage.close()
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
        argv=None,
        env=DEFAULT_ENV,
        cwd="/",
        uid=1000,
        gid=1000,
        rlimits={},
        seccomp=filter_program().hex(),
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


def told_to_hand(process: Process, job: Job, view: ImageView, folders: Folders) -> dict[str, object]:
    """What a hand is told (see mrp.runtime.sandbox.hand): a job with the names that its folders have outside."""
    places = {path: str(folder) for path, folder in folders.all().items()}
    env = {name: places.get(value, value) for name, value in job.env.items()}
    env["TMPDIR"] = places["/tmp"]
    argv = job.argv
    if argv is None:
        argv = operator_argv(view, places[SDK_DIR], places[OPERATOR_DIR])
    # The number of processes is counted for the whole user here, and so is left alone.
    rlimits = {name: value for name, value in job.rlimits.items() if name != "nproc"}
    return {"argv": list(argv), "env": env, "cwd": str(_outside(job.cwd, places)), "rlimits": rlimits}


def _outside(path: str, places: Mapping[str, str]) -> Path:
    """Where a guest path lies on this machine when nothing is mounted."""
    best = max((place for place in places if f"{path}/".startswith(f"{place}/")), key=len, default=None)
    if best is None:
        raise InfraError(f"{path} is in no folder of the process; with isolation none use one that is", retryable=False)
    return Path(places[best] + path[len(best) :])

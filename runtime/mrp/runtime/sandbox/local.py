"""The local backend: processes of this machine in namespaces of their own.

Commands go through bubblewrap where it works, else through our own launcher, which also runs Python operators, forked
from a warm process. Where neither can make namespaces, and only when it is allowed to, it runs plain processes.
"""

import base64
import itertools
import os
import platform
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.runtime.sandbox import means
from mrp.runtime.sandbox.capture import Redactor
from mrp.runtime.sandbox.cgroups import Events, Group, Hierarchy, find_hierarchy
from mrp.runtime.sandbox.conclude import complete
from mrp.runtime.sandbox.launcher import Job
from mrp.runtime.sandbox.layout import (
    CODE,
    ImageView,
    environment,
    is_nested,
    item_points,
    lay_out,
    lay_out_item,
    root_steps,
    system_files,
    view_image,
)
from mrp.runtime.sandbox.materials import Materials
from mrp.runtime.sandbox.protocol import Cancelled
from mrp.runtime.sandbox.pure import Pooled, SlotPool
from mrp.runtime.sandbox.scratch import Scratch, remove_folder, sweep
from mrp.runtime.sandbox.seccomp import filter_program
from mrp.runtime.sandbox.slot import READ_ONLY, WRITABLE
from mrp.runtime.sandbox.steps import Step
from mrp.runtime.sandbox.supervise import Supervised, Wake, Watch, folder_bytes, supervise
from mrp.runtime.state import unwritable
from mrp.specs.errors import InfraError
from mrp.specs.ir import Limits
from mrp.specs.work import ISOLATION, OPERATOR_DIR, SDK_DIR, Completed, Process

_OPEN_FILES = 4096
_DATA_BACKSTOP = 2**30


class LocalBackend:
    """Runs processes on this machine; see mrp.runtime.sandbox.protocol.Backend.

    scratch: where its folder is made, once what dead ones left there is removed. require: the weakest isolation that
    it may use, below which `run` raises InfraError. allowed: which of mrp.runtime.sandbox.means.ALL it may use.
    """

    name = "local"

    def __init__(
        self,
        store: Store,
        scratch: Path,
        *,
        require: str = "namespaces",
        allowed: Sequence[means.Kind] = means.ALL,
    ) -> None:
        self._store = store
        self._require = require
        sweep(scratch)
        self._scratch = Scratch(scratch)
        place = self._scratch.folder
        self._jobs = place / "jobs"
        self._jobs.mkdir()
        self._materials = Materials(place / "shared")
        self._means = means.Means(allowed, place)
        self._slots = SlotPool()
        self._numbers = itertools.count()
        # A signal handler may cancel while its own thread holds it.
        self._lock = threading.RLock()
        self._held = ExitStack()
        self._views: dict[Digest, ImageView] = {}
        self._hierarchy: tuple[Hierarchy | None] | None = None
        self._wakes: set[Wake] = set()
        self._closed = self._cancelled = False

    @property
    def isolation(self) -> str:
        """`namespaces`, or `none` where this machine lets us make none."""
        return "none" if self._means.found().kind == "plain" else "namespaces"

    def run(self, process: Process, *, secrets: Mapping[str, str], tag: str) -> Completed:
        """See mrp.runtime.sandbox.protocol.Backend."""
        try:
            self._check(process)
            with self._wake() as wake, self._job_folder() as place:
                view = self._view(process.box.image)
                if process.entry is not None and not self._means.can_fork(process, view) and self.isolation != "none":
                    process = _started_anew(process, view)
                if self._shares(process, secrets):
                    return self._run_item(process, view, wake)
                return self._run_alone(process, view, dict(secrets), place, wake)
        except InfraError as error:
            raise InfraError(f"{tag}: {error}", retryable=error.retryable) from error
        except OSError as error:
            raise InfraError(f"{tag} could not be run: {unwritable(self._scratch.folder, error)}") from error

    def cancel(self) -> None:
        """See mrp.runtime.sandbox.protocol.Backend."""
        with self._lock:
            self._cancelled = True
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
        self._means.close()
        self._held.close()
        self._scratch.close()

    def _check(self, process: Process) -> None:
        box = process.box
        if ISOLATION.index(self.isolation) < ISOLATION.index(self._require):
            raise InfraError(
                f"isolation `{self._require}` is needed, and this machine gives `{self.isolation}`; install bubblewrap "
                "and allow user namespaces, or allow the weaker level in the policy",
                retryable=False,
            )
        if isinstance(box.network, tuple):
            raise InfraError("an allowlist of hosts is not supported yet; use `network: none`", retryable=False)
        if box.limits.gpus is not None:
            raise InfraError("the local sandbox gives no GPUs; remove `gpus` from the limits", retryable=False)
        if (process.entry is None) == (not process.argv):
            raise InfraError("a process has either a command or an entry", retryable=False)

    def _shares(self, process: Process, secrets: Mapping[str, str]) -> bool:
        """Whether the process may run in a sandbox together with others of its operator."""
        return (
            process.pure
            and process.entry is not None
            and not secrets
            and self.isolation != "none"
            and not is_nested(item_points(process))
        )

    def _run_alone(
        self, process: Process, view: ImageView, secrets: dict[str, str], place: Path, wake: Wake
    ) -> Completed:
        """A process in a sandbox of its own."""
        redact = Redactor(secrets)
        with ExitStack() as stack:
            executable = process.box.allow is None
            folders = lay_out(process, place, self._store, self._materials, stack, execute=executable)
            watch = self._watch(list(folders.writable.values()), process.box.limits)
            steps = [*self._root_steps(process, view, folders.all()), *folders.steps]
            job = self._job(process, view, steps, environment(process, view, secrets), place, watch)
            group = self._group(process.box.limits, place.name)
            try:
                logs, outputs = _pipes()
                try:
                    running = self._means.start(process, job, view, folders, outputs, group)
                finally:
                    _close(outputs)
                try:
                    done = supervise(running, logs, float(process.timeout), watch, wake, redact.margin)
                finally:
                    running.close()
                events, usage = (group.events(), group.usage()) if group is not None else (Events(), (0.0, 0))
            finally:
                if group is not None:
                    group.remove()
            return complete(process, done, watch, events, usage, folders, redact, self._store, self.isolation)

    def _run_item(self, process: Process, view: ImageView, wake: Wake) -> Completed:
        """An item of a pure operator, in a sandbox that it shares with others."""
        key = _slot_key(process)
        pooled = self._slots.take(key, lambda: self._make_slot(process, view))
        try:
            number = str(next(pooled.numbers))
            folders = lay_out_item(process, pooled.folder / number, self._store)
            watch = self._watch(list(folders.writable.values()), process.box.limits)
            mounts = [
                (path, str(folder.relative_to(pooled.folder)), path in folders.writable)
                for path, folder in sorted(folders.all().items())
            ]
            before = pooled.group.events() if pooled.group is not None else Events()
            logs, outputs = _pipes()
            try:
                item = pooled.slot.start(mounts, environment(process, view, {}), process.cwd, outputs)
            finally:
                _close(outputs)
            done: Supervised = supervise(item, logs, float(process.timeout), watch, wake, 0)
            if pooled.slot.dead:
                pooled.slot.wait()
            after = pooled.group.events() if pooled.group is not None else Events()
            events = Events(after.memory - before.memory, after.pids - before.pids)
            completed = complete(
                process, done, watch, events, (0.0, 0), folders, Redactor({}), self._store, self.isolation
            )
            remove_folder(pooled.folder / number)
            return completed
        except BaseException:
            pooled.slot.dead = True
            raise
        finally:
            self._slots.give_back(key, pooled)

    def _make_slot(self, process: Process, view: ImageView) -> Pooled:
        number = f"slot{next(self._numbers)}"
        folder = self._jobs / number
        (folder / "root").mkdir(parents=True)
        stack = ExitStack()
        group = None
        try:
            code = {mount.path: mount.tree for mount in process.mounts if mount.path in CODE}
            places = {path: stack.enter_context(self._materials.tree(tree, self._store)) for path, tree in code.items()}
            points = item_points(process)
            execute = process.box.allow is None
            steps = self._root_steps(process, view, [*points, *code])
            steps += [Step("dir", path) for path in points]
            steps += [Step("bind", path, str(place), execute=execute) for path, place in sorted(places.items())]
            steps.append(Step("bind", READ_ONLY, str(folder), execute=execute))
            steps.append(Step("bind", WRITABLE, str(folder), writable=True, execute=execute))
            watch = self._watch([folder], process.box.limits)
            job = self._job(process, view, steps, environment(process, view, {}), folder, watch)
            group = self._group(process.box.limits, number)
            slot = self._means.operator_zygote(view, places[SDK_DIR]).start_slot(job, group)
        except BaseException:
            if group is not None:
                group.remove()
            stack.close()
            raise
        return Pooled(slot, folder, group, stack)

    def _job(
        self,
        process: Process,
        view: ImageView,
        steps: Sequence[Step],
        env: Mapping[str, str],
        place: Path,
        watch: Watch,
    ) -> Job:
        (place / "root").mkdir(exist_ok=True)
        limits, allow = process.box.limits, process.box.allow
        rlimits = {"core": 0, "fsize": watch.disk + watch.base, "nofile": _OPEN_FILES}
        if watch.memory is not None:
            rlimits["data"] = 2 * limits.memory + _DATA_BACKSTOP
            if _counts_processes_by_namespace():
                rlimits["nproc"] = limits.pids + 1
        return Job(
            root=str(place / "root"),
            steps=list(steps),
            argv=list(process.argv) if process.entry is None else None,
            env=env,
            cwd=process.cwd,
            uid=view.uid,
            gid=view.gid,
            rlimits=rlimits,
            seccomp=base64.b64encode(filter_program(forbid_memory_files=allow is not None)).decode(),
            allow=None if allow is None else list(allow),
            private_network=process.box.network != "open",
            import_paths=[SDK_DIR, OPERATOR_DIR],
        )

    def _root_steps(self, process: Process, view: ImageView, points: Mapping[str, Path] | list[str]) -> list[Step]:
        private = self._scratch.folder / f"etc-{view.uid}-{view.gid}"
        with self._lock:
            if not private.exists():
                system_files(private, view.uid, view.gid)
        execute = process.box.allow is None
        return root_steps(
            view, private, points, process.box.network == "open", process.box.limits.memory, execute=execute
        )

    def _view(self, image: Digest) -> ImageView:
        with self._lock:
            if image not in self._views:
                self._views[image] = view_image(image, self._store, self._materials, self._held)
            return self._views[image]

    def _watch(self, folders: list[Path], limits: Limits) -> Watch:
        watched = self._groups() is None
        return Watch(
            folders,
            limits.disk,
            memory=limits.memory if watched else None,
            pids=limits.pids if watched else None,
            base=folder_bytes(folders),
        )

    def _groups(self) -> Hierarchy | None:
        with self._lock:
            if self._hierarchy is None:
                self._hierarchy = (find_hierarchy(),)
            return self._hierarchy[0]

    def _group(self, limits: Limits, name: str) -> Group | None:
        hierarchy = self._groups()
        if hierarchy is None:
            return None
        # The sandbox's own first process is not the task's.
        name = f"{self._scratch.name}-{name}"
        return hierarchy.create(name, memory=limits.memory, cpus=limits.cpus, pids=limits.pids + 1)

    @contextmanager
    def _wake(self) -> Iterator[Wake]:
        wake = Wake()
        with self._lock:
            if self._cancelled:
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


def _started_anew(process: Process, view: ImageView) -> Process:
    """An operator as a command, for when it cannot be forked from a warm process."""
    import dataclasses

    assert process.entry is not None
    env = {**process.env, "MRP_ENTRY": process.entry, "MRP_ROLE": process.role}
    argv = means.operator_argv(view, SDK_DIR, OPERATOR_DIR)
    return dataclasses.replace(process, argv=argv, entry=None, pure=False, env=env)


def _slot_key(process: Process) -> tuple[object, ...]:
    """What is the same for all items of a slot."""
    box = process.box
    code = tuple((mount.path, mount.tree) for mount in process.mounts if mount.path in CODE)
    return (box.image, box.network, box.limits, box.allow, code, tuple(item_points(process)))


def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """Two pipes: the ends to read from, and those to write to."""
    first, second = os.pipe(), os.pipe()
    return (first[0], second[0]), (first[1], second[1])


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _counts_processes_by_namespace() -> bool:
    """Whether RLIMIT_NPROC counts within a user namespace, as it does since Linux 5.14, not all of the user's."""
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in platform.release().split(".")[:2])
    return (major, minor) >= (5, 14)

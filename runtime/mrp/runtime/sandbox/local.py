"""The local backend: processes of this machine in namespaces of their own.

They run on stages: sandboxes of our own launcher that stand ready, whose warm process forks Python operators. Where
these cannot be had, commands go through bubblewrap. Where it is allowed to, it runs commands without walls.
"""

import itertools
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cache.errors import CacheError
from mrp.cache.store import Store
from mrp.runtime.sandbox import means
from mrp.runtime.sandbox.anew import compiling, started_anew
from mrp.runtime.sandbox.bubblewrap import start_bubblewrap
from mrp.runtime.sandbox.capture import Redactor
from mrp.runtime.sandbox.cgroups import Events, Group, Hierarchy, find_hierarchy
from mrp.runtime.sandbox.conclude import complete
from mrp.runtime.sandbox.doors import doors_of
from mrp.runtime.sandbox.doorway import Doorways
from mrp.runtime.sandbox.launcher import Job
from mrp.runtime.sandbox.layout import (
    CODE,
    Folders,
    ImageView,
    environment,
    lay_out,
    process_points,
    root_steps,
    view_image,
    write_system_files,
)
from mrp.runtime.sandbox.materials import Materials
from mrp.runtime.sandbox.protocol import Cancelled, Endpoint
from mrp.runtime.sandbox.pure import MemoryWatch, Pooled, make_points, plan_folders
from mrp.runtime.sandbox.reuse import ReusedFolders
from mrp.runtime.sandbox.scratch import Scratch, remove_folder, sweep
from mrp.runtime.sandbox.seccomp import filter_program
from mrp.runtime.sandbox.shared import Shareable, SharedSlots, alike, shareable
from mrp.runtime.sandbox.stage import JOBS, MATERIALS
from mrp.runtime.sandbox.stages import Stage, StagePool
from mrp.runtime.sandbox.steps import Step
from mrp.runtime.sandbox.supervise import Wake, Watch, supervise
from mrp.runtime.state import unwritable
from mrp.specs.errors import InfraError
from mrp.specs.ir import Limits
from mrp.specs.work import (
    ISOLATION,
    OPERATOR_DIR,
    OUT,
    SDK_DIR,
    Completed,
    Mount,
    Process,
)

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
        self._means = means.Means(allowed, require, place)
        self._stages = StagePool()
        self._empty = store.put_tree({})
        self._slots = SharedSlots(store, self._make_slot)
        self._numbers = itertools.count()
        # A signal handler may cancel while its own thread holds it.
        self._lock = threading.RLock()
        self._held = ExitStack()
        self._views: dict[Digest, ImageView] = {}
        self._held_trees: dict[Digest, Path] = {}
        self._compiling = threading.Lock()
        self._bytecode: dict[tuple[Digest, Digest], Digest] = {}
        self._hierarchy: tuple[Hierarchy | None] | None = None
        self._wakes: set[Wake] = set()
        self._closed = self._cancelled = False

    @property
    def isolation(self) -> str:
        """The weakest level that a process may get: `none` where that will do, or where nothing else can be had."""
        return self._means.isolation

    def run(
        self, process: Process, *, secrets: Mapping[str, str], tag: str, endpoint: Endpoint | None = None
    ) -> Completed:
        """See mrp.runtime.sandbox.protocol.Backend."""
        try:
            self._check(process)
            with self._wake() as wake:
                view = self._view(process.box.image)
                way = self._means.way(process, view)
                if process.entry is not None and way != "hand" and not self._means.can_fork(process, view):
                    process = started_anew(process, view, self._bytecode_of(process, view, wake))
                    way = self._means.way(process, view)
                shared = self._shares(process, view, way) if endpoint is None else None
                if shared is not None:
                    return self._slots.run_one(shared, wake)
                private = way != "hand" and process.box.network != "open"
                doors = Doorways(doors_of(process, endpoint), private=private)
                try:
                    if way == "bubblewrap":
                        return self._run_in_bubblewrap(process, view, dict(secrets), wake, doors)
                    return self._run_on_stage(process, view, dict(secrets), wake, doors, walled=way == "stage")
                finally:
                    doors.close()
        except (InfraError, OSError) as error:
            raise self._failure(tag, error) from error

    def run_many(
        self,
        processes: Sequence[Process],
        *,
        tags: Sequence[str],
        finished: Callable[[int, Completed | InfraError], None],
        returned: Callable[[int], None] | None = None,
    ) -> int:
        """See mrp.runtime.sandbox.protocol.Backend."""

        def ended(number: int, came: Completed | InfraError | OSError) -> None:
            finished(number, came if isinstance(came, Completed) else self._failure(tags[number], came))

        with self._wake() as wake:
            items: list[Shareable] = []
            for process in processes:
                item = (alike(process, items[-1]) if items else None) or self._as_shared(process)
                if item is None:
                    break
                items.append(item)
            self._slots.run(items, wake, ended, returned)
            return len(items)

    def warm(self, image: Digest, sdk: Digest | None) -> None:
        """See mrp.runtime.sandbox.protocol.Backend."""
        with suppress(InfraError, CacheError, OSError):
            self._means.zygote()
            view = self._view(image)
            if sdk is not None and view.root is None:
                self._means.operator_zygote(view, self._held_tree(sdk))

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
        self._stages.close()
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
        if box.limits.gpus is not None:
            raise InfraError("the local sandbox gives no GPUs; remove `gpus` from the limits", retryable=False)
        if (process.entry is None) == (not process.argv):
            raise InfraError("a process has either a command or an entry", retryable=False)

    def _failure(self, tag: str, error: InfraError | OSError) -> InfraError:
        if isinstance(error, InfraError):
            return InfraError(f"{tag}: {error}", retryable=error.retryable)
        return InfraError(f"{tag} could not be run: {unwritable(self._scratch.folder, error)}")

    def _as_shared(self, process: Process) -> Shareable | None:
        """The process as one that may share a sandbox; None when it may not, and when only `run` can say why."""
        try:
            self._check(process)
            view = self._view(process.box.image)
            way = self._means.way(process, view)
            return self._shares(process, view, way) if self._means.can_fork(process, view) else None
        except (InfraError, OSError):
            return None

    def _shares(self, process: Process, view: ImageView, way: means.Way) -> Shareable | None:
        """The process as one that may run in a sandbox together with others of its operator; None when it may not."""
        return shareable(process, view, self._empty) if way == "stage" else None

    def _bytecode_of(self, process: Process, view: ImageView, wake: Wake) -> Digest | None:
        """The tree with byte code for operators of a portable image, made when it is first needed."""
        sdk = next(mount.tree for mount in process.mounts if mount.path == SDK_DIR)
        if view.root is None or view.python is None:
            return None
        with self._compiling:
            key = (process.box.image, sdk)
            if key not in self._bytecode:
                work = compiling(view.python, *key)
                doors = Doorways((), private=True)
                if self._means.way(work, view) == "bubblewrap":
                    done = self._run_in_bubblewrap(work, view, {}, wake, doors)
                else:
                    done = self._run_on_stage(work, view, {}, wake, doors, walled=True)
                self._bytecode[key] = done.outputs[OUT] if done.exit_code == 0 else self._empty
            return self._bytecode[key]

    def _run_on_stage(
        self, process: Process, view: ImageView, secrets: dict[str, str], wake: Wake, doors: Doorways, *, walled: bool
    ) -> Completed:
        """A process on a stage, or by a hand, that nobody else uses meanwhile."""
        redact = Redactor(secrets)
        points = process_points(process)
        key = _stage_key(process, points, doors) if walled else process.box.limits
        stage = self._stages.take(key, lambda: self._make_stage(process, view, points, doors, walled=walled))
        try:
            with ExitStack() as stack:
                execute = process.box.allow is None
                folders = lay_out(process, stage.folders.get, self._store, self._materials, stack, execute=execute)
                watch = self._watch(list(folders.writable.values()), process.box.limits, folders.base)
                job = self._job(process, view, (), environment(process, view, secrets, doors.env), watch)
                told = self._told(job, folders, stage) if walled else means.told_to_hand(process, job, view, folders)
                logs, outputs = _pipes()
                try:
                    running = stage.start(told, outputs, doors.open)
                finally:
                    _close(outputs)
                try:
                    done = supervise(running, logs, float(process.timeout), watch, wake, redact.margin)
                finally:
                    running.close()
                    # Before another process finds the port.
                    doors.close()
                if stage.dead and walled:
                    stage.channel.wait_for_end()
                isolation = "namespaces" if walled else "none"
                events, usage = stage.take_usage()
                completed = complete(process, done, watch, events, usage, folders, redact, self._store, isolation)
                names = [folder.name for folder in folders.writable.values()]
                stage.folders.take_back(names, None if secrets else watch.left)
            return completed
        except BaseException:
            stage.dead = True
            raise
        finally:
            self._stages.give_back(key, stage)

    def _make_stage(
        self, process: Process, view: ImageView, points: Sequence[str], doors: Doorways, *, walled: bool
    ) -> Stage:
        number = f"stage{next(self._numbers)}"
        folder = self._jobs / number
        (folder / "root").mkdir(parents=True)
        group = self._group(process.box.limits, number)
        try:
            if not walled:
                return Stage(self._means.zygote().start_hand(group), folder, group, walled=False)
            execute = process.box.allow is None
            steps = self._root_steps(process, view, list(points))
            steps += [Step("dir", path) for path in points]
            steps.append(Step("bind", MATERIALS, str(self._materials.root), execute=execute))
            steps.append(Step("bind", JOBS, str(folder), writable=True, execute=execute))
            job = self._job(process, view, steps, {}, self._watch([folder], process.box.limits), folder / "root")
            job = job._replace(doors=doors.ports)
            zygote = self._means.zygote()
            if process.entry is not None:
                sdk = next(mount.tree for mount in process.mounts if mount.path == SDK_DIR)
                zygote = self._means.operator_zygote(view, self._held_tree(sdk))
            return Stage(zygote.start_stage(job, group), folder, group, walled=True)
        except BaseException:
            if group is not None:
                group.remove()
            raise

    def _told(self, job: Job, folders: Folders, stage: Stage) -> dict[str, object]:
        """What a stage is told of a job; see mrp.runtime.sandbox.stage."""
        mounts = []
        for path, folder in sorted(folders.all().items()):
            below = (JOBS, stage.folder) if path in folders.writable else (MATERIALS, self._materials.root)
            mounts.append((f"{below[0]}/{folder.relative_to(below[1])}", path))
        return {"mounts": mounts, "argv": job.argv, "env": job.env, "cwd": job.cwd, "rlimits": job.rlimits}

    def _run_in_bubblewrap(
        self, process: Process, view: ImageView, secrets: dict[str, str], wake: Wake, doors: Doorways
    ) -> Completed:
        """A command in a sandbox of its own by bubblewrap."""
        bubblewrap = self._means.found().bubblewrap
        assert bubblewrap is not None
        redact = Redactor(secrets)
        with self._job_folder() as place, ExitStack() as stack:
            new_folders = ReusedFolders(place)
            stack.callback(new_folders.close)
            folders = lay_out(process, new_folders.get, self._store, self._materials, stack, execute=True)
            watch = self._watch(list(folders.writable.values()), process.box.limits, folders.base)
            steps = [*self._root_steps(process, view, folders.all()), *folders.steps]
            job = self._job(process, view, steps, environment(process, view, secrets, doors.env), watch)
            job = job._replace(doors=doors.ports)
            group = self._group(process.box.limits, place.name)
            try:
                logs, outputs = _pipes()
                try:
                    running = start_bubblewrap(bubblewrap, job, outputs, group, doors.open)
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
            return complete(process, done, watch, events, usage, folders, redact, self._store, "namespaces")

    def _make_slot(self, process: Process, view: ImageView, mounts: Sequence[Mount], in_memory: bool) -> Pooled:
        number = f"slot{next(self._numbers)}"
        folder = self._jobs / number
        root = folder / "root"
        root.mkdir(parents=True)
        execute, limits = process.box.allow is None, process.box.limits
        with ExitStack() as undo:
            stack = undo.enter_context(ExitStack())
            code = {mount.path: mount.tree for mount in process.mounts if mount.path in CODE}
            places = {path: stack.enter_context(self._materials.tree(tree, self._store)) for path, tree in code.items()}
            planned = plan_folders(process, mounts, root, folder / "items", in_memory=in_memory)
            steps = self._root_steps(process, view, [*(mount.path for mount in mounts), *code])
            steps += [Step("bind", path, str(place), execute=execute) for path, place in sorted(places.items())]
            steps += planned.steps
            job = self._job(process, view, steps, environment(process, view, {}), self._watch([], limits), root)
            group = self._group(limits, number)
            if group is not None:
                undo.callback(group.remove)
            slot = self._means.operator_zygote(view, places[SDK_DIR]).start_slot(job, group)
            undo.callback(slot.close)
            points = make_points(slot, planned, mounts)
            watch = self._watch([point.folder for point in points if point.writable], limits)
            if in_memory:
                watch = MemoryWatch(**vars(watch))
            undo.pop_all()
        return Pooled(slot, folder, points, group, stack, limits.memory, watch, "namespaces", in_memory)

    def _job(
        self,
        process: Process,
        view: ImageView,
        steps: Sequence[Step],
        env: Mapping[str, str],
        watch: Watch,
        root: Path | None = None,
    ) -> Job:
        limits, allow = process.box.limits, process.box.allow
        rlimits = {"core": 0, "fsize": watch.disk + watch.base, "nofile": _OPEN_FILES}
        if watch.memory is not None:
            rlimits["data"] = 2 * limits.memory + _DATA_BACKSTOP
            if _counts_processes_by_namespace():
                rlimits["nproc"] = limits.pids + 1
        return Job(
            root=str(root or ""),
            steps=list(steps),
            argv=list(process.argv) if process.entry is None else None,
            env=env,
            cwd=process.cwd,
            uid=view.uid,
            gid=view.gid,
            rlimits=rlimits,
            seccomp=filter_program(forbid_memory_files=allow is not None).hex(),
            allow=None if allow is None else list(allow),
            private_network=process.box.network != "open",
            import_paths=[SDK_DIR, OPERATOR_DIR],
        )

    def _root_steps(self, process: Process, view: ImageView, points: Mapping[str, Path] | list[str]) -> list[Step]:
        private = self._scratch.folder / f"etc-{view.uid}-{view.gid}"
        with self._lock:
            if not private.exists():
                write_system_files(private, view.uid, view.gid)
        execute = process.box.allow is None
        return root_steps(
            view, private, points, process.box.network == "open", process.box.limits.memory, execute=execute
        )

    def _view(self, image: Digest) -> ImageView:
        with self._lock:
            if image not in self._views:
                self._views[image] = view_image(image, self._store, self._materials, self._held)
            return self._views[image]

    def _watch(self, folders: list[Path], limits: Limits, base: int = 0) -> Watch:
        watched = self._groups() is None
        return Watch(
            folders,
            limits.disk,
            memory=limits.memory if watched else None,
            pids=limits.pids if watched else None,
            base=base,
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

    def _held_tree(self, tree: Digest) -> Path:
        """The folder of a tree that stays as long as this backend."""
        with self._lock:
            if tree not in self._held_trees:
                self._held_trees[tree] = self._held.enter_context(self._materials.tree(tree, self._store))
            return self._held_trees[tree]

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


def _stage_key(process: Process, points: Sequence[str], doors: Doorways) -> tuple[object, ...]:
    """What is the same for all jobs of a stage."""
    box = process.box
    sdk = [mount.tree for mount in process.mounts if mount.path == SDK_DIR and process.entry is not None]
    return (box.image, box.network, box.limits, box.allow, tuple(sdk), tuple(points), doors.ports)


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

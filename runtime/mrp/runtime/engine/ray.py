"""The Ray engine: processes run by the workers of a Ray cluster, each with a sandbox backend of its own.

A job that comes to no end is sent again, as often as _MOST_LOST, and elsewhere than on nodes that fell silent. Leases
are ours: a worker says something each second, and one that stays silent is killed and given up, since Ray itself waits
for ever for a node that is frozen.
"""

import contextlib
import importlib.util
import itertools
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import Empty

from mrp.cache.digest import Digest
from mrp.cache.errors import MissingBlob
from mrp.cli.version import VERSION
from mrp.runtime.engine.blob_exchange import Receiver
from mrp.runtime.engine.protocol import EngineSettings
from mrp.runtime.engine.ray_bridge import Heard, Kill, Lost, Probe, Silent, Submit
from mrp.runtime.engine.ray_cluster import Need, Place
from mrp.runtime.engine.ray_job import (
    BEAT_SECONDS,
    Broke,
    Done,
    Job,
    Lacks,
    Over,
    Piece,
    Returned,
    Said,
    Setup,
    Started,
    folder_of,
    packed,
)
from mrp.runtime.engine.ray_line import Gone, Inbox, Line, Stop
from mrp.runtime.sandbox.protocol import Cancelled, Endpoint
from mrp.runtime.sandbox.registry import BACKENDS
from mrp.runtime.sandbox.scratch import Scratch, sweep
from mrp.runtime.state import unwritable
from mrp.specs.errors import InfraError
from mrp.specs.ir import Limits
from mrp.specs.work import Completed, Process

_MOST_LOST = 4
"""How often a process may lose its worker before that is an InfraError."""

_LEASE_BEATS = 10
"""So many beats that a worker leaves out, and it is given up."""

_PROBE_BEATS = (10, 40, 100)
"""When a job has not begun after so many beats, the nodes are asked whether they answer."""

_SUSPECT_SECONDS = 120.0
_START_SECONDS = 180.0
_JOIN_SECONDS = 90.0
"""How long a head that went away may take to come back."""

_PAUSE_SECONDS = 1.0

_VENDORS = ("DOCKER_", "MODAL_", "DAYTONA_")
_MOST_DEAD = 500
_FIRST_NEED = Limits(memory=0)


class RayEngine:
    """See mrp.runtime.engine.protocol.Engine. The cluster starts, or is joined, while this returns."""

    name = "ray"

    def __init__(self, settings: EngineSettings) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InfraError(
                "the Ray engine needs the package ray; install it with `pip install 'mrp-build[ray]'`", retryable=False
            )
        backend = settings.backend
        self._store, self._settings = backend.store, settings
        self._scratch = backend.scratch
        self._own_folder = Scratch(_swept_folder()) if settings.address is None else None
        folder = self._own_folder.folder if self._own_folder is not None else backend.scratch
        self._place = Place(settings.address, folder, settings.slots)
        self._setup = _setup(settings)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._suspects: dict[str, float] = {}
        self._probed = 0.0
        self._isolation: str | None = None
        self._cancelled = False
        self._closed = False
        self._joined = False
        self._lost_workers = False
        self._line = self._new_line()

    @property
    def slots(self) -> int:
        """How many processes of one processor the cluster has room for."""
        return self._ready_line().slots

    @property
    def isolation(self) -> str:
        """The level that the backend of a worker achieves; every other worker refuses what is weaker than required."""
        if self._isolation is None:
            self._isolation = _Call(self, Job(self._setup), {}, lambda number, came: None, None).run().isolation
        return self._isolation

    def run(
        self, process: Process, *, secrets: Mapping[str, str], tag: str, endpoint: Endpoint | None = None
    ) -> Completed:
        """See mrp.runtime.sandbox.protocol.Backend."""
        results: list[Completed | InfraError] = []
        job = Job(self._setup, (process,), (tag,), endpoint=endpoint)
        _Call(self, job, secrets, lambda number, came: results.append(came), None).run()
        (came,) = results
        if isinstance(came, InfraError):
            raise came
        return came

    def run_many(
        self,
        processes: Sequence[Process],
        *,
        tags: Sequence[str],
        finished: Callable[[int, Completed | InfraError], None],
        returned: Callable[[int], None] | None = None,
    ) -> int:
        """See mrp.runtime.sandbox.protocol.Backend."""
        first = processes[0].box
        count = sum(1 for _ in itertools.takewhile(lambda process: process.box == first, processes))
        job = Job(self._setup, tuple(processes[:count]), tuple(tags[:count]), True, returned is not None)
        return _Call(self, job, {}, finished, returned).run().taken

    def warm(self, image: Digest, sdk: Digest | None) -> None:
        """See mrp.runtime.sandbox.protocol.Backend. The cluster is starting already, which takes longest."""

    def cancel(self) -> None:
        """See mrp.runtime.sandbox.protocol.Backend."""
        self._cancelled = True
        self._line.stop()

    def close(self) -> None:
        """End the workers, and the cluster if it was started for this build. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._line.end(kill=self._cancelled)
        # Workers that were killed could not remove their sandboxes' folders and control groups.
        sweep(self._scratch)
        if self._settings.sandbox != "local" and (self._cancelled or self._lost_workers):
            self._sweep_sandboxes()
        if self._own_folder is not None:
            self._own_folder.close()

    def _sweep_sandboxes(self) -> None:
        """Remove what killed workers left at a service. Other machines' own engines are swept by their next worker."""
        backend = self._settings.backend
        run = backend.owner.run
        sweeping = replace(backend, owner=replace(backend.owner, run=""), alive=lambda other: other != run)
        with contextlib.suppress(InfraError):
            BACKENDS[self._settings.sandbox](sweeping).close()

    # -- the line ------------------------------------------------------------------------------------------------

    def _new_line(self) -> Line:
        return Line(self._place, self._store.root, self._scratch / "ray.log")

    def _ready_line(self) -> Line:
        """The line, once its cluster can be used; a new one where the last one broke."""
        until = time.monotonic() + (_JOIN_SECONDS if self._joined else _START_SECONDS)
        while True:
            with self._lock:
                if self._line.ended.is_set() and self._joined and not self._closed:
                    self._line.end(kill=True)
                    self._line = self._new_line()
                line = self._line
            while not line.is_ready.wait(0.2):
                self._check()
                if time.monotonic() > until:
                    raise InfraError("the Ray cluster did not start in time; `mrp doctor` says what is wrong")
            self._check()
            if not line.ended.is_set():
                self._joined = True
                return line
            if not self._joined or time.monotonic() > until:
                raise InfraError(self._unusable(line), retryable=self._joined)
            time.sleep(1.0)

    def _unusable(self, line: Line) -> str:
        address = self._settings.address
        reason = line.unusable or line.why() or "it ended"
        if address is None:
            return f"a Ray cluster could not be started here: {reason}"
        return (
            f"the Ray cluster at {address} cannot be used: {reason}; this machine must be a node of it "
            f"(`ray start --address={address}`)"
        )

    def _check(self) -> None:
        if self._cancelled:
            raise Cancelled

    # -- nodes that fell silent ----------------------------------------------------------------------------------

    def _suspect(self, nodes: Sequence[str]) -> None:
        """Avoid these nodes for a while."""
        until = time.monotonic() + _SUSPECT_SECONDS
        with self._lock:
            self._suspects.update((node, until) for node in nodes)

    def _avoided(self) -> tuple[str, ...]:
        now = time.monotonic()
        with self._lock:
            return tuple(sorted(node for node, until in self._suspects.items() if until > now))

    def _probe(self, line: Line) -> None:
        """Have the nodes asked, unless somebody just did."""
        with self._lock:
            now = time.monotonic()
            if now - self._probed < _LEASE_BEATS * BEAT_SECONDS:
                return
            self._probed = now
        line.say(Probe())


class _Again(Exception):
    """The job must be sent once more; `counts` when its worker was lost with it, `pause` when no worker had it."""

    def __init__(self, reason: str, *, counts: bool = False, pause: bool = False) -> None:
        super().__init__(reason)
        self.counts, self.pause = counts, pause


class _Call:
    """One `run` or `run_many`: the job, sent until all its processes are settled.

    `settled`: of so many of the first processes something is known; `end`: those from there on were given back.
    """

    def __init__(
        self,
        engine: RayEngine,
        job: Job,
        secrets: Mapping[str, str],
        finished: Callable[[int, Completed | InfraError], None],
        returned: Callable[[int], None] | None,
    ) -> None:
        self._engine, self._job, self._secrets = engine, job, secrets
        self._finished, self._returned = finished, returned
        self._settled, self._end = 0, len(job.processes)
        self._lost = self._pauses = 0
        self._lacked = False
        self._avoided: tuple[str, ...] = ()

    def run(self) -> Over:
        """Raises InfraError, MissingBlob and Cancelled; what is about one of several processes goes to `finished`."""
        while True:
            self._engine._check()
            before = self._settled
            try:
                return self._once()
            except _Again as again:
                if self._settled > before:
                    self._lost = self._pauses = 0
                self._lost += again.counts
                self._engine._lost_workers |= again.counts
                self._pauses += again.pause
                if self._lost >= _MOST_LOST or self._pauses > _JOIN_SECONDS / _PAUSE_SECONDS:
                    self._give_up(str(again))
                elif again.pause:
                    time.sleep(_PAUSE_SECONDS)

    def _give_up(self, reason: str) -> None:
        number = self._settled
        error = InfraError(
            f"{self._tag(number)} was lost with its Ray worker, or never begun, {self._lost + self._pauses} times; the "
            f"last time: {reason}",
            retryable=False,
        )
        if not self._job.together:
            raise error
        self._lost = self._pauses = 0
        self._settle(number, error)

    def _once(self) -> Over:
        """Send what is not settled, and hear of it to its end. Raises _Again."""
        engine, job = self._engine, self._job
        if job.processes and self._settled >= self._end:
            return Over(self._end, "")
        line = engine._ready_line()
        store = engine._store
        if store.blobs.has_waiting():
            # Workers see what is committed.
            store.commit([])
        first = self._settled
        rest = Job(
            job.setup,
            job.processes[first : self._end],
            job.tags[first : self._end],
            job.together,
            job.may_return and self._end == len(job.processes),
            job.endpoint,
        )
        call = next(engine._numbers)
        inbox = line.open(call)
        limits = job.processes[0].box.limits if job.processes else _FIRST_NEED
        self._avoided = engine._avoided()
        need = Need(limits.cpus, limits.memory, limits.gpus, limits.resources, self._avoided)
        line.say(Submit(call, need, packed(rest), self._secrets))
        over = False
        receiver = Receiver(store, engine._scratch)
        try:
            for said in self._hear(line, call, inbox):
                if isinstance(said, Piece):
                    receiver.take(said)
                elif isinstance(said, Over):
                    over = True
                    return self._over(said, first)
                else:
                    self._take(said, first)
            raise AssertionError("a call is heard of to its end")
        finally:
            receiver.close()
            line.close_call(call)
            if not over:
                line.say(Kill(call))

    def _over(self, over: Over, first: int) -> Over:
        if self._job.together:
            # What could not share a sandbox is not taken; what was sent again counts from the start.
            return Over(max(first + over.taken, self._settled), over.isolation)
        if self._job.processes and not self._settled:
            raise _Again("its Ray worker said nothing of it", counts=True)
        return over

    def _take(self, said: Said, first: int) -> None:
        if isinstance(said, Done):
            for data in said.small.values():
                self._engine._store.put_bytes(data)
            self._settle(first + said.number, said.completed)
        elif isinstance(said, Broke):
            error = InfraError(said.reason, retryable=said.retryable)
            if not self._job.processes:
                raise error
            self._settle(first + said.number, error)
        elif isinstance(said, Returned):
            self._end = first + said.number
            assert self._returned is not None
            self._returned(self._end)
        elif isinstance(said, Lacks) and said.number == 0:
            if self._lacked:
                self._miss(sorted(said.missing)[0])
            self._lacked = not self._lacked
            raise _Again("blobs were missing")

    def _miss(self, digest: Digest) -> None:
        """The store lacks what the next process needs. Raises MissingBlob where it is the only one."""
        if not self._job.together:
            raise MissingBlob(digest)
        # Tried again, alone, it raises that.
        self._settle(self._settled, InfraError(str(MissingBlob(digest))))

    def _settle(self, number: int, came: Completed | InfraError) -> None:
        # What is said of a process twice, because it was sent twice, counts once.
        if number == self._settled:
            self._settled = number + 1
            self._finished(number, came)

    def _hear(self, line: Line, call: int, inbox: Inbox) -> Iterator[Said]:
        """What the worker says, in order. Raises _Again when its lease ran out or it was lost, InfraError for good."""
        engine = self._engine
        node: str | None = None
        quiet = 0
        while True:
            try:
                message = inbox.get(timeout=BEAT_SECONDS)
            except Empty:
                quiet += 1
                if node is not None and quiet > _LEASE_BEATS:
                    engine._suspect([node])
                    raise _Again("its node fell silent", counts=True) from None
                if node is None and (quiet in _PROBE_BEATS or quiet % _PROBE_BEATS[-1] == 0):
                    engine._probe(line)
                continue
            engine._check()
            if isinstance(message, Heard):
                quiet = 0
                for said in pickle.loads(message.messages):
                    if isinstance(said, Started):
                        node = said.node
                    else:
                        yield said
            elif isinstance(message, Silent):
                engine._suspect(message.nodes)
                # A job that has not begun may be meant for a node that is frozen, unless it was sent past that.
                if node is None and not set(message.nodes).issubset(self._avoided):
                    raise _Again("no node of the Ray cluster answers", counts=message.all)
                if node is None and message.all:
                    raise _Again("no node of the Ray cluster answers", counts=True)
            elif isinstance(message, Lost):
                if message.final:
                    raise InfraError(f"{self._tag(self._settled)}: {message.reason}", retryable=False)
                raise _Again(message.reason, counts=node is not None, pause=node is None)
            elif isinstance(message, Gone):
                raise _Again("the connection to the Ray cluster was lost", counts=node is not None, pause=node is None)
            elif isinstance(message, Stop):
                raise Cancelled

    def _tag(self, number: int) -> str:
        return self._job.tags[number] if number < len(self._job.tags) else "mrp"


def _setup(settings: EngineSettings) -> Setup:
    backend = settings.backend
    try:
        backend.scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(backend.scratch, error) from error
    environment = sorted((name, value) for name, value in os.environ.items() if name.startswith(_VENDORS))
    return Setup(
        version=VERSION,
        cache=folder_of(backend.store.root),
        scratch=folder_of(backend.scratch),
        sandbox=settings.sandbox,
        require=backend.require,
        owner=backend.owner,
        dead=_dead_runs(settings),
        environment=tuple(environment),
    )


def _dead_runs(settings: EngineSettings) -> frozenset[str] | None:
    """The last runs of this workspace that are over. A run that is over stays so, wherever a worker asks."""
    alive = settings.backend.alive
    if alive is None:
        return None
    runs = settings.backend.scratch.parent.parent / "runs"
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = sorted(entry.name for entry in runs.iterdir())[-_MOST_DEAD:]
    return frozenset(name for name in names if not alive(name))


def clusters_folder() -> Path:
    """Where clusters of this user keep their files. Ray puts sockets there, whose paths have at most 107 bytes."""
    folder = Path(tempfile.gettempdir())
    return (folder if len(os.fspath(folder)) <= 20 else Path("/tmp")) / f"mrp-ray-{os.getuid()}"


def _swept_folder() -> Path:
    """That folder, without what dead clusters left in it."""
    folder = clusters_folder()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or folder.is_symlink():
            raise InfraError(f"{folder} belongs to another user; remove it, or set TMPDIR", retryable=False)
    except OSError as error:
        raise unwritable(folder, error) from error
    sweep(folder)
    return folder

"""What runs in a Ray worker: a store and a sandbox backend that outlive jobs, and one job after the other.

A job is a generator whose every item is a pickled list of what is to be said. It says something at least every
BEAT_SECONDS, so that silence means that the worker, or its node, is gone or frozen.
"""

import atexit
import gc
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mrp.cache.digest import Digest
from mrp.cache.errors import CacheError, MissingBlob
from mrp.cache.store import Store
from mrp.cli.version import VERSION
from mrp.runtime.engine.blob_exchange import Puller, large_blobs, serve, serve_piece
from mrp.runtime.engine.ray_job import (
    BEAT_SECONDS,
    BLOB_SECONDS,
    Broke,
    Done,
    Job,
    Lacks,
    Over,
    Returned,
    Said,
    Setup,
    Started,
    packed,
)
from mrp.runtime.sandbox.protocol import Backend
from mrp.runtime.sandbox.registry import BACKENDS, BackendSettings
from mrp.runtime.sandbox.scratch import sweep
from mrp.specs.errors import InfraError
from mrp.specs.work import Completed, Process

_LINGER = 0.15
"""What ends within so many seconds travels together: a message costs milliseconds of the machine, in four processes."""

_GARBAGE = 100_000
"""So many more objects, and the interpreter looks for cycles among them."""

_MOST = 64 * 1024
"""About so many bytes are said at once: Ray keeps what is shorter than 100 KiB out of shared memory."""


class BlobServer:
    """The store of the build, as an actor on the build's machine, for workers that do not see its folder."""

    def __init__(self, root: str) -> None:
        self._store = Store.open(Path(root))

    def fetch(self, wanted: list[Digest]) -> tuple[dict[Digest, bytes], dict[Digest, int]]:
        """See mrp.runtime.engine.blob_exchange.Fetch."""
        return serve(self._store, wanted)

    def fetch_piece(self, digest: Digest, offset: int) -> bytes:
        """See mrp.runtime.engine.blob_exchange.FetchPiece."""
        return serve_piece(self._store, digest, offset)


def work(payload: bytes, secrets: Mapping[str, str], server: Any) -> Iterator[bytes]:
    """Do a job; `server` is the handle of a BlobServer, or None where all workers are on the build's machine."""
    job: Job = pickle.loads(payload)
    shared = job.setup.cache.is_here() and job.setup.scratch.is_here()
    yield packed([Started(_node(), shared)])
    outbox = _Outbox()
    threading.Thread(target=_Doing(job, secrets, server, shared, outbox.put).do, daemon=True).start()
    over = False
    while not over:
        messages = list(outbox.take())
        over = any(isinstance(message, Over) for message in messages)
        yield packed(messages)


def answers() -> bool:
    """What a node is asked to find out whether it answers."""
    return True


class _Outbox:
    """What one thread says and another hands on: all that was said of items within _LINGER, and all else at once."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[tuple[Said, int]] = queue.SimpleQueue()
        self._is_due = threading.Event()
        self._bytes = 0

    def put(self, message: Said, size: int = 0) -> None:
        """`size`: bytes that it has, about."""
        self._said.put((message, size))
        self._bytes += size
        if self._bytes >= _MOST or not isinstance(message, Done | Broke):
            self._bytes = 0
            self._is_due.set()

    def take(self) -> Iterator[Said]:
        """About _MOST bytes of it, ending with an Over; nothing when nothing was said for BEAT_SECONDS."""
        with suppress(queue.Empty):
            message, size = self._said.get(timeout=BEAT_SECONDS)
            # To wake for each item would take as long as some items do.
            self._is_due.wait(_LINGER)
            self._is_due.clear()
            room = _MOST
            while True:
                yield message
                room -= size
                if isinstance(message, Over):
                    return
                if room <= 0:
                    self._is_due.set()
                    return
                message, size = self._said.get_nowait()


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


class _Doing:
    """One job under way, in a thread of its own; `say` gets each message, with its size in bytes."""

    def __init__(
        self, job: Job, secrets: Mapping[str, str], server: Any, shared: bool, say: Callable[..., None]
    ) -> None:
        self._job, self._secrets, self._server, self._shared, self._say = job, secrets, server, shared, say

    def do(self) -> None:
        # Ray blocks SIGINT in its workers, and what they start would inherit that.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        taken, isolation = 0, "none"
        try:
            host = _host(self._job.setup, self._shared)
            isolation = host.backend.isolation
            ready = self._pulled(host)
            if self._job.together:
                taken = self._many(host, ready)
            else:
                self._one(host, ready)
        except MissingBlob as error:
            self._say(Lacks(0, frozenset({error.digest})))
        except InfraError as error:
            self._say(Broke(0, str(error), error.retryable))
        except BaseException as error:
            self._say(Broke(0, f"a Ray worker failed: {type(error).__name__}: {error}", True))
        self._say(Over(taken, isolation))

    def _pulled(self, host: "_Host") -> tuple[Process, ...]:
        """The first processes of the job that all blobs are there for."""
        processes = self._job.processes
        if self._shared or not processes:
            return processes
        if self._server is None:
            raise InfraError("a worker does not see the cache's folder; give the cluster by `--address`")
        endpoint = self._job.endpoint
        if endpoint is not None and endpoint.address.startswith("unix:"):
            raise InfraError(
                "a worker on another machine cannot reach the model gateway; set MRP_GATEWAY_HOST to an address of the "
                "build's machine",
                retryable=False,
            )
        puller = host.puller(self._server)
        for number, process in enumerate(processes):
            missing = puller.pull(process)
            if missing:
                self._say(Lacks(number, missing))
                return processes[:number]
        return processes

    def _one(self, host: "_Host", ready: tuple[Process, ...]) -> None:
        for process in ready:
            completed = host.backend.run(
                process, secrets=self._secrets, tag=self._job.tags[0], endpoint=self._job.endpoint
            )
            self._done(host, 0, completed)

    def _many(self, host: "_Host", ready: tuple[Process, ...]) -> int:
        def finished(number: int, came: Completed | InfraError) -> None:
            if isinstance(came, Completed):
                self._done(host, number, came)
            else:
                self._say(Broke(number, str(came), came.retryable))

        def returned(number: int) -> None:
            self._say(Returned(number))

        if not ready:
            return 0
        return host.backend.run_many(
            ready, tags=self._job.tags, finished=finished, returned=returned if self._job.may_return else None
        )

    def _done(self, host: "_Host", number: int, completed: Completed) -> None:
        if not self._shared:
            for piece in large_blobs(completed, host.store, host.given):
                self._say(piece, len(piece.data))
        small = host.store.blobs.take_small()
        if host.store.blobs.has_waiting():
            host.store.commit([])
        self._say(Done(number, completed, small), 500 + sum(map(len, small.values())))


class _Host:
    """The store and the backend of this worker, for one Setup."""

    def __init__(self, setup: Setup, shared: bool) -> None:
        os.environ.update(setup.environment)
        if shared:
            root, scratch = Path(setup.cache.path), Path(setup.scratch.path)
        else:
            root, scratch = _own_folders()
        dead = setup.dead
        alive = None if dead is None else (lambda run: run not in dead)
        try:
            self.store = Store.open(root)
        except CacheError as error:
            raise InfraError(f"a Ray worker cannot open a cache: {error}") from error
        settings = BackendSettings(self.store, scratch, setup.require, setup.owner, alive)
        self.backend: Backend = BACKENDS[setup.sandbox](settings)
        self._puller: Puller | None = None
        atexit.register(self.close)
        # All of that stays, and items leave no cycles: to look for these takes as long as some items do.
        gc.freeze()
        gc.set_threshold(_GARBAGE)

    @property
    def given(self) -> set[Digest]:
        """Digests that the build's store has for certain."""
        return self._puller.given if self._puller is not None else set()

    def puller(self, server: Any) -> Puller:
        """What pulls blobs from the BlobServer of this build."""
        if self._puller is None:
            import ray

            def fetch(wanted: Iterable[Digest]) -> tuple[Mapping[Digest, bytes], Mapping[Digest, int]]:
                asked = sorted(wanted)
                found: tuple[Mapping[Digest, bytes], Mapping[Digest, int]]
                found = _answer(lambda: ray.get(server.fetch.remote(asked), timeout=BLOB_SECONDS))
                return found

            def fetch_piece(digest: Digest, offset: int) -> bytes:
                return bytes(_answer(lambda: ray.get(server.fetch_piece.remote(digest, offset), timeout=BLOB_SECONDS)))

            self._puller = Puller(self.store, fetch, fetch_piece)
        return self._puller

    def close(self) -> None:
        """End the backend. Idempotent."""
        atexit.unregister(self.close)
        self.backend.close()
        self.store.close()


def _answer(ask: Callable[[], Any]) -> Any:
    from ray.exceptions import RayError

    try:
        return ask()
    except RayError as error:
        raise InfraError(f"blobs could not be had from the build's machine: {type(error).__name__}") from error


_hosts: dict[Setup, _Host] = {}


def _host(setup: Setup, shared: bool) -> _Host:
    """The host for a setup; one at a time, since a worker has one job at a time."""
    if setup.version != VERSION:
        raise InfraError(
            f"this is mrp {setup.version}, and the Ray workers have {VERSION}; install the same on all nodes",
            retryable=False,
        )
    if setup not in _hosts:
        for host in _hosts.values():
            host.close()
        _hosts.clear()
        _hosts[setup] = _Host(setup, shared)
    return _hosts[setup]


def _own_folders() -> tuple[Path, Path]:
    """A store for the workers of this node, below Ray's own temporary folder, and scratch space beside it."""
    from ray._private import worker

    node: Any = worker._global_node
    session = Path(node.get_session_dir_path())
    place = session / f"mrp-{_node()[:16]}"
    scratch = place / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    sweep(scratch)
    return place / "store", scratch

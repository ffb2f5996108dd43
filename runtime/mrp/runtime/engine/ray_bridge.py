"""The bridge: a process between the build and Ray.

Ray lives in it, and not in the process of the build: what Ray prints, its signal handlers and its threads stay here,
and where Ray ends the process that uses it, as it does when the head of a cluster is gone, the build starts another
bridge. It ends when the build does, however that ends, and a cluster that it started ends with it.
"""

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mrp.runtime.engine.ray_cluster import Cluster, Need
from mrp.specs.errors import InfraError

_WATCH_SECONDS = 2.0
_GONE_SECONDS = 10.0
HEAD_IS_GONE = 3


@dataclass(frozen=True)
class Submit:
    """Start a job; `payload` is a pickled mrp.runtime.engine.ray_job.Job. Nothing of the secrets is shown."""

    call: int
    need: Need
    payload: bytes = field(repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Kill:
    """Kill the worker of a job, whatever it does."""

    call: int


@dataclass(frozen=True)
class Probe:
    """Ask all nodes whether they answer."""


@dataclass(frozen=True)
class Ready:
    """The cluster can be used."""

    slots: int


@dataclass(frozen=True)
class Unusable:
    """There is no cluster."""

    reason: str


@dataclass(frozen=True)
class Heard:
    """What a worker said: a pickled list of mrp.runtime.engine.ray_job.Said."""

    call: int
    messages: bytes


@dataclass(frozen=True)
class Lost:
    """A job came to no end: its worker or node died, or it can never run. For good where that is `final`."""

    call: int
    reason: str
    final: bool = False


@dataclass(frozen=True)
class Silent:
    """The answer to Probe: ids of the nodes that do not answer, and whether any does."""

    nodes: tuple[str, ...]
    all: bool


ToBridge = Submit | Kill | Probe
FromBridge = Ready | Unusable | Heard | Lost | Silent


class _Bridge:
    def __init__(self, connection: Connection, cluster: Cluster, cache: Path) -> None:
        import ray

        from mrp.runtime.engine.ray_worker import work

        self._ray: Any = ray
        self._connection, self._cluster = connection, cluster
        self._lock = threading.Lock()
        self._running: dict[int, Any] = {}
        self._server = cluster.serve_blobs(cache)
        self._work = ray.remote(work)

    def serve(self) -> None:
        """Until the build hangs up."""
        self.say(Ready(self._cluster.slots))
        threading.Thread(target=self._watch, daemon=True).start()
        while True:
            try:
                asked: ToBridge = pickle.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                return
            if isinstance(asked, Submit):
                self._in_thread(self._submit, asked)
            elif isinstance(asked, Kill):
                self._in_thread(self._kill, asked.call)
            else:
                self._in_thread(self._probe)

    def say(self, message: FromBridge) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self._connection.send_bytes(data)

    def _in_thread(self, do: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=self._carefully, args=(do, *arguments), daemon=True).start()

    def _carefully(self, do: Callable[..., None], *arguments: object) -> None:
        try:
            do(*arguments)
        except OSError:
            return  # The build hung up.

    def _submit(self, asked: Submit) -> None:
        try:
            options = self._cluster.options(asked.need)
            stream: Any = self._work.options(**options).remote(asked.payload, dict(asked.secrets), self._server)
            self._running[asked.call] = stream
            for reference in stream:
                self.say(Heard(asked.call, self._ray.get(reference)))
            self.say(Lost(asked.call, "its Ray worker ended before it did"))
        except InfraError as error:
            self.say(Lost(asked.call, str(error), final=not error.retryable))
        except OSError:
            raise
        except BaseException as error:
            self.say(_lost(asked.call, error))
        finally:
            self._running.pop(asked.call, None)

    def _kill(self, call: int) -> None:
        stream = self._running.get(call)
        if stream is not None:
            self._ray.cancel(stream, force=True)

    def _probe(self) -> None:
        silent = self._cluster.silent()
        self.say(Silent(tuple(silent), len(silent) == len(self._cluster.nodes())))

    def _watch(self) -> None:
        """Leave when the head of the cluster is gone: what comes back in its place is another cluster."""
        here = self._ray.get_runtime_context().get_node_id()
        last = time.monotonic()
        asking = threading.Event()

        def ask() -> None:
            nonlocal last
            try:
                if any(node["NodeID"] == here for node in self._cluster.nodes(fresh=True)):
                    last = time.monotonic()
            except Exception:
                pass
            finally:
                asking.clear()

        while time.monotonic() - last < _GONE_SECONDS:
            if not asking.is_set():
                asking.set()
                threading.Thread(target=ask, daemon=True).start()
            time.sleep(_WATCH_SECONDS)
        print("the head of the Ray cluster is gone", file=sys.stderr, flush=True)
        os._exit(HEAD_IS_GONE)


def _lost(call: int, error: BaseException) -> Lost:
    from ray.exceptions import RayTaskError

    if isinstance(error, RayTaskError):
        cause = getattr(error, "cause", None) or error
        return Lost(call, f"a Ray worker cannot do it: {type(cause).__name__}: {_first_line(cause)}", final=True)
    return Lost(call, f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no reason was given"


def main(arguments: list[str]) -> None:
    """Serve the build at the other end of a socket; its first words are a pickled Place and the cache's path."""
    connection = Connection(int(arguments[0]))
    place, cache = pickle.loads(connection.recv_bytes())
    try:
        cluster = Cluster(place)
        bridge = _Bridge(connection, cluster, cache)
    except BaseException as error:
        connection.send_bytes(pickle.dumps(Unusable(f"{type(error).__name__}: {_first_line(error)}")))
        os._exit(1)
    bridge.serve()
    import ray

    ray.shutdown()
    # Threads that wait for jobs which will never end must not hold up the end.
    os._exit(0)

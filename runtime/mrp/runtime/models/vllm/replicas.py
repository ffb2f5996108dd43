"""Replicas: servers of one model that are started, watched and started again, and share its calls.

A replica is starting, ready, doubted (it did not answer a call, so it is looked at first), down (it waits to be
started again), lost (it came down too often, or never came up) or stopped. Each has a thread, which alone starts and
stops its servers; `_set` alone changes a state.
"""

import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from mrp.cache.canonical import Json
from mrp.runtime.models.protocol import Answer, Busy, Call
from mrp.runtime.models.vllm.server import Ended, Order, Server
from mrp.runtime.models.vllm.serving import Serving
from mrp.specs.errors import InfraError

RESTARTS = 3
"""So often in a row a replica is started again; one that was ready for STEADY_SECONDS has them all anew."""

STEADY_SECONDS = 600.0
BACKOFF_SECONDS = 1.0
"""Before the first start again; twice as long before each further one."""

SILENT_LOOKS = 3
"""So many looks in a row may get no answer; one that says it is not well is the last."""

_START_LOOK_SECONDS = 0.25

Start = Callable[[Order, Ended], Server]


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    DOUBTED = "doubted"
    DOWN = "down"
    LOST = "lost"
    STOPPED = "stopped"


class Replicas:
    """All replicas of one model; none is started before the first call. `say` gets a sentence for people.

    say: from any thread. python: the one that has vLLM. logs: the folder for the log of each replica, named for the
    label. start: how a server is started.
    """

    def __init__(
        self, label: str, serving: Serving, python: str, logs: Path, start: Start, say: Callable[[str], None]
    ) -> None:
        self.label, self.serving, self.say = label, serving, say
        self._changed = threading.Condition()
        self.closed = self._started = False
        self._replicas = [
            _Replica(self, Order(serving, number, python, logs / f"vllm-{_file_name(label)}-{number}.log"), start)
            for number in range(serving.replicas)
        ]

    def answer(self, call: Call) -> Answer:
        """Ask the ready replica with the fewest calls; waits for one. Raises InfraError when there will be none."""
        with self._lease(call) as replica:
            return replica.answer(call)

    def close(self) -> None:
        """Stop every server. Calls that wait, or are under way, end as Busy."""
        with self._changed:
            started, self.closed = self._started, True
            self._changed.notify_all()
        for replica in self._replicas if started else ():
            replica.wake()
        for replica in self._replicas if started else ():
            replica.thread.join()

    @contextmanager
    def _lease(self, call: Call) -> Iterator["_Replica"]:
        with self._changed:
            with call.held:
                replica = self._free()
            replica.calls += 1
            replica.asked += 1
        try:
            yield replica
        finally:
            with self._changed:
                replica.calls -= 1

    def _free(self) -> "_Replica":
        if not self._started and not self.closed:
            self._started = True
            count = f"{len(self._replicas)} replicas" if len(self._replicas) > 1 else "one replica"
            self.say(f"{self.label}: starting {count} of vLLM, which takes a while")
            for replica in self._replicas:
                replica.thread.start()
        while True:
            if self.closed:
                raise Busy(f"{self.label} is being stopped")
            ready = [replica for replica in self._replicas if replica.state is State.READY]
            if ready:
                return min(ready, key=lambda replica: (replica.calls, replica.asked))
            if all(replica.state is State.LOST for replica in self._replicas):
                raise InfraError(self._replicas[0].reason, retryable=False)
            self._changed.wait()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock under which replicas change their states, and tell those who wait for a change."""
        with self._changed:
            yield
            self._changed.notify_all()


class _Replica:
    """One replica: its state, its calls under way and ever asked, and the thread that looks after its server."""

    def __init__(self, replicas: Replicas, order: Order, start: Start) -> None:
        self._replicas, self._order, self._start = replicas, order, start
        self.state, self.reason = State.STARTING, ""
        self.calls = self.asked = 0
        self.thread = threading.Thread(target=self._run, name=f"mrp-vllm-{order.number}", daemon=True)
        self._poked, self._over = threading.Event(), threading.Event()
        self._server: Server | None = None
        self._live: tuple[Server, Mapping[str, Json]] | None = None
        self._end = ""
        self._starts = 0

    def answer(self, call: Call) -> Answer:
        live = self._live
        if live is None:
            raise Busy(f"{self._name} came down")
        server, facts = live
        try:
            answer = server.answer(call)
        except Busy as error:
            with self._replicas.changing():
                if self._live is live and self.state is State.READY:
                    self._set(State.DOUBTED)
            self._poked.set()
            raise Busy(f"{self._name}: {error}", error.after) from None
        return dataclasses.replace(answer, facts={**answer.facts, **facts})

    def wake(self) -> None:
        """Tell the thread that its server, or the build, has come to an end."""
        self._over.set()
        self._poked.set()

    @property
    def _name(self) -> str:
        return f"replica {self._order.number} of {self._replicas.label}"

    def _set(self, state: State, reason: str = "") -> None:
        """Change the state; the caller holds the lock of `changing`."""
        self.state, self.reason = state, reason

    def _run(self) -> None:
        try:
            lost = self._rounds()
        except InfraError as error:
            lost = str(error)
        except BaseException as error:
            # A thread that only ended would leave calls waiting for ever.
            lost = f"{self._name} is lost: {type(error).__name__}: {error}"
        self._take_down()
        with self._replicas.changing():
            self._set(State.LOST if lost else State.STOPPED, lost)
        if lost:
            self._replicas.say(lost)

    def _rounds(self) -> str:
        """Servers, one after the other, until the build ends (gives nothing) or no further one is tried (gives why)."""
        failures = 0
        while True:
            reason, was_ready, begun = self._bring_up(), False, time.monotonic()
            if not reason:
                reason, was_ready = self._watch(), True
            log_end = self._take_down()
            if self._replicas.closed:
                return ""
            failures = 1 if was_ready and time.monotonic() - begun > STEADY_SECONDS else failures + 1
            hopeless = self._starts == 1 and not was_ready and not _again_may_help(log_end)
            if hopeless or failures > RESTARTS:
                return (
                    f"{self._name} is lost: {reason}; look at `serve` of the model, and at {self._order.log}{log_end}"
                )
            seconds = BACKOFF_SECONDS * 2 ** (failures - 1)
            with self._replicas.changing():
                self._set(State.DOWN, reason)
            self._replicas.say(f"{self._name}: {reason}; it is started again in {seconds:g} s")
            self._over.clear()
            if not self._replicas.closed:
                self._pause(seconds)

    def _bring_up(self) -> str:
        """Start a server and wait until it is well; gives why it is not to be used, or nothing. Raises InfraError."""
        self._end = ""
        self._over.clear()
        self._starts += 1
        with self._replicas.changing():
            self._set(State.STARTING)
        self._server = self._start(self._order, self._ended)
        begun, patience = int(time.time()), time.monotonic() + self._replicas.serving.start
        while not self._end and not self._replicas.closed:
            if self._server.is_well():
                facts = self._server.engine()
                self._check_version(facts.get("version"))
                facts = {**facts, "replica": self._order.number, "start": self._starts, "started": begun}
                with self._replicas.changing():
                    self._live = (self._server, facts)
                    self._set(State.READY)
                return ""
            if time.monotonic() > patience:
                return f"it was not well after {self._replicas.serving.start:g} s (`start` of `health` allows more)"
            self._pause(_START_LOOK_SECONDS)
        return self._end or "the build ends"

    def _watch(self) -> str:
        """Look at the server from time to time until it is no longer to be used; gives why."""
        silent = 0
        while not self._end and not self._replicas.closed:
            self._poked.wait(self._replicas.serving.every)
            self._poked.clear()
            if self._end or self._replicas.closed:
                break
            well = self._server.is_well() if self._server is not None else None
            silent = silent + 1 if well is None else 0
            if well is False or silent >= SILENT_LOOKS:
                return "it said that it is not well" if well is False else f"it gave no sign {silent} times"
            with self._replicas.changing():
                if well and self.state is State.DOUBTED:
                    self._set(State.READY)
            if silent:
                self._pause(_START_LOOK_SECONDS)
                self._poked.set()
        return self._end or "the build ends"

    def _take_down(self) -> str:
        """Stop the server, if there is one; gives what its log says of its end."""
        with self._replicas.changing():
            server, self._server, self._live = self._server, None, None
            if self.state is State.READY:
                self._set(State.DOWN)
        if server is None:
            return ""
        server.stop()
        end = server.log_end()
        return f", which says:\n{end}" if end else ""

    def _ended(self, reason: str) -> None:
        self._end = reason
        with self._replicas.changing():
            if self.state is State.READY:
                self._set(State.DOUBTED)
        self.wake()

    def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the server or of the build."""
        self._over.wait(seconds)

    def _check_version(self, found: Json) -> None:
        """Answers depend on the version. Raises InfraError for another one than the model declares."""
        label, wanted = self._replicas.label, self._replicas.serving.version
        plain = str(found).partition("+")[0]
        if wanted is not None and plain != wanted.partition("+")[0]:
            raise InfraError(
                f"{label} wants vLLM {wanted} (`version` of `serve`), and the environment has {found};"
                " install that version, or change `version`, which makes new keys",
                retryable=False,
            )
        if wanted is None and (self._order.number, self._starts) == (0, 1):
            self._replicas.say(
                f"{label}: no key names the version of vLLM; declare the one that answers:"
                f' serve: {{version: "{plain}"}}'
            )


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.]+", "-", label).strip("-")


def _again_may_help(log_end: str) -> bool:
    return "address already in use" in log_end.lower()

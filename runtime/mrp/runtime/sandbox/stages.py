"""The backend's end of stages and hands: warm processes that run one job after the other, each taken by one at a time.

What they need that is the same for all jobs (root, control group, folder) is made once, and reused.
"""

import json
import select
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrp.runtime.sandbox.cgroups import Events, Group
from mrp.runtime.sandbox.launcher import exit_code, send_frame
from mrp.runtime.sandbox.reuse import ReusedFolders
from mrp.runtime.sandbox.scratch import remove_folder
from mrp.runtime.sandbox.supervise import Ended, signal_all
from mrp.runtime.sandbox.warm import Channel
from mrp.specs.errors import InfraError

MAX_JOBS = 20_000
"""A stage is made anew after so many jobs: what they leave in the kernel's memory must not count against later ones."""

MAX_IDLE = 32
"""So many wait for jobs; of more, those go that have waited longest."""


class Stage:
    """A warm process that runs jobs; `dead` once it ended, or cannot be trusted to run another.

    `walled`: it is process 1 of a sandbox, so that killing it kills all. Else it is a hand, which outlives its jobs.
    """

    def __init__(self, channel: Channel, folder: Path, group: Group | None, *, walled: bool) -> None:
        self.channel = channel
        self.folder = folder
        self.folders = ReusedFolders(folder)
        self.group = group
        self.counters = group.counters() if group is not None else None
        self.walled = walled
        self.dead = False
        self.served = 0
        self._events, self._cpu = Events(), 0.0

    def start(
        self, told: Mapping[str, object], outputs: Sequence[int], opened: Callable[[list[int]], None] | None = None
    ) -> "Staged":
        """Run a job; `told` as in mrp.runtime.sandbox.stage and hand. `opened` gets its doors. Raises InfraError."""
        self.served += 1
        try:
            send_frame(self.channel.connection, json.dumps(told).encode(), outputs)
        except OSError as error:
            self.dead = True
            raise InfraError(f"a sandbox ended early: {error}") from error
        return Staged(self, opened)

    def is_alive(self) -> bool:
        """Whether it waits for a job: then it has nothing to say."""
        return not self.dead and not select.select([self.channel.connection], [], [], 0)[0]

    def take_usage(self) -> tuple[Events, tuple[float, int]]:
        """What the control group counted since the last call: limits hit, and (seconds of processor time, bytes)."""
        if self.counters is None:
            return Events(), (0.0, 0)
        events, (cpu, memory) = self.counters.events(), self.counters.usage()
        since = Events(events.memory - self._events.memory, events.pids - self._events.pids)
        used = cpu - self._cpu
        self._events, self._cpu = events, cpu
        return since, (used, memory)

    def close(self) -> None:
        """Kill it with all that it runs, wait, and let go of what it holds. Idempotent."""
        self.dead = True
        if self.walled:
            self.channel.wait_for_end()
        else:
            self.channel.hang_up()
        self.channel.close()
        self.folders.close()
        if self.counters is not None:
            self.counters.close()
            self.counters = None
        if self.group is not None:
            self.group.remove()
        remove_folder(self.folder)


class Staged:
    """One job; see mrp.runtime.sandbox.supervise.Running."""

    def __init__(self, stage: Stage, opened: Callable[[list[int]], None] | None) -> None:
        self._stage, self._opened = stage, opened
        self._exec_error: int | None = None
        self._over = False

    def fileno(self) -> int:
        return self._stage.channel.connection.fileno()

    def ended(self) -> Ended | None:
        try:
            lines = self._stage.channel.lines()
        except InfraError:
            self._stage.dead = True
            raise
        for line in lines:
            if "doors" in line and self._opened is not None:
                self._opened(self._stage.channel.take_doors())
            if "exec" in line:
                self._exec_error = int(str(line["exec"]))
            how = line.get("ended", line.get("status"))
            if how is not None:
                self._stage.dead = self._stage.dead or "status" in line
                self._over = True
                return Ended(exit_code(int(str(how))), float(str(line["cpu"])), int(str(line["rss"])), self._exec_error)
        return None

    def processes(self) -> list[int]:
        return self._stage.channel.workers()

    def ask_to_end(self) -> None:
        signal_all(self.processes(), signal.SIGTERM)

    def kill(self) -> None:
        if self._stage.walled:
            self._stage.dead = True
            self._stage.channel.kill()
        else:
            signal_all(self.processes(), signal.SIGKILL)

    def close(self) -> None:
        """The stage stays for the next job, unless this one did not come to its end."""
        if not self._over:
            self._stage.dead = True
            self.kill()


@dataclass
class _Idle:
    key: object
    stage: Stage


class StagePool:
    """Stages by the key of what is the same for all of their jobs. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Idle] = []
        self._closed = False

    def take(self, key: object, make: Callable[[], Stage]) -> Stage:
        """A stage that nobody uses, made by `make` when there is none."""
        while (stage := self._take_idle(key)) is not None:
            if stage.is_alive():
                return stage
            stage.close()
        return make()

    def give_back(self, key: object, stage: Stage) -> None:
        """Let others have the stage, unless it is used up."""
        closing = [stage]
        with self._lock:
            if not stage.dead and stage.served < MAX_JOBS and not self._closed:
                self._idle.append(_Idle(key, stage))
                closing = [idle.stage for idle in self._idle[:-MAX_IDLE]]
                self._idle = self._idle[-MAX_IDLE:]
        for each in closing:
            each.close()

    def _take_idle(self, key: object) -> Stage | None:
        with self._lock:
            for index in reversed(range(len(self._idle))):
                if self._idle[index].key == key:
                    return self._idle.pop(index).stage
        return None

    def close(self) -> None:
        """End all that are idle, and each other one as it is given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for each in idle:
            each.stage.close()

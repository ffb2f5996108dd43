"""The contract of sandbox backends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mrp.cache.digest import Digest
from mrp.specs.errors import InfraError
from mrp.specs.work import Completed, Process


@dataclass(frozen=True)
class Endpoint:
    """Where a process's calls to its model go: the gateway of this build, and the word that names the trial there.

    address: `unix:/path` or `tcp:host:port`, as the machine that runs the process reaches it. A connection begins with
    `preface()`, then HTTP follows, byte for byte. The token stays outside the sandbox.
    """

    address: str
    token: str

    def preface(self) -> bytes:
        """The line that each connection to `address` begins with."""
        return f"MRP {self.token}\n".encode()


class Backend(Protocol):
    """Runs processes in isolation, many at a time, from any thread.

    A process that fails, is killed or goes over a limit is a Completed. InfraError means that the backend itself
    failed, so that the attempt says nothing about the task; its `retryable` tells whether again may help.
    """

    name: str

    @property
    def isolation(self) -> str:
        """The level that `run` achieves on this machine; one of mrp.specs.work.ISOLATION."""

    def run(
        self, process: Process, *, secrets: Mapping[str, str], tag: str, endpoint: Endpoint | None = None
    ) -> Completed:
        """Run one process to its end, keep its outputs in the store, and leave nothing of it behind.

        `secrets` holds the values of the names in `process.box.secrets`; they are given as environment variables
        and redacted from what is kept. `tag` names the action in error messages. With an `endpoint`, connections to
        MODEL_PORT on the sandbox's own loopback reach it whatever the network policy, and the environment has
        mrp.specs.work.model_env of that port (another one where processes share a loopback).
        """

    def run_many(
        self,
        processes: Sequence[Process],
        *,
        tags: Sequence[str],
        finished: Callable[[int, "Completed | InfraError"], None],
        returned: Callable[[int], None] | None = None,
    ) -> int:
        """Run the first of `processes` that may share a sandbox, one after the other; gives how many these are.

        None of them has secrets. `finished` gets the number of each with what came of it, as soon as it ended and in
        order; what it does counts towards nobody's time. When one takes long, the number of the one behind it may be
        given to `returned`: that and all further ones have not begun, and will not. Raises Cancelled.
        """

    def warm(self, image: Digest, sdk: Digest | None) -> None:
        """Begin to start what processes of an image will need, and return at once; `sdk` for Python operators.

        It only saves time: what goes wrong is found, and said, when a process runs.
        """

    def cancel(self) -> None:
        """Kill what runs, from another thread or a signal handler; each `run`, also a later one, raises Cancelled."""

    def close(self) -> None:
        """Stop helpers and remove every temporary folder. Idempotent."""


class Cancelled(Exception):
    """The build was interrupted while this process ran; there is no result."""

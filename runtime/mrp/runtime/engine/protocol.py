"""The contract of engines: where the processes of actions run.

The coordinator and its threads are always in the process of the build (mrp.runtime.engine.local). An engine is a
Backend whose processes run elsewhere, in a sandbox backend there; digests travel, and blobs only where the store is not
shared. So keys, decisions, retries and commits are the same on every engine.
"""

from dataclasses import dataclass
from typing import Protocol

from mrp.runtime.sandbox.protocol import Backend
from mrp.runtime.sandbox.registry import BackendSettings


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with.

    sandbox: the name of the backend that isolates processes there. address: of a cluster that runs already; None to
    start one on this machine. slots: how many processes at once at most.
    """

    backend: BackendSettings
    sandbox: str = "local"
    address: str | None = None
    slots: int = 1


class Engine(Backend, Protocol):
    """A Backend with a size. When a worker or a node dies, or freezes, `run` sends the process elsewhere by itself.

    A process whose worker was lost as often as policy of the engine allows is an InfraError. Nothing that was given
    back as finished is ever run again.
    """

    @property
    def slots(self) -> int:
        """How many processes it has room for now, at least 1."""

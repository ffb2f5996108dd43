"""The contract of services that keep sandboxes: what Docker, Modal and Daytona have in common.

`mrp.runtime.sandbox.provided.ProvidedBackend` makes a Backend of any of them. A provider moves bytes and starts
processes; what a contract folder is, what a limit means and what is kept is decided there, once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from mrp.runtime.images.portable import PortableImage
from mrp.specs.ir import Limits
from mrp.specs.work import LOG_BYTES, MAX_WORD

KEPT_LOG = LOG_BYTES + MAX_WORD + 1
"""Bytes of each log that a provider keeps at most: so much beyond LOG_BYTES that no secret is cut in two there."""


@dataclass(frozen=True)
class Owner:
    """Whose a sandbox is: `workspace` and `run` are tags on it; `lease` seconds after its creation it is nobody's."""

    workspace: str
    run: str
    lease: int = 24 * 3600


@dataclass(frozen=True)
class Order:
    """What a sandbox must be. `image` is what `prepare` gave. `writable`: the guest folders that can be written to.

    given: guest folders that `put` fills and no command may write to. Everything else is read-only where the provider
    can do so. network: `none` or `open`. file_bytes: what no file may grow beyond, 0 for no such limit.
    """

    image: str
    owner: Owner
    limits: Limits = Limits()
    network: str = "none"
    user: str = "1000:1000"
    writable: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    file_bytes: int = 0


@dataclass(frozen=True)
class Exit:
    """How a command ended: its exit code (128 + N for signal N) or the limit that ended it (memory, pids or wall).

    stdout and stderr are files with all that was written, or its first KEPT_LOG bytes. exec_error: the errno when the
    program could not be executed at all (exit code 127 or 126). wall_s: seconds that it ran, where the service knows.
    """

    exit_code: int | None
    limit: str | None
    stdout: Path
    stderr: Path
    cpu_s: Decimal = Decimal(0)
    max_rss: int = 0
    wall_s: Decimal | None = None
    exec_error: int | None = None


@dataclass(frozen=True)
class Owned:
    """A sandbox that a provider keeps for this workspace; `expires` in seconds since 1970."""

    id: str
    run: str
    expires: float

    @classmethod
    def tagged(cls, identity: str, run: str | None, expires: str | None) -> "Owned":
        """One by its tags. One whose tags somebody changed has neither a run nor a lease."""
        try:
            return cls(identity, run or "", float(expires or 0))
        except ValueError:
            return cls(identity, "", 0.0)


class Stream(Protocol):
    """The standard streams of a process in a sandbox, for as long as it runs; stderr is dropped."""

    def read(self) -> bytes:
        """What came next from stdout; b"" at its end. Blocks."""

    def write(self, data: bytes) -> None:
        """Send to stdin. Raises InfraError when the process is gone."""

    def close(self) -> None:
        """End the process. Idempotent, from any thread."""


class Sandbox(Protocol):
    """One running sandbox, used by one thread at a time but for `destroy`.

    Every method raises InfraError when the service fails (retryable when again may help), and never for what a command
    did.
    """

    id: str

    def put(self, archive: BinaryIO) -> None:
        """Unpack a tar archive at /, as root: owners, modes and mtimes as the archive says."""

    def get(self, path: str, out: BinaryIO, most: int) -> bool:
        """Write folder `path`, as an uncompressed tar archive whose names are relative to it, to `out`.

        Gives False, having written a part, when it has more than `most` bytes.
        """

    def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, timeout: float, logs: Path, root: bool = False
    ) -> Exit:
        """Run a command to its end, stdin empty, and all that it left running with it; `logs` is an empty folder.

        After `timeout` seconds it gets SIGTERM, a second later SIGKILL, and ends with the limit `wall`.
        """

    def stream(self, argv: Sequence[str], *, env: Mapping[str, str]) -> Stream:
        """Start a command beside others and talk to it."""

    def snapshot(self) -> str:
        """Keep the file system as an image that an Order may name. Raises InfraError where this cannot be had."""

    def destroy(self) -> None:
        """Kill and remove it. Idempotent, from any thread; a sandbox that is gone already is no error."""


@runtime_checkable
class Gathering(Protocol):
    """What a Sandbox is too when fetching several folders at once costs it less than one after the other."""

    def get_many(self, paths: Sequence[str], out: BinaryIO, most: int) -> bool:
        """As `get`, for several folders, none of which lies in another; names are relative to /."""


class Provider(Protocol):
    """A service that keeps sandboxes. Raises InfraError as Sandbox does; safe from any thread."""

    name: str
    isolation: str
    """One of mrp.specs.work.ISOLATION."""

    def missing(self) -> str | None:
        """Why it cannot be used here, as one sentence with the next step; None when it can. Costs one short call."""

    def prepare(self, image: PortableImage) -> str:
        """Bring an image to the service, unless it is there, and give the name under which orders use it."""

    def create(self, order: Order) -> Sandbox:
        """Start a sandbox. One that was made but not given back is removed again, or found by `owned`."""

    def owned(self, workspace: str) -> Iterable[Owned]:
        """What it keeps for a workspace, running or not."""

    def remove(self, identity: str) -> None:
        """Remove a sandbox by its id; one that is gone is no error."""

    def close(self) -> None:
        """Close connections. Sandboxes that still run are not touched. Idempotent."""

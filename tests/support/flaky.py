"""mrp on a machine that sometimes fails: the command line with a backend that breaks down as FLAKY asks.

FLAKY holds `part of a tag=times` pairs with `;` between: so many runs of processes whose tag has that part fail.
`times!` fails for good, without a next attempt.
"""

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from mrp.cache.digest import Digest
from mrp.cli.main import main
from mrp.runtime.sandbox.protocol import Backend, Endpoint
from mrp.runtime.sandbox.registry import BACKENDS, BackendSettings
from mrp.specs.errors import InfraError
from mrp.specs.work import Completed, Process

_START = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); from support.flaky import start; start()"
COMMAND = [sys.executable, "-c", _START]


class FlakyBackend:
    """A real backend that raises InfraError now and then."""

    name = "flaky"

    def __init__(self, inner: Backend, plan: str) -> None:
        self._inner, self._lock = inner, threading.Lock()
        pairs = (pair.rpartition("=") for pair in plan.split(";") if pair)
        self._left = {part: int(times.rstrip("!")) for part, _, times in pairs}
        self._final = {part for part in self._left if f"{part}={self._left[part]}!" in plan}

    def warm(self, image: Digest, sdk: Digest | None) -> None:
        self._inner.warm(image, sdk)

    @property
    def isolation(self) -> str:
        return self._inner.isolation

    def run(
        self, process: Process, *, secrets: Mapping[str, str], tag: str, endpoint: Endpoint | None = None
    ) -> Completed:
        name = f"{tag} {process.role}"
        with self._lock:
            for part, left in self._left.items():
                if part in name and left:
                    self._left[part] = left - 1
                    raise InfraError(f"{tag}: the machine broke down", retryable=part not in self._final)
        return self._inner.run(process, secrets=secrets, tag=tag, endpoint=endpoint)

    def cancel(self) -> None:
        self._inner.cancel()

    def close(self) -> None:
        self._inner.close()


def start() -> None:
    """The command line, with FlakyBackend over the local one."""
    local = BACKENDS["local"]

    def flaky(settings: BackendSettings) -> Backend:
        return FlakyBackend(local(settings), os.environ.get("FLAKY", ""))

    BACKENDS["local"] = flaky
    sys.exit(main())

"""What the checks of the contract are run on: backends and engines of this machine, by the names that users know."""

import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mrp.cache.filestats import FileDigests
from mrp.cache.store import Store
from mrp.runtime.contract import engine, sandbox
from mrp.runtime.contract.bench import Bench
from mrp.runtime.contract.check import Check, Finding, examine
from mrp.runtime.contract.image import toolchain_image
from mrp.runtime.engine.protocol import EngineSettings
from mrp.runtime.engine.registry import ENGINES
from mrp.runtime.sandbox.local import LocalBackend
from mrp.runtime.sandbox.protocol import Backend
from mrp.runtime.sandbox.provider import Owner, Provider
from mrp.runtime.sandbox.registry import PROVIDERS, BackendSettings, reach
from mrp.specs.backends import BACKENDS
from mrp.specs.errors import UsageError

SUBJECTS = (*BACKENDS, "ray", "ray+docker", "modal+modal")
"""What can be checked: backends, and engines with the backend that isolates processes there."""

_SLOTS = 2


def self_check(name: str) -> Iterator[Finding]:
    """Run every check on one of SUBJECTS. Raises UsageError for other names, InfraError when it cannot be used."""
    if name not in SUBJECTS:
        raise UsageError(f"there is nothing called {name} to check; use one of {', '.join(SUBJECTS)}")
    with subject(name) as bench:
        yield from examine(checks_of(name), bench)


def checks_of(name: str) -> Sequence[Check[Bench]]:
    """The checks that a subject must pass."""
    if name in BACKENDS:
        return sandbox.CHECKS
    return (*engine.CHECKS, *engine.PLACED) if name.startswith("ray") else engine.CHECKS


@contextmanager
def subject(name: str) -> Iterator[Bench]:
    """A bench with one of SUBJECTS, in a folder that is removed afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mrp-check-")))
        store = stack.enter_context(Store.open(folder / "cache"))
        with FileDigests.open(folder / "digests") as digests:
            image = toolchain_image(store, digests)
        owner = Owner(f"check-{uuid.uuid4().hex[:8]}", "check")
        (folder / "scratch").mkdir()
        settings = BackendSettings(store, folder / "scratch", "none", owner)
        backend, provider = _open(name, settings)
        stack.callback(backend.close)
        scratch = folder / "s"
        scratch.mkdir()

        def owned() -> list[str]:
            return _left_here() if provider is None else [one.id for one in provider.owned(owner.workspace)]

        yield Bench(store, backend, image, scratch, owned)


def _open(name: str, settings: BackendSettings) -> tuple[Backend, Provider | None]:
    if name == "local":
        return LocalBackend(settings.store, settings.scratch, require="namespaces"), None
    if name in PROVIDERS:
        from mrp.runtime.sandbox.provided import ProvidedBackend

        provider = reach(name, settings.store)
        return ProvidedBackend(provider, settings), provider
    made_by, _, isolated_by = name.partition("+")
    isolated_by = isolated_by or "local"
    keeper = reach(isolated_by) if isolated_by in PROVIDERS else None
    return ENGINES[made_by](EngineSettings(settings, isolated_by, slots=_SLOTS)), keeper


def _left_here() -> list[str]:
    """Processes of this machine that a check left running, by id."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if sandbox.LEFT_RUNNING.encode() in Path("/proc", process, "cmdline").read_bytes():
                found.append(process)
    return found

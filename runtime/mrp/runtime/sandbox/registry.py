"""Which sandbox backends there are: the visible list."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from mrp.cache.store import Store
from mrp.runtime.sandbox.protocol import Backend
from mrp.runtime.sandbox.provider import Owner, Provider
from mrp.specs.errors import InfraError


@dataclass(frozen=True)
class BackendSettings:
    """What a backend is started with.

    scratch: a folder for scratch files, which dead runs may have left things in. require: the weakest isolation that
    policy accepts. owner: the tags of sandboxes that a service keeps. alive: whether a run of this workspace, by its
    id, still goes on, so that its sandboxes must stay; None when nothing is to be swept.
    """

    store: Store
    scratch: Path
    require: str
    owner: Owner
    alive: Callable[[str], bool] | None = None


def _local(settings: BackendSettings) -> Backend:
    from mrp.runtime.sandbox.local import LocalBackend

    return LocalBackend(settings.store, settings.scratch, require=settings.require)


def _docker(store: Store | None = None) -> Provider:
    from mrp.runtime.sandbox.docker import DockerProvider

    return DockerProvider(store)


def _modal(store: Store | None = None) -> Provider:
    from mrp.runtime.sandbox.modal import ModalProvider

    return ModalProvider(store)


def _daytona(store: Store | None = None) -> Provider:
    from mrp.runtime.sandbox.daytona import DaytonaProvider

    return DaytonaProvider(store)


class OpenProvider(Protocol):
    """How to reach a service. Without a store it can be asked what it has, and no image can be brought there."""

    def __call__(self, store: Store | None = None) -> Provider: ...


PROVIDERS: dict[str, OpenProvider] = {"docker": _docker, "modal": _modal, "daytona": _daytona}
"""Name -> how to reach the service. Each imports its vendor's SDK; a missing extra is an InfraError that names it."""


def reach(name: str, store: Store | None = None) -> Provider:
    """One of PROVIDERS, which can be used. Raises InfraError."""
    provider = PROVIDERS[name](store)
    # Said once here, it is not found out by each of a thousand trials.
    missing = provider.missing()
    if missing is not None:
        provider.close()
        raise InfraError(missing, retryable=False)
    return provider


def _provided(name: str, settings: BackendSettings) -> Backend:
    from mrp.runtime.sandbox.provided import ProvidedBackend

    return ProvidedBackend(reach(name, settings.store), settings)


BACKENDS: dict[str, Callable[[BackendSettings], Backend]] = {
    "local": _local,
    **{name: partial(_provided, name) for name in PROVIDERS},
}
"""Name -> how to start it."""

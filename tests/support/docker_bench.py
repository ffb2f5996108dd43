"""A bench on a Docker engine, with an image made of this machine's own programs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mrp.cache.filestats import FileDigests
from mrp.cache.store import Store
from mrp.runtime.contract.bench import Bench
from mrp.runtime.contract.image import toolchain_image
from mrp.runtime.sandbox.docker import DockerProvider
from mrp.runtime.sandbox.provided import ProvidedBackend
from mrp.runtime.sandbox.provider import Owner
from mrp.runtime.sandbox.registry import BackendSettings

WORKSPACE = "docker-stories"


@contextmanager
def docker_bench(
    host: str, folder: Path, *, run: str = "this-run", alive: Callable[[str], bool] | None = None
) -> Iterator[Bench]:
    """A bench in `folder` on the engine at `host`; what it keeps there is listed by `owned`."""
    with pytest.MonkeyPatch.context() as patched, Store.open(folder / "cache") as store:
        patched.setenv("DOCKER_HOST", host)
        with FileDigests.open(folder / "digests") as digests:
            image = toolchain_image(store, digests)
        provider = DockerProvider(store)
        owner = Owner(f"{WORKSPACE}-{folder.name}", run)
        backend = ProvidedBackend(provider, BackendSettings(store, folder / "scratch", "container", owner, alive))
        try:
            yield Bench(store, backend, image, folder, lambda: [one.id for one in provider.owned(owner.workspace)])
        finally:
            backend.close()

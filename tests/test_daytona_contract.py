"""The contract of sandboxes, kept by the Daytona backend against the emulator, by way of the real SDK."""

from collections.abc import Iterator

import pytest
from support.daytona import require_emulator, settings_for
from support.daytona_emulator import emulated

from mrp.cache.filestats import FileDigests
from mrp.cache.store import Store
from mrp.runtime.contract.bench import Bench
from mrp.runtime.contract.check import Check
from mrp.runtime.contract.image import toolchain_image
from mrp.runtime.contract.sandbox import CHECKS
from mrp.runtime.sandbox.registry import BACKENDS

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    require_emulator()
    folder = tmp_path_factory.mktemp("daytona")
    with emulated() as emulator, emulator.reachable(), Store.open(folder / "cache") as store:
        with FileDigests.open(folder / "digests") as digests:
            image = toolchain_image(store, digests)
        backend = BACKENDS["daytona"](settings_for(store, folder / "scratch"))
        yield Bench(store, backend, image, folder, lambda: [box.id for box in emulator.running()])
        backend.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_the_contract_is_kept(bench: Bench, check: Check[Bench]) -> None:
    check.run(bench)

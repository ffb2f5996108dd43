"""The contract of sandboxes on the real Daytona service; it runs where an account is in the environment."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from support.daytona import settings_for

from mrp.cache.filestats import FileDigests
from mrp.cache.store import Store
from mrp.runtime.contract.bench import Bench
from mrp.runtime.contract.check import Check
from mrp.runtime.contract.image import toolchain_image
from mrp.runtime.contract.sandbox import CHECKS
from mrp.runtime.sandbox.provider import Owner
from mrp.runtime.sandbox.registry import BACKENDS, PROVIDERS

pytestmark = pytest.mark.cloud


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if not os.environ.get("DAYTONA_API_KEY"):
        pytest.skip("there is no account: DAYTONA_API_KEY is not set")
    if urlsplit(os.environ.get("DAYTONA_API_URL", "")).hostname in ("127.0.0.1", "::1", "localhost"):
        pytest.skip("DAYTONA_API_URL is on loopback, so it is not the real service")
    folder = tmp_path_factory.mktemp("daytona")
    owner = Owner(f"test-{uuid.uuid4().hex}", "run-1", lease=3600)
    with Store.open(folder / "cache") as store, FileDigests.open(folder / "digests") as digests:
        provider = PROVIDERS["daytona"](store)
        backend = BACKENDS["daytona"](replace(settings_for(store, folder / "scratch"), owner=owner))
        image = toolchain_image(store, digests)
        yield Bench(store, backend, image, folder, lambda: [each.id for each in provider.owned(owner.workspace)])
        backend.close()
        for each in provider.owned(owner.workspace):
            provider.remove(each.id)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_the_service_keeps_the_contract(bench: Bench, check: Check[Bench]) -> None:
    check.run(bench)

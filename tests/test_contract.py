"""The contract checks that mrp ships: each backend and engine passes them, and a bad one fails just where it is bad."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from support.sandboxes import why_not
from support.surroundings import surroundings

from mrp.cache.canonical import canonical_bytes
from mrp.cache.filestats import FileDigests
from mrp.cache.store import Store
from mrp.runtime.contract.bench import Bench
from mrp.runtime.contract.check import examine
from mrp.runtime.contract.sandbox import CHECKS
from mrp.runtime.contract.subjects import SUBJECTS, self_check
from mrp.runtime.images.host import describe_host
from mrp.runtime.sandbox.local import LocalBackend
from mrp.runtime.sandbox.protocol import Backend, Endpoint
from mrp.specs.work import Completed, Process


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """The local backend with a host image."""
    reason = why_not("launcher")
    if reason:
        pytest.skip(reason)
    with Store.open(tmp_path / "cache") as store:
        with FileDigests.open(tmp_path / "digests") as digests:
            description = {"base": describe_host((), digests), "env": {}, "layers": [], "user": "1000:1000"}
        backend = LocalBackend(store, tmp_path / "scratch")
        yield Bench(store, backend, store.put_bytes(canonical_bytes(description)), tmp_path)
        backend.close()


def broken(bench: Bench) -> dict[str, str]:
    return {finding.name: finding.reason for finding in examine(CHECKS, bench) if not finding.kept}


def test_the_local_backend_keeps_the_contract_on_a_host_image(bench: Bench) -> None:
    assert broken(bench) == {}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "local" else pytest.mark.backend) for name in SUBJECTS]
)
def test_the_contract_is_kept(name: str, tmp_path: Path) -> None:
    with surroundings(name, tmp_path) as environment, patch.dict(os.environ, environment):
        found = list(self_check(name))
    assert {finding.name: finding.reason for finding in found if not finding.kept} == {}
    assert len(found) >= len(CHECKS)


class Careless:
    """A real backend that is made to break some of its promises."""

    def __init__(self, bench: Bench, fault: str) -> None:
        self._inner: Backend = bench.backend
        self._nothing = bench.store.put_bytes(b"")
        self._fault = fault
        self.forgotten: list[str] = []

    def run(
        self, process: Process, *, secrets: Mapping[str, str], tag: str, endpoint: Endpoint | None = None
    ) -> Completed:
        if self._fault == "leaks network":
            process = replace(process, box=replace(process.box, network="open"))
        done = self._inner.run(process, secrets=secrets, tag=tag, endpoint=endpoint)
        if self._fault == "drops stderr":
            done = replace(done, stderr=self._nothing)
        if self._fault == "loses the exit code" and done.exit_code is not None:
            done = replace(done, exit_code=0)
        if self._fault == "forgets a sandbox":
            self.forgotten.append(f"sandbox-{len(self.forgotten)}")
        return done


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("leaks network", {"network none reaches nothing"}),
        ("drops stderr", {"stderr is kept apart"}),
        (
            "loses the exit code",
            {
                "the exit code is the program's",
                "death by a signal is 128 and its number",
                "a missing program is the task's failure",
            },
        ),
        ("forgets a sandbox", {"nothing is left behind"}),
    ],
)
def test_a_careless_backend_fails_just_where_it_is_careless(bench: Bench, fault: str, found: set[str]) -> None:
    careless = Careless(bench, fault)
    bad = Bench(bench.store, careless, bench.image, bench.scratch, lambda: careless.forgotten)  # type: ignore[arg-type]
    assert set(broken(bad)) == found

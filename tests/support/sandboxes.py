"""A bench to try sandboxes on: a store, an image of this machine, and each backend that can be had here."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from mrp.cache.canonical import Json, canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.filestats import FileDigests
from mrp.cache.store import Store
from mrp.runtime.contract.bench import Trees
from mrp.runtime.contract.image import PROGRAMS as CONTRACT_PROGRAMS
from mrp.runtime.contract.image import toolchain_image
from mrp.runtime.images.host import describe_host
from mrp.runtime.sandbox.local import LocalBackend
from mrp.runtime.sandbox.protocol import Backend, Endpoint
from mrp.runtime.sdk_tree import sdk_tree
from mrp.specs.ir import Limits
from mrp.specs.work import OPERATOR_DIR, OUT, SDK_DIR, SOLUTION, TASK, WORK, Box, Completed, Mount, Process

Factory = Callable[[Store, Path], Backend]

BACKENDS: Mapping[str, Factory] = {
    "bubblewrap": lambda store, scratch: LocalBackend(store, scratch, allowed=["bubblewrap"]),
    "launcher": lambda store, scratch: LocalBackend(store, scratch, allowed=["launcher"]),
    "plain": lambda store, scratch: LocalBackend(store, scratch, allowed=["plain"], require="none"),
}
"""Every backend that must keep the contract; `plain` has no walls and is left out where walls are what is tested."""

WALLED = [name for name in BACKENDS if name != "plain"]

PORTABLE = "portable-"
"""Before the name of a walled backend: its usual image is a portable one, with a toolchain of this machine in it. The
others show all of the machine's own system."""

SHOWN = [*WALLED, *(PORTABLE + name for name in WALLED)]
"""For what the image changes: files, programs, operators. The rest is the same code whatever the image."""

PROGRAMS = (
    *CONTRACT_PROGRAMS,
    *("chmod", "cp", "date", "find", "grep", "head", "hostname", "mkfifo", "mount", "printf", "setsid", "sort", "stat"),
    *("test", "wc", "whoami"),
)

LIMITS = Limits(cpus=Decimal(2), memory=512 * 2**20, wall=Decimal(20), pids=64, disk=32 * 2**20)

CONTRACT_ENV = {
    "MRP_TASK_DIR": TASK,
    "MRP_WORKSPACE": WORK,
    "MRP_OUTPUT_DIR": OUT,
    "MRP_SOLUTION_DIR": SOLUTION,
    "MRP_RECORD_ID": "task-17",
    "MRP_SAMPLE": "1",
    "MRP_SEED": "42",
    "MRP_TRIAL": "0123456789abcdef",
    "MRP_PARAMS": '{"effort":"high"}',
}


@dataclass
class Bench(Trees):
    """One backend of this machine, and short ways to run things on it."""

    backend: Backend
    folder: Path
    portable: bool = False
    _images: dict[str, Digest] = field(default_factory=dict)

    def image(self, toolchain: Sequence[str] = (), *, layers: Sequence[Digest] = (), env: Json = None) -> Digest:
        """An image of this machine."""
        with FileDigests.open(self.folder / "digests.sqlite") as digests:
            base = describe_host(toolchain, digests)
        description = {"base": base, "layers": list(layers), "env": env or {}, "user": "1000:1000"}
        return self.store.put_bytes(canonical_bytes(description))

    def portable_image(self, programs: Sequence[str] = PROGRAMS) -> Digest:
        """An image that holds programs of this machine and shows nothing of it."""
        with FileDigests.open(self.folder / "digests.sqlite") as digests:
            return toolchain_image(self.store, digests, programs)

    def box(self, **fields: object) -> Box:
        """A sandbox in the backend's usual image, with limits that tests can reach."""
        if "plain" not in self._images:
            self._images["plain"] = self.portable_image() if self.portable else self.image()
        return Box(**{"image": self._images["plain"], "limits": LIMITS, **fields})  # type: ignore[arg-type]

    def run(
        self,
        *argv: str,
        files: Mapping[str, Mapping[str, str]] | None = None,
        box: Box | None = None,
        env: Mapping[str, str] | None = None,
        outputs: Sequence[str] = (WORK, OUT),
        timeout: float = 120,
        cwd: str = WORK,
        secrets: Mapping[str, str] | None = None,
        endpoint: Endpoint | None = None,
    ) -> Completed:
        """Run a command with `files` by guest folder; /work and /out can be written to."""
        process = Process(
            box=box or self.box(),
            argv=argv,
            mounts=tuple(Mount(path, self.tree(tree), path in (WORK, OUT)) for path, tree in (files or {}).items()),
            outputs=tuple(outputs),
            env={**CONTRACT_ENV, **(env or {})},
            cwd=cwd,
            timeout=Decimal(str(timeout)),
        )
        return self.backend.run(process, secrets=secrets or {}, tag="//test:it", endpoint=endpoint)

    def python(self, source: str, **options: object) -> Completed:
        """Run Python source as a command."""
        return self.run("python3", "-c", source, **options)  # type: ignore[arg-type]

    def operator(
        self,
        source: str,
        entry: str = "op:Op",
        *,
        role: str = "agent",
        pure: bool = False,
        files: Mapping[str, Mapping[str, str]] | None = None,
        box: Box | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
        endpoint: Endpoint | None = None,
    ) -> Completed:
        """Run a Python operator whose module op.py is `source`."""
        mounts = [Mount(path, self.tree(tree), path in (WORK, OUT)) for path, tree in (files or {}).items()]
        mounts.append(Mount(OPERATOR_DIR, self.tree({"op.py": source})))
        mounts.append(Mount(SDK_DIR, sdk_tree(self.store)))
        process = Process(
            box=box or self.box(),
            entry=entry,
            role=role,
            pure=pure,
            mounts=tuple(mounts),
            outputs=(WORK, OUT),
            env={**CONTRACT_ENV, **(env or {})},
            timeout=Decimal(str(timeout)),
        )
        return self.backend.run(process, secrets={}, tag="//test:it", endpoint=endpoint)


def make_bench(name: str, folder: Path) -> Bench:
    """A bench with the backend `name` of BACKENDS or SHOWN, in a folder that the caller removes."""
    store = Store.open(folder / "cache")
    backend = BACKENDS[name.removeprefix(PORTABLE)](store, folder / "scratch")
    return Bench(store, backend, folder, portable=name.startswith(PORTABLE))


@contextmanager
def benches() -> Iterator[Callable[[str], Bench]]:
    """Gives benches by name, each made once; a test that asks for one that cannot be had is skipped."""
    made: dict[str, Bench] = {}

    def get(name: str) -> Bench:
        if name not in made:
            if reason := why_not(name):
                pytest.skip(reason)
            made[name] = make_bench(name, Path(tempfile.mkdtemp(prefix=f"mrp-{name}-")))
        return made[name]

    yield get
    for bench in made.values():
        bench.backend.close()
        bench.store.close()
        shutil.rmtree(bench.folder)


@functools.cache
def why_not(name: str) -> str | None:
    """Why a backend cannot be had on this machine; None when it can."""
    folder = Path(tempfile.mkdtemp(prefix="mrp-probe-"))
    try:
        made = make_bench(name, folder)
        try:
            assert made.backend.isolation
        finally:
            made.backend.close()
            made.store.close()
    except Exception as error:
        return f"{name}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def outside(source: str, *, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python source on the bare machine, as the control of an attack."""
    return subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={"PATH": os.environ["PATH"], **env},
    )

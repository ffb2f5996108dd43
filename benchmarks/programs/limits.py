"""`spawn N`, `walk N` or `blake3 MEBIBYTES`: raw limits of the machine, timed inside this process."""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def spawn(count: int) -> Callable[[], None]:
    """One process after the other."""

    def work() -> None:
        for _ in range(count):
            os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)

    return work


def walk(count: int) -> Callable[[], None]:
    """Stat of all files in folders of 100."""
    folders = []
    for start in range(0, count, 100):
        folder = Path(scratch) / f"d{start:06d}"
        folder.mkdir()
        for number in range(start, min(start + 100, count)):
            (folder / f"f{number:06d}").touch()
        folders.append(folder)

    def work() -> None:
        found = sum(1 for folder in folders for entry in os.scandir(folder) if entry.stat().st_mtime_ns)
        assert found == count

    return work


def blake3(count: int) -> Callable[[], None]:
    """BLAKE3 of `count` MiB in memory, in one thread."""
    from blake3 import blake3 as hasher

    data = os.urandom(1024 * 1024)

    def work() -> None:
        state = hasher()
        for _ in range(count):
            state.update(data)

    return work


with tempfile.TemporaryDirectory(dir=".") as scratch:
    prepared = {"spawn": spawn, "walk": walk, "blake3": blake3}[sys.argv[1]](int(sys.argv[2]))
    started = time.perf_counter()
    prepared()
    print(f"value: {time.perf_counter() - started:.6f}")

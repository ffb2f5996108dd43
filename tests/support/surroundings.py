"""What each place that a build may run in needs around it: a Docker engine for real, emulators of clouds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.dockerd import docker_engine

PLACES: dict[str, list[str]] = {
    "local": [],
    "docker": ["--sandbox", "docker"],
    "ray": ["--engine", "ray"],
    "ray+docker": ["--engine", "ray", "--sandbox", "docker"],
    "modal": ["--sandbox", "modal"],
    "modal+modal": ["--engine", "modal"],
    "daytona": ["--sandbox", "daytona"],
}
"""Name of a place -> the flags that lead there."""


@contextmanager
def surroundings(name: str, folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which a place is reached, for as long as what stands behind it runs."""
    if "docker" in name:
        with docker_engine() as engine:
            yield {"DOCKER_HOST": engine.host}
    elif "modal" in name:
        from support.modal_emulator import ModalEmulator

        with ModalEmulator(folder) as emulator:
            yield emulator.environment()
    elif "daytona" in name:
        from support.daytona_emulator import emulated

        with emulated() as emulator, emulator.reachable():
            yield emulator.environment()
    else:
        yield {}

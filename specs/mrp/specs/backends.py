"""What each sandbox backend can show and give, so that a plan which asks for more is refused before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

_GIB = 2**30


@dataclass(frozen=True)
class Abilities:
    """host_images: shows the machine's own system. allow: can limit what may be executed. networks: kinds beside none.

    sources: prefixes of image sources that only this one knows. models: calls reach the gateway. most_*: caps of the
    service, None for none: cores, and bytes.
    """

    host_images: bool = False
    allow: bool = False
    networks: tuple[str, ...] = ("open",)
    gpus: bool = False
    models: bool = True
    sources: tuple[str, ...] = ()
    most_cpus: Decimal | None = None
    most_memory: int | None = None
    most_disk: int | None = None


BACKENDS: Mapping[str, Abilities] = {
    "local": Abilities(host_images=True, allow=True, networks=("open", "hosts")),
    "docker": Abilities(gpus=True),
    "modal": Abilities(gpus=True, sources=("modal:///", "snapshot:///")),
    "daytona": Abilities(sources=("snapshot:///",), most_cpus=Decimal(4), most_memory=8 * _GIB, most_disk=9 * _GIB),
}
"""By name, as `--sandbox` takes them."""

ENGINES: tuple[str, ...] = ("local", "ray", "modal")
"""The names that `--engine` takes."""


@dataclass(frozen=True)
class Place:
    """Where a build runs. `shared`: on machines that need not be like this one."""

    engine: str = "local"
    sandbox: str = "local"
    shared: bool = False

    @property
    def backend(self) -> str:
        """The backend that isolates processes; the Modal engine has its own."""
        return "modal" if self.engine == "modal" else self.sandbox

    @property
    def name(self) -> str:
        """For messages."""
        return f"the {self.backend} backend" if self.engine == "local" else f"the {self.engine} engine"

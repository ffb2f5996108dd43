"""The gateway of a build, made for the first action that has a model: builds without one load nothing of it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.rules.action import put_description
from mrp.runtime.money import Money
from mrp.runtime.sandbox.protocol import Backend
from mrp.runtime.sandbox.registry import BACKENDS, BackendSettings
from mrp.runtime.secret_values import Secrets
from mrp.specs.work import Completed, Process

if TYPE_CHECKING:
    from mrp.runtime.models.calls import Calls
    from mrp.runtime.models.gateway import Gateway


@dataclass(frozen=True)
class LateSettings:
    """What it is made of, once it is needed. sandboxes: for the processes of models, which are always local.

    host: describes the machine's own /usr. logs: a folder that stays. calls: where calls are kept, None for the build's
    own cache. listen: the address of this machine at which workers on other machines reach it; None where all of them
    can use a unix socket.
    """

    sandboxes: BackendSettings
    host: Callable[[tuple[str, ...]], Json]
    logs: Path
    calls: "Calls | None"
    money: Money
    secrets: Secrets
    warn: Callable[[str], None]
    listen: str | None


class LateGateway:
    """See the module's docstring; from any thread."""

    def __init__(self, settings: Callable[[], LateSettings]) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._gateway: Gateway | None = None
        self._backend: Backend | None = None

    def gateway(self) -> "Gateway":
        with self._lock:
            if self._gateway is None:
                self._gateway = self._made(self._settings())
            return self._gateway

    def kill(self) -> None:
        """Let no call wait any longer. From any thread, and from a signal handler."""
        if self._gateway is not None:
            self._gateway.stop()
        if self._backend is not None:
            self._backend.cancel()

    def close(self) -> Decimal:
        """Stop all that was started; gives US dollars of calls that outlived their trials. Idempotent."""
        if self._gateway is None:
            return Decimal(0)
        self._gateway.close()
        if self._backend is not None:
            self._backend.close()
        return self._gateway.rest()

    def _made(self, settings: LateSettings) -> "Gateway":
        from mrp.runtime.models.calls import Calls
        from mrp.runtime.models.gateway import Gateway, GatewaySettings

        store = settings.sandboxes.store

        def host_image() -> Digest:
            description = {"base": settings.host(()), "layers": [], "env": {}, "user": "1000:1000"}
            return put_description(store, description)

        def run(process: Process) -> Completed:
            with self._lock:
                if self._backend is None:
                    self._backend = BACKENDS["local"](settings.sandboxes)
            return self._backend.run(process, secrets={}, tag="the script of a model")

        return Gateway(
            GatewaySettings(
                store=store,
                calls=settings.calls or Calls(),
                money=settings.money,
                secrets=settings.secrets,
                scratch=settings.sandboxes.scratch,
                logs=settings.logs,
                warn=settings.warn,
                run=run,
                host_image=host_image,
                host=settings.listen,
            )
        )

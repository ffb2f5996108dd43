"""The gateway: where every trial of a build finds its model, with limits, budget and record in between.

It lives in the build's process. Its door is opened for the first trial that has a model, and a model is started when
the first call misses the record.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.cache.digest import ActionKey, Digest
from mrp.cache.store import Store
from mrp.rules.action import Action
from mrp.rules.calling import ModelUse
from mrp.runtime.models.calls import Calls, Record
from mrp.runtime.models.limits import Lane
from mrp.runtime.models.protocol import Model
from mrp.runtime.models.registry import MODELS, ModelSettings
from mrp.runtime.money import Money
from mrp.runtime.sandbox.protocol import Endpoint
from mrp.runtime.secret_values import Secrets
from mrp.specs.errors import InfraError
from mrp.specs.work import Completed, Process

if TYPE_CHECKING:
    from mrp.runtime.models.server import Door
    from mrp.runtime.models.session import Session

_SOCKET_PATH = 100
"""Bytes that the path of a unix socket may have, with some to spare."""


@dataclass(frozen=True)
class GatewaySettings:
    """What a gateway is made of.

    scratch: a folder that is gone after the build; logs: one that stays. host: the address of this machine to listen on
    over TCP, for workers on other machines; None for a unix socket. warn: one sentence for people. run, host_image: see
    mrp.runtime.models.registry.ModelSettings.
    """

    store: Store
    calls: Calls
    money: Money
    secrets: Secrets
    scratch: Path
    logs: Path
    warn: Callable[[str], None]
    run: Callable[[Process], Completed]
    host_image: Callable[[], Digest]
    host: str | None = None


class Gateway:
    """The sessions of a build's trials, from any thread."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._door: Door | None = None
        self._folder: Path | None = None
        self._sessions: dict[str, Session] = {}
        self._lanes: dict[str, Lane] = {}
        self._models: list[Model] = []
        self._spent: dict[ActionKey, tuple[Decimal, int]] = {}

    @contextmanager
    def session(self, action: Action, use: ModelUse) -> "Iterator[Session]":
        """A session for as long as a trial runs; what it still asks afterwards gets no answer."""
        from mrp.runtime.models.session import Session

        door, token = self._open_door(), os.urandom(16).hex()
        endpoint = Endpoint(door.address, token)
        money = self._settings.money
        session = Session(action, use, self._lane(use), self._record(use), money, endpoint, self._charge)
        with self._lock:
            self._sessions[token] = session
        try:
            yield session
        finally:
            with self._lock:
                del self._sessions[token]
            session.end()
            door.shut(token)

    def take_spent(self, key: ActionKey) -> tuple[Decimal, int]:
        """US dollars and tokens that the calls of one action came to since this was last asked."""
        with self._lock:
            return self._spent.pop(key, (Decimal(0), 0))

    def rest(self) -> Decimal:
        """US dollars of calls that outlived their trials."""
        with self._lock:
            spent = list(self._spent.values())
            self._spent.clear()
        return sum((usd for usd, _ in spent), Decimal(0))

    def stop(self) -> None:
        """Let no call wait any longer. From any thread, and from a signal handler."""
        self._stopped.set()

    def close(self) -> None:
        """Stop the models and the door. Idempotent."""
        self.stop()
        with self._lock:
            door, self._door = self._door, None
            models, self._models = self._models, []
        if door is not None:
            door.close()
        for model in models:
            model.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _charge(self, key: ActionKey, usd: Decimal, tokens: int) -> None:
        with self._lock:
            before = self._spent.get(key, (Decimal(0), 0))
            self._spent[key] = (before[0] + usd, before[1] + tokens)

    def _record(self, use: ModelUse) -> Record:
        calls, own = self._settings.calls, self._settings.store
        if calls.proof is not None and use.seeded:
            return Record(own, proof=calls.proof)
        return Record(calls.store or own, upstream=calls.upstream)

    def _open_door(self) -> "Door":
        from mrp.runtime.models.server import Door

        with self._lock:
            if self._door is None:
                try:
                    host = self._settings.host
                    self._door = Door(self._sessions.get, path=None if host else self._socket_path(), host=host or "")
                except OSError as error:
                    raise InfraError(f"the model gateway cannot listen: {error}", retryable=False) from error
            return self._door

    def _socket_path(self) -> Path:
        path = self._settings.scratch / "gateway"
        if len(os.fsencode(path)) > _SOCKET_PATH:
            self._folder = Path(tempfile.mkdtemp(prefix="mrp-gateway-"))
            path = self._folder / "gateway"
        with suppress(FileNotFoundError):
            path.unlink()
        return path

    def _lane(self, use: ModelUse) -> Lane:
        with self._lock:
            if use.label not in self._lanes:
                concurrency, tokens = use.spec.get("max_concurrency"), use.spec.get("tokens_per_minute")
                self._lanes[use.label] = Lane(lambda: self._open_model(use), self._stopped, concurrency, tokens)
            return self._lanes[use.label]

    def _open_model(self, use: ModelUse) -> Model:
        settings, spec = self._settings, use.spec
        name = spec.get("secret")
        scratch = Path(tempfile.mkdtemp(prefix="model-", dir=settings.scratch))
        model = MODELS[spec["provider"]](
            ModelSettings(
                label=use.label,
                spec=spec,
                files=use.files,
                store=settings.store,
                scratch=scratch,
                logs=settings.logs,
                secret=settings.secrets.values([name])[name] if name else None,
                warn=settings.warn,
                run=settings.run,
                host=settings.host_image,
            )
        )
        with self._lock:
            self._models.append(model)
        return model

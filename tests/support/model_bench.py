"""The model gateway by itself, without a build and without sandboxes: tests are the agents."""

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

# Loaded before threads use it: OpenAI's client fails when it finds it half loaded by another one.
import httpx  # noqa: F401

from mrp.cache.digest import digest_bytes
from mrp.cache.store import Store
from mrp.rules.action import Action, ActionKind, Attempt, make_action
from mrp.rules.calling import ModelUse
from mrp.runtime.models.calls import Calls
from mrp.runtime.models.gateway import Gateway, GatewaySettings
from mrp.runtime.models.session import Session
from mrp.runtime.money import Account, Money
from mrp.runtime.sandbox.protocol import Endpoint
from mrp.runtime.secret_values import Secrets
from mrp.specs.results import Byproducts, Outcome, Result
from mrp.specs.work import Completed, Process

LABEL = "//:solve"


@contextmanager
def reached(endpoint: Endpoint) -> Iterator[str]:
    """The address below which a client on this machine finds an endpoint, as one in a sandbox would."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_ones: list[socket.socket] = [listener]

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                inner = connected(endpoint)
                open_ones.extend((client, inner))
                for pair in ((client, inner), (inner, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        for each in open_ones:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def connected(endpoint: Endpoint, preface: bytes | None = None) -> socket.socket:
    """A connection to an endpoint that has said whose it is."""
    kind, _, place = endpoint.address.partition(":")
    if kind == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(place)
    else:
        host, _, port = place.rpartition(":")
        connection = socket.create_connection((host, int(port)))
    connection.sendall(endpoint.preface() if preface is None else preface)
    return connection


@dataclass
class Bench:
    """A gateway on a store; `account` is the budget of all trials. Run `trial` as often as you like."""

    store: Store
    gateway: Gateway
    account: Account

    @contextmanager
    def trial(self, use: ModelUse, name: str = "a") -> Iterator[tuple[str, Session]]:
        """One trial: the address of its model, and its session."""
        with self.gateway.session(trial_action(name), use) as session, reached(session.endpoint) as url:
            yield url, session

    def calls(self) -> int:
        """How many answers the store keeps."""
        ((count,),) = self.store.index.read("SELECT count(*) FROM actions WHERE kind = 'call'")
        return int(count)


@contextmanager
def bench(folder: Path, *, host: str | None = None, calls: Calls | None = None, **caps: Any) -> Iterator[Bench]:
    """A gateway whose store is in `folder`; `caps` are those of its budget (usd, tokens)."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    account = Account("//:all", **caps)

    def run(process: Process) -> Completed:
        raise AssertionError("no process is run here")

    with ExitStack() as stack:
        store = stack.enter_context(Store.open(folder / "cache"))
        gateway = Gateway(
            GatewaySettings(
                store=store,
                calls=calls or Calls(),
                money=Money([account], {LABEL: (0,)}),
                secrets=Secrets({}, folder),
                scratch=scratch,
                logs=folder,
                warn=lambda sentence: None,
                run=run,
                host_image=lambda: digest_bytes(b""),
                host=host,
            )
        )
        stack.callback(gateway.close)
        yield Bench(store, gateway, account)


def trial_action(name: str = "a") -> Action:
    return make_action(ActionKind.TRIAL, LABEL, name, {"name": name}, object())


def use_of(url: str = "", *, sampling: dict[str, Any] | None = None, **more: Any) -> ModelUse:
    """A model at `url`; `more` are members of its document, and the limits calls, tokens and usd."""
    limits = {name: more.pop(name) for name in ("calls", "tokens", "usd") if name in more}
    prices = {"input": Decimal(0), "output": Decimal(0), **more.pop("price", {})}
    spec = {"provider": "openai", "url": url, "price": prices, **more}
    name, described = str(more.get("model", "tiny")), digest_bytes(repr((sampling, more.get("model"))).encode())
    return ModelUse("//:model", name, spec, digest_bytes(b""), sampling or {}, described, **limits)


def ended_well() -> Attempt:
    """An agent that takes no notice of what its model said."""
    return Attempt(Result(Outcome.OK), Byproducts())

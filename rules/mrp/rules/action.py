"""Actions: closed descriptions of pieces of work, each with the key that one traversal makes of its preimage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Protocol, runtime_checkable

from mrp.cache.canonical import KEY_VERSION, Json, Shape, action_key, canonical_bytes
from mrp.cache.digest import ActionKey, Digest, digest_bytes
from mrp.cache.store import Store
from mrp.rules.calling import ModelUse
from mrp.specs.results import Byproducts, Result
from mrp.specs.work import Completed, Process


class ActionKind(StrEnum):
    """What counts as an action in `N actions: X executed, Y cached, Z failed`."""

    COMMAND = "command"
    FETCH = "fetch"
    GENERATE = "generate"
    IMAGE = "image"
    SETUP = "setup"
    TRIAL = "trial"
    GRADE = "grade"
    REDUCTION = "reduction"
    EVALUATION = "evaluation"
    PRODUCE = "produce"


@dataclass(frozen=True)
class Attempt:
    """One execution that came to a result: what is cached, and what is kept for people."""

    result: Result
    byproducts: Byproducts


@runtime_checkable
class ProcessWork(Protocol):
    """Work that is one process in a sandbox; `conclude` reads what it left and never raises for its faults."""

    @property
    def process(self) -> Process: ...

    def conclude(self, completed: Completed, store: Store) -> Attempt: ...


@runtime_checkable
class EngineWork(Protocol):
    """Work that the engine does itself, on stored bytes alone."""

    def perform(self, store: Store) -> Attempt: ...


class LateProcess:
    """Base of work whose process is made when it is first asked for: what the cache answers never needs one."""

    def __init__(self, make: Callable[[], Process]) -> None:
        self._make = make
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        """The process. Raises what `make` does, when it is first asked for."""
        if self._process is None:
            self._process = self._make()
        return self._process


@dataclass(frozen=True, slots=True)
class Action:
    """`label` and `item` say whose action this is; they are prose, and not in the key.

    `item` is "" for a target's own action, else the encoded record id, with `#sample` for samples after the first.
    `retries` is how often an infrastructure failure is tried again; `usd` and `tokens` the declared estimate.
    `reproducible` is false when an input depended on the machine's speed, so that the result does as well.
    """

    kind: ActionKind
    key: ActionKey
    preimage: bytes = field(repr=False)
    label: str = field(compare=False)
    item: str = field(compare=False)
    work: object = field(compare=False, repr=False)
    retries: int = field(default=2, compare=False)
    usd: Decimal = field(default=Decimal(0), compare=False)
    tokens: int = field(default=0, compare=False)
    reproducible: bool = field(default=True, compare=False)

    @property
    def identity(self) -> tuple[str, str, str]:
        """(label, item, kind): what stays the same when the key changes."""
        return (self.label, self.item, self.kind.value)

    @property
    def model(self) -> ModelUse | None:
        """The model that its process may call: what it costs is then counted call by call, and not as declared."""
        use: ModelUse | None = getattr(self.work, "model", None)
        return use

    def make_ready(self) -> None:
        """Make what is made late. Raises BuildFailed, CacheError; after it, `work` raises nothing for the asking."""
        if isinstance(self.work, LateProcess):
            _ = self.work.process


def make_action(
    kind: ActionKind,
    label: str,
    item: str,
    preimage: Mapping[str, Json],
    work: object,
    *,
    retries: int = 2,
    usd: Decimal = Decimal(0),
    tokens: int = 0,
    reproducible: bool = True,
) -> Action:
    """An action whose key is that of `preimage` with its kind; see mrp.cache.canonical.action_key."""
    key, data = action_key({"action": kind.value, **preimage})
    return Action(kind, key, data, label, item, work, retries, usd, tokens, reproducible)


class ActionShape:
    """Actions of one target, which differ in a few members of their preimage: the key is the one of make_action."""

    def __init__(
        self,
        kind: ActionKind,
        label: str,
        constant: Mapping[str, Json],
        *varying: str,
        retries: int = 2,
        usd: Decimal = Decimal(0),
        tokens: int = 0,
    ) -> None:
        """constant: the members of the preimage that all have in common; varying: the names of the others."""
        self.constant = dict(constant)
        self._kind, self._label = kind, label
        self._retries, self._usd, self._tokens = retries, usd, tokens
        self._preimage = Shape({"v": KEY_VERSION, "action": kind.value, **constant}, *varying)

    def action(self, item: str, members: Mapping[str, str], work: object, *, reproducible: bool) -> Action:
        """The action with these members, each in canonical text."""
        data = self._preimage.text(members).encode()
        key = ActionKey(digest_bytes(data))
        return Action(
            self._kind, key, data, self._label, item, work, self._retries, self._usd, self._tokens, reproducible
        )


def put_description(store: Store, description: Mapping[str, Json]) -> Digest:
    """Store a part of a preimage under its own digest, so that a change of it can be followed into its parts."""
    return store.put_bytes(canonical_bytes(description))

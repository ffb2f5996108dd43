"""Checks of a contract: named, run one after the other, each of which finds one fault or none."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Subject = TypeVar("Subject")


class Broken(Exception):
    """The contract is not kept; the text says what was seen."""


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """One promise. `run` raises Broken, or whatever the subject raises, when it is not kept."""

    name: str
    run: Callable[[Subject], None]


@dataclass(frozen=True)
class Finding:
    """What came of one check; `reason` is empty when the promise is kept. seconds: what it took."""

    name: str
    reason: str
    seconds: float

    @property
    def kept(self) -> bool:
        return not self.reason


def examine(checks: Sequence[Check[Subject]], subject: Subject) -> Iterator[Finding]:
    """Run every check, whatever came of the ones before."""
    for check in checks:
        began = time.monotonic()
        try:
            check.run(subject)
            reason = ""
        except Exception as error:
            reason = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
        yield Finding(check.name, reason or "", time.monotonic() - began)


def expect(found: object, wanted: object, what: str) -> None:
    """Raise Broken unless `found` equals `wanted`."""
    if found != wanted:
        raise Broken(f"{what} is {_short(found)}, not {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."

"""What a run did, kept small: one packed row an action, so that a run of 100,000 items fits in some tens of MiB."""

import bisect
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from decimal import Decimal

from mrp.rules.action import Action
from mrp.runtime.runs import DigestLine
from mrp.specs.results import Outcome, Result

Identity = tuple[str, str, str]
"""(label, item, kind) of an action."""

_EXECUTED, _REPRODUCIBLE, _OUTCOME = 1, 2, 4
_OUTCOMES = tuple(Outcome)
_DIGEST = 32


@dataclass(frozen=True)
class Failure:
    """Why a target has no value; `exit_code` as the error's type says."""

    label: str
    reason: str
    exit_code: int


class Lines:
    """The digest lines of a run, with whether each action was executed.

    A row is one byte of flags (executed, reproducible, the outcome's number), and where there is a result its key and
    its digest, 32 bytes each.
    """

    def __init__(self) -> None:
        self._rows: dict[Identity, bytes] = {}
        self.executed = 0

    def __len__(self) -> int:
        """Actions, those without a result among them."""
        return len(self._rows)

    def was_executed(self, identity: Identity) -> bool:
        """Whether the action was executed, in whichever pass of the run."""
        row = self._rows.get(identity)
        return row is not None and bool(row[0] & _EXECUTED)

    def note(self, action: Action, result: Result | None, *, executed: bool) -> None:
        """An action came to an end. Once it was executed it stays so; without a result an older line stays."""
        identity = action.identity
        before = self._rows.get(identity)
        was_executed = before is not None and before[0] & _EXECUTED
        if executed and not was_executed:
            self.executed += 1
        flags = _EXECUTED if executed or was_executed else 0
        if result is not None:
            if result.reproducible and action.reproducible:
                flags |= _REPRODUCIBLE
            flags |= _OUTCOMES.index(result.outcome) * _OUTCOME
            self._rows[identity] = bytes((flags,)) + bytes.fromhex(action.key + result.digest())
        elif before is None:
            self._rows[identity] = bytes((flags,))
        else:
            self._rows[identity] = bytes((before[0] | flags,)) + before[1:]

    def values(self) -> Iterator[tuple[DigestLine, bool]]:
        """The same as going through it."""
        return iter(self)

    def __iter__(self) -> Iterator[tuple[DigestLine, bool]]:
        """Each line with whether its action was executed, sorted by label, item and kind."""
        for identity in sorted(self._rows):
            row = self._rows[identity]
            if len(row) > 1:
                flags = row[0]
                key, result = row[1 : 1 + _DIGEST].hex(), row[1 + _DIGEST :].hex()
                outcome = _OUTCOMES[flags // _OUTCOME].value
                line = DigestLine(*identity, key, result, outcome, bool(flags & _REPRODUCIBLE))
                yield line, bool(flags & _EXECUTED)


def lines_by_label(lines: Lines) -> dict[str, bytes]:
    """The text of digests.jsonl, cut where the label changes; the labels are in order."""
    texts: dict[str, bytearray] = {}
    for line, _ in lines.values():
        texts.setdefault(line.label, bytearray()).extend(f"{line.text()}\n".encode())
    return {label: bytes(text) for label, text in texts.items()}


def staying_lines(text: bytes, dropped: Container[str]) -> list[bytes]:
    """The lines of one label but those of dropped items, in order."""
    return [line for line in text.splitlines(keepends=True) if _item_and_kind(line)[0].decode() not in dropped]


def merged_lines(lines: list[bytes], more: bytes) -> bytes:
    """Lines of one label and more of it, in order of item and kind."""
    for line in more.splitlines(keepends=True):
        bisect.insort(lines, line, key=_item_and_kind)
    return b"".join(lines)


def _item_and_kind(line: bytes) -> tuple[bytes, bytes]:
    """What a line of digests.jsonl is in order of; canonical JSON has the members item, key and kind first.

    Items are percent-encoded, so that JSON escapes nothing in them.
    """
    words = line.split(b'"', 12)
    return words[3], words[11]


@dataclass
class Account:
    """What a run did: its lines, those that failed the build, failures by label, money spent."""

    lines: Lines = field(default_factory=Lines)
    failed: set[Identity] = field(default_factory=set)
    failures: dict[str, Failure] = field(default_factory=dict)
    usd: Decimal = Decimal(0)
    estimate_usd: Decimal = Decimal(0)
    tokens: int = 0
    over_budget: str = ""
    failed_fast: str = ""

    def begin_pass(self) -> None:
        """Forget how the pass before failed; what it executed and spent stays."""
        self.failures.clear()
        self.failed.clear()
        self.over_budget = self.failed_fast = ""

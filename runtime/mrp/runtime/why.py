"""Why an action has another key than before: its preimages compared, and each difference followed to its root.

A root is something that a person edited: a row, a file, a parameter. A difference that another action made (a grade's
input is a trial's output) is followed into that action.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from mrp.cache.canonical import Json, parse_canonical
from mrp.runtime.merkle import Change, Reading, compare
from mrp.runtime.origins import Origins

Identity: TypeAlias = tuple[str, str, str]
"""(label, item, kind)."""

MAX_CAUSES = 20
"""Causes of one action that are followed; the others are counted."""

_MAX_DEPTH = 12


@dataclass(frozen=True)
class Known:
    """What an identity was at one time: its key, and the preimage if it is still there."""

    key: str
    preimage: bytes | None
    run: str = ""


Side: TypeAlias = Callable[[Identity], Known | None]
"""One of the two times that are compared: what it knows of an identity."""


@dataclass(frozen=True)
class Explanation:
    """Why one action differs. `findings` are sentences on its own inputs; `causes` the actions that it depends on.

    status: changed, same, new (nothing to compare with) or forgotten (a preimage is gone). `more` counts the causes
    that were not followed.
    """

    identity: Identity
    status: str
    old: Known | None
    new: Known | None
    changes: tuple[Change, ...] = ()
    findings: tuple[str, ...] = ()
    causes: tuple["Explanation", ...] = ()
    more: int = 0

    def roots(self) -> list[str]:
        """The sentences at the ends of all chains, each once."""
        found = dict.fromkeys(self.findings)
        for cause in self.causes:
            found |= dict.fromkeys(cause.roots())
        return list(found)

    def to_json(self) -> Json:
        label, item, kind = self.identity
        return {
            "label": label,
            "item": item,
            "kind": kind,
            "status": self.status,
            "old": _known_json(self.old),
            "new": _known_json(self.new),
            "findings": list(self.findings),
            "changes": [change.to_json() for change in self.changes],
            "causes": [cause.to_json() for cause in self.causes],
            "more_causes": self.more,
            "roots": self.roots(),
        }


@dataclass
class Explainer:
    """Compares identities between two sides. `origins` finds the workspace files that things came from."""

    store: Reading
    old: Side
    new: Side
    origins: Origins
    _done: dict[Identity, Explanation] = field(default_factory=dict)

    def explain(self, identity: Identity, depth: int = 0) -> Explanation:
        """Why `identity` differs between the sides."""
        if identity not in self._done:
            self._done[identity] = self._explain(identity, depth)
        return self._done[identity]

    def _explain(self, identity: Identity, depth: int) -> Explanation:
        old, new = self.old(identity), self.new(identity)
        if old is None or new is None:
            return Explanation(identity, "new", old, new, findings=(_one_sided(identity, old, new),))
        if old.key == new.key:
            return Explanation(identity, "same", old, new)
        if old.preimage is None or new.preimage is None:
            lost = "the description of its key is no longer in the cache"
            return Explanation(identity, "forgotten", old, new, findings=(lost,))
        changes = tuple(compare(parse_canonical(old.preimage), parse_canonical(new.preimage), self.store))
        own: list[Change] = []
        causes: dict[Identity, None] = {}
        for change in changes:
            followed = [cause for cause in self._makers(identity, change) if self._differs(cause)]
            causes |= dict.fromkeys(followed)
            if not followed:
                own.append(change)
        chosen = list(causes)[:MAX_CAUSES] if depth < _MAX_DEPTH else []
        explained = tuple(self.explain(cause, depth + 1) for cause in chosen)
        more = len(causes) - len(chosen)
        findings = tuple(self.origins.findings(identity, own))
        return Explanation(identity, "changed", old, new, changes, findings, explained, more)

    def _makers(self, identity: Identity, change: Change) -> Iterator[Identity]:
        """The actions that may have made what changed."""
        label, item, kind = identity
        first = change.steps[0].name if change.steps else ""
        if kind == "grade" and first == "work":
            yield label, item, "trial"
        elif kind in ("reduction", "produce") and first in ("inputs", "content"):
            yield from self._row_makers(identity, change)
        else:
            yield from self.origins.makers(identity, first, change)

    def _row_makers(self, identity: Identity, change: Change) -> Iterator[Identity]:
        index = next((int(step.name) for step in change.steps if step.kind == "index"), 0)
        label = self.origins.input_label(identity[0], index)
        row = next((step.name for step in change.steps if step.kind == "row"), None)
        if label is None:
            return
        if row is None:
            for kind in ("reduction", "evaluation", "command", "generate", "fetch"):
                yield label, "", kind
        elif self.origins.is_rollout(label):
            item = self.origins.item_of_row(row)
            yield label, item, "trial"
            yield label, item, "grade"
        else:
            yield from self.origins.dataset_makers(label)

    def _differs(self, identity: Identity) -> bool:
        old, new = self.old(identity), self.new(identity)
        return (old is None) != (new is None) or (old is not None and new is not None and old.key != new.key)


def _one_sided(identity: Identity, old: Known | None, new: Known | None) -> str:
    label, item, kind = identity
    name = f"{label}[{item}] ({kind})" if item else f"{label} ({kind})"
    if old is None and new is None:
        return f"{name} was never built"
    return f"{name} is new" if old is None else f"{name} is gone"


def _known_json(known: Known | None) -> Json:
    return None if known is None else {"key": known.key, "run": known.run or None}

"""A recorded run as data: its targets, and each action with its inputs, outputs, attempts and cost.

Nothing here holds all actions of a run: they are counted, or handed on one at a time.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType

from mrp.cache.canonical import Json, parse_canonical
from mrp.cache.digest import ActionKey, Digest
from mrp.cache.errors import CacheError
from mrp.cache.store import ActionEntry, Store
from mrp.runtime.recorded import Place, Recorded, recorded_actions
from mrp.runtime.runlog import Executed, RunLog
from mrp.runtime.runs import DigestLine, read_record

_BATCH = 256
_KEPT = ("limit", "values", "outputs", "attempts", "isolation", "provenance", "created", "cost")


@dataclass(frozen=True)
class RunView:
    """One run, open until `close`. `record` is its run.json; `actions` what it has, `log` what happened in it."""

    run_id: str
    record: dict[str, Json]
    actions: Recorded
    log: RunLog

    def close(self) -> None:
        self.actions.close()

    def __enter__(self) -> "RunView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def failures(self) -> list[dict[str, Json]]:
        """The attempts that infrastructure failed."""
        return list(self.log.failed_attempts())


def read_run(folder: Path) -> RunView:
    """A run from its folder; raises UsageError when it was cut off before it wrote its record, and DamagedRun."""
    record = read_record(folder)
    return RunView(folder.name, record, recorded_actions(folder), RunLog(folder / "events.jsonl"))


def target_json(view: RunView, target: str | None = None) -> list[dict[str, Json]]:
    """One row for each label: how many actions, how many of them ran, and their outcomes by kind.

    With `target`, of that target and its cells alone.
    """
    rows: dict[str, dict[str, Json]] = {}
    for (in_utf8, kind, outcome, ran), count in _tally(view, target).items():
        label = in_utf8.decode()
        row = rows.setdefault(label, {"label": label, "actions": 0, "executed": 0, "outcomes": {}})
        row["actions"] += count
        row["executed"] += count if ran else 0
        outcomes = row["outcomes"].setdefault(kind.decode(), {})
        outcomes[outcome.decode()] = outcomes.get(outcome.decode(), 0) + count
    targets = view.record.get("targets", {})
    for label, row in rows.items():
        if label in targets:
            row["status"] = targets[label]["status"]
    return [rows[label] for label in sorted(rows)]


def run_json(view: RunView) -> dict[str, Json]:
    """A whole run for `inspect RUN`."""
    return {
        **view.record,
        "started": view.log.started(),
        "rows": target_json(view),
        "failed_attempts": view.failures,
    }


def actions_json(
    view: RunView, lines: Iterable[DigestLine], store: Store, executed: Executed
) -> Iterator[dict[str, Json]]:
    """Each action: what it was made of, what it left, and each attempt. Parts that the cache lost are null."""
    waiting = iter(lines)
    while batch := list(islice(waiting, _BATCH)):
        entries = store.lookup([ActionKey(Digest(line.key)) for line in batch])
        for line in batch:
            key = ActionKey(Digest(line.key))
            entry, preimage = entries.get(key), store.preimage(key)
            yield {
                **line.to_json(),
                "executed": Place.of(line) in executed,
                "inputs": None if preimage is None else parse_canonical(preimage),
                "failed_attempts": [
                    {"attempt": event["attempt"], "reason": event["reason"]}
                    for event in view.failures
                    if (event["label"], event["item"], event["kind"]) == (line.label, line.item, line.kind)
                ],
                **(_entry_json(entry, store) if entry is not None else dict.fromkeys(_KEPT)),
            }


def attempts_of(lines: Iterable[DigestLine], store: Store) -> Iterator[tuple[DigestLine, dict[str, Json]]]:
    """The attempts of each action that came to an end of their own, as far as the cache still knows."""
    waiting = iter(lines)
    while batch := list(islice(waiting, _BATCH)):
        entries = store.lookup([ActionKey(Digest(line.key)) for line in batch])
        for line in batch:
            entry = entries.get(ActionKey(Digest(line.key)))
            for attempt in _attempts(entry) if entry is not None else ():
                if "usage" in attempt:
                    yield line, attempt


def text_of(store: Store, digest: str | None) -> str | None:
    """A log as text; None when there is none or the cache lost it."""
    if digest is None:
        return None
    try:
        return store.get_bytes(Digest(digest)).decode(errors="replace")
    except CacheError:
        return None


def tree_files(store: Store, digest: str) -> list[str] | None:
    """The paths of a tree, None when the cache lost it."""
    try:
        return list(store.read_tree(Digest(digest)))
    except CacheError:
        return None


def _tally(view: RunView, target: str | None) -> Counter[tuple[bytes, bytes, bytes, bool]]:
    """How many actions there are of each (label, kind, outcome, executed)."""
    executed = view.log.executed(target)
    line = view.actions.line
    lines = (raw for _, raw in view.actions.raw()) if target is None else view.actions.in_order(target)
    tally: Counter[tuple[bytes, bytes, bytes, bool]] = Counter()
    for place, _, _, outcome in map(line, lines):
        tally[place.label, place.kind, outcome, place in executed] += 1
    return tally


def _entry_json(entry: ActionEntry, store: Store) -> dict[str, Json]:
    result = entry.result
    outputs: dict[str, Json] = {}
    for name, ref in result["outputs"].items():
        outputs[name] = dict(ref)
        if "tree" in ref:
            outputs[name]["files"] = tree_files(store, ref["tree"])
    attempts = _attempts(entry)
    return {
        "limit": result["limit"],
        "values": result["values"],
        "outputs": outputs,
        "attempts": attempts,
        "isolation": entry.isolation,
        "provenance": entry.provenance,
        "created": Decimal(str(round(entry.created, 3))),
        "cost": _cost(attempts),
    }


def _attempts(entry: ActionEntry) -> list[dict[str, Json]]:
    return entry.byproducts if isinstance(entry.byproducts, list) else [entry.byproducts]


def _cost(attempts: Iterable[Json]) -> dict[str, Json]:
    used = [attempt["usage"] for attempt in attempts if isinstance(attempt, dict) and "usage" in attempt]
    return {
        "usd": str(sum((Decimal(usage["usd"]) for usage in used), Decimal(0))),
        "tokens": sum(usage["tokens"] for usage in used),
        "wall_s": sum((Decimal(usage["wall_s"]) for usage in used), Decimal(0)),
    }

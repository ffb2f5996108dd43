"""A recorded run as data: its targets, and each action with its inputs, outputs, attempts and cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from mrp.cache.canonical import Json, parse_canonical
from mrp.cache.digest import ActionKey, Digest
from mrp.cache.errors import CacheError
from mrp.cache.store import ActionEntry, Store
from mrp.runtime.events import read_events
from mrp.runtime.runs import DigestLine, read_digests, read_record

_KIND_ORDER = ("fetch", "generate", "command", "image", "setup", "trial", "grade")


@dataclass(frozen=True)
class RunView:
    """One run. `record` is its run.json; `executed` the identities that it ran, with the seconds that each took."""

    run_id: str
    record: dict[str, Json]
    lines: tuple[DigestLine, ...]
    executed: dict[tuple[str, str, str], Decimal]
    failures: tuple[dict[str, Json], ...]
    started: Decimal | None

    def matching(self, label: str, item: str | None) -> list[DigestLine]:
        """The actions of a target, all cells of a matrix included, or of one item; trials before their grades."""
        found = [
            line
            for line in self.lines
            if (line.label == label or line.label.startswith(f"{label}@")) and (item is None or line.item == item)
        ]
        return sorted(found, key=lambda line: (line.label, line.item, _kind_rank(line.kind)))


def read_run(folder: Path) -> RunView:
    """A run from its folder; raises UsageError when it was cut off before it wrote its record."""
    events = read_events(folder / "events.jsonl") if (folder / "events.jsonl").exists() else []
    executed = {
        (event["label"], event["item"], event["kind"]): Decimal(event.get("wall_s") or 0)
        for event in events
        if event.get("type") == "ItemFinished" and not event.get("cached")
    }
    failures = tuple(event for event in events if event.get("type") == "AttemptFailed")
    started = next((Decimal(event["at"]) for event in events if "at" in event), None)
    return RunView(folder.name, read_record(folder), tuple(read_digests(folder)), executed, failures, started)


def target_json(view: RunView, lines: Iterable[DigestLine]) -> list[dict[str, Json]]:
    """One row for each label of `lines`: how many actions, how many of them ran, and their outcomes by kind."""
    rows: dict[str, dict[str, Json]] = {}
    for line in lines:
        row = rows.setdefault(line.label, {"label": line.label, "actions": 0, "executed": 0, "outcomes": {}})
        row["actions"] += 1
        row["executed"] += (line.label, line.item, line.kind) in view.executed
        outcomes = row["outcomes"].setdefault(line.kind, {})
        outcomes[line.outcome] = outcomes.get(line.outcome, 0) + 1
    targets = view.record.get("targets", {})
    for label, row in rows.items():
        if label in targets:
            row["status"] = targets[label]["status"]
    return [rows[label] for label in sorted(rows)]


def run_json(view: RunView) -> dict[str, Json]:
    """A whole run for `inspect RUN`."""
    return {
        **view.record,
        "started": view.started,
        "rows": target_json(view, view.lines),
        "failed_attempts": list(view.failures),
    }


def action_json(view: RunView, line: DigestLine, store: Store) -> dict[str, Json]:
    """One action: what it was made of, what it left, and each attempt. Parts that the cache lost are null."""
    key = ActionKey(Digest(line.key))
    entry = store.lookup([key]).get(key)
    preimage = store.preimage(key)
    ran = view.executed.get((line.label, line.item, line.kind))
    found: dict[str, Json] = {
        **line.to_json(),
        "executed": ran is not None,
        "inputs": None if preimage is None else parse_canonical(preimage),
        "failed_attempts": [
            {"attempt": event["attempt"], "reason": event["reason"]}
            for event in view.failures
            if (event["label"], event["item"], event["kind"]) == (line.label, line.item, line.kind)
        ],
    }
    return found | (_entry_json(entry, store) if entry is not None else _nothing_kept())


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


def _entry_json(entry: ActionEntry, store: Store) -> dict[str, Json]:
    result = entry.result
    outputs: dict[str, Json] = {}
    for name, ref in result["outputs"].items():
        outputs[name] = dict(ref)
        if "tree" in ref:
            outputs[name]["files"] = tree_files(store, ref["tree"])
    attempts = entry.byproducts if isinstance(entry.byproducts, list) else [entry.byproducts]
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


def _nothing_kept() -> dict[str, Json]:
    kept = ("limit", "values", "outputs", "attempts", "isolation", "provenance", "created", "cost")
    return dict.fromkeys(kept)


def _cost(attempts: Iterable[Json]) -> dict[str, Json]:
    used = [attempt["usage"] for attempt in attempts if isinstance(attempt, dict) and "usage" in attempt]
    return {
        "usd": str(sum((Decimal(usage["usd"]) for usage in used), Decimal(0))),
        "tokens": sum(usage["tokens"] for usage in used),
        "wall_s": sum((Decimal(usage["wall_s"]) for usage in used), Decimal(0)),
    }


def _kind_rank(kind: str) -> int:
    return _KIND_ORDER.index(kind) if kind in _KIND_ORDER else len(_KIND_ORDER)

"""What the functions `cached stale failed cost` of a query ask: the cache, the ledger and the logs of the runs."""

from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.cli.workspace import state_folder

if TYPE_CHECKING:
    from mrp.cli.planning import Planned
    from mrp.runtime.ledger import Ledger
    from mrp.runtime.plan_report import TargetPlan


class RecordedPast:
    """Opens nothing until the first question; `close` when the query is answered."""

    def __init__(self, root: Path, config: tuple[str, ...]) -> None:
        self._root, self._config = root, config
        self._open = ExitStack()

    def close(self) -> None:
        self._open.close()

    def is_cached(self, label: str) -> bool:
        """Whether a build now would find every result of `label`."""
        plans = self._plans(label)
        return bool(plans) and all(_is_whole(plan) for plan in plans)

    def is_stale(self, label: str) -> bool:
        """Whether `label` was built before, and a build now would execute some of it."""
        plans = self._plans(label)
        built = any(self._ledger.identities(plan.label) for plan in plans)
        return built and not all(_is_whole(plan) for plan in plans)

    def is_failed(self, label: str) -> bool:
        """Whether the last build of `label` failed."""
        for statuses in self._statuses():
            found = [status for known, status in statuses.items() if _is_part(known, label)]
            if found:
                return "failed" in found
        return False

    def cost(self, label: str) -> Decimal | None:
        """US dollars that the results of `label` cost when they were made; None when it was never built."""
        from mrp.cache.digest import ActionKey, Digest

        keys = [
            ActionKey(Digest(self._ledger.history(plan.label, item, kind)[-1].key))
            for plan in self._plans(label)
            for item, kind in self._ledger.identities(plan.label)
        ]
        if not keys:
            return None
        spent = Decimal(0)
        for entry in self._planned.store.lookup(keys).values():
            for attempt in entry.byproducts:
                spent += Decimal(attempt["usage"]["usd"]) if "usage" in attempt else Decimal(0)
        return spent

    @cached_property
    def _planned(self) -> "Planned":
        from mrp.cli.planning import planned
        from mrp.runtime.options import BuildOptions

        return self._open.enter_context(
            planned(BuildOptions(self._root, ("//...",), config=self._config), anywhere=True)
        )

    @cached_property
    def _ledger(self) -> "Ledger":
        from mrp.runtime.ledger import Ledger

        ledger = Ledger(state_folder(self._root) / "ledger.sqlite")
        self._open.callback(ledger.close)
        return ledger

    def _plans(self, label: str) -> "list[TargetPlan]":
        return [plan for plan in self._planned.report.targets if _is_part(plan.label, label)]

    def _statuses(self) -> Iterator[dict[str, str]]:
        """How each target ended, run by run, the newest first."""
        from mrp.runtime.events import read_events
        from mrp.runtime.runs import list_runs

        state = state_folder(self._root)
        for run in reversed(list_runs(state)):
            log = state / "runs" / run / "events.jsonl"
            events = read_events(log) if log.exists() else []
            yield {event["label"]: event["status"] for event in events if event.get("type") == "TaskFinished"}


def _is_part(label: str, target: str) -> bool:
    return label == target or label.startswith(f"{target}@")


def _is_whole(plan: "TargetPlan") -> bool:
    return not (plan.misses or plan.until or plan.refused)

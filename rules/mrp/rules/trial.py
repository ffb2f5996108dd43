"""What an agent and a grader left, read as a trial's result and as rewards.

Nothing here raises for what they wrote: what is malformed is their own failure, with a reason.
"""

import dataclasses
from collections.abc import Callable
from decimal import Decimal

from mrp.cache.canonical import Json
from mrp.cache.store import Store
from mrp.rules.action import Attempt, LateProcess
from mrp.rules.calling import ModelUse
from mrp.rules.conclude import (
    byproducts_of,
    failure_reason,
    file_digest,
    number,
    numbers,
    one_line,
    outcome_of,
    read_document,
    reproducible,
)
from mrp.rules.diffing import tree_diff
from mrp.specs.results import Outcome, Ref, Result
from mrp.specs.work import OUT, WORK, Completed, Process

_MAX_REWARD_TEXT = 4096


class RunTrial(LateProcess):
    """Work: an agent on one record. `report` is the metric that it reports as its own reward, or None.

    `result` is (folder, name) of the file that holds the agent's own account of the trial; `model` the one that it may
    call.
    """

    def __init__(
        self,
        make: Callable[[], Process],
        report: str | None = None,
        result: tuple[str, str] = (OUT, "result.json"),
        model: ModelUse | None = None,
    ) -> None:
        super().__init__(make)
        self.model = model
        self._report, self._result = report, result

    def conclude(self, completed: Completed, store: Store) -> Attempt:
        outcome = outcome_of(completed)
        out = completed.outputs.get(OUT)
        folder, name = self._result
        account = completed.outputs.get(folder)
        document, reason = read_document(store, account, name) if account is not None else (None, "")
        metrics: dict[str, Json] = {}
        values: dict[str, Json] = {}
        if outcome is not Outcome.OK:
            reason = ""
        elif reason:
            outcome = Outcome.FAILED
        if document is not None:
            outcome, reason, metrics = _agent_says(document, outcome)
            reward = number(metrics.get(self._report)) if self._report else None
            values = {} if reward is None else {"reward": reward}
        given = next((mount.tree for mount in self.process.mounts if mount.path == WORK), None)
        byproducts = byproducts_of(
            completed,
            reason,
            metrics=metrics,
            trajectory=file_digest(store, out, "trajectory.jsonl") if out is not None else None,
            diff=tree_diff(given, completed.outputs[WORK], store) if given is not None else None,
        )
        if outcome is not Outcome.OK:
            byproducts = failure_reason(completed, store, byproducts)
        result = Result(
            outcome,
            completed.limit,
            {"work": Ref("tree", completed.outputs[WORK])},
            values,
            reproducible(completed),
        )
        return Attempt(result, byproducts)


class RunGrade(LateProcess):
    """Work: a grader on what a trial left. Its values are the rewards, by name."""

    def conclude(self, completed: Completed, store: Store) -> Attempt:
        byproducts = byproducts_of(completed)
        if completed.limit is not None:
            byproducts = failure_reason(completed, store, byproducts)
            limited = Result(Outcome.LIMIT, completed.limit, values={"reward": 0}, reproducible=reproducible(completed))
            return Attempt(limited, byproducts)
        rewards, problem = _rewards(store, completed)
        if problem:
            byproducts = dataclasses.replace(byproducts, reason=problem)
        elif completed.exit_code != 0:
            byproducts = failure_reason(completed, store, byproducts)
        return Attempt(Result(Outcome.OK, values=rewards), byproducts)


def _agent_says(document: dict[str, Json], outcome: Outcome) -> tuple[Outcome, str, dict[str, Json]]:
    """The outcome, reason and metrics: an agent may call itself failed, but not call a crash or a limit ok."""
    status, reason, metrics = document.get("status"), document.get("reason"), document.get("metrics")
    if outcome is Outcome.OK and status not in (None, "ok"):
        outcome = Outcome.FAILED
    said = one_line(reason[:1000]) if isinstance(reason, str) and reason else ""
    return outcome, said, metrics if isinstance(metrics, dict) else {}


def _rewards(store: Store, completed: Completed) -> tuple[dict[str, Json], str]:
    """Rewards from reward.json or reward.txt, else 1 for exit 0 and 0 for anything else; and what was wrong."""
    out = completed.outputs.get(OUT)
    if out is not None:
        document, problem = read_document(store, out, "reward.json")
        if document is not None or problem:
            rewards = numbers(document)
            if rewards is None:
                return {"reward": 0}, problem or "reward.json is not an object of numbers"
            return rewards, ""
        text = file_digest(store, out, "reward.txt")
        if text is not None and store.size(text) > _MAX_REWARD_TEXT:
            return {"reward": 0}, f"reward.txt is larger than {_MAX_REWARD_TEXT} bytes"
        if text is not None:
            return _reward_text(store.get_bytes(text))
    return {"reward": 1 if completed.exit_code == 0 else 0}, ""


def _reward_text(data: bytes) -> tuple[dict[str, Json], str]:
    try:
        reward = Decimal(data.decode().strip())
    except (ArithmeticError, UnicodeDecodeError):
        return {"reward": 0}, f"reward.txt is not a number: {data[:40]!r}"
    if not reward.is_finite():
        return {"reward": 0}, f"reward.txt is not a finite number: {data[:40]!r}"
    return {"reward": reward}, ""

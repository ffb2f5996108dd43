"""What an action's end means: whether it is kept, whether it fails the build, and what its rule is told. Pure."""

from collections.abc import Mapping

from mrp.cache.digest import Digest
from mrp.cache.store import ActionEntry
from mrp.rules.action import Action, ActionKind
from mrp.rules.produce import Publish
from mrp.rules.rule import Settled
from mrp.runtime.execute import Executed
from mrp.specs.results import Outcome, Result

_SCORED = (ActionKind.TRIAL, ActionKind.GRADE)
_STOPPED = (Outcome.CANCELLED, Outcome.BUDGET)


def entry_of(executed: Executed, provenance: Mapping[str, str], now: float) -> ActionEntry | None:
    """The entry under which an action's result is kept, made `now`; None when it is not."""
    attempt, action = executed.attempt, executed.action
    if attempt is None or not is_cacheable(action, attempt.result):
        return None
    failures = [{"attempt": n, "reason": reason} for n, reason in enumerate(executed.failures, 1)]
    result = attempt.result
    return ActionEntry(
        key=action.key,
        kind=action.kind.value,
        preimage=action.preimage,
        result=result.spelled(),
        byproducts=[*failures, attempt.byproducts.spelled()],
        blobs=tuple([ref.digest for ref in result.outputs.values() if ref.kind == "blob"]),
        trees=tuple([ref.digest for ref in result.outputs.values() if ref.kind == "tree"]),
        extra=(*attempt.byproducts.blobs(), *map(Digest, attempt.byproducts.calls)),
        isolation=attempt.byproducts.isolation,
        provenance=provenance,
        created=now,
    )


def is_cacheable(action: Action, result: Result) -> bool:
    """Trials and grades keep failures and limits, which are results; anything else is kept only when it is ok.

    A publication is never answered from the cache: the sink itself is asked.
    """
    if isinstance(action.work, Publish):
        return False
    return result.outcome.is_result if action.kind in _SCORED else result.outcome is Outcome.OK


def fails_build(executed: Executed) -> bool:
    """Whether the build fails by it, as it does not by what an agent or a grader did."""
    if was_stopped(executed):
        return False
    return executed.attempt is None if executed.action.kind in _SCORED else executed.outcome is not Outcome.OK


def was_stopped(executed: Executed) -> bool:
    """Whether it has no end of its own, because the build was stopped."""
    return executed.outcome in _STOPPED


def found_in_place(executed: Executed) -> bool:
    """Whether a publication found the content in its sink, so that it did nothing."""
    attempt = executed.attempt
    is_publication = isinstance(executed.action.work, Publish)
    return is_publication and attempt is not None and attempt.byproducts.metrics.get("status") == "unchanged"


def settled_so(executed: Executed) -> Settled:
    """What the rule is told of an action that was executed."""
    if executed.attempt is None:
        return Settled(executed.action, executed.outcome, None, executed.reason)
    result, trajectory = executed.attempt.result, executed.attempt.byproducts.trajectory
    return Settled(executed.action, result.outcome, result, executed.reason, trajectory)

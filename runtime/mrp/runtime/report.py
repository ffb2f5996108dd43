"""What a build came to, for each target that was asked for and as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from mrp.cache.canonical import Json, canonical_digest
from mrp.rules.rule import DatasetValue, DocumentValue, ProducedValue, TrialsValue, Value
from mrp.runtime.account import Account, Failure
from mrp.specs.ir import Plan
from mrp.specs.results import Ref

_WORSE = ("ok", "held", "incomplete", "skipped", "failed")


@dataclass(frozen=True)
class TargetReport:
    """A requested target: its digest and outputs where it has a value, `status` and the reason where it has none."""

    status: str
    digest: str | None = None
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    reason: str = ""
    partial: bool = False
    reproducible: bool = True

    def marks(self) -> str:
        """What is to be known before its numbers are used, as the last words of a line."""
        facts = {
            "partial": self.partial,
            "failed": self.status == "failed",
            "not reproducible": not self.reproducible,
        }
        marks = [word for word, is_so in facts.items() if is_so]
        return f" ({', '.join(marks)})" if marks else ""

    def to_json(self) -> Json:
        return {
            "status": self.status,
            "digest": self.digest,
            "outputs": {name: ref.digest for name, ref in sorted(self.outputs.items())},
            "reason": self.reason,
            "partial": self.partial,
            "reproducible": self.reproducible,
        }


@dataclass(frozen=True)
class BuildReport:
    """What a build came to; `exit_code` as DESIGN section 6."""

    run_id: str
    status: str
    executed: int
    cached: int
    failed: int
    targets: Mapping[str, TargetReport]
    usd: Decimal
    estimate_usd: Decimal
    wall_s: Decimal
    exit_code: int
    failures: tuple[Failure, ...]
    folder: Path
    reason: str = ""

    def to_json(self) -> Json:
        return {
            "run_id": self.run_id,
            "status": self.status,
            "executed": self.executed,
            "cached": self.cached,
            "failed": self.failed,
            "targets": {label: target.to_json() for label, target in self.targets.items()},
            "cost": {"usd": str(self.usd), "estimate_usd": str(self.estimate_usd)},
            "wall_s": self.wall_s,
            "reason": self.reason,
        }


def report_target(value: Value | None, failure: Failure | None) -> TargetReport:
    """The report of a target with this value and this failure, where it has one."""
    if value is None:
        return TargetReport("failed", reason=failure.reason) if failure else TargetReport("skipped")
    status, reason = ("failed", failure.reason) if failure else ("ok", "")
    if isinstance(value, TrialsValue) and value.scored < value.count:
        status, reason = "incomplete", value.problem
    if isinstance(value, ProducedValue):
        status = "held" if value.status == "held" else status
    return TargetReport(
        status,
        value_digest(value),
        value.outputs,
        reason,
        getattr(value, "partial", False),
        value.reproducible,
    )


def report_groups(plan: Plan, targets: Mapping[str, TargetReport]) -> dict[str, TargetReport]:
    """Jobs and matrices all of whose members were asked for."""
    groups = {label: members for label, members in plan.aliases.items() if all(m in targets for m in members)}
    return {label: _group(members, targets) for label, members in groups.items()}


def overall_status(account: Account, targets: Mapping[str, TargetReport], interrupted: bool) -> tuple[str, int, str]:
    """(status, exit code, reason) of the whole build."""
    if account.over_budget:
        return "budget", 3, account.over_budget
    if interrupted:
        return "cancelled", 130, "interrupted"
    if account.failed_fast and not account.failures:
        return "failed", 1, account.failed_fast
    if account.failures:
        codes = {failure.exit_code for failure in account.failures.values()}
        first = account.failures[min(account.failures)]
        if codes == {4}:
            return "infra", 4, first.reason
        return "failed", min(codes - {4}), first.reason
    for label, target in targets.items():
        if target.status == "incomplete":
            reason = f"{label} has trials without an outcome ({target.reason}); build again to run those"
            return "infra", 4, reason
    if any(target.status == "held" for target in targets.values()):
        return "held", 0, ""
    return "ok", 0, ""


def value_digest(value: Value) -> str:
    """One digest for all that a target gives to those that depend on it."""
    described: dict[str, Json] = {"outputs": {name: ref.to_json() for name, ref in value.outputs.items()}}
    if isinstance(value, DatasetValue):
        described["index"] = value.index
    if isinstance(value, TrialsValue | DocumentValue):
        described["partial"] = value.partial
    return canonical_digest(described)


def _group(members: tuple[str, ...], targets: Mapping[str, TargetReport]) -> TargetReport:
    """A job's or matrix's report: the worst status of its members, and one digest for theirs."""
    worst = max((targets[member] for member in members), key=lambda target: _WORSE.index(target.status))
    digests = {member: targets[member].digest for member in members}
    whole = canonical_digest(digests) if all(digests.values()) else None
    return TargetReport(
        worst.status,
        whole,
        reason=worst.reason,
        partial=any(targets[member].partial for member in members),
        reproducible=all(targets[member].reproducible for member in members),
    )

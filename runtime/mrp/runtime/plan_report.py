"""What a build would do, found by deciding on every action without executing one.

A hit settles its rule as in a build; a miss leaves its target without a value, so that what depends on it is unknown
until that target is built (its inputs may come out the same, and then it is a hit).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, islice

from mrp.cache.canonical import Json
from mrp.cache.store import Store
from mrp.rules.action import Action, ActionKind
from mrp.rules.calling import most_usd
from mrp.rules.registry import make_rule
from mrp.rules.rule import DatasetValue, ModelValue, Rule, RuleContext, Value, settled_by
from mrp.runtime.decide import Demand, Hit, Run, decide
from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.ir import MapTask, Plan, Task, dependencies

_BATCH = 512


@dataclass(frozen=True)
class Miss:
    """An action that must run, and why. `most` is what it may cost at most; None where nothing limits its calls."""

    item: str
    kind: str
    key: str
    reason: str
    usd: Decimal
    most: Decimal | None


@dataclass
class TargetPlan:
    """What is known of one target. `until` names the targets that must be built before anything here is known.

    `hits` counts the actions that the cache answers for. `grades` counts those that are known only after their
    trials. `unknown` counts the trials whose keys are unknown, None when not even their number is known. `refused` is
    why the target cannot be built at all.
    """

    label: str
    hits: int = 0
    misses: list[Miss] = field(default_factory=list)
    grades: int = 0
    until: tuple[str, ...] = ()
    unknown: int | None = 0
    unknown_usd: Decimal | None = Decimal(0)
    refused: str = ""

    @property
    def known(self) -> int:
        """How many actions there are whose keys are known."""
        return self.hits + len(self.misses)

    def to_json(self) -> Json:
        return {
            "label": self.label,
            "hit": self.hits,
            "miss": [
                {"item": miss.item, "kind": miss.kind, "key": miss.key, "reason": miss.reason} for miss in self.misses
            ],
            "unknown_grades": self.grades,
            "unknown_until": list(self.until),
            "unknown_trials": self.unknown,
            "refused": self.refused or None,
        }


@dataclass(frozen=True)
class PlanReport:
    """All targets in dependency order. `usd` is (least, most); most is None where it cannot be known yet.

    `unlimited` are the targets whose calls of a model neither a `cost` nor a limit bounds.
    """

    targets: tuple[TargetPlan, ...]
    usd: tuple[Decimal, Decimal | None]
    unlimited: tuple[str, ...] = ()

    def to_json(self) -> Json:
        shown = [target.to_json() for target in self.targets if target.known or target.until or target.refused]
        return {
            "targets": shown,
            "hit": sum(target.hits for target in self.targets),
            "miss": sum(len(target.misses) for target in self.targets),
            "unknown": sum(bool(target.until) for target in self.targets),
            "cost": {"usd_min": str(self.usd[0]), "usd_max": None if self.usd[1] is None else str(self.usd[1])},
        }


def report_plan(
    plan: Plan,
    context: Callable[[Mapping[str, Value]], RuleContext],
    store: Store,
    demand: Callable[[str], Demand],
    see: Callable[[Action, bool], None] = lambda action, hit: None,
) -> PlanReport:
    """Decide on all that can be decided. `context` is asked once, with the mapping that values are put into.

    `see` is shown each action as it is decided, with whether it is a hit.
    """
    values: dict[str, Value] = {}
    rule_context = context(values)
    without: set[str] = set()
    targets = []
    for task in plan.tasks:
        target = TargetPlan(task.label)
        targets.append(target)
        blocked = [label for label in dependencies(task) if label in without]
        if blocked:
            without.add(task.label)
            _leave_unknown(target, task, blocked, values)
            continue
        try:
            rule = make_rule(task, rule_context)
            _decide_all(target, rule, store, demand(task.label), see)
            if not target.misses:
                values[task.label] = rule.value()
        except (BuildFailed, InfraError) as error:
            target.refused = str(error)
        if task.label not in values:
            without.add(task.label)
            target.grades = _grades(target, task)
    unlimited = (target.label for target in targets if any(miss.most is None for miss in target.misses))
    return PlanReport(tuple(targets), _usd(targets), tuple(unlimited))


def _decide_all(
    target: TargetPlan, rule: Rule, store: Store, demand: Demand, see: Callable[[Action, bool], None]
) -> None:
    waiting: Iterator[Action] = iter(rule.start())
    while batch := list(islice(waiting, _BATCH)):
        entries = store.lookup([action.key for action in batch if not _asks_its_sink(action)])
        refs = {
            key: [*(("blob", digest) for digest in entry.blobs), *(("tree", digest) for digest in entry.trees)]
            for key, entry in entries.items()
        }
        missing = store.missing_deep([ref for needed in refs.values() for ref in needed])
        following: list[Action] = []
        for action in batch:
            whole = not missing or not store.missing_deep(refs.get(action.key, ()))
            decision = decide(entries.get(action.key), whole=whole, demand=demand)
            see(action, isinstance(decision, Hit))
            if isinstance(decision, Run):
                reason = "its sink is compared" if _asks_its_sink(action) else decision.reason
                most = action.usd if action.model is None or action.usd else action.model.most_usd()
                target.misses.append(Miss(action.item, action.kind.value, action.key, reason, action.usd, most))
                continue
            assert isinstance(decision, Hit)
            target.hits += 1
            following.extend(rule.settled(settled_by(action, decision.entry)))
        waiting = chain(following, waiting)


def _asks_its_sink(action: Action) -> bool:
    return action.kind is ActionKind.PRODUCE and not action.item


def _leave_unknown(target: TargetPlan, task: Task, blocked: list[str], values: Mapping[str, Value]) -> None:
    target.until = tuple(blocked)
    if isinstance(task, MapTask):
        dataset = values.get(task.over)
        if isinstance(dataset, DatasetValue):
            target.unknown = dataset.count * task.samples
            model = values.get(task.model) if task.model is not None and not task.cost.usd else None
            spec = model.task.spec if isinstance(model, ModelValue) else None
            each = task.cost.usd if spec is None else most_usd(spec, task.tokens, task.usd)
            target.unknown_usd = None if each is None else target.unknown * each
        else:
            target.unknown = target.unknown_usd = None


def _grades(target: TargetPlan, task: Task) -> int:
    """How many grades are known only after their trials."""
    if not isinstance(task, MapTask) or task.grade is None or task.grade.result is not None:
        return 0
    return sum(miss.kind == ActionKind.TRIAL.value for miss in target.misses)


def _usd(targets: list[TargetPlan]) -> tuple[Decimal, Decimal | None]:
    misses = [miss for target in targets for miss in target.misses]
    mosts = [*(miss.most for miss in misses), *(target.unknown_usd for target in targets)]
    known = [most for most in mosts if most is not None]
    least = sum((miss.usd for miss in misses), Decimal(0))
    return least, sum(known, Decimal(0)) if len(known) == len(mosts) else None

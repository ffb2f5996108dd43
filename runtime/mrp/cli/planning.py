"""Compiling and deciding without executing: what plan, cost and why have in common."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrp.cache.canonical import Json
    from mrp.cache.filestats import FileDigests
    from mrp.cache.store import Store
    from mrp.rules.action import Action
    from mrp.rules.rule import RuleContext, Value
    from mrp.runtime.decide import Demand
    from mrp.runtime.options import BuildOptions
    from mrp.runtime.plan_report import PlanReport
    from mrp.specs.ir import Plan


@dataclass(frozen=True)
class Planned:
    """A compiled plan, what a build of it would do, and the store, open while it is used."""

    plan: "Plan"
    report: "PlanReport"
    store: "Store"


@contextmanager
def planned(
    options: "BuildOptions",
    see: "Callable[[Store], Callable[[Action, bool], None]] | None" = None,
    *,
    anywhere: bool = False,
) -> Iterator[Planned]:
    """Compile `options.targets` and decide on every action. Raises what build raises before it executes.

    `see` gives what is shown each action with whether it is a hit. What the place lacks is no matter with `anywhere`.
    """
    from mrp.runtime.build import compiled_state
    from mrp.runtime.plan_report import report_plan
    from mrp.runtime.request import adapted_plan

    with compiled_state(options, anywhere=anywhere) as (compiled, options, store, digests):
        plan = adapted_plan(compiled, options)
        planning = _Planning(plan, options, store, digests)
        shown = see(store) if see is not None else lambda action, hit: None
        yield Planned(plan, report_plan(plan, planning.context, store, planning.demand, shown), store)


@dataclass(frozen=True)
class _Planning:
    """What rules and decisions are told, the same as in a build."""

    plan: "Plan"
    options: "BuildOptions"
    store: "Store"
    digests: "FileDigests"

    def context(self, values: "Mapping[str, Value]") -> "RuleContext":
        from mrp.rules.rule import RuleContext
        from mrp.runtime.images.host import describe_host
        from mrp.runtime.request import selection_of
        from mrp.runtime.sdk_tree import sdk_tree
        from mrp.runtime.sources import Sources

        def host(toolchain: tuple[str, ...]) -> "Json":
            return describe_host(toolchain, self.digests)

        sources = Sources(self.options.root, self.store)
        selection = selection_of(self.plan, self.options)
        return RuleContext(self.store, values, host, sources.bring, cache(lambda: sdk_tree(self.store)), selection)

    def demand(self, label: str) -> "Demand":
        from mrp.runtime.decide import Demand
        from mrp.specs.labels import parse_label, parse_pattern

        rebuild = not label.startswith("builtin:") and any(
            parse_pattern(pattern).matches(parse_label(label)) for pattern in self.options.rebuild
        )
        return Demand(self.plan.policy.isolation, rebuild, self.options.retry_limits)

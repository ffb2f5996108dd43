"""Estimates: what a plan costs as far as its size is known, held against budgets."""

from decimal import Decimal
from pathlib import Path

from support.workspaces import Workspace

from mrp.compiler.budget import Estimate, Overrun, job_estimates, known_counts, overruns, plan_estimate
from mrp.specs.ir import Plan

BUILD = """
    mrp: 1
    targets:
      known: {kind: dataset, generate: {range: 10}}
      unknown: {kind: dataset, srcs: [a.jsonl]}
      some: {kind: dataset, generate: {range: 10}, where: "n > 3"}
      one: {kind: rollout, over: known, agent: builtin:nop, samples: 3, cost: {usd: 0.1, tokens: 100}}
      two: {kind: rollout, over: unknown, agent: builtin:nop, cost: {usd: 1}, matrix: {k: [1, 2]}}
      three: {kind: rollout, over: some, agent: builtin:nop, cost: {usd: 1}}
      eval: {kind: reduction, of: [one], reducer: count}
      small: {kind: job, of: [eval], budget: {usd: 2.9, tokens: 3000}}
      large: {kind: job, of: [eval, two, three], budget: {usd: 100, tokens: 2999}}
"""


def plan(root: Path) -> Plan:
    files = {"BUILD.yaml": BUILD, "a.jsonl": "{}", "policy.yaml": "mrp: 1\nmax_usd: 200\n"}
    files["mrp.yaml"] = "mrp: 1\nname: t\npolicy: policy.yaml\n"
    return Workspace(root, files).compile("//:small", "//:large").plan


def test_only_a_range_without_a_filter_is_known_before_the_run(tmp_path: Path) -> None:
    assert known_counts(plan(tmp_path)) == {"//:known": 10}


def test_a_job_costs_what_all_that_it_needs_costs_and_names_what_it_waits_for(tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert job_estimates(found, known_counts(found)) == {
        "//:small": Estimate(Decimal("3.0"), 3000, 30),
        "//:large": Estimate(Decimal("3.0"), 3000, 30, ("//:some", "//:unknown")),
    }


def test_sizes_that_became_known_count_for_each_cell(tmp_path: Path) -> None:
    total = plan_estimate(plan(tmp_path), {"//:known": 10, "//:unknown": 5, "//:some": 6})
    assert total == Estimate(Decimal(3 + 2 * 5 + 6), 3000, 30 + 10 + 6)


def test_budgets_that_the_estimate_is_above_are_named(tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert overruns(found, {"//:known": 10, "//:unknown": 100, "//:some": 6}) == [
        Overrun("//:large", "usd", Decimal("209.0"), Decimal(100)),
        Overrun("//:large", "tokens", Decimal(3000), Decimal(2999)),
        Overrun("//:small", "usd", Decimal("3.0"), Decimal("2.9")),
        Overrun(None, "usd", Decimal("209.0"), Decimal(200)),
    ]

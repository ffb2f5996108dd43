"""`mrp plan`: what a build would run; `mrp cost`: what was spent, or what a build may cost."""

import argparse
from decimal import Decimal
from typing import TYPE_CHECKING

from mrp.cli.flags import add_compile_flags, add_place_flags, add_selection_flags, build_options, need_targets
from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root, state_folder

if TYPE_CHECKING:
    from mrp.runtime.plan_report import PlanReport, TargetPlan

_SHOWN_ITEMS = 10


def configure(parser: argparse.ArgumentParser) -> None:
    what = "labels and patterns" if parser.prog == "mrp plan" else "labels to estimate; none: what past runs spent"
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=what)
    add_compile_flags(parser)
    add_selection_flags(parser)
    add_place_flags(parser)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    if arguments.verb == "cost" and not arguments.targets:
        return _spent(screen)
    from mrp.cli.planning import planned

    need_targets(arguments)
    with planned(build_options(arguments, find_root())) as known:
        report = known.report
    if screen.json:
        screen.document(report.to_json())
    if arguments.verb == "plan":
        _show_plan(report, screen)
    screen.answer(f"cost: {_range(report)}")
    return 4 if any(target.refused for target in report.targets) else 0


def _show_plan(report: "PlanReport", screen: Screen) -> None:
    for target in report.targets:
        if target.known or target.until or target.refused:
            screen.answer(_line(target))
            shown = target.misses if screen.verbose else target.misses[:_SHOWN_ITEMS]
            for miss in shown if target.known > 1 or screen.verbose else ():
                item = f"[{miss.item}] " if miss.item else ""
                screen.answer(f"  {item}{miss.kind}: {miss.reason}")
            if len(shown) < len(target.misses) and target.known > 1:
                screen.answer(f"  and {len(target.misses) - len(shown)} more (-v shows all)")
    hits = sum(target.hits for target in report.targets)
    misses = sum(len(target.misses) for target in report.targets)
    unknown = sum(bool(target.until) for target in report.targets)
    screen.answer(
        f"{hits} hit{'' if hits == 1 else 's'}, {misses} to run"
        + (f", {unknown} target{'' if unknown == 1 else 's'} known only later" if unknown else "")
    )


def _line(target: "TargetPlan") -> str:
    if target.refused:
        return f"{target.label}: cannot be built: {target.refused}"
    parts = []
    if target.hits:
        parts.append(f"{target.hits} hit{'' if target.hits == 1 else 's'}")
    if target.misses:
        only = f" ({target.misses[0].reason})" if target.known == 1 else ""
        parts.append(f"{len(target.misses)} to run{only}")
    if target.grades:
        parts.append(f"{target.grades} grade{'' if target.grades == 1 else 's'} after that")
    if target.until:
        trials = "" if not target.unknown else f", {target.unknown} trials"
        parts.append(f"known only after {', '.join(target.until)}{trials}")
    return f"{target.label}: {', '.join(parts)}"


def _range(report: "PlanReport") -> str:
    least, most = report.usd
    if report.unlimited:
        labels = ", ".join(report.unlimited)
        return f"at least ${_usd(least)}; give {labels} a `cost` or `limits`, since nothing bounds its calls of a model"
    if most is None:
        return f"at least ${_usd(least)}; the rest is known once its datasets are built"
    return f"${_usd(least)}" if least == most else f"${_usd(least)} to ${_usd(most)}"


def _spent(screen: Screen) -> int:
    from mrp.runtime.runs import list_runs, read_record
    from mrp.specs.errors import UsageError

    state = state_folder(find_root())
    rows = []
    for run_id in list_runs(state):
        try:
            record = read_record(state / "runs" / run_id)
        except UsageError:
            continue
        rows.append((run_id, Decimal(record["cost"]["usd"]), record["executed"]))
    total = sum((usd for _, usd, _ in rows), Decimal(0))
    if screen.json:
        runs = [{"run_id": run_id, "usd": str(usd), "executed": executed} for run_id, usd, executed in rows]
        screen.document({"runs": runs, "usd": str(total)})
    for run_id, usd, executed in rows:
        if usd or screen.verbose:
            screen.answer(f"{run_id}  ${_usd(usd)}  {executed} executed")
    screen.answer(f"${_usd(total)} spent in {len(rows)} run{'' if len(rows) == 1 else 's'}")
    return 0


def _usd(value: Decimal) -> str:
    return f"{value.normalize():f}" if value else "0"

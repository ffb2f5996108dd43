"""`mrp diff` compares two runs; `mrp check` and `mrp replay` make one to compare with, in a throw-away cache."""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.cli.build import run_build
from mrp.cli.flags import add_compile_flags, add_engine_flags, build_options, need_targets
from mrp.cli.progress import where
from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root, open_store, state_folder
from mrp.specs.errors import UsageError

if TYPE_CHECKING:
    from mrp.cache.store import Store
    from mrp.runtime.diff import DiffReport
    from mrp.runtime.models.calls import Calls, Proof
    from mrp.runtime.options import BuildOptions
    from mrp.runtime.recorded import Recorded
    from mrp.runtime.report import BuildReport
    from mrp.specs.ir import Plan

_SHOWN = 20
_NOT_MIRRORED = (".mrp", "mrp-out")


def configure_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", help="a run: its id, its start, last, last~1, ...")
    parser.add_argument("new", nargs="?", default="last", help="the run to compare it with (default: last)")


def configure_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="labels and patterns")
    parser.add_argument("--runs", type=int, default=2, metavar="N", help="how often to build (default: 2)")
    add_compile_flags(parser)
    add_engine_flags(parser)


def configure_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", default="last", help="a run's id or its start, last (the default), last~1, ..."
    )
    add_engine_flags(parser)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    verbs = {"diff": _diff, "check": _check, "replay": _replay}
    return verbs[arguments.verb](arguments, screen)


# -- diff --------------------------------------------------------------------------------------------------------


def _diff(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.runtime.diff import Kind, diff_runs
    from mrp.runtime.recorded import recorded_actions
    from mrp.runtime.runs import find_run

    state = state_folder(find_root())
    old, new = find_run(state, arguments.old), find_run(state, arguments.new)
    with recorded_actions(old) as before, recorded_actions(new) as after, closing(open_store()) as store:
        plans = [_recorded_plan(folder, store) for folder in (old, new)]
        order = [task.label for plan in reversed(plans) if plan is not None for task in plan.tasks]
        report = diff_runs(before, after, list(dict.fromkeys(order)))
        first = report.first
        roots = _roots(report, plans, store) if first is not None and first.kind is not Kind.BYTES else []
        if screen.json:
            screen.document({"old": old.name, "new": new.name, **report.to_json(), "roots": roots})
        _show(report, roots, screen)
    return 1 if first is not None else 0


def _roots(report: "DiffReport", plans: "list[Plan | None]", store: "Store") -> list[str]:
    """What a person changed to make the first action differ."""
    from mrp.cache.digest import ActionKey, Digest
    from mrp.runtime.origins import Origins
    from mrp.runtime.why import Explainer, Identity, Known, Side

    def side(recorded: "Recorded") -> Side:
        def known(identity: Identity) -> Known | None:
            line = recorded.find(*identity)
            return None if line is None else Known(line.key, store.preimage(ActionKey(Digest(line.key))))

        return known

    assert report.first is not None
    explainer = Explainer(store, side(report.old), side(report.new), Origins(store, plans[1], plans[0]))
    return explainer.explain(report.first.identity).roots()


def _show(report: "DiffReport", roots: list[str], screen: Screen) -> None:
    from mrp.runtime.diff import MEANING, Kind

    first = report.first
    if first is None:
        screen.answer(f"the same: {report.same} actions with equal keys and equal bytes")
        return
    label, item, kind = first.identity
    screen.answer(f"first difference: {where(label, item)} {kind}: {MEANING[first.kind]}")
    for root in roots:
        screen.answer(f"  {root}")
    for which in Kind:
        count = report.counts[which]
        if count:
            screen.answer(f"{count} with {which.value}: {MEANING[which]}")
            for divergence in islice(report.divergences(which), None if screen.verbose else _SHOWN):
                name = where(*divergence.identity[:2])
                outcomes = [line.outcome for line in (divergence.old, divergence.new) if line is not None]
                told = " -> ".join(dict.fromkeys(outcomes))
                screen.answer(f"  {name} {divergence.identity[2]} ({told})")
            if count > _SHOWN and not screen.verbose:
                screen.answer(f"  and {count - _SHOWN} more (-v shows all)")
    screen.answer(f"{report.same} actions are the same")


# -- check and replay --------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.runtime.build import compiled_state
    from mrp.runtime.diff import diff_runs
    from mrp.runtime.models.calls import Calls, Proof

    need_targets(arguments)
    if arguments.runs < 2:
        raise UsageError(f"--runs {arguments.runs}: comparing needs at least 2")
    root = find_root()
    with ExitStack() as kept:
        with compiled_state(build_options(arguments, root)) as (plan, chosen, store, _):
            order = [task.label for task in plan.tasks]
            runs: list[Recorded] = []
            proof = Proof()
            for number in range(1, arguments.runs + 1):
                screen.note(f"run {number} of {arguments.runs}")
                report, recorded = _execute_anew(plan, chosen, store, screen, Calls(store, proof=proof))
                runs.append(kept.enter_context(recorded))
                if report.exit_code not in (0, 1):
                    screen.error(f"run {number} ended as {report.status}: {report.reason}")
                    return report.exit_code
        reports = [diff_runs(runs[0], other, order) for other in runs[1:]]
        others = [f"run {number}" for number in range(2, arguments.runs + 1)]
        return _verdict(reports, others, "run 1", screen, proof, plan)


def _replay(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.runtime.diff import diff_runs
    from mrp.runtime.models.calls import Calls
    from mrp.runtime.recorded import recorded_actions
    from mrp.runtime.runs import find_run

    root = find_root()
    folder = find_run(state_folder(root), arguments.run)
    with recorded_actions(folder) as recorded:
        with closing(open_store()) as store:
            plan = _recorded_plan(folder, store)
            if plan is None:
                raise UsageError(f"the plan of run {folder.name} is no longer in the cache, so it cannot be replayed")
            calls = Calls(store, upstream=False)
            report, again = _execute_anew(plan, build_options(arguments, root), store, screen, calls)
        with again:
            if report.exit_code not in (0, 1):
                screen.error(f"the replay ended as {report.status}: {report.reason}")
                return report.exit_code
            found = diff_runs(recorded, again, [task.label for task in plan.tasks], leave_out=("produce",))
            return _verdict([found], ["the replay"], f"run {folder.name}", screen)


def _verdict(
    reports: "list[DiffReport]",
    names: list[str],
    reference: str,
    screen: Screen,
    proof: "Proof | None" = None,
    plan: "Plan | None" = None,
) -> int:
    """Name the culprit of the first report that differs; 0 when none does, and seeded models are proven.

    What the sandboxes of `plan` give a network is sampled: that it differs, with what is made of it, is said only.
    """
    from mrp.runtime.diff import MEANING

    differing = [(name, report) for name, report in zip(names, reports, strict=True) if report.first is not None]
    networked = _networked(plan) if plan is not None else set()
    sampled = [(name, report, _sampled(report, networked)) for name, report in differing]
    bad = [(name, report) for name, report, by_network in sampled if not by_network]
    counts = proof.counts if proof is not None else {}
    unproven = [label for label, (calls, same) in counts.items() if same < calls or not calls]
    if screen.json:
        screen.document(
            {
                "status": "failed" if bad or unproven else "ok",
                "compared_with": reference,
                "sampled": sorted({label for *_, by_network in sampled for label in by_network}),
                "seeded": {label: {"calls": calls, "same": same} for label, (calls, same) in counts.items()},
                "runs": [{"run": name, **report.to_json()} for name, report in zip(names, reports, strict=True)],
            }
        )
    for label, (calls, same) in sorted(counts.items()):
        if not calls:
            screen.answer(f"{label} is not proven: no run made a call that another run had made")
            continue
        proven = "proven" if same == calls else "declared `seeded`, and it is not"
        screen.answer(f"{label} is {proven}: {same} of {calls} calls that were made anew had the same answer")
    for name, report, by_network in sampled:
        if by_network:
            screen.answer(
                f"{reference} and {name} differ in {report.differing} of {report.same + report.differing} actions, none"
                f" of which must be the same: {', '.join(by_network)} had a network, and so is sampled"
            )
    if sampled and not bad:
        return 1 if unproven else 0
    if not bad:
        screen.answer(f"the same bytes in {reference} and {', '.join(names)}: {reports[0].same} actions")
        return 1 if unproven else 0
    name, report = bad[0]
    first = report.first
    assert first is not None
    label, item, kind = first.identity
    line = first.new or first.old
    wall = "" if line is None or line.reproducible else " (a wall limit had a part in it)"
    screen.answer(
        f"{reference} and {name} differ in {report.differing} of {report.same + report.differing} actions\n"
        f"culprit: {where(label, item)} {kind}: {MEANING[first.kind]}{wall}"
    )
    return 1


def _networked(plan: "Plan") -> set[tuple[str, bool]]:
    """(label, whether it is of its grades) of all whose sandbox has a network."""
    from mrp.specs.ir import MapTask, SandboxTask

    open_ones = {task.label for task in plan.tasks if isinstance(task, SandboxTask) and task.network != "none"}
    found = {(task.label, False) for task in plan.tasks if getattr(task, "sandbox", None) in open_ones}
    for task in plan.tasks:
        if isinstance(task, MapTask) and task.grade is not None and (task.grade.sandbox or task.sandbox) in open_ones:
            found.add((task.label, True))
    return found


def _sampled(report: "DiffReport", networked: set[tuple[str, bool]]) -> list[str]:
    """The labels whose network explains all that differs; empty when something else had a part in it."""
    from mrp.runtime.diff import Kind

    labels: dict[str, None] = {}
    for divergence in report.divergences(Kind.BYTES) if networked else ():
        label, _, kind = divergence.identity
        if (label, kind == "grade") not in networked:
            return []
        labels[label] = None
    return list(labels)


def _execute_anew(
    plan: "Plan", chosen: "BuildOptions", store: "Store", screen: Screen, calls: "Calls"
) -> "tuple[BuildReport, Recorded]":
    """Run a plan with nothing cached and nothing published: its cache, state and outputs are thrown away.

    `calls` says where the calls of models are. What it recorded stays readable until it is closed.
    """
    from mrp.runtime.build import open_state, run_plan
    from mrp.runtime.recorded import recorded_actions

    with _throw_away(chosen.root) as (mirror, cache):
        options = replace(chosen, root=mirror, cache=cache, produce=False, calls=calls)

        def execute(options: "BuildOptions") -> "BuildReport":
            with open_state(options) as (fresh, digests):
                _copy_sources(plan, store, fresh)
                return run_plan(plan, options, fresh, digests)

        report = run_build(screen, lambda **more: replace(options, **more), execute)
        return report, recorded_actions(report.folder)


@contextmanager
def _throw_away(root: Path) -> Iterator[tuple[Path, Path]]:
    """A folder that shows the workspace through links, without its state and outputs; and a place for a cache."""
    folder = Path(tempfile.mkdtemp(prefix="mrp-anew-"))
    mirror = folder / "workspace"
    try:
        mirror.mkdir()
        for entry in root.iterdir():
            if entry.name not in _NOT_MIRRORED:
                (mirror / entry.name).symlink_to(entry)
        yield mirror, folder / "cache"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_sources(plan: "Plan", store: "Store", fresh: "Store") -> None:
    """Give a new cache the source files that the old one still has; the workspace serves the others if unchanged."""
    from mrp.cache.errors import MissingBlob
    from mrp.runtime.origins import source_files

    for digest in {source.digest for task in plan.tasks for source in source_files(task)}:
        try:
            fresh.put_file(store.blob_path(digest), digest=digest)
        except MissingBlob:
            continue


def _recorded_plan(folder: Path, store: "Store") -> "Plan | None":
    from mrp.cache.digest import Digest
    from mrp.cache.errors import MissingBlob
    from mrp.runtime.recorded_plan import read_plan
    from mrp.runtime.runs import read_record

    try:
        return read_plan(Digest(read_record(folder)["plan"]), store)
    except (MissingBlob, KeyError):
        return None

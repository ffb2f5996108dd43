"""`mrp log`: the runs of a workspace, or what an item printed."""

import argparse
import time
from pathlib import Path
from typing import Any

from mrp.cli.inspect import split_label
from mrp.cli.progress import duration, where
from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root, open_store, state_folder
from mrp.specs.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("label", nargs="?", help="whose stdout to show; none: list the runs, newest first")
    parser.add_argument(
        "--run", default="last", help="the run to look in: id, its start, last (the default), last~1, ..."
    )
    parser.add_argument("--stderr", action="store_true", help="show stderr instead of stdout")
    parser.add_argument("--diff", action="store_true", help="show what changed in /work instead of stdout")
    parser.add_argument("--trajectory", action="store_true", help="show the agent's trajectory instead of stdout")
    parser.add_argument("-n", "--number", type=int, default=20, metavar="N", help="how many runs to list (default: 20)")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    root = find_root()
    return _list(root, arguments.number, screen) if arguments.label is None else _output(root, arguments, screen)


def _list(root: Path, number: int, screen: Screen) -> int:
    from mrp.runtime.inspect import read_run
    from mrp.runtime.runs import DamagedRun, list_runs

    state = state_folder(root)
    found: list[dict[str, Any]] = []
    for run_id in reversed(list_runs(state)[-number:] if number > 0 else []):
        try:
            view = read_run(state / "runs" / run_id)
        except UsageError as error:
            status = "damaged" if isinstance(error, DamagedRun) else "cut off"
            found.append({"run_id": run_id, "status": status})
            continue
        names = ("status", "requested", "executed", "cached", "failed", "wall_s", "cost")
        found.append({"run_id": run_id, "started": view.started, **{name: view.record[name] for name in names}})
    if screen.json:
        screen.document(found)
    if not found:
        screen.note("no runs yet; `mrp build` makes one")
    for row in found:
        screen.answer(_line(row))
    return 0


def _line(row: dict[str, Any]) -> str:
    if "started" not in row:
        return f"{row['run_id']}  {row['status']}"
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(row["started"]))) if row["started"] else "?"
    counts = f"{row['executed']} executed, {row['cached']} cached, {row['failed']} failed"
    return (
        f"{row['run_id']}  {started}  {row['status']:<9} {counts}, {duration(float(row['wall_s']))}"
        f"  {' '.join(row['requested'][:3])}{' ...' if len(row['requested']) > 3 else ''}"
    )


def _output(root: Path, arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.runtime.inspect import action_json, read_run, text_of
    from mrp.runtime.runs import find_run

    view = read_run(find_run(state_folder(root), arguments.run))
    target, item = split_label(arguments.label, root)
    lines = view.matching(target, item)
    if not lines:
        raise UsageError(f"run {view.run_id} has no {where(target, item or '')}; `mrp inspect {view.run_id}` lists it")
    stream = next((name for name in ("stderr", "diff", "trajectory") if getattr(arguments, name)), "stdout")
    store = open_store()
    try:
        shown = []
        for line in lines:
            attempts = [a for a in action_json(view, line, store)["attempts"] or [] if "usage" in a]
            shown += [(line, attempt, text_of(store, attempt[stream])) for attempt in attempts]
    finally:
        store.close()
    if screen.json:
        screen.document(
            [
                {"label": line.label, "item": line.item, "kind": line.kind, "attempt": a["attempt"], stream: text}
                for line, a, text in shown
            ]
        )
    for line, attempt, text in shown:
        if len(shown) > 1:
            screen.note(f"== {where(line.label, line.item)} {line.kind}, attempt {attempt['attempt']}")
        if text:
            screen.answer(text)
    if not any(text for _, _, text in shown):
        screen.note(f"nothing was kept on {stream}")
    return 0

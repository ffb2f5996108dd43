"""`mrp log`: the runs of a workspace, or what an item printed."""

import argparse
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.cli.inspect import split_label
from mrp.cli.progress import duration, where
from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root, open_store, state_folder
from mrp.specs.errors import UsageError

if TYPE_CHECKING:
    from mrp.cache.store import Store
    from mrp.runtime.runs import DigestLine


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("label", nargs="?", help="whose stdout to show; none: list the runs, newest first")
    parser.add_argument(
        "--run", default="last", help="the run to look in: id, its start, last (the default), last~1, ..."
    )
    parser.add_argument("--stderr", action="store_true", help="show stderr instead of stdout")
    parser.add_argument("--diff", action="store_true", help="show what changed in /work instead of stdout")
    parser.add_argument("--trajectory", action="store_true", help="show the agent's trajectory instead of stdout")
    parser.add_argument("--calls", action="store_true", help="show the calls of the model, one JSON line each")
    parser.add_argument("-n", "--number", type=int, default=20, metavar="N", help="how many runs to list (default: 20)")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    root = find_root()
    return _list(root, arguments.number, screen) if arguments.label is None else _output(root, arguments, screen)


def _list(root: Path, number: int, screen: Screen) -> int:
    from mrp.runtime.runlog import RunLog
    from mrp.runtime.runs import DamagedRun, list_runs, read_record

    state = state_folder(root)
    found: list[dict[str, Any]] = []
    for run_id in reversed(list_runs(state)[-number:] if number > 0 else []):
        try:
            record = read_record(state / "runs" / run_id)
        except UsageError as error:
            status = "damaged" if isinstance(error, DamagedRun) else "cut off"
            found.append({"run_id": run_id, "status": status})
            continue
        names = ("status", "requested", "executed", "cached", "failed", "wall_s", "cost")
        started = RunLog(state / "runs" / run_id / "events.jsonl").started()
        found.append({"run_id": run_id, "started": started, **{name: record[name] for name in names}})
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
    from mrp.runtime.recorded import recorded_actions
    from mrp.runtime.runs import find_run

    folder = find_run(state_folder(root), arguments.run)
    target, item = split_label(arguments.label, root)
    stream = next((name for name in ("stderr", "diff", "trajectory", "calls") if getattr(arguments, name)), "stdout")
    with recorded_actions(folder) as actions, closing(open_store()) as store:
        lines = list(islice(actions.of(target, item), 2))
        if not lines:
            raise UsageError(
                f"run {folder.name} has no {where(target, item or '')}; `mrp inspect {folder.name}` lists it"
            )
        if screen.json:
            screen.document(_kept(actions.of(target, item), stream, store))
        _show_kept(_kept(actions.of(target, item), stream, store), stream, screen)
    return 0


def _kept(lines: "Iterable[DigestLine]", stream: str, store: "Store") -> Iterator[dict[str, Any]]:
    """What each attempt left on `stream`, null where nothing was kept."""
    from mrp.runtime.inspect import attempts_of, text_of

    for line, attempt in attempts_of(lines, store):
        place = {"label": line.label, "item": line.item, "kind": line.kind, "attempt": attempt["attempt"]}
        if stream == "calls":
            yield {**place, stream: _calls_text(attempt.get("calls", ()), store)}
        else:
            yield {**place, stream: text_of(store, attempt[stream])}


def _calls_text(keys: Iterable[str], store: "Store") -> str:
    """The calls that a trial made, one JSON line each; those that the cache lost have no answer."""
    from mrp.cache.canonical import canonical_text
    from mrp.runtime.models.calls import shown_calls

    return "\n".join(map(canonical_text, shown_calls(keys, store)))


def _show_kept(found: Iterator[dict[str, Any]], stream: str, screen: Screen) -> None:
    """The texts, each with a heading when there is more than one."""
    first = list(islice(found, 2))
    something = False
    for attempt in chain(first, found):
        if len(first) > 1:
            name = where(attempt["label"], attempt["item"])
            screen.note(f"== {name} {attempt['kind']}, attempt {attempt['attempt']}")
        if attempt[stream]:
            something = True
            screen.answer(attempt[stream])
    if not something:
        screen.note(f"nothing was kept on {stream}")

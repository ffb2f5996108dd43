"""`mrp inspect`: a recorded run, one of its targets, or one item with all that is known of it."""

import argparse
from contextlib import closing
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any

from mrp.cache.canonical import canonical_text
from mrp.cli.progress import duration, where
from mrp.cli.screen import Screen, Spelled
from mrp.cli.workspace import absolute, find_root, open_store, state_folder
from mrp.specs.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from mrp.cache.store import Store
    from mrp.runtime.inspect import RunView

_TAIL_LINES = 20
_SHOWN_FILES = 20
_WIDTH = 110


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", default="last", help="a run's id or its start, last (the default), last~1, ..."
    )
    parser.add_argument("label", nargs="?", help="a target, //jobs:solve, or an item, //jobs:solve[task-17]")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.runtime.inspect import read_run, run_json
    from mrp.runtime.runs import find_run

    root = find_root()
    name, label = arguments.run, arguments.label
    if label is None and name.startswith(("//", ":")):
        name, label = "last", name
    with read_run(find_run(state_folder(root), name)) as view:
        if label is None:
            document = run_json(view)
            if screen.json:
                screen.document(document)
            _show_run(view, document["rows"], screen)
            return 0
        target, item = split_label(label, root)
        few = list(islice(view.actions.of(target, item), 2))
        if not few:
            raise UsageError(_unknown(view, target, item))
        if item is None and len(few) > 1:
            _inspect_target(view, target, screen)
        else:
            _inspect_actions(view, target, item, screen)
    return 0


def _inspect_target(view: "RunView", target: str, screen: Screen) -> None:
    from mrp.runtime.inspect import target_json

    rows = target_json(view, target)
    if screen.json:
        lines = (Spelled(raw.decode()) for raw in view.actions.raw_of(target))
        screen.document({"run_id": view.run_id, "rows": rows, "actions": lines})
    _show_rows(rows, screen)
    if screen.verbose or any(set(found) != {"ok"} for row in rows for found in row["outcomes"].values()):
        for line in view.actions.of(target):
            if line.outcome != "ok" or screen.verbose:
                screen.answer(f"  {where(line.label, line.item)} {line.kind} {line.outcome}")


def _inspect_actions(view: "RunView", target: str, item: str | None, screen: Screen) -> None:
    from mrp.runtime.inspect import actions_json

    with closing(open_store()) as store:
        executed = view.log.executed(target, item)
        actions = list(actions_json(view, view.actions.of(target, item), store, executed))
        if screen.json:
            screen.document({"run_id": view.run_id, "actions": actions})
        for action in actions:
            _show_action(action, store, screen)


def split_label(text: str, root: "Path") -> tuple[str, str | None]:
    """A label's target or cell, and its item as runs name it, None for a whole target; raises UsageError."""
    from mrp.specs.labels import LabelError, encode_text, parse_label

    try:
        label = parse_label(absolute(text, root))
    except LabelError as error:
        raise UsageError(str(error)) from None
    if label.record is None:
        return str(label.task), None
    sample = f"#{label.sample}" if label.sample else ""
    return str(label.task), encode_text(label.record) + sample


def _unknown(view: "RunView", target: str, item: str | None) -> str:
    from mrp.specs.suggest import did_you_mean

    if item is not None and view.actions.has(target):
        hint = (
            did_you_mean(item, view.actions.items_around(target, item))
            or f"`mrp inspect {view.run_id} {target} -v` lists them"
        )
        return f"{target} has no item {item!r} in run {view.run_id}; {hint}"
    hint = did_you_mean(target, view.actions.labels()) or f"`mrp inspect {view.run_id}` lists what it built"
    return f"run {view.run_id} has no actions of {target}; {hint}"


def _show_run(view: "RunView", rows: list[dict[str, Any]], screen: Screen) -> None:
    record = view.record
    cost = Decimal(record["cost"]["usd"])
    reason = f" ({record['reason']})" if record.get("reason") else ""
    spent = f", ${cost:f}" if cost else ""
    screen.answer(
        f"run {view.run_id}: {record['status']}{reason}\n"
        f"{record['executed']} executed, {record['cached']} cached, {record['failed']} failed,"
        f" {duration(float(record['wall_s']))}{spent}\n"
        f"requested: {', '.join(record['requested'])}"
    )
    _show_rows(rows, screen)
    for label, target in record["targets"].items():
        if target["reason"]:
            screen.answer(f"{label}: {target['reason']}")
    for failure in view.failures:
        screen.answer(
            f"{where(failure['label'], failure['item'])} {failure['kind']} attempt {failure['attempt']}:"
            f" {failure['reason']}"
        )


def _show_rows(rows: list[dict[str, Any]], screen: Screen) -> None:
    for row in rows:
        outcomes = "; ".join(
            f"{kind} {', '.join(f'{count} {outcome}' for outcome, count in sorted(found.items()))}"
            for kind, found in row["outcomes"].items()
        )
        screen.answer(f"{row['label']}: {row['actions']} actions, {row['executed']} executed; {outcomes}")


def _show_action(action: dict[str, Any], store: "Store", screen: Screen) -> None:
    from mrp.runtime.inspect import text_of

    how = "executed" if action["executed"] else "from the cache"
    limit = f" ({action['limit']})" if action["limit"] else ""
    screen.answer(f"{where(action['label'], action['item'])} {action['kind']}: {action['outcome']}{limit}, {how}")
    screen.answer(f"  key     {action['key']}\n  result  {action['result']}")
    if not action["reproducible"]:
        screen.answer("  not reproducible: a wall limit had a part in it")
    for name, value in sorted((action["inputs"] or {}).items()):
        screen.answer(_cut(f"  input   {name}: {canonical_text(value)}"))
    for name, value in sorted((action["values"] or {}).items()):
        screen.answer(_cut(f"  value   {name}: {canonical_text(value)}"))
    for name, output in sorted((action["outputs"] or {}).items()):
        files = output.get("files")
        screen.answer(f"  output  {name}: {output.get('tree') or output.get('blob')}")
        for path in (files or [])[:_SHOWN_FILES]:
            screen.answer(f"            {path}")
        if files and len(files) > _SHOWN_FILES:
            screen.answer(f"            and {len(files) - _SHOWN_FILES} more")
    for failure in action["failed_attempts"]:
        screen.answer(f"  attempt {failure['attempt']} failed: {failure['reason']}")
    for attempt in action["attempts"] or []:
        _show_attempt(attempt, text_of, store, screen)
    if action["isolation"]:
        screen.answer(f"  isolation {action['isolation']}")


def _show_attempt(attempt: dict[str, Any], text_of: Any, store: "Store", screen: Screen) -> None:
    usage = attempt.get("usage")
    if usage is None:
        return
    exit_code = "" if attempt["exit_code"] is None else f", exit code {attempt['exit_code']}"
    spent = (
        f", ${Decimal(usage['usd']):f}, {usage['tokens']} tokens" if Decimal(usage["usd"]) or usage["tokens"] else ""
    )
    screen.answer(
        f"  attempt {attempt['attempt']}: {duration(float(usage['wall_s']))}, {duration(float(usage['cpu_s']))} cpu,"
        f" {usage['max_rss'] // 2**20} MiB{exit_code}{spent}"
    )
    if attempt["reason"]:
        screen.answer(f"    {attempt['reason']}")
    if "determinism" in attempt:
        why = (
            "its model is declared so"
            if attempt["determinism"] == "seeded"
            else "a model or a network had a part in it"
        )
        screen.answer(f"    {attempt['determinism']}: {why}")
    if attempt.get("calls"):
        count = len(attempt["calls"])
        screen.answer(f"    {count} call{'s' if count > 1 else ''} of its model; `mrp log LABEL --calls` shows them")
    for stream in ("stdout", "stderr"):
        lines = (text_of(store, attempt[stream]) or "").splitlines()
        if lines:
            cut = f", last {_TAIL_LINES} of {len(lines)} lines" if len(lines) > _TAIL_LINES else ""
            screen.answer(f"    {stream}{cut}:")
            screen.answer("\n".join(f"      {line}" for line in lines[-_TAIL_LINES:]))


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"

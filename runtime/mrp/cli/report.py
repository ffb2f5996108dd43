"""`mrp report`: a run in Markdown, to be pasted into a pull request."""

import argparse
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.cli.progress import duration, where
from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root, open_store, state_folder, write_file

if TYPE_CHECKING:
    from mrp.cache.store import Store
    from mrp.runtime.inspect import RunView


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", default="last", help="a run's id or its start, last (the default), last~1, ..."
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write it here")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.runtime.inspect import read_run
    from mrp.runtime.runs import find_run

    with read_run(find_run(state_folder(find_root()), arguments.run)) as view, closing(open_store()) as store:
        text = markdown(view, store)
    if screen.json:
        screen.document({"run_id": view.run_id, "markdown": text})
    if arguments.output is not None:
        write_file(Path(arguments.output), text.encode())
        screen.answer(f"wrote {arguments.output}")
    else:
        screen.answer(text)
    return 0


def markdown(view: "RunView", store: "Store") -> str:
    """The run's counts, a table of its targets, and the tables that its reductions wrote."""
    from mrp.runtime.inspect import target_json, text_of

    record = view.record
    usd = Decimal(record["cost"]["usd"])
    total = record["executed"] + record["cached"]
    lines = [
        f"# Run {view.run_id}",
        "",
        f"{record['status']}: {total} actions, {record['executed']} executed, {record['cached']} cached,"
        f" {record['failed']} failed; {duration(float(record['wall_s']))}; ${usd:f}.",
        "",
        "| target | actions | executed | outcomes |",
        "|---|---:|---:|---|",
    ]
    for row in target_json(view):
        outcomes = "; ".join(
            f"{kind}: {', '.join(f'{count} {name}' for name, count in sorted(found.items()))}"
            for kind, found in row["outcomes"].items()
        )
        lines.append(f"| `{row['label']}` | {row['actions']} | {row['executed']} | {outcomes} |")
    for label, target in record["targets"].items():
        page = text_of(store, target["outputs"].get("result.md"))
        if target["reason"] or page or not target["reproducible"]:
            lines += ["", f"## `{label}`"]
        if not target["reproducible"]:
            lines += ["", "Not reproducible: a wall limit had a part in it."]
        if target["reason"]:
            lines += ["", f"{target['status']}: {target['reason']}"]
        if page:
            lines += ["", page.strip()]
    if view.failures:
        lines += ["", "## Attempts that infrastructure failed", ""]
        lines += [
            f"- {where(attempt['label'], attempt['item'])} ({attempt['kind']}), attempt {attempt['attempt']}:"
            f" {attempt['reason']}"
            for attempt in view.failures
        ]
    return "\n".join(lines) + "\n"

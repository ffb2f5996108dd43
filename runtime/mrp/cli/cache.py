"""`mrp cache stats|verify|gc`: what the cache holds, whether it is whole, and dropping what no build needs."""

import argparse
from typing import Any

from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root, open_store, state_folder
from mrp.specs.errors import UsageError
from mrp.specs.quantity import parse_duration, parse_size


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("stats", "verify", "gc"), help="show, read everything, or drop the unused")
    parser.add_argument("--max-age", default="30d", metavar="TIME", help="gc: drop entries unused for longer (30d)")
    parser.add_argument("--max-size", metavar="SIZE", help="gc: drop the longest unused beyond this, like 20GiB")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    max_age, max_bytes = _bounds(arguments)
    store = open_store()
    try:
        if arguments.what == "stats":
            return _stats(store, screen)
        if arguments.what == "verify":
            return _verify(store, screen)
        return _gc(store, max_age, max_bytes, screen)
    finally:
        store.close()


def _stats(store: Any, screen: Screen) -> int:
    from mrp.cache.maintenance import stats

    found = stats(store)
    if screen.json:
        screen.document(found)
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["actions"]["kinds"].items())
    small, large = found["blobs"]["small"], found["blobs"]["large"]
    screen.answer(
        f"{found['folder']} (format {found['format']}): {readable(found['bytes'])}\n"
        f"{found['actions']['count']} actions{f': {kinds}' if kinds else ''}\n"
        f"{small['count']} small blobs ({readable(small['bytes'])}),"
        f" {large['count']} files ({readable(large['bytes'])})"
    )
    if found["quarantine"]["count"]:
        screen.answer(f"{found['quarantine']['count']} damaged files in {found['folder']}/quarantine")
    return 0


def _verify(store: Any, screen: Screen) -> int:
    from mrp.cache.maintenance import verify

    report = verify(store)
    if screen.json:
        screen.document(report.to_json())
    if report.index_damaged:
        screen.answer("the index was damaged and has been put aside; results are found again or made again")
    for digest in report.damaged_blobs:
        screen.answer(f"damaged: {digest} (in quarantine now, made again when needed)")
    if report.damaged_actions:
        screen.answer(f"{report.damaged_actions} damaged action entries were dropped; they run again when needed")
    if report.incomplete:
        screen.answer(f"{len(report.incomplete)} action entries lack a blob; they run again when needed")
    for path in report.strangers:
        screen.answer(f"not mrp's: {path}; move it away")
    verdict = "whole" if report.ok else "damaged, as said above"
    screen.answer(f"{report.blobs} blobs ({readable(report.bytes)}) and {report.actions} actions read: {verdict}")
    return 0 if report.ok else 1


def _bounds(arguments: argparse.Namespace) -> tuple[float, int | None]:
    """Seconds of --max-age and bytes of --max-size; raises UsageError."""
    try:
        max_age = float(parse_duration(arguments.max_age))
    except ValueError as error:
        raise UsageError(f"--max-age: {error}") from None
    try:
        return max_age, None if arguments.max_size is None else parse_size(arguments.max_size)
    except ValueError as error:
        raise UsageError(f"--max-size: {error}") from None


def _gc(store: Any, max_age: float, max_bytes: int | None, screen: Screen) -> int:
    from mrp.cache.maintenance import gc
    from mrp.runtime.sandbox.roots import roots_folder, sweep_roots

    sweep_roots(roots_folder(store), max_age)
    report = gc(store, keep=_plans_of_runs(store), max_age_s=max_age, max_bytes=max_bytes)
    if screen.json:
        screen.document(report.to_json())
    screen.answer(
        f"dropped {report.actions} actions and {report.blobs} blobs, {readable(report.bytes)};"
        f" {readable(report.remaining_bytes)} remain"
    )
    return 0


def _plans_of_runs(store: Any) -> list[tuple[str, Any]]:
    """The plans that this workspace's runs can be replayed from; nothing outside of a workspace."""
    from mrp.runtime.recorded_plan import plan_blobs
    from mrp.runtime.runs import list_runs, read_record

    try:
        state = state_folder(find_root())
    except UsageError:
        return []
    plans: list[tuple[str, Any]] = []
    for run_id in list_runs(state):
        try:
            record = read_record(state / "runs" / run_id)
        except UsageError:
            continue
        if record.get("plan"):
            plans += [("blob", digest) for digest in plan_blobs(record["plan"], store)]
    return plans


def readable(size: int) -> str:
    """Bytes with one decimal in the unit that fits: `3.4 MiB`."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"

"""`mrp build`: run what is missing, show progress, then the results and one last line."""

import argparse
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from mrp.cli.flags import add_build_flags, add_compile_flags, add_selection_flags, build_options, need_targets
from mrp.cli.progress import Progress, failure_line
from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root

if TYPE_CHECKING:
    from mrp.runtime.interrupt import Interrupt
    from mrp.runtime.options import BuildOptions
    from mrp.runtime.report import BuildReport

_T = TypeVar("_T")

_MAX_PAGE = 16 * 2**10
"""Bytes of a result.md beyond which it is not printed."""

_PROFILE_LINES = 25


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="labels and patterns, `-` before one leaves it out"
    )
    add_compile_flags(parser)
    add_selection_flags(parser)
    add_build_flags(parser)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.runtime.build import build

    need_targets(arguments)
    root = find_root()
    report = run_build(screen, lambda **more: build_options(arguments, root, **more), build, arguments.profile)
    return show(report, root, screen)


def run_build(
    screen: Screen,
    options: "Callable[..., BuildOptions]",
    execute: "Callable[[BuildOptions], BuildReport]",
    profile: bool = False,
) -> "BuildReport":
    """Execute with progress on the screen, and with Ctrl-C first draining, then killing."""
    from mrp.runtime.interrupt import Interrupt

    interrupt = Interrupt()
    with Progress(screen) as progress, _signals(interrupt):
        chosen = options(on_event=progress, interrupt=interrupt)
        return _profiled(lambda: execute(chosen), screen) if profile else execute(chosen)


def show(report: "BuildReport", root: Path, screen: Screen) -> int:
    """Print what came out; returns the exit code."""
    if screen.json:
        screen.document(report.to_json())
    if not screen.quiet:
        _show_results(report, root, screen)
    if report.status not in ("ok", "held"):
        for failure in report.failures:
            screen.note(failure_line(failure.label, failure.reason))
        if report.reason and not report.failures:
            screen.error(f"{report.status}: {report.reason}")
    for label, target in report.targets.items():
        if target.status == "held":
            screen.note(f"{label} is held: its gate is false")
    total = report.executed + report.cached
    screen.answer(
        f"{total} action{'' if total == 1 else 's'}: {report.executed} executed, {report.cached} cached,"
        f" {report.failed} failed"
    )
    return report.exit_code


def _show_results(report: "BuildReport", root: Path, screen: Screen) -> None:
    from mrp.runtime.outputs import output_folder

    for label, target in report.targets.items():
        if not target.outputs:
            continue
        folder = output_folder(root, label)
        page = folder / "result.md"
        if "result.md" in target.outputs and page.is_file() and page.stat().st_size <= _MAX_PAGE:
            text = page.read_text(encoding="utf-8", errors="replace")
            screen.answer("".join(c for c in text if c.isprintable() or c in "\n\t"))
        facts = {
            "partial": target.partial,
            "failed": target.status == "failed",
            "not reproducible": not target.reproducible,
        }
        marks = [word for word, is_so in facts.items() if is_so]
        marked = f" ({', '.join(marks)})" if marks else ""
        screen.answer(f"{label} -> {folder.relative_to(root)}/{marked}")


@contextmanager
def _signals(interrupt: "Interrupt") -> Iterator[None]:
    """While a build runs, SIGINT and SIGTERM ask it to stop; a third one gives up at once."""
    count = 0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        interrupt.request()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _profiled(work: Callable[[], _T], screen: Screen) -> _T:
    """Run `work` and print where the coordinator's thread spent its time."""
    import cProfile
    import io
    import pstats

    profile = cProfile.Profile()
    try:
        return profile.runcall(work)
    finally:
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(_PROFILE_LINES)
        screen.error(text.getvalue())

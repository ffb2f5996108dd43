"""`mrp build`: run what is missing, show progress, then the results and one last line."""

import argparse
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mrp.cli.answers import last_line, result_lines
from mrp.cli.fast import identity_of
from mrp.cli.flags import add_build_flags, add_compile_flags, add_selection_flags, build_options, need_targets
from mrp.cli.progress import Progress
from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root

if TYPE_CHECKING:
    from mrp.runtime.interrupt import Interrupt
    from mrp.runtime.options import BuildOptions
    from mrp.runtime.report import BuildReport


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
    asked = identity_of(arguments.argv, there=True)
    identity = asked[1] if asked is not None and asked[0] == str(root) else ()
    options = partial(build_options, arguments, root, identity=identity)
    report = run_build(screen, options, build, arguments.profile)
    return show(report, root, screen)


def run_build(
    screen: Screen,
    options: "Callable[..., BuildOptions]",
    execute: "Callable[[BuildOptions], BuildReport]",
    profile: Path | None = None,
) -> "BuildReport":
    """Execute with progress on the screen, a trace in `profile`, and with Ctrl-C first draining, then killing."""
    from mrp.runtime.interrupt import Interrupt
    from mrp.runtime.trace import tracing

    interrupt = Interrupt()
    with Progress(screen) as progress, _signals(interrupt), tracing(profile, progress) as listener:
        return execute(options(on_event=listener, interrupt=interrupt))


def show(report: "BuildReport", root: Path, screen: Screen) -> int:
    """Print what came out; returns the exit code."""
    if screen.json:
        screen.document(report.to_json())
    if not screen.quiet:
        _show_results(report, root, screen)
    # What failed was said when it did.
    if report.status not in ("ok", "held") and report.reason and not report.failures:
        screen.error(f"{report.status}: {report.reason}")
    for label, target in report.targets.items():
        if target.status == "held":
            screen.note(f"{label} is held: its gate is false")
    screen.answer(last_line(report.executed, report.cached, report.failed))
    return report.exit_code


def _show_results(report: "BuildReport", root: Path, screen: Screen) -> None:
    from mrp.runtime.outputs import output_folder

    shown = [
        (label, output_folder(root, label).relative_to(root).as_posix(), "result.md" in target.outputs, target.marks())
        for label, target in report.targets.items()
        if target.outputs
    ]
    for line in result_lines(str(root), shown):
        screen.answer(line)


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

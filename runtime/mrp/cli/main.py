"""Entry of the command line: from words to an exit code. Nothing is imported before it is needed.

0    ok, and held               3    policy or budget
1    a build or check failed    4    infrastructure, and mrp's own faults
2    the spec or the usage      130  interrupted
"""

import os
import sys

TYPE_CHECKING = False  # what `typing` says, without loading it
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mrp.cli.screen import Screen

INTERRUPTED = 130


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one command; returns its exit code. Nothing that mrp can explain leaves as an exception."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _at_once(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        from mrp.cli.explain import explain

        return explain(error, _screen(words))
    if code is not None:
        return code
    screen = _screen(words)
    try:
        return _dispatch(words, screen)
    except KeyboardInterrupt:
        screen.error("interrupted")
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        from mrp.cli.explain import explain

        return explain(error, screen)


def _at_once(words: list[str]) -> int | None:
    """The exit code of what can be answered from almost nothing: the version, and a build with nothing to do."""
    if words[:1] in (["-V"], ["--version"]):
        from mrp.cli.version import VERSION

        print(f"mrp {VERSION}")
        return 0
    from mrp.cli.words import verb_of

    if verb_of(words) != "build":
        return None
    from mrp.cli import fast

    return fast.answer(words)


def _screen(words: list[str]) -> "Screen":
    from mrp.cli.screen import Screen

    return Screen(json="--json" in words, verbose="-v" in words or "--verbose" in words)


def _dispatch(words: list[str], screen: "Screen") -> int:
    from importlib import import_module

    from mrp.cli.parser import VERBS, read
    from mrp.specs.errors import UsageError

    arguments = read(words)
    screen.json, screen.quiet, screen.verbose = arguments.json, arguments.quiet, arguments.verbose
    if not os.path.isdir(arguments.directory or "."):
        raise UsageError(f"-C {arguments.directory}: there is no such folder")
    os.chdir(arguments.directory or ".")
    code = import_module(f"mrp.cli.{VERBS[arguments.verb].module}").run(arguments, screen)
    assert isinstance(code, int)
    return code

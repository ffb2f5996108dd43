"""Entry of the command line: from words to an exit code, and from any error to a sentence.

0    ok, and held               3    policy or budget
1    a build or check failed    4    infrastructure, and mrp's own faults
2    the spec or the usage      130  interrupted
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrp.cli.screen import Screen
    from mrp.specs.errors import PolicyError, SpecError

INTERRUPTED = 130
INFRASTRUCTURE = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Nothing that mrp can explain leaves as an exception."""
    words = list(sys.argv[1:] if argv is None else argv)
    from mrp.cli.screen import Screen

    screen = Screen(json="--json" in words, verbose="-v" in words or "--verbose" in words)
    try:
        return _dispatch(words, screen)
    except KeyboardInterrupt:
        screen.error("interrupted")
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        return _explain(error, screen)


def _dispatch(words: list[str], screen: "Screen") -> int:
    from importlib import import_module

    from mrp.cli.parser import VERBS, read
    from mrp.specs.errors import UsageError

    arguments = read(words)
    screen.json, screen.quiet, screen.verbose = arguments.json, arguments.quiet, arguments.verbose
    folder = Path(arguments.directory)
    if not folder.is_dir():
        raise UsageError(f"-C {arguments.directory}: there is no such folder")
    os.chdir(folder)
    code = import_module(f"mrp.cli.{VERBS[arguments.verb].module}").run(arguments, screen)
    assert isinstance(code, int)
    return code


def _explain(error: Exception, screen: "Screen") -> int:
    """Print one error; returns its exit code."""
    from mrp.cache.errors import CacheError
    from mrp.specs.errors import MrpError, PolicyError, SpecError

    if isinstance(error, SpecError | PolicyError):
        text, code = _with_count(error), error.exit_code
    elif isinstance(error, MrpError):
        text, code = f"error: {error}", error.exit_code
    elif isinstance(error, CacheError):
        text, code = f"error: {error}", INFRASTRUCTURE
    elif isinstance(error, BrokenPipeError):
        return 0
    elif isinstance(error, OSError) and error.strerror:
        text, code = f"error: {_os_sentence(error)}", INFRASTRUCTURE
        if screen.verbose:
            _print_traceback(error)
    else:
        text, code = f"error: {_bug(error, screen)}", INFRASTRUCTURE
    screen.error(text)
    if screen.json:
        screen.document(_document(error, text, code))
    return code


def _with_count(error: "SpecError | PolicyError") -> str:
    count = len(error.diagnostics)
    return f"{error}\n{count} error{'s' if count != 1 else ''}; nothing was executed"


def _os_sentence(error: OSError) -> str:
    """What the operating system refused, with the path and the next step where one is known."""
    import errno

    where = f"{error.filename}: " if error.filename else ""
    steps = {
        errno.ENOSPC: "; free some space (`mrp cache gc` may help) and run the same command again",
        errno.EDQUOT: "; free some space (`mrp cache gc` may help) and run the same command again",
        errno.EACCES: "; make it readable and writable for this user, or set MRP_CACHE to another folder",
        errno.EPERM: "; make it readable and writable for this user, or set MRP_CACHE to another folder",
        errno.EROFS: "; the file system is read-only: set MRP_CACHE to a writable folder",
        errno.EMFILE: "; raise the limit on open files (ulimit -n) or lower -j",
        errno.ENOMEM: "; lower -j",
    }
    return f"{where}{(error.strerror or str(error)).lower()}{steps.get(error.errno or 0, '')}"


def _bug(error: Exception, screen: "Screen") -> str:
    """A fault of mrp's own: one line, and where the traceback is."""
    head = f"mrp has a bug: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    if screen.verbose:
        _print_traceback(error)
        return head
    path = _write_crash(error)
    return f"{head}; the traceback is in {path}" if path is not None else f"{head}; run again with -v for the traceback"


def _print_traceback(error: Exception) -> None:
    import traceback

    traceback.print_exception(error, file=sys.stderr)


def _write_crash(error: Exception) -> Path | None:
    import traceback

    text = "".join(traceback.format_exception(error))
    for folder in (*(parent / ".mrp" for parent in (Path.cwd(), *Path.cwd().parents)), _temporary()):
        if folder.is_dir():
            path = folder / f"crash-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
            try:
                path.write_text(f"{' '.join(sys.argv)}\n{sys.version}\n\n{text}")
            except OSError:
                continue
            return path
    return None


def _temporary() -> Path:
    import tempfile

    return Path(tempfile.gettempdir())


def _document(error: Exception, text: str, code: int) -> dict[str, object]:
    """The JSON document that stands for an error."""
    found: dict[str, object] = {"type": type(error).__name__, "message": text.removeprefix("error: ")}
    if isinstance(diagnostics := getattr(error, "diagnostics", None), list):
        found["diagnostics"] = [
            {
                "path": d.span.path,
                "line": d.span.line,
                "column": d.span.column,
                "message": d.message,
                "hint": d.hint,
            }
            for d in diagnostics
        ]
    return {"status": "error", "error": found, "exit_code": code}

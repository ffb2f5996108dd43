"""From any error to a sentence on the screen and an exit code. Loaded when something went wrong."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrp.cli.screen import Screen
    from mrp.specs.errors import PolicyError, SpecError

_INFRASTRUCTURE = 4


def explain(error: Exception, screen: "Screen") -> int:
    """Print one error; returns its exit code."""
    from mrp.cache.errors import CacheError
    from mrp.specs.errors import MrpError, PolicyError, SpecError

    if isinstance(error, SpecError | PolicyError):
        text, code = _with_count(error), error.exit_code
    elif isinstance(error, MrpError):
        text, code = f"error: {error}", error.exit_code
    elif isinstance(error, CacheError):
        text, code = f"error: {error}", _INFRASTRUCTURE
    elif isinstance(error, BrokenPipeError):
        return 0
    elif isinstance(error, OSError) and error.strerror:
        text, code = f"error: {_os_sentence(error)}", _INFRASTRUCTURE
        if screen.verbose:
            _print_traceback(error)
    else:
        text, code = f"error: {_bug(error, screen)}", _INFRASTRUCTURE
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

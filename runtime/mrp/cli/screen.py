"""The two streams that the command line writes to: answers on stdout, everything else on stderr.

With --json the only thing on stdout is one JSON document. A reader that goes away (`mrp log | head`) ends the
output and nothing else: a build goes on, and the exit code stays what it is.
"""

import os
import sys
from decimal import Decimal
from typing import TextIO

from mrp.cache.canonical import Json, canonical_text
from mrp.specs.errors import InfraError


class Screen:
    """Where a verb's words go. `quiet` leaves out what is not an answer or an error; `verbose` shows more."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self.verbose = verbose
        for stream in (sys.stdout, sys.stderr):
            _never_fail_to_encode(stream)

    @property
    def live(self) -> bool:
        """Whether stderr is a terminal that can redraw itself."""
        return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")

    def answer(self, text: str) -> None:
        """A line, or several, that the user asked for: stdout, or stderr when stdout holds JSON."""
        _write(sys.stderr if self.json else sys.stdout, text)

    def note(self, text: str) -> None:
        """Something worth knowing that is no answer: stderr, and nothing with -q."""
        if not self.quiet:
            _write(sys.stderr, text)

    def error(self, text: str) -> None:
        """Something wrong: stderr, always."""
        _write(sys.stderr, text)

    def document(self, value: Json) -> None:
        """The one JSON document of --json."""
        _write(sys.stdout, canonical_text(_exact(value)))


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text if text.endswith("\n") else text + "\n")
        stream.flush()
    except BrokenPipeError:
        _give_up(stream)
    except OSError as error:
        _give_up(stream)
        name = "standard output" if stream is sys.stdout else "standard error"
        reason = (error.strerror or str(error)).lower()
        raise InfraError(f"cannot write to {name}: {reason}; make room where it goes", retryable=False) from None


def _give_up(stream: TextIO) -> None:
    """Send what is still to come to nowhere, so that neither a later write nor Python's last flush fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _never_fail_to_encode(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _exact(value: Json) -> Json:
    """`value` with binary floats (seconds of a clock) as the decimals that they print as."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    return value

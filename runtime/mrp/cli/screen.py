"""The two streams that the command line writes to: answers on stdout, everything else on stderr.

With --json the only thing on stdout is one JSON document. A reader that goes away (`mrp log | head`) ends the
output and nothing else: a build goes on, and the exit code stays what it is.
"""

import os
import sys
from collections.abc import Iterator
from decimal import Decimal
from typing import TextIO

from mrp.cache.canonical import Json, canonical_text
from mrp.specs.errors import InfraError

_CHUNK = 2**16


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
        """The one JSON document of --json; an iterator in it is written as an array, as its values come."""
        chunk: list[str] = []
        size = 0
        for part in _parts(value):
            chunk.append(part)
            size += len(part)
            if size >= _CHUNK:
                _write(sys.stdout, "".join(chunk), end="")
                chunk, size = [], 0
        _write(sys.stdout, "".join(chunk))


class Spelled(str):
    """Canonical JSON text, which stands for its value in a document."""


def _parts(value: Json) -> Iterator[str]:
    """The canonical text of `value`, bit by bit."""
    if isinstance(value, Spelled):
        yield value
    elif isinstance(value, Iterator):
        separator = "["
        for item in value:
            yield separator + (item if isinstance(item, Spelled) else canonical_text(_exact(item)))
            separator = ","
        yield "[]" if separator == "[" else "]"
    elif isinstance(value, dict) and value:
        separator = "{"
        for key in sorted(value):
            yield f"{separator}{canonical_text(key)}:"
            yield from _parts(value[key])
            separator = ","
        yield "}"
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        separator = "["
        for item in value:
            yield separator
            yield from _parts(item)
            separator = ","
        yield "]"
    else:
        yield canonical_text(_exact(value))


def _write(stream: TextIO, text: str, end: str = "\n") -> None:
    try:
        stream.write(text if text.endswith(end) else text + end)
        stream.flush()
    except OSError as error:
        could_not_write(stream, error)


def could_not_write(stream: TextIO, error: OSError) -> None:
    """What follows when a stream cannot be written to: nothing where its reader went away, else an InfraError."""
    _give_up(stream)
    if isinstance(error, BrokenPipeError):
        return
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

"""What happened in a run, read from its events.jsonl block by block: only the events that are asked for are parsed.

The log may be damaged or end in half a line: what is no event is passed over, as `mrp.runtime.events` says.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from mrp.cache.canonical import Json, canonical_text
from mrp.runtime.recorded import TEXT, Place

_BLOCK = 2**18

_FINISHED = re.compile(
    rb'\{"at":[^,]*,"cached":(\w+),"item":%b,"key":"\w*","kind":%b,"label":%b,"outcome":"\w*","reason":"[^"\\]*",'
    rb'"type":"ItemFinished",[^{}]*\}' % ((TEXT,) * 3)
)
_IS_FINISHED = b'"type":"ItemFinished"'
_IS_FAILED = b'"type":"AttemptFailed"'


@dataclass(frozen=True)
class Executed:
    """The actions that a run executed, by the hash of their places: a word each, whatever they are called."""

    _hashes: set[int]

    def __contains__(self, place: Place) -> bool:
        return hash(place) in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)


@dataclass
class RunLog:
    """The log at `path`, which may be absent: then nothing is known. `parsed` counts the lines that were parsed."""

    path: Path
    parsed: int = 0

    def started(self) -> Decimal | None:
        """When the run's first event was written, in seconds of the clock; None when that is not known."""
        for line in self._lines():
            event = self._event(line)
            if "at" in event:
                return Decimal(event["at"])
        return None

    def executed(self, target: str | None = None, item: str | None = None) -> Executed:
        """What was executed: all of it, or that of a target and its cells, or of one item of those."""
        words = [_IS_FINISHED]
        if target is not None:
            words.append(f'"label":{canonical_text(target)[:-1]}'.encode())
        if item is not None:
            words.append(f'"item":{canonical_text(item)},'.encode())
        hashes = set()
        for line in self._lines(*words):
            match = _FINISHED.fullmatch(line)
            if match is None:
                place = self._executed_place(line)
                if place is not None:
                    hashes.add(hash(place))
                continue
            self.parsed += 1
            cached, named, kind, label = match.groups()
            if cached == b"false":
                hashes.add(hash((label, named, kind)))
        return Executed(hashes)

    def failed_attempts(self) -> Iterator[dict[str, Json]]:
        """The attempts that infrastructure failed, oldest first."""
        for line in self._lines(_IS_FAILED):
            event = self._event(line)
            if event.keys() >= {"at", "label", "item", "kind", "attempt", "reason"}:
                yield event

    def _executed_place(self, line: bytes) -> Place | None:
        """The place of the action that a line says was executed, None for one that was cached or is no event."""
        event = self._event(line)
        if event.get("type") != "ItemFinished" or event.get("cached") or not event.keys() >= {"label", "item", "kind"}:
            return None
        return Place(str(event["label"]).encode(), str(event["item"]).encode(), str(event["kind"]).encode())

    def _event(self, line: bytes) -> dict[str, Json]:
        self.parsed += 1
        with suppress(ValueError):
            event = json.loads(line, parse_float=Decimal)
            if isinstance(event, dict):
                return event
        return {}

    def _lines(self, *words: bytes) -> Iterator[bytes]:
        """The whole lines that hold all of `words`."""
        rest = b""
        with suppress(OSError), self.path.open("rb") as file:
            while block := file.read(_BLOCK):
                whole, newline, rest_of_block = (rest + block).rpartition(b"\n")
                rest = rest_of_block
                if not newline or not all(word in whole for word in words):
                    continue
                lines = whole.split(b"\n")
                for word in words:
                    lines = [line for line in lines if word in line]
                yield from lines

"""JSON files: an array with a row a line, or JSON lines where the path ends in `.jsonl`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from mrp.cache.canonical import Json, canonical_text


@dataclass(frozen=True)
class JsonCodec:
    """`lines`: JSON lines instead of an array."""

    lines: bool

    def encode(self, rows: Sequence[Json]) -> bytes:
        texts = [canonical_text(row) for row in rows]
        if self.lines:
            return "".join(f"{text}\n" for text in texts).encode()
        return ("[\n" + ",\n".join(texts) + "\n]\n" if texts else "[]\n").encode()

    def decode(self, data: bytes) -> list[Json]:
        if self.lines:
            return [json.loads(line, parse_float=Decimal) for line in data.splitlines() if line.strip()]
        rows = json.loads(data, parse_float=Decimal)
        if not isinstance(rows, list):
            raise ValueError("it holds no JSON array; move it away or use mode replace")
        return rows

    def join(self, held: list[Json], added: list[Json]) -> list[Json]:
        return [*held, *added]

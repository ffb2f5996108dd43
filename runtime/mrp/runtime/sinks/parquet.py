"""Parquet files; columns and types as mrp.rules.tables makes them, objects flattened to dotted columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mrp.cache.canonical import Json, canonical_text
from mrp.rules.tables import flatten, load_pyarrow, to_parquet


@dataclass(frozen=True)
class ParquetCodec:
    """Needs pyarrow; without it InfraError says what to install."""

    def encode(self, rows: Sequence[Json]) -> bytes:
        for row in rows:
            if not isinstance(row, Mapping):
                raise ValueError(f"a parquet sink takes rows that are objects, not {type(row).__name__}")
        return to_parquet(rows)

    def decode(self, data: bytes) -> list[Json]:
        arrow, parquet = load_pyarrow()
        try:
            rows = parquet.read_table(arrow.BufferReader(data), use_threads=False).to_pylist()
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"it is no Parquet file ({error}); move it away or use mode replace") from None
        return [{name: _exact(value) for name, value in row.items() if value is not None} for row in rows]

    def join(self, held: list[Json], added: list[Json]) -> list[Json]:
        """Columns keep their type: what joins a text column becomes JSON text, other changes of type are refused."""
        kinds: dict[str, str] = {}
        for row in held:
            for name, value in row.items():
                kinds.setdefault(name, _kind(value))
        return [*held, *({n: _fitting(n, v, kinds.get(n)) for n, v in flatten(row).items()} for row in added)]


def _exact(value: Any) -> Json:
    return Decimal(repr(value)) if isinstance(value, float) else value


def _kind(value: Json) -> str:
    if isinstance(value, bool):
        return "booleans"
    if isinstance(value, int | Decimal):
        return "numbers"
    return "text"


def _fitting(name: str, value: Json, kind: str | None) -> Json:
    if value is None or kind is None or (_kind(value) == kind and not isinstance(value, list | tuple)):
        return value
    if kind == "text":
        return canonical_text(value)
    raise ValueError(f"its column {name!r} holds {kind}, and a new row holds {canonical_text(value)[:40]} there")

"""Writes: the files that a producer asks for, as lines {path, text} or {path, base64} of its writes.jsonl."""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import PurePosixPath

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.specs.errors import BuildFailed, safe_relative


def read_lines(blob: Digest, store: Store, label: str) -> Iterator[Json]:
    """The JSON values of a blob of lines; raises BuildFailed for a line that is none."""
    for number, line in enumerate(store.get_bytes(blob).splitlines(), start=1):
        try:
            yield json.loads(line, parse_float=Decimal)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise BuildFailed(f"line {number} that {label} wrote is not valid JSON: {error}") from None


def is_write(row: Json) -> bool:
    """Whether a line is a file, not a row of its own."""
    return isinstance(row, Mapping) and "path" in row and ("text" in row or "base64" in row)


def written_files(rows: list[Json], label: str) -> dict[str, bytes]:
    """Path -> bytes of a producer's rows, {path, text} or {path, base64}; raises BuildFailed for anything else."""
    files: dict[str, bytes] = {}
    for number, row in enumerate(rows, start=1):
        path = row.get("path") if isinstance(row, Mapping) else None
        if not isinstance(path, str):
            raise BuildFailed(f"{label} gives rows, and a files sink takes files; name a `producer` that makes files")
        if safe_relative(path) is None or str(safe_relative(path)) != path:
            raise BuildFailed(f"write {number} of {label} has the path {path!r}; use a plain relative path")
        if path in files:
            raise BuildFailed(f"{label} writes {path} twice")
        files[path] = _data(row, number, label)
    for path in files:
        inside = next((str(folder) for folder in PurePosixPath(path).parents if str(folder) in files), None)
        if inside is not None:
            raise BuildFailed(f"{label} writes {inside} as a file and as the folder of {path}")
    return files


def _data(row: Mapping[str, Json], number: int, label: str) -> bytes:
    text, encoded = row.get("text"), row.get("base64")
    try:
        if isinstance(text, str):
            return text.encode()
        if isinstance(encoded, str):
            return base64.b64decode(encoded, validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise BuildFailed(f"write {number} of {label} cannot be decoded: {error}") from None
    raise BuildFailed(f"write {number} of {label} has neither text nor base64")

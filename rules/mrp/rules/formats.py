"""Formats: the bytes of a dataset's files as rows, with every fault of every row found before any is used.

Numbers are exact decimals; what has no exact or no single reading (NaN, a repeated key, a ragged line, bytes that are
no UTF-8) is refused with its place.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any, BinaryIO

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.rules.views import Row
from mrp.specs.errors import BuildFailed, Diagnostic, Span
from mrp.specs.ir import DatasetTask

MAX_FILE = 4 * 2**30
"""Bytes of one file, unpacked, beyond which it is refused: all rows are held in memory at once."""

_ENDINGS = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "parquet": (".parquet",),
    "text": (".txt", ".text"),
}
_PACKED = (".gz", ".zst")
_SPACE = " \t\r\n"
_CHUNK = 2**20
_ZSTD_STEP = 4096

Faults = list[Diagnostic]


class BadData(ValueError):
    """A fault in a file: `line` and `column` count from 1, `source` is the text of that line."""

    def __init__(self, message: str, line: int = 1, column: int = 1, source: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.line, self.column, self.source, self.hint = line, column, source, hint

    def diagnostic(self, path: str) -> Diagnostic:
        """The fault as an error in file `path`."""
        return Diagnostic(Span(path, self.line, self.column), str(self), self.hint, self.source)


def read_rows(
    task: DatasetTask, sources: Mapping[str, tuple[Digest, bool]], store: Store
) -> tuple[list[Row], list[Diagnostic]]:
    """The rows of a dataset's files, by path and line, and all that is wrong with them.

    `sources` maps a path to the digest and executable bit of a file in `store`. Of a download that has several files
    only those with an ending of the format are read; raises BuildFailed when there is none.
    """
    rows: list[Row] = []
    faults: Faults = []
    for path in chosen_files(task, sorted(sources)):
        try:
            rows.extend(_READERS[task.format](path, unpacked(path, sources[path][0], store), faults))
        except BadData as fault:
            faults.append(fault.diagnostic(path))
    return rows, faults


def json_object(data: bytes) -> dict[str, Json]:
    """`data` as one JSON object, read as strictly as rows are; raises BadData."""
    text = decode_text(data)
    value, end = _json_value(text, _skip_space(text, 0))
    if (rest := _skip_space(text, end)) < len(text):
        raise _at(text, rest, "more follows the JSON value")
    if not isinstance(value, dict):
        raise BadData(f"a JSON object is expected, not {_kind(value)}")
    return value


def chosen_files(task: DatasetTask, paths: list[str]) -> list[str]:
    """Those of `paths` that hold records; raises BuildFailed when a download has none."""
    if task.fetch is None or len(paths) == 1:
        return paths
    endings = _ENDINGS[task.format]
    packed = tuple(ending + suffix for ending in endings for suffix in ("", *_PACKED))
    chosen = [path for path in paths if path.endswith(packed)]
    if not chosen:
        raise BuildFailed(
            f"the download of {task.label} has no {task.format} file ({', '.join(endings)}); set `format` to what it is"
        )
    return chosen


def unpacked(path: str, digest: Digest, store: Store) -> bytes:
    """The bytes of a file, unpacked when its name says that it is packed; raises BadData."""
    size = store.size(digest)
    if size > MAX_FILE:
        raise _too_large()
    if not path.endswith(_PACKED):
        return store.get_bytes(digest)
    if size == 0:
        raise BadData("is empty, which no packed file is")
    unpack = _gunzipped if path.endswith(".gz") else _unzstded
    parts, length = [], 0
    with store.open_blob(digest) as packed:
        for part in unpack(packed):
            parts.append(part)
            length += len(part)
            if length > MAX_FILE:
                raise _too_large()
    return b"".join(parts)


def _gunzipped(packed: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.open(packed) as stream:
            while part := stream.read(_CHUNK):
                yield part
    except gzip.BadGzipFile as error:
        raise BadData("cannot be unpacked: it is no gzip file, or a damaged one") from error
    except EOFError as error:
        raise BadData("cannot be unpacked: it ends too early") from error
    except zlib.error as error:
        raise BadData("cannot be unpacked: it is damaged") from error


def _unzstded(packed: BinaryIO) -> Iterator[bytes]:
    """The frames of a file, which must be whole. A step of input is small, since it may become 30,000 times as much."""
    try:
        import zstandard
    except ImportError:
        raise BadData("reading .zst needs zstandard", hint="pip install 'mrp-build[zstd]'") from None
    frame = None
    try:
        while waiting := packed.read(_ZSTD_STEP):
            while waiting:
                if frame is None:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(waiting)
                waiting = b""
                if frame.eof:
                    waiting, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise BadData(f"cannot be unpacked: {error}") from error
    if frame is not None:
        raise BadData("cannot be unpacked: it ends too early")


def _too_large() -> BadData:
    return BadData(f"is larger than {MAX_FILE} bytes; split it into several files")


# -- text, JSON --------------------------------------------------------------------------------------------------


def decode_text(data: bytes) -> str:
    """`data` as UTF-8, without a byte order mark; raises BadData at the first byte that is none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        column = len(data[start : error.start].decode("utf-8", "replace")) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        line, end = data.count(b"\n", 0, error.start) + 1, data.find(b"\n", error.start)
        source = data[start : end if end >= 0 else len(data)].decode("utf-8", "replace").rstrip("\r")
        raise BadData(message, line, column, source, "save the file as UTF-8") from None


def _jsonl_rows(path: str, data: bytes, faults: Faults) -> Iterator[Row]:
    for number, line in enumerate(decode_text(data).split("\n"), 1):
        if _skip_space(line, 0) == len(line):
            continue
        try:
            yield Row(path, number, line_fields(line))
        except BadData as fault:
            fault.line = number
            faults.append(fault.diagnostic(path))


def line_fields(line: str) -> dict[str, Json]:
    """The fields of the record that stands on a line of its own; raises BadData."""
    value, end = _json_value(line, _skip_space(line, 0))
    if (rest := _skip_space(line, end)) < len(line):
        raise _at(line, rest, "more follows the JSON value; write one record a line")
    return _fields(value)


def _json_rows(path: str, data: bytes, faults: Faults) -> Iterator[Row]:
    """A list of objects, or an object of id -> object; read element by element, so that each has its line."""
    text = decode_text(data)
    position = _skip_space(text, 0)
    opening = text[position : position + 1]
    if opening not in ("[", "{") or not opening:
        raise _at(text, position, "a list of objects is expected, or an object of id -> object")
    closing = {"[": "]", "{": "}"}[opening]
    line, counted = 1, 0
    position = _skip_space(text, position + 1)
    if text[position : position + 1] != closing:
        while True:
            line, counted = line + text.count("\n", counted, position), position
            identity = None
            if opening == "{":
                identity, position = _json_value(text, position)
                if not isinstance(identity, str):
                    raise _at(text, counted, "a record's id in double quotes is expected")
                position = _expect(text, position, ":")
            value, position = _json_value(text, position)
            try:
                yield Row(path, line, _fields(value), identity)
            except BadData as fault:
                fault.line = line
                faults.append(fault.diagnostic(path))
            position = _skip_space(text, position)
            if text[position : position + 1] == closing:
                break
            position = _expect(text, position, ",")
    if (rest := _skip_space(text, position + 1)) < len(text):
        raise _at(text, rest, "more follows the JSON value")


def _text_rows(path: str, data: bytes, faults: Faults) -> Iterator[Row]:
    """Each line that is not blank is a record with the one field `text`."""
    for number, line in enumerate(decode_text(data).split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip():
            yield Row(path, number, {"text": line})


def _fields(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise BadData(f"a record must be a JSON object, not {_kind(value)}")
    return value


def _json_value(text: str, position: int) -> tuple[Json, int]:
    """The JSON value at `position` and where it ends; raises BadData."""
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise _broken(text, error) from None
    except StopIteration:
        raise _at(text, position, "is not valid JSON: a value is expected") from None
    except RecursionError:
        raise _at(text, position, "is nested too deeply") from None
    except ArithmeticError:
        raise _at(text, position, "holds a number whose exponent is too large") from None
    except _NotFinite as fault:
        raise _at(text, _word_at(text, position, str(fault)), f"{fault} is not a JSON number; {_FINITE}") from None
    except BadData as fault:
        raise _at(text, position, str(fault)) from None
    except ValueError:
        raise _at(text, position, "holds a number that is too long; write it as text") from None


def _broken(text: str, error: json.JSONDecodeError) -> BadData:
    """The fault as all Pythons tell it: newer ones point at a comma before a bracket, older ones at the bracket."""
    if not error.msg.startswith("Illegal trailing comma"):
        return _at(text, error.pos, f"is not valid JSON: {error.msg}")
    wanted = "property name enclosed in double quotes" if error.msg.endswith("object") else "value"
    return _at(text, _skip_space(text, error.pos + 1), f"is not valid JSON: Expecting {wanted}")


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise BadData(f"the key {name!r} stands twice in one object")
            seen.add(name)
    return value


class _NotFinite(Exception):
    """A word that Python reads as a number and JSON does not know."""


_FINITE = "write null, or a finite number"


def _refuse_constant(word: str) -> Json:
    raise _NotFinite(word)


def _word_at(text: str, position: int, word: str) -> int:
    """Where `word` stands first from `position` on, outside of texts in quotes."""
    for found in re.compile(rf'"(?:[^"\\]|\\.)*"|{re.escape(word)}').finditer(text, position):
        if found[0] == word:
            return found.start()
    return position


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=Decimal, parse_constant=_refuse_constant)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _expect(text: str, position: int, character: str) -> int:
    position = _skip_space(text, position)
    if text[position : position + 1] != character:
        raise _at(text, position, f"is not valid JSON: {character!r} is expected")
    return _skip_space(text, position + 1)


def _at(text: str, position: int, message: str) -> BadData:
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    source = text[start : end if end >= 0 else len(text)].rstrip("\r")
    return BadData(message, text.count("\n", 0, position) + 1, position - start + 1, source)


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else "a number"


# -- CSV, Parquet ------------------------------------------------------------------------------------------------


def _csv_rows(path: str, data: bytes, faults: Faults) -> Iterator[Row]:
    """The first row names the fields; all values are text."""
    text = decode_text(data)
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise BadData(f"is not valid CSV: {error}", line) from None
        if header is None and values:
            header = _header(values, line)
        elif header is not None and values:
            if len(values) == len(header):
                yield Row(path, line, dict(zip(header, values, strict=True)))
            else:
                fault = BadData(f"the header names {len(header)} fields, and this row has {len(values)}", line)
                faults.append(fault.diagnostic(path))
        line = reader.line_num + 1
    if header is None:
        raise BadData("has no header row; the first row must name the fields")


def _header(names: list[str], line: int) -> list[str]:
    for name in names:
        if not name:
            raise BadData("the header has a field without a name", line)
        if names.count(name) > 1:
            raise BadData(f"the header names {name!r} twice", line)
    return names


def _parquet_rows(path: str, data: bytes, faults: Faults) -> Iterator[Row]:
    """The line of a row is its number in the file. Doubles are read as the shortest decimal that names them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadData("reading parquet needs pyarrow", hint="pip install 'mrp-build[parquet]'") from None
    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise BadData("has two columns of one name")
        for batch in file.iter_batches(use_threads=False):
            for values in batch.to_pylist():
                number += 1
                try:
                    yield Row(path, number, {name: _plain(name, value) for name, value in values.items()})
                except BadData as fault:
                    fault.line = number
                    faults.append(fault.diagnostic(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise BadData(f"cannot be read as parquet: {error}", number + 1) from error


def _plain(name: str, value: Any) -> Json:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        value = Decimal(repr(value))
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise BadData(f"{value} in column {name!r} is not a finite number")
        return value
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(name, item) for key, item in value.items()}
    raise BadData(
        f"column {name!r} holds {type(value).__name__}, which has no JSON form", hint="leave it out, or make it text"
    )


_READERS: dict[str, Callable[[str, bytes, Faults], Iterator[Row]]] = {
    "jsonl": _jsonl_rows,
    "json": _json_rows,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
    "text": _text_rows,
}

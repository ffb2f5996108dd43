"""JSON lines, one after the other: each becomes its trees, or is remembered to have, and is let go of.

This is the way of datasets with which nothing is wrong. Whatever is not as it should be in any row, or between rows,
is left to mrp.rules.records, which holds all rows at once and words each fault; so the two cannot tell different
things, and this one stays short.
"""

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO

from blake3 import blake3

from mrp.cache.canonical import canonical_text
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.rules.formats import BadData, chosen_files, line_fields, unpacked
from mrp.rules.identity import part_of, record_id
from mrp.rules.record import PublicFields, Record, Trees, TreeWriter
from mrp.rules.record_schema import RecordSchema
from mrp.rules.row_memo import KnownRow, RowMemo, row_key, row_memo
from mrp.rules.views import Row, Views
from mrp.specs.ir import DatasetTask

_SPACE = b" \t\r\n"
_MARK = b"\xef\xbb\xbf"
_NO_VALUES = bytes(16)
_BATCH = 2000
"""Remembered rows whose trees are looked for in the store at once."""


class Unusual(Exception):
    """Something is not as it should be, or cannot be told here."""


def read_rowwise(
    task: DatasetTask,
    sources: Mapping[str, tuple[Digest, bool]],
    store: Store,
    views: Views,
    *,
    remember: bool,
    thorough: bool,
) -> tuple[tuple[Record, ...], list[Sequence[str]], RowMemo]:
    """The records of a dataset of JSON lines, sorted by id, and the different lists of field names that rows have.

    The memo is to be saved once the trees are on the disk. Takes what mrp.rules.records.read_records does. Raises
    Unusual.
    """
    reader = _Reader(task, store, views, remember=remember, thorough=thorough)
    for path in chosen_files(task, sorted(sources)):
        try:
            data = unpacked(path, sources[path][0], store)
        except BadData as fault:
            raise Unusual from fault
        reader.read(path, data)
    return reader.records(), reader.shapes(), reader.memo


class _Reader:
    def __init__(self, task: DatasetTask, store: Store, views: Views, *, remember: bool, thorough: bool) -> None:
        self._task, self._store, self._views = task, store, views
        self._thorough = thorough
        self._writer = TreeWriter(store)
        self.memo = row_memo(task, store) if remember else RowMemo(None)
        self._schema = _schema(task, store)
        self._where = None
        if task.where is not None:
            from mrp.specs.expressions import parse_expression

            self._where = parse_expression(task.where)
        self._records: dict[str, Record | None] = {}
        self._values: dict[str, bytes] = {}
        self._shapes: set[int] = set()

    def read(self, path: str, data: bytes) -> None:
        """All rows of a file."""
        known: list[tuple[int, bytes, KnownRow]] = []
        for number, line in _lines(data):
            key = row_key(line)
            row = self.memo.get(key)
            if row is None:
                row = self._new(path, number, line)
                self.memo.put(key, row)
                self._add(path, number, row)
                continue
            known.append((number, line, row))
            if len(known) == _BATCH:
                self._add_known(path, known)
                known = []
        self._add_known(path, known)

    def records(self) -> tuple[Record, ...]:
        """What stays of all rows."""
        order = sorted(self._records)
        if self._task.dedupe:
            seen: set[bytes] = set()
            distinct = []
            for identity in order:
                values = self._values.get(identity)
                if values is not None and values not in seen:
                    seen.add(values)
                    distinct.append(identity)
            order = distinct
        records = tuple([record for identity in order if (record := self._records[identity]) is not None])
        if records:
            # The one tree that no row names as its own.
            self._store.put_tree({})
        return records

    def shapes(self) -> list[Sequence[str]]:
        """The lists of field names that occur."""
        return [self.memo.shapes[number] for number in sorted(self._shapes)]

    def _add_known(self, path: str, known: list[tuple[int, bytes, KnownRow]]) -> None:
        missing: set[Digest] = set()
        if self._thorough:
            missing = self._store.missing({digest for _, _, row in known for digest in row.objects})
        for number, line, row in known:
            if missing and not missing.isdisjoint(row.objects):
                # Made again from the row itself.
                row = self._new(path, number, line)
            self._add(path, number, row)

    def _add(self, path: str, number: int, row: KnownRow) -> None:
        identity, shape, kept, values, trees, _ = row
        if identity in self._records:
            raise Unusual
        self._shapes.add(shape)
        record = None
        if trees is not None:
            public = PublicFields(trees[0], self._store)
            record = Record(identity, *trees, origin=f"{path}:{number}", public=public)
        self._records[identity] = record
        if kept and self._task.dedupe:
            self._values[identity] = values

    def _new(self, path: str, number: int, line: bytes) -> KnownRow:
        """A row, read, checked and split."""
        task = self._task
        try:
            fields = line_fields(line.decode())
            if self._schema is not None and any(True for _ in self._schema.faults(fields)):
                raise Unusual
            row = Row(path, number, fields)
            identity = record_id(task, row, self._views)
            named = {"id": identity, **fields} if self._where is not None or task.dedupe else fields
            kept = self._where is None or self._where.holds(named)
            values = _NO_VALUES
            if kept and task.dedupe:
                text = canonical_text([named.get(name) for name in task.dedupe])
                values = blake3(text.encode()).digest(length=len(_NO_VALUES))
            trees: Trees | None = None
            objects: tuple[Digest, ...] = ()
            if kept and (task.take is None or part_of(identity, task.split) == task.take):
                trees = self._writer.views(self._views.split(row, identity))
                objects = tuple(dict.fromkeys(self._writer.written))
                self._writer.written.clear()
            return KnownRow(identity, self.memo.shape(fields), kept, values, trees, objects)
        except (ValueError, RecursionError) as error:
            raise Unusual from error


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, without the space around them, and their numbers."""
    for number, line in enumerate(BytesIO(data.removeprefix(_MARK)), 1):
        line = line.strip(_SPACE)
        if line:
            yield number, line


def _schema(task: DatasetTask, store: Store) -> RecordSchema | None:
    if task.schema is None:
        return None
    try:
        return RecordSchema(store.get_bytes(task.schema.digest))
    except BadData as fault:
        raise Unusual from fault

"""Records: a dataset's rows and folders, each known by its id and by the digests of what each party may see of it.

A record's trees depend on its own content alone. So editing one row changes one record, and the order of rows, which
enters nothing, changes none.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from mrp.cache.canonical import Json, canonical_text
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.rules.folders import read_folders
from mrp.rules.formats import BadData, read_rows
from mrp.rules.identity import part_of, record_id
from mrp.rules.record import PublicFields, Record, TreeWriter
from mrp.rules.record_schema import RecordSchema
from mrp.rules.row_memo import RowMemo
from mrp.rules.rowwise import Unusual, read_rowwise
from mrp.rules.views import FOLDER_FORMATS, RecordViews, Row, ViewError, Views, dataset_views
from mrp.specs.errors import Diagnostic, Span, SpecError
from mrp.specs.ir import DatasetTask
from mrp.specs.suggest import did_you_mean

__all__ = [
    "PublicFields",
    "Record",
    "concat_records",
    "dataset_meta",
    "index_records",
    "part_of",
    "read_index",
    "read_records",
    "write_index",
]

MAX_FAULTS = 50
"""Faults of one dataset that are reported one by one."""


def index_records(
    task: DatasetTask,
    sources: Mapping[str, tuple[Digest, bool]],
    store: Store,
    *,
    roots: Sequence[str] | None = None,
    remember: bool = True,
    thorough: bool = True,
) -> tuple[Record, ...]:
    """The records that `read_records` gives; their rows are remembered, for which what was stored is committed."""
    records, memo = read_records(task, sources, store, roots=roots, remember=remember, thorough=thorough)
    if memo is not None and memo.has_new():
        store.commit([])
        memo.save()
    return records


def read_records(
    task: DatasetTask,
    sources: Mapping[str, tuple[Digest, bool]],
    store: Store,
    *,
    roots: Sequence[str] | None = None,
    remember: bool = True,
    thorough: bool = True,
) -> tuple[tuple[Record, ...], RowMemo | None]:
    """The records of a dataset that has files, sorted by id in order of code points; their trees are in `store`.

    sources: path -> (digest, executable) of the files, which are in `store`, and so is the schema. roots: the folders
    that are records, instead of the task's own. Rows of JSON lines are answered for by what the same bytes came to
    before; the records are the same without, as with `remember` false. The memo of rows that is given back is to be
    saved after a commit. thorough: whether the trees of such rows are looked for in the store; false is for who makes
    the records anew once a tree turns out to be missing. Raises SpecError with all that is wrong with the files (the
    first 50 faults, and how many more there are); nothing names what was stored until then.
    """
    try:
        views = dataset_views(task)
    except ViewError as error:
        raise SpecError([Diagnostic(Span(task.label, 0, 0), str(error))]) from error
    if task.format == "jsonl":
        try:
            records, shapes, memo = read_rowwise(task, sources, store, views, remember=remember, thorough=thorough)
            if not shapes or not _unused(task, [_with_names(names) for names in shapes], views):
                return records, memo
        except Unusual:
            pass
    rows, faults = (
        read_folders(task, sources, store, task.roots if roots is None else roots)
        if task.format in FOLDER_FORMATS
        else read_rows(task, sources, store)
    )
    faults += _schema_faults(task, rows, store)
    named = _named(task, rows, views, faults)
    if not faults and rows:
        faults += [_at(rows[0], f"{message} ({task.label})", hint) for message, hint in _unused(task, rows, views)]
    _raise(task, faults)
    kept = _selected(task, named, lambda pair: {"id": pair[0], **pair[1].fields}, lambda pair: pair[0])
    split: list[tuple[str, Row, RecordViews]] = []
    for identity, row in kept:
        try:
            split.append((identity, row, views.split(row, identity)))
        except (ViewError, ValueError, RecursionError) as error:
            faults.append(_at(row, _view_fault(error)))
    _raise(task, faults)
    writer = TreeWriter(store)
    return tuple(writer.record(identity, row.origin, parts) for identity, row, parts in split), None


def concat_records(task: DatasetTask, lists: Sequence[Iterable[Record]]) -> tuple[Record, ...]:
    """The records of a dataset that is `of` others, sorted by id; `lists` goes with `task.of`.

    `where`, `dedupe` and `split` see the public fields and the id. Raises SpecError when two have one id.
    """
    first: dict[str, tuple[Record, str]] = {}
    faults: list[Diagnostic] = []
    for label, records in zip(task.of, lists, strict=True):
        for record in records:
            place = record.origin or label
            if record.id in first:
                message = f"the id {record.id!r} of {place} is already in {first[record.id][1]}"
                hint = "rename one, or leave one out with `where` in its own dataset"
                faults.append(Diagnostic(Span(task.label, 0, 0), message, hint))
            else:
                first[record.id] = (record, place)
    _raise(task, faults)
    records_by_id = [record for record, _ in first.values()]
    kept = _selected(task, records_by_id, lambda record: {"id": record.id, **record.public}, lambda record: record.id)
    return tuple(kept)


def write_index(records: Iterable[Record], store: Store) -> Digest:
    """Store the index of `records`: JSON lines sorted by id, with the digests of their trees.

    Where a record was read is left out, since a moved row is no change; trees that are empty or equal to `task` are
    left out to keep it small.
    """
    empty = store.put_tree({})
    lines = []
    for record in sorted(records, key=lambda record: record.id):
        task = record.task
        grader = f'"grader":"{record.grader}",' if record.grader != task else ""
        solution = f'"solution":"{record.solution}",' if record.solution != empty else ""
        solver = f'"solver":"{record.solver}",' if record.solver != task else ""
        starter = f'"starter":"{record.starter}",' if record.starter != empty else ""
        identity = f'"id":{canonical_text(record.id)},'
        lines.append(f'{{{grader}{identity}{solution}{solver}{starter}"task":"{task}"}}\n'.encode())
    return store.put_bytes(b"".join(lines))


def read_index(digest: Digest, store: Store) -> Iterator[Record]:
    """The records of an index, one after the other, in order of id; their `origin` is ""."""
    empty = store.put_tree({})
    with store.open_blob(digest) as lines:
        for text in lines:
            yield read_line(text, empty, store)


def read_line(text: bytes, empty: Digest, store: Store) -> Record:
    """The record of one line of an index; `empty` is the tree without entries."""
    line = json.loads(text)
    task, more = line["task"], line.get
    return Record(
        line["id"],
        task,
        more("starter", empty),
        more("grader", task),
        more("solver", task),
        more("solution", empty),
        origin="",
        public=PublicFields(task, store),
    )


def dataset_meta(task: DatasetTask, count: int, sources: Mapping[str, tuple[Digest, bool]]) -> dict[str, Json]:
    """The content of `_meta.json`: what is declared, what the download was pinned to, and how many records there are.

    downloaded_at and sha256 are null for datasets that were not downloaded.
    """
    fetch, declared = task.fetch, task.metadata
    source = declared.get("source")
    if source is None and fetch is not None:
        source = fetch.url or fetch.git or fetch.pypi or fetch.path
    if source is None and len(sources) == 1:
        (source,) = sources
    return {
        "source": source,
        "version": declared.get("version"),
        "license": declared.get("license"),
        "downloaded_at": fetch.downloaded_at if fetch is not None else None,
        "sha256": fetch.sha256 if fetch is not None else None,
        "num_records": count,
    }


# -- ids and faults ----------------------------------------------------------------------------------------------


def _named(task: DatasetTask, rows: Sequence[Row], views: Views, faults: list[Diagnostic]) -> list[tuple[str, Row]]:
    """Each row with its id; rows without a good id of their own are left out, and in `faults`."""
    first: dict[str, Row] = {}
    for row in rows:
        try:
            identity = record_id(task, row, views)
        except (BadData, ValueError, RecursionError) as error:
            faults.append(_at(row, _view_fault(error), getattr(error, "hint", "")))
            continue
        other = first.setdefault(identity, row)
        if other is row:
            continue
        if task.id is not None or row.natural_id is not None:
            faults.append(_at(row, f"the id {identity!r} is already that of {other.origin}", "make every id its own"))
        elif not (task.dedupe and row.fields == other.fields):
            message = f"agents see the same here as at {other.origin}, so both records have the id {identity}"
            faults.append(_at(row, message, "remove one, or give the records ids and name their field in `id`"))
    return list(first.items())


def _schema_faults(task: DatasetTask, rows: Sequence[Row], store: Store) -> list[Diagnostic]:
    if task.schema is None:
        return []
    try:
        schema = RecordSchema(store.get_bytes(task.schema.digest))
    except BadData as fault:
        return [fault.diagnostic(task.schema.path)]
    return [_at(row, fault, f"the schema is {task.schema.path}") for row in rows for fault in schema.faults(row.fields)]


def _unused(task: DatasetTask, rows: Sequence[Row], views: Views) -> list[tuple[str, str]]:
    """Names in the task that no record has: most likely misspelt, and a misspelt `private` would show all."""
    present: set[str] = set()
    for row in rows:
        present.update(row.fields)
    return views.unused(rows) + [
        (f"`dedupe` names the field {name!r}, which no record has", did_you_mean(name, present))
        for name in task.dedupe
        if name not in present
    ]


def _with_names(names: Sequence[str]) -> Row:
    """A row that has these fields, for those who look at names alone."""
    return Row("", 0, dict.fromkeys(names))


def _at(row: Row, message: str, hint: str = "") -> Diagnostic:
    return Diagnostic(Span(row.path, max(row.line, 1), 1), message, hint)


def _view_fault(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "holds half of a surrogate pair, which is no text"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return str(error)


def _raise(task: DatasetTask, faults: list[Diagnostic]) -> None:
    if not faults:
        return
    shown = sorted(set(faults), key=lambda fault: (fault.span, fault.message))
    more = len(shown) - MAX_FAULTS
    if more > 0:
        last = shown[MAX_FAULTS - 1]
        hint = f"and {more} more faults in {task.label}"
        shown = [*shown[: MAX_FAULTS - 1], Diagnostic(last.span, last.message, hint, last.source)]
    raise SpecError(shown)


# -- which records stay ------------------------------------------------------------------------------------------

_Kept = TypeVar("_Kept")


def _selected(
    task: DatasetTask,
    candidates: Iterable[_Kept],
    fields: Callable[[_Kept], Mapping[str, Json]],
    identity: Callable[[_Kept], str],
) -> list[_Kept]:
    """Those that `where`, `dedupe` and `split` leave, sorted by id."""
    kept = sorted(candidates, key=identity)
    if task.where is not None:
        from mrp.specs.expressions import parse_expression

        where = parse_expression(task.where)
        kept = [candidate for candidate in kept if where.holds(fields(candidate))]
    if task.dedupe:
        seen: set[str] = set()
        distinct = []
        for candidate in kept:
            values = fields(candidate)
            text = canonical_text([values.get(name) for name in task.dedupe])
            if text not in seen:
                seen.add(text)
                distinct.append(candidate)
        kept = distinct
    if task.take is not None:
        kept = [candidate for candidate in kept if part_of(identity(candidate), task.split) == task.take]
    return kept

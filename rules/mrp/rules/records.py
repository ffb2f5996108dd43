"""Records: a dataset's rows and folders, each known by its id and by the digests of what each party may see of it.

A record's trees depend on its own content alone. So editing one row changes one record, and the order of rows, which
enters nothing, changes none.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import TypeVar

from blake3 import blake3

from mrp.cache.canonical import Json, canonical_bytes, canonical_digest, canonical_text, number_text, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.rules.folders import read_folders
from mrp.rules.formats import BadData, read_rows
from mrp.rules.record_schema import RecordSchema
from mrp.rules.views import FOLDER_FORMATS, RECORD_FILE, Content, RecordViews, Row, ViewError, Views, dataset_views
from mrp.specs.errors import Diagnostic, Span, SpecError
from mrp.specs.ir import DatasetTask
from mrp.specs.suggest import did_you_mean

MAX_ID = 200
"""Characters of an id; it stands in labels, logs and file names."""

MAX_FAULTS = 50
"""Faults of one dataset that are reported one by one."""

_DIGITS_OF_ID = 16
_VIEWS = ("task", "starter", "grader", "solver", "solution")


class PublicFields(Mapping[str, Json]):
    """The fields of a record.json, read from the store when first looked at."""

    def __init__(self, tree: Digest, store: Store) -> None:
        self._tree, self._store = tree, store

    @cached_property
    def _fields(self) -> dict[str, Json]:
        entry = self._store.subtree(self._tree, RECORD_FILE)
        assert entry is not None and entry.digest is not None, "every view has a record.json"
        fields = parse_canonical(self._store.get_bytes(entry.digest))
        assert isinstance(fields, dict)
        return fields

    def __getitem__(self, name: str) -> Json:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


@dataclass(frozen=True)
class Record:
    """One record, by the digests of its trees.

    task: /task of agents. starter: /work. grader: /task of graders. solver: /task of agents that see solutions.
    solution: /solution. `origin` says where it was read (path:line or a folder), and is "" when that is not known.
    `public` are the fields that agents find in record.json.
    """

    id: str
    task: Digest
    starter: Digest
    grader: Digest
    solver: Digest
    solution: Digest
    origin: str = field(compare=False)
    public: Mapping[str, Json] = field(compare=False, repr=False)

    def trees(self) -> tuple[Digest, ...]:
        """The trees that must be in the store for this record to be used."""
        return (self.task, self.starter, self.grader, self.solver, self.solution)


def index_records(
    task: DatasetTask, sources: Mapping[str, tuple[Digest, bool]], store: Store, *, roots: Sequence[str] | None = None
) -> tuple[Record, ...]:
    """The records of a dataset that has files, sorted by id in order of code points; their trees are in `store`.

    sources: path -> (digest, executable) of the files, which are in `store`, and so is the schema. roots: the folders
    that are records, instead of the task's own. Raises SpecError with all that is wrong with the files (the first
    50 faults, and how many more there are); then nothing was stored.
    """
    try:
        views = dataset_views(task)
    except ViewError as error:
        raise SpecError([Diagnostic(Span(task.label, 0, 0), str(error))]) from error
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
    writer = _TreeWriter(store)
    return tuple(writer.record(identity, row.origin, parts) for identity, row, parts in split)


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
        line = {"id": record.id, "task": record.task}
        for view in _VIEWS[1:]:
            tree = getattr(record, view)
            if tree != _usual(view, record.task, empty):
                line[view] = tree
        lines.append(canonical_bytes(line) + b"\n")
    return store.put_bytes(b"".join(lines))


def read_index(digest: Digest, store: Store) -> Iterator[Record]:
    """The records of an index, one after the other, in order of id; their `origin` is ""."""
    empty = store.put_tree({})
    with store.open_blob(digest) as lines:
        for text in lines:
            line = json.loads(text)
            task = Digest(line["task"])
            trees = {view: Digest(line.get(view, _usual(view, task, empty))) for view in _VIEWS}
            yield Record(id=line["id"], origin="", public=PublicFields(task, store), **trees)


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
            identity = _id(task, row, views)
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


def _id(task: DatasetTask, row: Row, views: Views) -> str:
    """The id of a row: its `id` field, else its own name, else the digest of what agents see of it.

    What agents cannot see must not change an id, since they are told it: else a changed test would run them again.
    """
    if task.id is None:
        if task.generate is not None and task.generate.range is not None:
            return str(row.fields["id"])
        if row.natural_id is None:
            return canonical_digest(views.public(row))[:_DIGITS_OF_ID]
        identity: Json = row.natural_id
    elif task.id not in row.fields:
        hint = did_you_mean(task.id, row.fields)
        raise BadData(f"has no field {task.id!r}, which `id` of {task.label} names", hint=hint)
    else:
        identity = row.fields[task.id]
    if isinstance(identity, int | Decimal) and not isinstance(identity, bool):
        number = number_text(identity)
        identity = identity if "." in number or "e" in number else number
    if not isinstance(identity, str):
        raise BadData(f"the id {canonical_text(identity)[:MAX_ID]} must be text or a whole number")
    if not identity:
        raise BadData("the id is empty")
    if len(identity) > MAX_ID:
        raise BadData(f"the id {identity[:40]!r}... has {len(identity)} characters, and may have {MAX_ID}")
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in identity):
        raise BadData(f"the id {identity!r} holds a control character")
    identity.encode()
    return identity


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


def part_of(identity: str, split: Mapping[str, Decimal]) -> str:
    """The part of a split that the record with this id is in; no other record and no order has a say in it."""
    point = Decimal(int.from_bytes(blake3(b"mrp-split-1\0" + identity.encode()).digest()[:8], "big"))
    names = sorted(split)
    reached = Decimal(0)
    for name in names[:-1]:
        reached += split[name]
        if point < reached * 2**64:
            return name
    return names[-1]


# -- storing -----------------------------------------------------------------------------------------------------


class _TreeWriter:
    """Puts the trees of views into the store; a tree that several views or records share is written once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._empty = store.put_tree({})

    def record(self, identity: str, origin: str, views: RecordViews) -> Record:
        task = self._tree(views.task)
        return Record(
            id=identity,
            task=task,
            starter=self._tree(views.starter),
            grader=task if views.grader is views.task else self._tree(views.grader),
            solver=task if views.solver is views.task else self._tree(views.solver),
            solution=self._tree(views.solution),
            origin=origin,
            public=PublicFields(task, self._store),
        )

    def _tree(self, files: Mapping[str, Content]) -> Digest:
        if not files:
            return self._empty
        return self._store.put_tree({path: self._entry(content) for path, content in files.items()})

    def _entry(self, content: Content) -> Entry:
        if isinstance(content, bytes):
            return Entry("f", self._store.put_bytes(content), None)
        digest, executable = content
        return Entry("x" if executable else "f", digest, None)


def _usual(view: str, task: Digest, empty: Digest) -> Digest:
    """What a view most often is: nothing for starter and solution, the agent's for the others."""
    return empty if view in ("starter", "solution") else task

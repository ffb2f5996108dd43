"""One record: its id and the digests of what each party may see of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from mrp.cache.canonical import Json, canonical_text, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.cache.trees import put_flat
from mrp.rules.views import RECORD_FILE, Content, RecordViews

Trees: TypeAlias = tuple[Digest, Digest, Digest, Digest, Digest]
"""The trees of a record's views: task, starter, grader, solver, solution."""


class PublicFields(Mapping[str, Json]):
    """The fields of a record.json, read from the store when first looked at."""

    __slots__ = ("_known", "_store", "_tree")

    def __init__(self, tree: Digest, store: Store) -> None:
        self._tree, self._store = tree, store
        self._known: dict[str, Json] | None = None

    @property
    def _fields(self) -> dict[str, Json]:
        if self._known is None:
            entry = self._store.subtree(self._tree, RECORD_FILE)
            assert entry is not None and entry.digest is not None, "every view has a record.json"
            fields = parse_canonical(self._store.get_bytes(entry.digest))
            assert isinstance(fields, dict)
            self._known = fields
        return self._known

    def __getitem__(self, name: str) -> Json:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


@dataclass(frozen=True, slots=True)
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

    def trees(self) -> Trees:
        """The trees that must be in the store for this record to be used."""
        return (self.task, self.starter, self.grader, self.solver, self.solution)


class TreeWriter:
    """Puts the trees of views into the store; a tree that several views of a record share is written once.

    `written` gathers the digests of all that `views` put, trees and blobs, until the caller empties it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._empty: Digest | None = None
        self.written: list[Digest] = []

    def views(self, views: RecordViews) -> Trees:
        """The trees of a record's views."""
        task = self._tree(views.task)
        return (
            task,
            self._tree(views.starter),
            task if views.grader is views.task else self._tree(views.grader),
            task if views.solver is views.task else self._tree(views.solver),
            self._tree(views.solution),
        )

    def record(self, identity: str, origin: str, views: RecordViews) -> Record:
        """The record whose views these are."""
        trees = self.views(views)
        self.written.clear()
        return Record(identity, *trees, origin=origin, public=PublicFields(trees[0], self._store))

    def _tree(self, files: Mapping[str, Content]) -> Digest:
        if not files:
            if self._empty is None:
                self._empty = self._store.put_tree({})
            return self._empty
        parts = self._parts(tuple(files))
        if not parts:
            return put_flat({path: self._entry(content) for path, content in files.items()}, self._put)
        # The object that put_flat makes for files that all lie in the root.
        entries = map(self._entry, files.values())
        spelled = [f'{part}["{kind}","{digest}"]' for part, (kind, digest, _) in zip(parts, entries, strict=True)]
        return self._put(f"{{{''.join(spelled)}}}".encode())

    def _parts(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """What stands before each entry of the tree object; nothing when it must be made in full."""
        parts = self._names.get(names)
        if parts is None:
            simple = list(names) == sorted(names) and all(
                name not in ("", ".", "..") and "/" not in name and name.isascii() and name.isprintable()
                for name in names
            )
            parts = tuple(f"{',' if at else ''}{canonical_text(name)}:" for at, name in enumerate(names))
            parts = self._names[names] = parts if simple else ()
        return parts

    def _entry(self, content: Content) -> Entry:
        if isinstance(content, bytes):
            return Entry("f", self._put(content), None)
        digest, executable = content
        return Entry("x" if executable else "f", digest, None)

    def _put(self, data: bytes) -> Digest:
        digest = self._store.put_bytes(data)
        self.written.append(digest)
        return digest

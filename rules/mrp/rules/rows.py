"""Rows: what a target gives to those that reduce, judge or publish it, in canonical order.

Trials come by id and sample, records by id, and a document is one row. Rows are read and written one at a time, however
many there are.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from blake3 import blake3

from mrp.cache.canonical import Json, canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.errors import MissingBlob
from mrp.cache.store import Entry, Store
from mrp.rules.records import read_index
from mrp.rules.rule import DatasetValue, DocumentValue, FilesValue, RuleContext, TrialsValue
from mrp.specs.errors import BuildFailed, InfraError
from mrp.specs.expressions import parse_expression

_HELD = 4 * 2**20
"""Bytes of lines beyond which they wait for the store in a file."""

_BLOCK = 2**18


@dataclass(frozen=True)
class Rows:
    """The rows of one target: `digest` is a blob, and `kind` says of what.

    trials: JSON lines. trajectories: the same, each with the digest of its trajectory. records: an index. document:
    one JSON value.
    """

    kind: str
    label: str
    digest: Digest

    def to_json(self) -> Json:
        """What its rows depend on: those of a dataset name it as their `target`, the other kinds hold all they say."""
        return [self.kind, self.digest, self.label] if self.kind == "records" else [self.kind, self.digest]


def input_rows(label: str, context: RuleContext) -> Rows:
    """What a target gives; raises BuildFailed for kinds that have no rows."""
    value = context.values[label]
    if isinstance(value, TrialsValue):
        return Rows("trials", label, value.trials)
    if isinstance(value, DatasetValue):
        return Rows("records", label, value.index)
    if isinstance(value, DocumentValue):
        return Rows("document", label, value.outputs["result.json"].digest)
    raise BuildFailed(f"{label} has no rows; name a rollout, a dataset, a reduction or an evaluation")


def trajectory_rows(label: str, context: RuleContext) -> Rows:
    """The trials of a rollout, each with the digest of its trajectory, null where it left none.

    Raises BuildFailed when `label` is no rollout, or when the cache has dropped a trajectory, which it may.
    """
    value = context.values[label]
    if not isinstance(value, TrialsValue):
        raise BuildFailed(f"{label} has no trajectories; only a rollout does")
    if context.store.missing(value.trajectories.values()):
        raise BuildFailed(f"trajectories of {label} are no longer in the cache; run it again with --rebuild {label}")
    rows = (
        {**row, "trajectory": value.trajectories.get((row["id"], row["sample"]))}
        for row in read_rows((Rows("trials", label, value.trials),), context.store)
    )
    return Rows("trajectories", label, put_rows(rows, context.store))


def read_rows(inputs: tuple[Rows, ...], store: Store, select: str | None = None) -> Iterator[dict[str, Json]]:
    """The rows of all inputs, one input after the other; with `select` those for which that expression is true."""
    chosen = parse_expression(select) if select is not None else None
    for rows in inputs:
        for row in _read(rows, store):
            if chosen is None or chosen.evaluate(row) is True:
                yield row


def _read(rows: Rows, store: Store) -> Iterator[dict[str, Json]]:
    if rows.kind == "records":
        for record in read_index(rows.digest, store):
            yield {"id": record.id, "target": rows.label, **record.public}
    elif rows.kind == "document":
        yield json.loads(store.get_bytes(rows.digest), parse_float=Decimal)
    else:
        for row in _parsed_lines(rows.digest, store):
            if rows.kind == "trajectories":
                digest = row["trajectory"]
                row["trajectory"] = [] if digest is None else _events(store.get_bytes(Digest(digest)))
            yield row


def put_rows(rows: Iterable[Mapping[str, Json]], store: Store) -> Digest:
    """Keep rows as a blob of canonical JSON lines; many of them are never held together."""
    held: list[bytes] = []
    size = 0
    waiting = iter(rows)
    for row in waiting:
        held.append(canonical_bytes(row) + b"\n")
        size += len(held[-1])
        if size > _HELD:
            break
    else:
        return store.put_bytes(b"".join(held))
    try:
        with tempfile.NamedTemporaryFile(prefix="mrp-rows-") as file:
            file.writelines(held)
            held.clear()
            file.writelines(canonical_bytes(row) + b"\n" for row in waiting)
            file.flush()
            return store.put_file(Path(file.name))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InfraError(
            f"cannot write to {tempfile.gettempdir()}: {reason}; make room there", retryable=False
        ) from error


def _parsed_lines(digest: Digest, store: Store) -> Iterator[dict[str, Json]]:
    """The values of a blob of JSON lines. Raises MissingBlob, at the latest behind the last, when it is damaged."""
    hasher = blake3()
    rest = b""
    with store.open_blob(digest) as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield _parsed(line, digest, store)
    if hasher.hexdigest() != digest:
        raise _damaged(digest, store)
    if rest:
        yield _parsed(rest, digest, store)


def _parsed(line: bytes, digest: Digest, store: Store) -> dict[str, Json]:
    try:
        row: dict[str, Json] = json.loads(line, parse_float=Decimal)
    except ValueError as error:
        raise _damaged(digest, store) from error
    return row


def _damaged(digest: Digest, store: Store) -> MissingBlob:
    """The error for a blob that was read wrong. Reading it whole puts it aside, so that it is made again."""
    store.get_bytes(digest)
    return MissingBlob(digest)


def trials_tree(inputs: tuple[Rows, ...], select: str | None, store: Store) -> Digest:
    """/task of a reducer: the chosen rows as trials.jsonl, and the trees of those that are trials as trees/<tree>."""
    entries: dict[str, Entry] = {}

    def chosen() -> Iterator[dict[str, Json]]:
        for rows in inputs:
            for row in read_rows((rows,), store, select):
                if rows.kind == "trials":
                    _add_tree(row, entries)
                yield row

    trials = put_rows(chosen(), store)
    return store.put_tree({**entries, "trials.jsonl": Entry("f", trials)})


def artifact_tree(label: str, context: RuleContext, trajectories: Rows | None = None) -> Digest:
    """A target as a folder, for those that judge or publish it: its outputs by name.

    With a rollout come its trials' trees as trees/<tree>, with a dataset its public fields as rows.jsonl. With
    `trajectories`, its rows are trials.jsonl, and the trajectories stand at trajectories/<trajectory>.
    """
    store, value = context.store, context.values[label]
    entries = {name: Entry("f" if ref.kind == "blob" else "t", ref.digest) for name, ref in value.outputs.items()}
    if isinstance(value, FilesValue):
        return store.put_tree(entries)
    if isinstance(value, DatasetValue):
        entries["rows.jsonl"] = Entry("f", put_rows(read_rows((input_rows(label, context),), store), store))
    if isinstance(value, TrialsValue):
        for row in read_rows((input_rows(label, context),), store):
            _add_tree(row, entries)
    if trajectories is not None:
        assert isinstance(value, TrialsValue)
        entries["trials.jsonl"] = Entry("f", trajectories.digest)
        entries |= {f"trajectories/{digest}": Entry("f", digest) for digest in value.trajectories.values()}
    return store.put_tree(entries)


def _add_tree(row: Mapping[str, Json], entries: dict[str, Entry]) -> None:
    tree = row["tree"]
    if tree is not None and f"trees/{tree}" not in entries:
        entries[f"trees/{tree}"] = Entry("t", Digest(tree))


def _events(data: bytes) -> list[Json]:
    """The values of a trajectory's lines; a line that is no JSON is its own text."""
    events: list[Json] = []
    for line in data.decode(errors="replace").splitlines():
        if line.strip():
            try:
                events.append(json.loads(line, parse_float=Decimal, parse_constant=_refuse))
            except (ValueError, ArithmeticError, RecursionError):
                events.append(line)
    return events


def _refuse(word: str) -> Json:
    raise ValueError(word)

"""Produce: make a sink hold the content, once, and say so in its audit.

The order is: intent line, write, done line. After a crash at any moment the next produce of the same target starts
again, finds what is already there, and ends in the same state with nothing doubled.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mrp.cache.canonical import Json, canonical_bytes, canonical_digest, parse_canonical
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.runtime.audit import Audit, audit_path, read_audit
from mrp.runtime.sinks.files import EMPTY, FilesSink
from mrp.runtime.sinks.json import JsonCodec
from mrp.runtime.sinks.parquet import ParquetCodec
from mrp.runtime.sinks.protocol import Content, Sink
from mrp.runtime.sinks.rows import RowSink
from mrp.runtime.state import locked, state_folder
from mrp.specs.errors import BuildFailed, InfraError, safe_relative
from mrp.specs.ir import SinkSpec
from mrp.specs.results import Ref

_OWN_FOLDERS = (".mrp", "mrp-out")


@dataclass(frozen=True)
class ProduceOutcome:
    """`digest` is that of what the sink holds afterwards."""

    status: Literal["written", "unchanged"]
    digest: Digest


def produce(
    sink: SinkSpec, rows: Iterable[Json] | Ref, *, workspace: Path, label: str, artifact: Digest, store: Store
) -> ProduceOutcome:
    """Make `sink` hold `rows` (or a tree, or a producer's writes), for the produce target `label`.

    artifact: the digest that decides the content; the same one is not written twice while the sink still holds it.
    Raises BuildFailed when content, path or what is there do not fit, InfraError when the disk fails or the sink's
    type is not part of this version.
    """
    with _explained(sink), locked(state_folder(workspace) / "audit" / ".lock"):
        place = open_sink(sink, workspace, label, store)
        audit = read_audit(audit_path(workspace, sink.label))
        identity = _identity(sink, artifact)
        before = place.digest()
        held = _held(audit, label, identity, before)
        if held is not None:
            return ProduceOutcome("unchanged", held)
        staged = place.stage(_checked(sink, rows, label, store))
        last = audit.last(label)
        if before == staged.digest and last.get("event") == "done" and last.get("content") == identity:
            return ProduceOutcome("unchanged", staged.digest)
        foreign = not audit.lines and before not in (None, EMPTY, staged.digest)
        if foreign and sink.type == "files" and sink.mode == "replace":
            raise BuildFailed(
                f"{sink.path} holds files that mrp did not write, and {sink.label} would replace them;"
                " move them away or use mode append"
            )
        fields: dict[str, Json] = {
            "sink": sink.label,
            "label": label,
            "artifact": artifact,
            "content": identity,
            "mode": sink.mode,
            "before": before,
            "after": staged.digest,
        }
        crashed = bool(audit.lines) and audit.lines[-1]["event"] == "intent"
        audit = audit.append("intent", fields)
        if before != staged.digest or crashed:
            staged.apply()
        audit.append("done", fields)
        return ProduceOutcome("written", staged.digest)


def standing(sink: SinkSpec, *, workspace: Path, label: str, artifact: Digest, store: Store) -> Digest | None:
    """The sink's digest when both the audit and the sink say that `label` has put `artifact` there; else None.

    Reads no rows and writes nothing. In mode append None may also mean that another target added rows since.
    """
    with _explained(sink):
        place = open_sink(sink, workspace, label, store)
        audit = read_audit(audit_path(workspace, sink.label))
        return _held(audit, label, _identity(sink, artifact), place.digest())


def open_sink(sink: SinkSpec, workspace: Path, label: str, store: Store) -> Sink:
    """The place that `sink` names, for rows of `label`; raises BuildFailed when its path leaves the workspace."""
    if sink.type == "s3":
        raise InfraError(
            f"{sink.label} is an s3 sink, which needs mrp-build[s3]; that is not part of this version,"
            " so use a json, parquet or files sink",
            retryable=False,
        )
    path = _place(sink, workspace)
    if sink.type == "files":
        return FilesSink(path, sink.path, sink.mode, label, store)
    codec = ParquetCodec() if sink.type == "parquet" else JsonCodec(lines=sink.path.endswith(".jsonl"))
    return RowSink(path, sink.path, sink.mode, label, codec)


def _held(audit: Audit, label: str, identity: Digest, current: Digest | None) -> Digest | None:
    last = audit.last(label)
    if last.get("event") == "done" and last.get("content") == identity and last.get("after") == current:
        return current
    return None


def _identity(sink: SinkSpec, artifact: Digest) -> Digest:
    """Covers all that decides what a produce leaves in the sink."""
    return canonical_digest(
        {
            "artifact": artifact,
            "type": sink.type,
            "path": sink.path,
            "mode": sink.mode,
            "schema": sink.schema.digest if sink.schema is not None else None,
        }
    )


def _checked(sink: SinkSpec, rows: Iterable[Json] | Ref, label: str, store: Store) -> Content:
    """The rows in canonical numbers, each held against the sink's schema; a tree as it is."""
    if isinstance(rows, Ref):
        return rows
    try:
        content = [parse_canonical(canonical_bytes(row)) for row in rows]
    except (TypeError, ValueError) as error:
        raise BuildFailed(f"{label} gives a row that is no JSON: {error}") from None
    if sink.schema is None:
        return content
    from mrp.rules.formats import BadData
    from mrp.rules.record_schema import RecordSchema

    try:
        schema = RecordSchema(store.get_bytes(sink.schema.digest))
    except BadData as error:
        raise BuildFailed(f"{sink.schema.path} {error}") from None
    for number, row in enumerate(content, start=1):
        for fault in schema.faults(row):
            raise BuildFailed(f"row {number} of {label} does not fit {sink.schema.path}: {fault}")
    return content


def _place(sink: SinkSpec, workspace: Path) -> Path:
    relative = safe_relative(sink.path)
    if relative is None:
        raise BuildFailed(f"{sink.label} has the path {sink.path!r}; use a relative path inside the workspace")
    root = workspace.resolve()
    folder = (root / relative).parent.resolve()
    if not folder.is_relative_to(root):
        raise BuildFailed(
            f"{sink.path} of {sink.label} leads through a symlink out of the workspace; remove the symlink"
        )
    path = folder / relative.name
    if path.is_symlink():
        raise BuildFailed(f"{sink.path} of {sink.label} is a symlink; remove it, so that the sink can be written")
    if path.relative_to(root).parts[0] in _OWN_FOLDERS:
        raise BuildFailed(f"{sink.path} of {sink.label} is in a folder of mrp's own; choose another path")
    return path


@contextmanager
def _explained(sink: SinkSpec) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or sink.path
        raise InfraError(
            f"{sink.label} could not be written at {where}: {error.strerror or error};"
            " make room or access, and build again"
        ) from error

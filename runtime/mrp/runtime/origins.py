"""From a part of a key back to what a person wrote: the source file, the row, the parameter, in one sentence."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, cast

from mrp.cache.digest import Digest
from mrp.cache.errors import CacheError
from mrp.runtime.merkle import Change, Reading
from mrp.specs.ir import CommandTask, DatasetTask, MapTask, Plan, SourceFile, Task

_RECORD_PARTS = ("task", "starter", "solution")
_MAX_SOURCE = 256 * 2**20

_WORDS = (
    ("base.box.image.", "image "),
    ("base.box.image", "image"),
    ("base.box.", "sandbox "),
    ("base.agent.", "agent "),
    ("base.operator.", "grader "),
    ("box.image.", "image "),
    ("box.", "sandbox "),
    ("base.", ""),
)
"""How the first parts of a key's paths are called in sentences."""


class Origins:
    """Answers for the newer of two plans; what was removed is looked up in the older one."""

    def __init__(self, store: Reading, plan: Plan | None, older: Plan | None = None) -> None:
        self._store = store
        self._tasks: dict[str, Task] = {}
        for known in (older, plan):
            self._tasks |= {task.label: task for task in known.tasks} if known is not None else {}
        self._plans = [known for known in (plan, older) if known is not None]

    def findings(self, identity: tuple[str, str, str], changes: Iterable[Change]) -> list[str]:
        """What a person changed, one sentence a thing, with the old and the new where they are short."""
        parts: list[str] = []
        found: dict[str, None] = {}
        for change in changes:
            if self._is_of_record(identity, change):
                parts.append(_record_part(change))
            else:
                found[self._sentence(change)] = None
        if parts:
            parts.sort(key=lambda part: not part.startswith("field "))
            found[f"{self.record(identity)} changed: {'; '.join(dict.fromkeys(parts))}"] = None
        return list(found)

    def _is_of_record(self, identity: tuple[str, str, str], change: Change) -> bool:
        _, item, kind = identity
        first = change.steps[0].name if change.steps else ""
        return bool(item) and ((kind == "trial" and first in _RECORD_PARTS) or (kind == "grade" and first == "task"))

    def _sentence(self, change: Change) -> str:
        row = next((step.name for step in change.steps if step.kind == "row"), None)
        if row is not None:
            return _row_sentence(row, change)
        path = self._source(change)
        if path is not None:
            return f"{path} {_how(change)}"
        return f"{_readable(change.path)}: {_was(change)}"

    def record(self, identity: tuple[str, str, str]) -> str:
        """`tasks.jsonl row HumanEval/3`, or as near as can be known."""
        label, item, _ = identity
        record_id = decoded(item.partition("#")[0])
        task = self._tasks.get(label)
        origin = self._origin(task.over, record_id, set()) if isinstance(task, MapTask) else None
        return origin or f"record {record_id}"

    def makers(self, identity: tuple[str, str, str], first: str, change: Change) -> Iterator[tuple[str, str, str]]:
        """Actions of other targets that may have made a changed part of a trial, command or evaluation."""
        task = self._tasks.get(identity[0])
        if isinstance(task, MapTask):
            if first in _RECORD_PARTS:
                yield from self.dataset_makers(task.over)
            elif any(step.name == "setup" for step in change.steps):
                yield task.sandbox, "", "setup"
        elif isinstance(task, CommandTask) and self._source(change) is None:
            for label in task.files.outputs:
                yield label, "", "command"
        elif first == "subject" and (subject := getattr(task, "of", None)):
            for kind in ("reduction", "evaluation", "command"):
                yield subject, "", kind

    def dataset_makers(self, label: str) -> Iterator[tuple[str, str, str]]:
        """The actions that make a dataset that is not written by hand."""
        task = self._tasks.get(label)
        if isinstance(task, DatasetTask):
            for below in task.of:
                yield from self.dataset_makers(below)
            for kind in ("generate", "fetch"):
                yield label, "", kind
            if task.files is not None:
                for maker in task.files.outputs:
                    yield maker, "", "command"

    def input_label(self, label: str, index: int) -> str | None:
        """The label of input number `index` of a reduction, or the one input of a produce."""
        of = getattr(self._tasks.get(label), "of", None)
        if isinstance(of, str):
            return of
        return of[index] if of is not None and index < len(of) else None

    def is_rollout(self, label: str) -> bool:
        return isinstance(self._tasks.get(label), MapTask)

    def item_of_row(self, row: str) -> str:
        """The item of a trial's row, which is named by record id and sample."""
        from mrp.specs.labels import encode_text

        record_id, mark, sample = row.rpartition("#")
        return f"{encode_text(record_id)}#{sample}" if mark and sample.isdigit() else encode_text(row)

    def _source(self, change: Change) -> str | None:
        """The workspace path of a changed file, when the plan has a source with that content and that name."""
        file = next((step.name for step in change.steps if step.kind == "file"), None)
        if file is None:
            return None
        name = PurePosixPath(file).name
        for digest in (change.new_digest, change.old_digest):
            paths = [path for path in self._sources.get(digest or "", ()) if PurePosixPath(path).name == name]
            if paths:
                return max(paths, key=lambda path: _common_tail(path, file))
        return None

    @cached_property
    def _sources(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for plan in self._plans:
            for task in plan.tasks:
                for source in source_files(task):
                    found.setdefault(source.digest, []).append(source.path)
        return found

    def _origin(self, label: str, record_id: str, seen: set[str]) -> str | None:
        task = self._tasks.get(label)
        if not isinstance(task, DatasetTask) or label in seen:
            return None
        seen.add(label)
        for below in task.of:
            if found := self._origin(below, record_id, seen):
                return found
        if task.format in ("dir", "harbor"):
            folder = next((root for root in task.roots if PurePosixPath(root).name == record_id), None)
            return f"folder {folder}" if folder is not None else None
        sources = task.files.sources if task.files is not None else ()
        if len(sources) == 1:
            return f"{sources[0].path} row {record_id}"
        for source in sources:
            if task.format == "jsonl" and task.id is not None and self._has_row(source, task.id, record_id):
                return f"{source.path} row {record_id}"
        return f"{label} row {record_id}"

    def _has_row(self, source: SourceFile, id_field: str, record_id: str) -> bool:
        try:
            if self._store.size(Digest(source.digest)) > _MAX_SOURCE:
                return False
            data = self._store.get_bytes(Digest(source.digest))
        except CacheError:
            return False
        return any(_id_of(line, id_field) == record_id for line in data.splitlines())


def decoded(item: str) -> str:
    """The record id of an encoded item."""
    from urllib.parse import unquote

    return unquote(item)


def source_files(value: Any) -> Iterator[SourceFile]:
    """Every source file that a part of a plan names."""
    if isinstance(value, SourceFile):
        yield value
    elif is_dataclass(value):
        for item in fields(value):
            yield from source_files(getattr(value, item.name))
    elif isinstance(value, tuple):
        for inner in value:
            yield from source_files(inner)


def _record_part(change: Change) -> str:
    """`field prompt: "a" -> "b"`, `starter main.py (line 3: ...)`."""
    part = change.steps[0].name
    file = next((step.name for step in change.steps if step.kind == "file"), None)
    keys = [step.name for step in change.steps[1:] if step.kind in ("key", "index")]
    if file == "record.json" and keys:
        return f"field {'.'.join(keys)}: {_was(change)}"
    place = file if part == "task" else f"{part} {file}"
    return f"{place} {_how(change)}"


def _row_sentence(row: str, change: Change) -> str:
    if change.old is None and change.steps[-1].kind == "row":
        return f"record {row} was added"
    if change.new is None and change.steps[-1].kind == "row":
        return f"record {row} was removed"
    inner = [step.name for step in change.steps[[step.kind for step in change.steps].index("row") + 1 :]]
    return f"record {row}: {'.'.join(inner)}: {_was(change)}"


def _how(change: Change) -> str:
    if change.old is None:
        return "was added"
    if change.new is None:
        return "was removed"
    if change.old_digest == change.new_digest and change.old_digest is not None:
        return f"became {change.new}"
    return f"changed ({change.detail})" if change.detail else "changed"


def _was(change: Change) -> str:
    if change.detail:
        return f"changed ({change.detail})"
    return f"{'(absent)' if change.old is None else change.old} -> {'(absent)' if change.new is None else change.new}"


def _readable(path: str) -> str:
    for prefix, word in _WORDS:
        if path.startswith(prefix):
            return word + path.removeprefix(prefix)
    return path


def _common_tail(path: str, other: str) -> int:
    count = 0
    for left, right in zip(reversed(path.split("/")), reversed(other.split("/")), strict=False):
        if left != right:
            break
        count += 1
    return count


def _id_of(line: bytes, id_field: str) -> str | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    value = cast("dict[str, Any]", row).get(id_field) if isinstance(row, dict) else None
    return None if value is None else str(value)

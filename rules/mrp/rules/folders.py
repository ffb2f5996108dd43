"""Folder records: which folders of a dataset are its records, and what fields they bring."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.rules.formats import BadData, decode_text, json_object
from mrp.rules.views import RECORD_FILE, Row
from mrp.specs.errors import Diagnostic
from mrp.specs.ir import DatasetTask

_TASK_FILE, _INSTRUCTION_FILE = "task.toml", "instruction.md"


def read_folders(
    task: DatasetTask, sources: Mapping[str, tuple[Digest, bool]], store: Store, roots: Sequence[str]
) -> tuple[list[Row], list[Diagnostic]]:
    """The records of formats dir and harbor, by path, and all that is wrong with them.

    `roots` are the folders that are records. Without them, as for a download, each top-level folder is one, or for
    harbor each folder that has a task.toml; files outside are then left out.
    """
    faults: list[Diagnostic] = []
    found = _by_folder(sources, roots or record_folders(task.format, sources))
    outside = found.pop("", {})
    if roots:
        faults += [
            BadData("belongs to no record folder", hint="narrow the glob, or move the file").diagnostic(path)
            for path in outside
        ]
    rows = []
    for folder, files in sorted(found.items()):
        try:
            fields = _harbor_fields(folder, files, store) if task.format == "harbor" else {}
            own = _own_fields(files, store)
        except _FileFault as fault:
            faults.append(fault.fault.diagnostic(f"{folder}/{fault.name}"))
            continue
        came_from = {**dict.fromkeys(own, RECORD_FILE), **{name: source for name, (source, _) in fields.items()}}
        values = {**own, **{name: value for name, (_, value) in fields.items()}}
        rows.append(Row(folder, 0, values, folder.rpartition("/")[2], files, came_from))
    return rows, faults


class _FileFault(Exception):
    def __init__(self, name: str, fault: BadData) -> None:
        super().__init__(name, str(fault))
        self.name, self.fault = name, fault


def record_folders(form: str, sources: Iterable[str]) -> list[str]:
    """The folders that are records where nobody names them: the top-level ones; for harbor those with a task.toml."""
    if form == "harbor":
        return [path.rpartition("/")[0] for path in sources if path.endswith(f"/{_TASK_FILE}")]
    return sorted({path.partition("/")[0] for path in sources if "/" in path})


def _by_folder(
    sources: Mapping[str, tuple[Digest, bool]], roots: Sequence[str]
) -> dict[str, dict[str, tuple[Digest, bool]]]:
    """The files of each root, relative to it; those of none under "". The innermost root takes a file."""
    known = set(roots)
    found: dict[str, dict[str, tuple[Digest, bool]]] = {root: {} for root in known}
    for path, source in sources.items():
        folder = path.rpartition("/")[0]
        while folder and folder not in known:
            folder = folder.rpartition("/")[0]
        found.setdefault(folder, {})[path[len(folder) + 1 :] if folder else path] = source
    return found


def _own_fields(files: Mapping[str, tuple[Digest, bool]], store: Store) -> dict[str, Json]:
    if RECORD_FILE not in files:
        return {}
    try:
        return json_object(store.get_bytes(files[RECORD_FILE][0]))
    except BadData as fault:
        raise _FileFault(RECORD_FILE, fault) from fault


def _harbor_fields(folder: str, files: Mapping[str, tuple[Digest, bool]], store: Store) -> dict[str, tuple[str, Json]]:
    """The instruction and the tables of task.toml, each with the file that it came from."""
    import tomllib

    texts = {}
    for name in (_INSTRUCTION_FILE, _TASK_FILE):
        if name not in files:
            raise _FileFault(name, BadData("is missing; a harbor record needs task.toml and instruction.md"))
        try:
            texts[name] = decode_text(store.get_bytes(files[name][0]))
        except BadData as fault:
            raise _FileFault(name, fault) from fault
    try:
        tables = tomllib.loads(texts[_TASK_FILE], parse_float=_finite)
    except tomllib.TOMLDecodeError as error:
        raise _FileFault(_TASK_FILE, _toml_fault(str(error), texts[_TASK_FILE])) from error
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise _FileFault(_TASK_FILE, BadData(f"cannot be read: {error}")) from error
    fields = {name: (_TASK_FILE, _plain(value)) for name, value in tables.items()}
    return {**fields, "instruction": (_INSTRUCTION_FILE, texts[_INSTRUCTION_FILE])}


def _toml_fault(message: str, text: str) -> BadData:
    """A fault of TOML at the line and column that the parser tells in its message."""
    words, _, place = message.partition(" (at line ")
    line, _, column = place.removesuffix(")").partition(", column ")
    if not (line.isdigit() and column.isdigit()):
        return BadData(f"is not valid TOML: {message}")
    source = text.split("\n")[int(line) - 1] if int(line) <= text.count("\n") + 1 else ""
    return BadData(f"is not valid TOML: {words}", int(line), int(column), source)


def _finite(text: str) -> Decimal:
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError(f"{text} is not a finite number")
    return number


def _plain(value: Any) -> Json:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value

"""Datasets in a few words: a task with defaults, files put into a store, and what an agent would find in a tree."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.rules.records import Record, index_records
from mrp.specs.ir import DatasetTask, ViewSpec


def dataset(format: str = "jsonl", **fields: Any) -> DatasetTask:
    """`//p:tasks`; `private=["x"]` and the like become fields of rows and globs of folders."""
    for name in ("starter", "private", "solution"):
        view = fields.get(name)
        if isinstance(view, list):
            folders = format in ("dir", "harbor")
            fields[name] = ViewSpec(globs=tuple(view)) if folders else ViewSpec(fields=tuple(view))
        elif isinstance(view, dict):
            fields[name] = ViewSpec(fields=tuple(view.get("fields", ())), files=view.get("files", {}))
    return DatasetTask(label="//p:tasks", package="p", format=format, **fields)


def put_files(store: Store, files: Mapping[str, str | bytes]) -> dict[str, tuple[Digest, bool]]:
    """Sources for index_records; names that end in .sh are executable."""
    return {
        path: (store.put_bytes(content.encode() if isinstance(content, str) else content), path.endswith(".sh"))
        for path, content in files.items()
    }


def rows_text(*rows: Mapping[str, Any]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row, default=str) + "\n" for row in rows)


def index(store: Store, task: DatasetTask, files: Mapping[str, str | bytes]) -> dict[str, Record]:
    """The records of a dataset with these files, by id."""
    return {record.id: record for record in index_records(task, put_files(store, files), store)}


def files_of(store: Store, tree: Digest) -> dict[str, str]:
    """Path -> text of a tree."""
    return {
        path: store.get_bytes(entry.digest).decode()
        for path, entry in store.read_tree(tree).items()
        if entry.digest is not None
    }


def all_bytes(store: Store, tree: Digest, folder: Path) -> bytes:
    """Everything that can be read in a tree once it is laid out in `folder`: names and contents."""
    store.checkout(tree, folder, writable=False)
    found = sorted(folder.rglob("*"))
    return b"\n".join(
        str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes() for path in found if path.is_file()
    )

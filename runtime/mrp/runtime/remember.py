"""Writing down what a build looked at and came to, for mrp.runtime.snapshot and mrp.runtime.standing to read.

A stamp is only trusted when it is older than the beginning of the build (`began`, by the clock of the workspace's file
system): what changed since then may have changed after it was read. Writing may fail, and is then forgotten.
"""

import json
import os
import posixpath
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrp
from mrp.cache.canonical import Json, canonical_bytes, canonical_text
from mrp.cache.digest import digest_bytes
from mrp.cache.store import Store
from mrp.rules.rule import Value
from mrp.rules.value_json import value_to_json
from mrp.runtime import snapshot
from mrp.runtime.events import RunFinished, RunStarted, event_json
from mrp.runtime.host_facts import HostFacts
from mrp.runtime.outputs import output_folder, output_links
from mrp.runtime.report import BuildReport
from mrp.runtime.request import reported_labels
from mrp.runtime.standing import Edges, Standing
from mrp.runtime.state import state_folder
from mrp.specs.ir import Plan, ProduceTask, dependencies, plan_head, task_json

if TYPE_CHECKING:
    from mrp.compiler.compile import Compiled
    from mrp.compiler.globs import EntryKind

_LETTERS = {"file": "f", "folder": "d", "symlink": "l", "special file": "s"}

_KEPT = 32
"""Snapshots of a workspace that are kept, the newest ones."""


@dataclass(frozen=True)
class Looked:
    """What compiling looked at: `began` as above; folders with their entries (None: not there); documents.

    pinned: operators whose bytes operators.lock names. settings: engine, sandbox and jobs of the chosen configs.
    """

    began: int
    folders: Mapping[str, Sequence[str] | None]
    documents: Mapping[str, str]
    pinned: frozenset[str]
    settings: Mapping[str, Json]


SETTINGS = ("engine", "sandbox", "jobs")


def looked_at(compiled: "Compiled", began: int) -> Looked:
    """What compiling looked at, when it began at `began`."""
    tree, lock = compiled.workspace.tree, compiled.workspace.lock
    return Looked(
        began,
        {folder: _entries(compiled.workspace.root / folder, tree.entries(folder)) for folder in compiled.listed},
        compiled.documents,
        frozenset(lock.operators if lock is not None else ()),
        {name: getattr(compiled.settings, name) for name in SETTINGS},
    )


def _entries(folder: Path, entries: Mapping[str, "EntryKind"]) -> list[str] | None:
    """As mrp.runtime.snapshot.entries lists them."""
    if not entries and not folder.is_dir():
        return None
    return sorted(_LETTERS[kind.value] + name for name, kind in entries.items() if not snapshot.is_passed_over(name))


def clock_of(root: Path) -> int:
    """The time by the clock of the workspace's file system, as well as it can be told without writing."""
    state = state_folder(root)
    return snapshot.clock(str(state)) if state.is_dir() else time.time_ns()


def remember(
    root: Path,
    identity: Sequence[str],
    looked: Looked,
    plan: Plan,
    values: Mapping[str, Value],
    lines: Mapping[str, bytes],
    report: BuildReport,
    record: Mapping[str, Json],
    facts: HostFacts,
    store: Store,
) -> None:
    """Keep a whole build that came to `ok` or `held`. `lines`: digests.jsonl by label; `record`: what run.json says."""
    files = _files(root, looked, plan)
    fixed = _fixed(facts.paths(), looked.began)
    if fixed is None:
        return
    standing = _standing(looked, plan, values, lines, files)
    standing.head |= {"base": record["plan"], "moved": {}}
    head = {
        "identity": list(identity),
        "circumstances": snapshot.circumstances(),
        "fixed": fixed,
        "links": [[path, os.readlink(path) if os.path.islink(path) else None] for path in facts.links()],
    }
    folders, listings = _folders(root, looked)
    head["folders"] = folders
    _write(root, head, listings, files, standing, report, record, looked.began, store)


def remember_patched(
    root: Path,
    old: snapshot.Snapshot,
    standing: Standing,
    report: BuildReport,
    record: Mapping[str, Json],
    store: Store,
) -> None:
    """Keep a build that patched `standing`, which holds the new tasks, values and lines already."""
    kept = {name: old.head[name] for name in ("identity", "circumstances", "fixed", "links", "folders")}
    _write(root, kept, old.listings, old.files, standing, report, record, clock_of(root), store)


def _write(
    root: Path,
    head: dict[str, Any],
    listings: bytes,
    files: snapshot.Table,
    standing: Standing,
    report: BuildReport,
    record: Mapping[str, Json],
    began: int,
    store: Store,
) -> None:
    actions = report.executed + report.cached
    standing.head["actions"] = actions
    standing.head["targets"] = {label: target.to_json() for label, target in report.targets.items()}
    outputs, blobs = _outputs(root, report, began, store)
    plan = standing.pack()
    sealed = {**record, "run_id": snapshot.RUN, "wall_s": snapshot.WALL, "executed": 0, "cached": actions}
    sealed["cost"] = {"usd": "0", "estimate_usd": "0"}
    document = {name: value for name, value in sealed.items() if name not in ("plan", "requested", "digests")}
    head |= {
        **_store_facts(store),
        "outputs": outputs,
        "plan": digest_bytes(plan),
        "asks": bool(standing.head["always"]),
        "answer": {
            "run": report.folder.name,
            "record": canonical_text({**sealed, "checksum": snapshot.SEAL}) + "\n",
            "document": canonical_text(document),
            "targets": _shown(root, report),
            "events": _events(report, record),
            "actions": actions,
        },
    }
    folder = state_folder(root) / snapshot.FOLDER
    name = snapshot.file_name(head["identity"])
    with suppress(OSError):
        snapshot.write(f"{folder}/{name}.plan", plan)
        snapshot.write(f"{folder}/{name}.stat", snapshot.Snapshot(head, listings, files, blobs).pack())
        _forget_oldest(folder)


def _files(root: Path, looked: Looked, plan: Plan) -> snapshot.Table:
    known: dict[str, tuple[str, bool | None]] = {path: (digest, None) for path, digest in looked.documents.items()}
    compiled = set(known)
    for task in plan.tasks:
        plain = task_json(task)
        for path, digest, executable in sources_of(plain):
            known[path] = (digest, executable)
        compiled.update(path for path, _, _ in sources_of(_compiled_part(plain, looked.pinned)))

    def rows() -> Iterator[tuple[str, Sequence[int], str, int]]:
        for path, (digest, executable) in sorted(known.items()):
            stamp, mode = (0, 0, 0, 0), 0
            with suppress(OSError):
                status = os.stat(root / path)
                stamp, mode = snapshot.stamp_of(status), status.st_mode
            flags = snapshot.DOCUMENT if path in compiled else 0
            flags |= snapshot.EXECUTABLE if (mode & 0o100 if executable is None else executable) else 0
            flags |= snapshot.SETTLED if snapshot.is_settled(stamp, looked.began) and stamp[1] else 0
            yield path, stamp, digest, flags

    return snapshot.make_table(rows())


def _compiled_part(task: dict[str, Json], pinned: frozenset[str]) -> Json:
    """The part of a task whose files the compiler reads, so that an edit of them is no mere edit of data."""
    if task["label"] in pinned or isinstance(task.get("base"), dict):
        return task
    return [task.get("schema"), task.get("sink")]


def sources_of(value: Json) -> Iterator[tuple[str, str, bool]]:
    """(path, digest, executable) of each source file that a task's JSON names."""
    if isinstance(value, dict):
        if value.keys() == {"path", "digest", "executable"}:
            yield value["path"], value["digest"], value["executable"]
        else:
            for item in value.values():
                if isinstance(item, dict | list):
                    yield from sources_of(item)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict | list):
                yield from sources_of(item)


def _standing(
    looked: Looked,
    plan: Plan,
    values: Mapping[str, Value],
    lines: Mapping[str, bytes],
    files: snapshot.Table,
) -> Standing:
    labels = [task.label for task in plan.tasks]
    place = {label: number for number, label in enumerate(labels)}
    tasks = [task_json(task) for task in plan.tasks]
    needs = Edges.of([[place[label] for label in dependencies(task)] for task in plan.tasks])
    file_place = {path: number for number, path in enumerate(files.paths)}
    named = Edges.of([sorted({file_place[path] for path, _, _ in sources_of(task)}) for task in tasks])
    head = {
        "plan": plan_head(plan),
        "settings": dict(looked.settings),
        "reported": reported_labels(plan),
        # A publication is never answered from memory: its sink is asked.
        "always": [number for number, task in enumerate(plan.tasks) if isinstance(task, ProduceTask)],
    }
    texts = (
        [canonical_bytes(task) for task in tasks],
        [canonical_bytes(value_to_json(values[label])) for label in labels],
        [lines.get(label, b"") for label in sorted(labels)],
    )
    return Standing(head, labels, needs, needs.turned(len(labels)), named.turned(len(files.paths)), texts)


def _fixed(paths: Iterable[str], began: int) -> list[list[Any]] | None:
    """Stamps of files outside the workspace; None when one of them is changing right now."""
    fixed: list[list[Any]] = []
    for path in paths:
        with suppress(OSError):
            stamp = snapshot.stamp_of(os.stat(path))
            if not snapshot.is_settled(stamp, began):
                return None
            fixed.append([path, list(stamp)])
            continue
        fixed.append([path, None])
    for path in _own_files():
        fixed.append([path, list(snapshot.stamp_of(os.stat(path)))])
    return fixed


def _own_files() -> Iterator[str]:
    """mrp itself, and the folders where packages are installed."""
    for portion in mrp.__path__:
        for folder, folders, names in os.walk(portion):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            yield from (os.path.join(folder, name) for name in sorted(names) if not name.endswith(".pyc"))
    yield from (place for place in sys.path if os.path.basename(place) in ("site-packages", "dist-packages"))


def _folders(root: Path, looked: Looked) -> tuple[dict[str, list[int] | None], bytes]:
    stamps: dict[str, list[int] | None] = {}
    for path in looked.folders:
        stamps[path] = None
        with suppress(OSError):
            stamp = snapshot.stamp_of(os.stat(root / path))
            if snapshot.is_settled(stamp, looked.began):
                stamps[path] = list(stamp)
    return stamps, json.dumps(dict(looked.folders), separators=(",", ":")).encode()


def _store_facts(store: Store) -> dict[str, Any]:
    """The index must be the same file; large blobs must neither have come nor gone, or a build looks which."""
    layout = store.layout
    inodes = [[str(path), os.stat(path).st_ino] for path in (layout.index, layout.format)]
    shards = sorted(entry.path for entry in os.scandir(layout.blobs) if entry.is_dir(follow_symlinks=False))
    return {"inodes": inodes, "shards": [[path, list(snapshot.stamp_of(os.stat(path)))] for path in shards]}


def _outputs(root: Path, report: BuildReport, began: int, store: Store) -> tuple[list[list[Any]], snapshot.Table]:
    folders: list[list[Any]] = []
    rows: dict[str, tuple[str, Sequence[int], str, int]] = {}
    for label, target in report.targets.items():
        if not target.outputs:
            continue
        top = output_folder(root, label).relative_to(root).as_posix()
        links: dict[str, list[list[str]]] = {top: []}
        for name, place in output_links(target.outputs, store).items():
            folder, _, last = posixpath.join(top, name).rpartition("/")
            links.setdefault(folder, []).append([last, place])
            blob = os.path.basename(place)
            if place == store.layout.blob(blob):  # type: ignore[arg-type]
                stamp = snapshot.stamp_of(os.stat(place))
                rows[place] = (place, stamp, blob, snapshot.SETTLED if snapshot.is_settled(stamp, began) else 0)
        for folder, found in links.items():
            stamp = snapshot.stamp_of(os.stat(root / folder))
            folders.append([folder, list(stamp) if snapshot.is_settled(stamp, began) else None, found])
    return folders, snapshot.make_table(rows.values())


def _shown(root: Path, report: BuildReport) -> list[list[Any]]:
    """What mrp.cli.answers.result_lines prints of each target with outputs."""
    return [
        [label, output_folder(root, label).relative_to(root).as_posix(), "result.md" in target.outputs, target.marks()]
        for label, target in report.targets.items()
        if target.outputs
    ]


def _events(report: BuildReport, record: Mapping[str, Json]) -> str:
    """events.jsonl of a build that has nothing to do."""
    actions = report.executed + report.cached
    events = (
        RunStarted(snapshot.RUN, tuple(record["requested"]), 0),
        RunFinished(snapshot.RUN, report.status, 0, actions, 0),
    )
    return "".join(canonical_text({"at": snapshot.WALL, **event_json(event)}) + "\n" for event in events)


def _forget_oldest(folder: Path) -> None:
    found = sorted(folder.glob("*.stat"), key=lambda path: path.stat().st_mtime_ns)
    for path in found[:-_KEPT]:
        path.unlink(missing_ok=True)
        path.with_suffix(".plan").unlink(missing_ok=True)

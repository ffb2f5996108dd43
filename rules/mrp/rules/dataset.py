"""Datasets: sources, a download, a computation or other datasets become an index of records."""

import dataclasses
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mrp.cache.canonical import Json, action_key, canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.store import ActionEntry, Entry, Store
from mrp.rules.action import Action, ActionKind, Attempt, make_action
from mrp.rules.conclude import byproducts_of, failure_reason, file_digest, outcome_of
from mrp.rules.fetching import Fetch, fetch_preimage
from mrp.rules.folders import record_folders
from mrp.rules.operator import contract_env, contract_mounts, operator_process, operator_sdk
from mrp.rules.records import Record, concat_records, dataset_meta, read_index, read_records, write_index
from mrp.rules.row_memo import RowMemo
from mrp.rules.rule import DatasetValue, FilesValue, OperatorValue, RuleContext, SandboxValue, Settled, needed
from mrp.rules.views import FOLDER_FORMATS
from mrp.rules.writes import is_write, read_lines, written_files
from mrp.specs.errors import BuildFailed
from mrp.specs.ir import DatasetTask, FetchSpec, Files, GenerateSpec, task_json
from mrp.specs.labels import parse_label
from mrp.specs.results import Outcome, Ref, Result
from mrp.specs.work import ENGINE, LOG_BYTES, OUT, WORK, Completed, Mount, Process

INDEX_VERSION = 1
_IN_INDEX = ("format", "roots", "id", "schema", "where", "dedupe", "split", "take", "starter", "private", "solution")


@dataclass(frozen=True)
class RunGenerator:
    """Work: a process that makes the records of a dataset.

    They are what a command prints, the files that a producer writes, or /out/records.jsonl of any other operator.
    """

    process: Process
    from_stdout: bool

    def conclude(self, completed: Completed, store: Store) -> Attempt:
        outcome, byproducts = outcome_of(completed), byproducts_of(completed)
        if outcome is not Outcome.OK:
            return Attempt(Result(outcome, completed.limit), failure_reason(completed, store, byproducts))
        files, problem = self._files(completed, store)
        if problem:
            return Attempt(Result(Outcome.FAILED), dataclasses.replace(byproducts, reason=problem))
        return Attempt(Result(outcome, outputs={"files": Ref("tree", store.put_tree(files))}), byproducts)

    def _files(self, completed: Completed, store: Store) -> tuple[dict[str, Entry], str]:
        """The files that hold the records, and why there are none."""
        if self.from_stdout:
            if store.size(completed.stdout) > LOG_BYTES:
                return {}, f"printed more than {LOG_BYTES} bytes; write a file in a command, and name it in `srcs`"
            return {"records.jsonl": Entry("f", completed.stdout)}, ""
        out = completed.outputs[OUT]
        records, writes = file_digest(store, out, "records.jsonl"), file_digest(store, out, "writes.jsonl")
        if records is not None:
            return {"records.jsonl": Entry("f", records)}, ""
        if writes is None:
            return {}, "left no /out/records.jsonl"
        try:
            rows = list(read_lines(writes, store, "the generator"))
            if not all(map(is_write, rows)):
                return {}, "wrote a line to /out/writes.jsonl that is no file; give it a path, and text or base64"
            files = written_files(rows, "the generator")
        except BuildFailed as error:
            return {}, str(error)
        return {path: Entry("f", store.put_bytes(data)) for path, data in files.items()}, ""


class DatasetRule:
    """At most one action (a fetch or a generate); reading the records is memoised in the action cache, uncounted."""

    def __init__(self, task: DatasetTask, context: RuleContext, *, thorough: bool = True) -> None:
        """thorough: whether the records' trees are looked for, which a build may put off until one is missing."""
        self._task, self._context, self._store = task, context, context.store
        self._thorough = thorough
        self._settled: Settled | None = None

    def start(self) -> Iterator[Action]:
        task = self._task
        if task.fetch is not None:
            yield self._fetch(task.fetch)
        elif task.generate is not None and task.generate.range is None:
            yield self._generate(task.generate)

    def settled(self, settled: Settled) -> Iterator[Action]:
        self._settled = settled
        return iter(())

    def value(self) -> DatasetValue:
        sources, roots, good = self._sources()
        spec = {name: value for name, value in task_json(self._task).items() if name in _IN_INDEX}
        preimage = {
            "action": "index",
            "version": INDEX_VERSION,
            "spec": {**spec, "roots": list(roots)},
            "sources": {path: [digest, executable] for path, (digest, executable) in sources.items()},
            "of": [self._context.value(label, DatasetValue).index for label in self._task.of],
            "range": self._task.generate.range if self._task.generate is not None else None,
        }
        key, data = action_key(preimage)
        entry = self._store.lookup([key]).get(key)
        if entry is not None and self._is_whole(entry):
            index, count = Digest(entry.result["index"]), int(entry.result["count"])
        else:
            records, memo = self._read(sources, roots)
            index, count = write_index(records, self._store), len(records)
            trees = tuple(sorted({tree for record in records for tree in record.trees()}))
            # Many records take much memory, and so does the entry that names all of their trees.
            del records
            self._store.commit(
                [
                    ActionEntry(
                        key=key,
                        kind="index",
                        preimage=data,
                        result={"index": index, "count": count},
                        byproducts=[],
                        blobs=(index,),
                        trees=trees,
                        isolation=ENGINE,
                        provenance={},
                        created=0.0,
                    )
                ]
            )
            if memo is not None:
                memo.save()
        meta = canonical_bytes(dataset_meta(self._task, count, sources)) + b"\n"
        outputs = {"_meta.json": Ref("blob", self._store.put_bytes(meta)), "records.jsonl": Ref("blob", index)}
        parts = (self._context.value(label, DatasetValue) for label in self._task.of)
        own_images = self._task.format == "harbor" or any(part.own_images for part in parts)
        return DatasetValue(index, count, outputs, good, own_images)

    def _sources(self) -> tuple[Mapping[str, tuple[Digest, bool]], tuple[str, ...], bool]:
        """The files that hold the records, by path, the folders that are records, and whether all is reproducible."""
        task = self._task
        if task.files is not None:
            tree = self._context.files_tree(task.files)
            good = all(self._context.values[label].reproducible for label in task.files.outputs)
            sources = self._files(tree)
            if task.format not in FOLDER_FORMATS or not task.files.outputs:
                return sources, task.roots, good
            made = self._made_roots(sources)
            kept = {source.path for source in task.files.sources}
            kept |= {path for path in sources if any(path.startswith(f"{root}/") for root in made)}
            return {path: sources[path] for path in sorted(kept)}, tuple(sorted({*task.roots, *made})), good
        if task.fetch is not None or (task.generate is not None and task.generate.range is None):
            assert self._settled is not None, "value() before the action settled"
            result = needed(self._settled, f"{task.label} {self._settled.outcome.value}")
            return self._files(result.outputs["files"].digest), (), self._context.reproducible(task)
        return {}, (), all(self._context.value(label, DatasetValue).reproducible for label in task.of)

    def _made_roots(self, sources: Mapping[str, object]) -> set[str]:
        """The record folders that commands made: those within each folder that is an output."""
        made: set[str] = set()
        for label in self._task.files.outputs if self._task.files is not None else ():
            for out in self._context.value(label, FilesValue).outputs:
                place = posixpath.join(parse_label(label).package, out) + "/"
                within = [path.removeprefix(place) for path in sources if path.startswith(place)]
                made |= {place + folder for folder in record_folders(self._task.format, within)}
        return made

    def _files(self, tree: Digest) -> dict[str, tuple[Digest, bool]]:
        return {
            path: (entry.digest, entry.kind == "x")
            for path, entry in self._store.read_tree(tree).items()
            if entry.digest is not None and entry.kind in "fx"
        }

    def _read(
        self, sources: Mapping[str, tuple[Digest, bool]], roots: tuple[str, ...]
    ) -> tuple[tuple[Record, ...], RowMemo | None]:
        """The records, and what is to be saved once they are committed."""
        task = self._task
        if task.of:
            parts = [read_index(self._context.value(label, DatasetValue).index, self._store) for label in task.of]
            return concat_records(task, parts), None
        if task.generate is not None and task.generate.range is not None:
            lines = "".join([f'{{"id":"{n}","n":{n}}}\n' for n in range(task.generate.range)])
            made = {"range.jsonl": (self._store.put_bytes(lines.encode()), False)}
            return read_records(task, made, self._store, remember=False)
        if task.schema is not None:
            self._context.import_sources(Files(sources=(task.schema,)))
        return read_records(task, sources, self._store, roots=roots, thorough=self._thorough)

    def _is_whole(self, entry: ActionEntry) -> bool:
        if not self._thorough:
            return not self._store.missing(entry.blobs)
        return not self._store.missing_deep(entry.refs())

    def _fetch(self, spec: FetchSpec) -> Action:
        unpack = self._task.format in ("dir", "harbor")
        preimage = fetch_preimage(spec, unpack=unpack)
        return make_action(ActionKind.FETCH, self._task.label, "", preimage, Fetch(spec, unpack))

    def _generate(self, spec: GenerateSpec) -> Action:
        context = self._context
        sandbox = context.value(spec.sandbox, SandboxValue)
        preimage: dict[str, Json] = {"box": sandbox.description, "setup": sandbox.setup, "params": spec.params}
        if spec.operator is not None:
            operator = context.value(spec.operator, OperatorValue)
            process = operator_process(
                operator,
                sandbox.box,
                operator_sdk(operator, context),
                mounts=contract_mounts(context.store, context.store.put_tree({}), sandbox.setup),
                outputs=(OUT,),
                env=contract_env(params=spec.params),
                timeout=sandbox.box.limits.wall,
            )
            preimage["operator"] = operator.digest
        else:
            assert spec.command is not None
            files = context.files_tree(spec.files)
            process = Process(
                box=sandbox.box,
                argv=spec.command,
                role="generate",
                mounts=(Mount(WORK, self._mirror(files, spec.package, sandbox), writable=True),),
                env=contract_env(params=spec.params),
                cwd=posixpath.join(WORK, spec.package) if spec.package else WORK,
                timeout=sandbox.box.limits.wall,
            )
            preimage |= {"command": list(spec.command), "files": files, "cwd": spec.package}
        work = RunGenerator(process, from_stdout=spec.operator is None)
        good = context.reproducible(self._task)
        return make_action(ActionKind.GENERATE, self._task.label, "", preimage, work, reproducible=good)

    def _mirror(self, files: Digest, package: str, sandbox: SandboxValue) -> Digest:
        """What a generating command finds: what its sandbox set up, its files, and the package's folder in any case."""
        folder = self._store.put_tree({package: Entry("d")} if package else {})
        below = [sandbox.setup] if sandbox.setup is not None else []
        return self._store.merge_trees([*below, files, folder])

"""Documents become tasks of the plan: defaults filled in, labels and files in their final form, no YAML left."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from posixpath import dirname, join, normpath
from typing import Any

from mrp.cache.canonical import Json, canonical_digest
from mrp.cache.digest import Digest
from mrp.compiler.globs import is_literal, literal_prefix
from mrp.compiler.resolve import BUILTIN, Resolved
from mrp.specs import documents, ir
from mrp.specs.documents import Target
from mrp.specs.labels import parse_label

HOST_SANDBOX = "builtin:host"
HOST_IMAGE = "builtin:host-image"
"""The image of builtin:host: in a plan each label names one task, so the image and the sandbox have each their own."""

FOLDER_FORMATS = ("dir", "harbor")

Seal = Callable[[Iterable[str]], tuple[ir.SourceFile, ...]]
"""Turns workspace paths into sources with digests, sorted by path."""

Params = Mapping[str, Json]


def unread(paths: Iterable[str]) -> tuple[ir.SourceFile, ...]:
    """A seal that reads nothing, for tasks that are only looked at."""
    return tuple(ir.SourceFile(path, Digest("")) for path in sorted(set(paths)))


def lower(resolved: Resolved, find: Callable[[str], Resolved], seal: Seal, params: Params | None = None) -> ir.Task:
    """The task of a unit. `find` gives other units, for what is written into it; `params` override its own.

    Kinds that are no tasks of their own (sinks) are an error of the caller.
    """
    lowering = _Lowering(resolved, find, seal, params or {})
    return lowering.task(resolved.unit.document)


def sealed(draft: ir.CommandTask, seal: Seal) -> ir.CommandTask:
    """A command's task made with `unread`, with its sources read."""
    if not draft.files.sources:
        return draft
    read = ir.Files(seal([source.path for source in draft.files.sources]), draft.files.outputs)
    return dataclasses.replace(draft, files=read)


def builtin_task(label: str) -> ir.Task:
    """The task behind a `builtin:` label that is no reducer."""
    if label == HOST_IMAGE:
        return ir.ImageTask(HOST_IMAGE, base="host")
    if label == HOST_SANDBOX:
        return ir.SandboxTask(HOST_SANDBOX, image=HOST_IMAGE)
    name = label.removeprefix(BUILTIN)
    sees = "solution" if name == "oracle" else "public"
    entry = f"mrp.sdk.builtin:{name.capitalize()}"
    return ir.OperatorTask(label, kind="agent", version="1", package="", entry=entry, sees=sees, pure=name == "nop")


def split_part(task: ir.DatasetTask, label: str) -> ir.DatasetTask:
    """The part of a dataset that `//p:n@split=part` names."""
    return dataclasses.replace(task, label=label, take=dict(parse_label(label).cell)["split"])


def operator_digest(task: ir.OperatorTask) -> Digest:
    """What operators.lock pins: everything of an operator but its label."""
    described = {name: value for name, value in ir.task_json(task).items() if name not in ("label", "task")}
    return canonical_digest(described)


class _Lowering:
    """One unit on its way to a task."""

    def __init__(self, resolved: Resolved, find: Callable[[str], Resolved], seal: Seal, params: Params) -> None:
        self._resolved, self._find, self._seal, self._params = resolved, find, seal, params
        self._label, self._package = resolved.unit.label, resolved.unit.package

    def task(self, document: Target) -> ir.Task:
        match document:
            case documents.Command():  # first, since there are most of them
                return self._command(document)
            case documents.Dataset():
                return self._dataset(document)
            case documents.Image():
                return self._image(document)
            case documents.Sandbox():
                return self._sandbox(document)
            case documents.Operator():
                return self._operator(document)
            case documents.Model():
                return self._model(document)
            case documents.Rollout():
                return self._rollout(document)
            case documents.Reduction():
                return self._reduction(document)
            case documents.Evaluation():
                return self._evaluation(document)
            case documents.Produce():
                return self._produce(document)
            case documents.Session():
                return self._session(document)
            case documents.Job():
                return self._job(document)
        raise TypeError(f"{self._label} is {document.kind}, which is no task")

    def _dataset(self, document: documents.Dataset) -> ir.DatasetTask:
        folders = document.format in FOLDER_FORMATS
        roots = {root for expansion in self._resolved.files_below("srcs") for root in expansion.roots}
        return ir.DatasetTask(
            label=self._label,
            package=self._package,
            format=document.format,
            files=self._files("srcs") if document.srcs is not None else None,
            roots=tuple(sorted(roots)) if folders else (),
            fetch=self._fetch(document.fetch) if document.fetch is not None else None,
            generate=self._generate(document.generate) if document.generate is not None else None,
            of=self._resolved.labels_below("of"),
            id=document.id,
            schema=self._file("schema"),
            where=document.where,
            dedupe=tuple(document.dedupe),
            split=dict(document.split),
            starter=_view(document.starter, folders),
            private=_view(document.private, folders),
            solution=_view(document.solution, folders),
            metadata=document.metadata,
        )

    def _fetch(self, fetch: documents.Fetch) -> ir.FetchSpec:
        fields = fetch.model_dump()
        if fetch.path is not None:
            fields["path"] = join(self._package, fetch.path)
        return ir.FetchSpec(**fields)

    def _generate(self, generate: documents.Generate) -> ir.GenerateSpec:
        return ir.GenerateSpec(
            range=generate.range,
            command=_words(generate.command),
            operator=self._resolved.label("generate", "operator"),
            files=self._files("generate", "srcs"),
            package=self._package,
            sandbox=self._place("generate", "sandbox", operator=self._resolved.label("generate", "operator")),
            params=generate.params,
        )

    def _image(self, document: documents.Image) -> ir.ImageTask:
        base: Json = self._resolved.label("base") or document.base
        context = ir.Files()
        if ("base", "dockerfile") in self._resolved.files:
            dockerfile = self._path("base", "dockerfile")
            folder = dirname(dockerfile)
            if isinstance(document.base, documents.Dockerfile):
                folder = normpath(join(self._package, document.base.context))
            base = {"dockerfile": dockerfile, "context": "" if folder == "." else folder}
            context = self._files("base")
        return ir.ImageTask(
            label=self._label,
            base=base,
            toolchain=tuple(document.toolchain),
            layers=tuple(self._layer(number, layer) for number, layer in enumerate(document.layers)),
            env=document.env,
            user=document.user,
            context=context,
        )

    def _layer(self, number: int, layer: documents.Layer) -> ir.LayerSpec:
        files = self._files("layers", number)
        match layer:
            case documents.Layer(copy_=dict(copied)):
                return ir.LayerSpec("copy", copy=tuple(self._copied(number, *item) for item in copied.items()))
            case documents.Layer(tar=str(archive)):
                local = {"url": archive} if "://" in archive else {"path": self._path("layers", number, "tar")}
                return ir.LayerSpec("tar", value={**local, "sha256": layer.sha256}, files=files)
            case documents.Layer(deb=list(packages)):
                lock = self._path("layers", number, "lock")
                return ir.LayerSpec("deb", value={"packages": packages, "lock": lock}, files=files)
            case documents.Layer(pip=str()):
                return ir.LayerSpec("pip", value={"lock": self._path("layers", number, "pip")}, files=files)
            case documents.Layer(npm=str()):
                return ir.LayerSpec("npm", value={"lock": self._path("layers", number, "npm")}, files=files)
            case documents.Layer(dirs=list(folders)):
                return ir.LayerSpec("dirs", value=folders)
            case documents.Layer(links=dict(links)):
                return ir.LayerSpec("links", value=links)
        return ir.LayerSpec("run", value=layer.run)

    def _copied(self, number: int, source: str, destination: str) -> tuple[str, ir.Files, str]:
        """Destination, files, and the folder that is cut off; a single file whose destination is its new name is that
        folder itself."""
        place = ("layers", number, "copy", source)
        files = self._files(*place)
        label = next(iter(files.outputs), None)
        if label is not None:
            return destination, files, label.removeprefix("//").partition(":")[0]
        literal = normpath(join(self._package, source)) if is_literal(source) else None
        if literal is None:
            folder = join(self._package, literal_prefix(source)).rstrip("/")
            return destination, files, folder
        if self._resolved.files[place].roots:
            return destination, files, literal
        return destination, files, dirname(literal) if destination.endswith("/") else literal

    def _sandbox(self, document: documents.Sandbox) -> ir.SandboxTask:
        image = self._resolved.label("image") or document.image
        network = document.network
        limits = document.limits
        gpus = None if limits.gpus is None else (limits.gpus.count, limits.gpus.type)
        return ir.SandboxTask(
            label=self._label,
            image=HOST_IMAGE if image == HOST_SANDBOX else image,
            network=tuple(sorted(set(network.allow))) if isinstance(network, documents.AllowedHosts) else network,
            limits=ir.Limits(
                limits.cpus,
                limits.memory,
                limits.wall,
                limits.pids,
                limits.disk,
                gpus,
                tuple(sorted(limits.resources.items())),
            ),
            allow=_words(document.allow),
            setup=tuple(tuple(step) for step in document.setup.run) if document.setup is not None else (),
            env=document.env,
            secrets=tuple(sorted(set(document.secrets))),
            volumes={path: volume.name for path, volume in document.volumes.items()},
        )

    def _operator(self, document: documents.Operator) -> ir.OperatorTask:
        agent = document if isinstance(document, documents.Agent) else None
        written = self._files("srcs")
        default = self._files("entry")
        return ir.OperatorTask(
            label=self._label,
            kind=document.kind,
            version=document.version,
            package=self._package,
            entry=document.entry,
            command=_words(document.command),
            files=ir.Files(written.sources or default.sources, written.outputs),
            sees=agent.sees if agent is not None else "public",
            pure=document.pure,
            sandbox=self._resolved.label("sandbox"),
            schema=self._file("schema"),
            io=(agent.files.input, agent.files.output) if agent is not None and agent.files is not None else None,
        )

    def _model(self, document: documents.Model) -> ir.ModelTask:
        spec = _plain(document)
        paths = {field: self._path(field) for field in ("script", "template") if self._resolved.files_below(field)}
        weights = self._files("weights")
        if weights.sources:
            paths["weights"] = normpath(join(self._package, document.weights or ""))
        files = [*self._files("script").sources, *self._files("template").sources, *weights.sources]
        return ir.ModelTask(self._label, {**spec, **paths}, ir.Files(tuple(sorted(set(files)))))

    def _rollout(self, document: documents.Rollout) -> ir.MapTask:
        cell = self._resolved.unit.cell
        grade = document.grade
        return ir.MapTask(
            label=self._label,
            over=self._required("over"),
            agent=self._required("agent"),
            sandbox=self._place("sandbox", operator=self._required("agent")),
            model=self._resolved.label("model"),
            samples=document.samples,
            epoch=document.epoch,
            seed=document.seed,
            params={**document.params, **cell.values, **self._params},
            matrix=cell.values,
            env=document.env,
            calls=document.limits.calls,
            tokens=document.limits.tokens,
            usd=document.limits.usd,
            timeout=document.timeout,
            retries=document.retries,
            max_parallel=document.max_parallel,
            grade=self._grade(grade) if grade is not None else None,
            cost=ir.CostSpec(document.cost.usd, document.cost.tokens, document.cost.wall),
        )

    def _grade(self, grade: documents.Grade) -> ir.GradeSpec:
        return ir.GradeSpec(
            command=_words(grade.command),
            operator=self._resolved.label("grade", "operator"),
            result=grade.result,
            sandbox=self._resolved.label("grade", "sandbox") or self._own(self._resolved.label("grade", "operator")),
            timeout=grade.timeout,
        )

    def _reduction(self, document: documents.Reduction) -> ir.ReduceTask:
        return ir.ReduceTask(
            label=self._label,
            of=self._resolved.labels_below("of"),
            reducer=self._required("reducer"),
            params={**document.params, **self._params},
            group_by=tuple(document.group_by),
            min_success=document.min_success,
            expect=document.expect,
            select=document.select,
            sandbox=self._place("sandbox", operator=self._required("reducer")),
        )

    def _evaluation(self, document: documents.Evaluation) -> ir.EvaluateTask:
        return ir.EvaluateTask(
            label=self._label,
            of=self._required("of"),
            evaluator=self._required("evaluator"),
            model=self._resolved.label("model"),
            params={**document.params, **self._params},
            sandbox=self._place("sandbox", operator=self._required("evaluator")),
            expect=document.expect,
        )

    def _produce(self, document: documents.Produce) -> ir.ProduceTask:
        return ir.ProduceTask(
            label=self._label,
            of=self._required("of"),
            rows=document.rows,
            sink=self._sink(self._find(self._required("sink"))),
            gate=document.gate,
            producer=self._resolved.label("producer"),
            sandbox=self._place("sandbox", operator=self._resolved.label("producer")),
        )

    def _sink(self, resolved: Resolved) -> ir.SinkSpec:
        sink = resolved.unit.document
        assert isinstance(sink, documents.Sink)
        schema = [path for expansion in resolved.files_below("schema") for path in expansion.files]
        return ir.SinkSpec(
            label=resolved.unit.label,
            type=sink.type,
            path=sink_path(sink, resolved.unit.package),
            schema=self._seal(schema)[0] if schema else None,
            mode=sink.mode,
            secret=sink.secret,
        )

    def _command(self, document: documents.Command) -> ir.CommandTask:
        return ir.CommandTask(
            label=self._label,
            package=self._package,
            command=tuple(document.command),
            outs=tuple(document.outs),
            files=self._files("srcs"),
            sandbox=self._resolved.label("sandbox") or HOST_SANDBOX,
            env=document.env,
        )

    def _session(self, document: documents.Session) -> ir.SessionTask:
        return ir.SessionTask(
            label=self._label,
            agent=self._required("agent"),
            sandbox=self._place("sandbox", operator=self._required("agent")),
            model=self._resolved.label("model"),
            spec={key: value for key, value in _plain(document).items() if key not in ("agent", "sandbox", "model")},
            files=self._files("starter"),
        )

    def _job(self, document: documents.Job) -> ir.JobTask:
        budget = document.budget
        return ir.JobTask(self._label, self._resolved.labels_below("of"), budget.usd, budget.tokens, budget.wall)

    def _required(self, field: str) -> str:
        label = self._resolved.label(field)
        assert label is not None, f"{self._label} has no {field}"
        return label

    def _place(self, *location: str, operator: str | None) -> str:
        """The sandbox that is written at `location`, else the operator's own, else the host."""
        return self._resolved.label(*location) or self._own(operator) or HOST_SANDBOX

    def _own(self, operator: str | None) -> str | None:
        """The sandbox that an operator declares for itself."""
        return None if operator is None or operator.startswith(BUILTIN) else self._find(operator).label("sandbox")

    def _files(self, *location: str | int) -> ir.Files:
        paths = {path for expansion in self._resolved.files_below(*location) for path in expansion.files}
        outputs = self._resolved.labels_below(*location) if location[0] not in ("base",) else ()
        return ir.Files(self._seal(paths), tuple(sorted(outputs)))

    def _path(self, *location: str | int) -> str:
        return self._resolved.files[location].files[0]

    def _file(self, *location: str | int) -> ir.SourceFile | None:
        found = self._resolved.files.get(location)
        return self._seal(found.files)[0] if found is not None else None


def sink_path(sink: documents.Sink, package: str) -> str:
    """Where a sink writes: below the workspace for those that write files, as written for others."""
    return sink.path if sink.type == "s3" else normpath(join(package, sink.path))


def _view(view: list[str] | documents.View, folders: bool) -> ir.ViewSpec:
    if isinstance(view, documents.View):
        return ir.ViewSpec(fields=tuple(view.fields), files=view.files)
    return ir.ViewSpec(globs=tuple(view)) if folders else ir.ViewSpec(fields=tuple(view))


def _words(words: list[str] | None) -> tuple[str, ...] | None:
    return None if words is None else tuple(words)


def _plain(document: Target) -> dict[str, Any]:
    """The document with its defaults, as JSON, without what is only for people."""
    spec = document.model_dump(by_alias=True, exclude={"description", "tags"})
    assert all(not isinstance(value, float) for value in spec.values())
    return spec

"""What a unit must be beyond its types, once its names are resolved: templates, conditions, schemas and paths."""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from mrp.cache.canonical import Json
from mrp.compiler.declare import Unit
from mrp.compiler.dockerfile import downloads_of
from mrp.compiler.params import check_params
from mrp.compiler.problems import Problems
from mrp.compiler.references import module_files
from mrp.compiler.resolve import BUILTIN, Resolved
from mrp.rules.image import PINNED_IMAGE, SOURCES
from mrp.rules.interpolate import Name, TemplateError, parse_template
from mrp.rules.locks import parse_deb_lock, parse_requirements
from mrp.rules.reducers import REDUCERS
from mrp.rules.views import check_record_names, check_views
from mrp.specs import documents
from mrp.specs.errors import BuildFailed, Span, is_plain_relative, safe_relative
from mrp.specs.ir import DatasetTask, MapTask, Task
from mrp.specs.suggest import did_you_mean
from mrp.specs.yaml import Node, find, key_span_at

TRIAL_NAMES = ("record", "params", "seed", "sample", "trial")
"""What `${...}` may name where it is filled in for each trial."""

GROUP_KEYS = ("agent", "model", "target")
TRIAL_FIELDS = ("id", "sample", "target", "agent", "model", "matrix", "params", "outcome", "limit", "rewards", "tree")
"""What a reduction's `select` sees of a trial."""

_SCHEMES = ("registry:", "dockerfile:", "modal:", "snapshot:")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NOT_WRITABLE = (
    *("/task", "/solution", "/opt/mrp", "/usr", "/bin", "/lib", "/lib32", "/lib64", "/sbin"),
    *("/etc", "/proc", "/dev", "/sys"),
)
_NOT_FILLED = re.compile(r"(?<!\$)\$\{(?:record|params|matrix)\.[^}]*\}")


@dataclass(frozen=True)
class Checker:
    """`tasks` gives the task behind a label, read or not, and None when it is wrong; `resolved` its unit."""

    root: Path
    tasks: Callable[[str], Task | None]
    resolved: Callable[[str], Resolved | None]
    problems: Problems

    def check(self, resolved: Resolved) -> None:
        """Reports all that is wrong with one unit."""
        unit = resolved.unit
        for field in _conditions(type(unit.document)):
            text = getattr(unit.document, field)
            if text is not None:
                check_condition(unit.node, (field,), text, unit.span(field), self.problems)
        if ("schema",) in resolved.files:
            self._schema(unit, resolved.files["schema",].files[0])
        for location, text in _commands(unit):
            if "${" in text:
                self._command(unit, location, text)
        for name in _env(unit.document):
            self._variable(unit, name)
        task = self.tasks(unit.label)
        if task is not None:
            check_params(self.root, unit, task, self.tasks, self.problems)
        match unit.document:
            case documents.Command():  # first, since there are most of them
                self._outs(resolved, unit.document)
            case documents.Dataset():
                self._dataset(unit, unit.document)
            case documents.Rollout():
                self._rollout(resolved, unit.document)
            case documents.Reduction():
                self._reduction(resolved, unit.document)
            case documents.Image():
                self._image(resolved, unit.document)
            case documents.Sandbox():
                for path in unit.document.volumes:
                    self._guest_path(unit, ("volumes", path), path)
            case documents.Operator():
                self._entry(resolved, unit.document)
                if isinstance(unit.document, documents.Agent) and unit.document.files is not None:
                    for field, path in unit.document.files.model_dump().items():
                        self._agent_file(unit, field, path)
            case documents.Sink():
                self._sink(unit, unit.document)
            case documents.Model():
                self._sampling(unit, unit.document)
                self._weights(resolved, unit.document)

    def _variable(self, unit: Unit, name: str) -> None:
        place = unit.span("env", name)
        if not _VARIABLE.match(name):
            self.problems.add(place, f"`{name}` is no name of a variable", "use letters, digits and _")
        elif name.startswith("MRP_"):
            self.problems.add(place, f"`{name}` is a variable of mrp's own", "choose a name without MRP_")

    def _agent_file(self, unit: Unit, field: str, path: str) -> None:
        """A file that an agent reads or writes stands in a folder that can be made, and be written to."""
        self._guest_path(unit, ("files", field), path)
        folder = posixpath.dirname(path)
        if folder == "/" or any(folder == own or folder.startswith(f"{own}/") for own in _NOT_WRITABLE):
            message = f"`files.{field}` of {unit.target.label} cannot be {path}"
            self.problems.add(unit.span("files", field), message, "choose a folder such as /tmp, /work or /out")

    def _schema(self, unit: Unit, path: str) -> None:
        """A JSON Schema that can be read; what it demands is checked against records when they are there."""
        from mrp.rules.formats import BadData, json_object

        try:
            json_object((self.root / path).read_bytes())
        except OSError as error:
            self.problems.add(unit.span("schema"), f"{path} cannot be read: {error.strerror}", "check its permissions")
        except BadData as fault:
            found = fault.diagnostic(path)
            self.problems.extend([replace(found, hint=f"write a JSON Schema: it is the schema of {unit.label}")])

    def _command(self, unit: Unit, location: tuple[str | int, ...], text: str) -> None:
        found = _NOT_FILLED.search(text)
        if found:
            hint = "give it through `env`, where it is filled in for each trial"
            self.problems.add(unit.span(*location), f"`{found[0]}` is not filled in here", hint)

    def _dataset(self, unit: Unit, dataset: documents.Dataset) -> None:
        path = dataset.fetch.path if dataset.fetch is not None else None
        if path is not None and safe_relative(path) is None:
            message = f"the path `{path}` leaves its package"
            self.problems.add(unit.span("fetch", "path"), message, "copy the file into the package's folder")
        task = self.tasks(unit.label)
        if isinstance(task, DatasetTask):
            for problem in check_views(task):
                field = re.search("`([a-z]+)", problem)
                place = (field[1],) if field and field[1] in unit.node.key_spans else ()
                self.problems.add(unit.span(*place), f"{unit.label}: {problem}")

    def _rollout(self, resolved: Resolved, rollout: documents.Rollout) -> None:
        unit = resolved.unit
        task = self.tasks(unit.label)
        params = task.params if isinstance(task, MapTask) else rollout.params
        datasets = list(self._datasets(resolved.label("over")))
        for name, text in rollout.env.items():
            place = unit.span("env", name)
            parts = self._template(unit, ("env", name), text, TRIAL_NAMES, params)
            names = [str(part) for part in parts if len(part.path) > 1]
            for problem in sorted({p for dataset in datasets for p in check_record_names(dataset, names)}):
                self.problems.add(place, problem, "agents see only public fields")
        model = self.resolved(resolved.label("model") or "")
        if model is not None and isinstance(model.unit.document, documents.Model):
            for _, text in _texts(("sampling",), model.unit.document.sampling):
                for part in _names(text):
                    if part.path[0] == "params" and len(part.path) > 1 and part.path[1] not in params:
                        message = f"{model.unit.label} uses `${{{part}}}` in its sampling, which this rollout lacks"
                        self.problems.add(unit.span("model"), message, f"add `{part.path[1]}` to params or matrix")

    def _datasets(self, label: str | None) -> Iterator[DatasetTask]:
        """A dataset and those that it is made of."""
        waiting, seen = [label], set[str]()
        while waiting:
            name = waiting.pop()
            task = None if name is None or name in seen else self.tasks(name)
            if isinstance(task, DatasetTask):
                seen.add(task.label)
                waiting.extend(task.of)
                yield task

    def _reduction(self, resolved: Resolved, reduction: documents.Reduction) -> None:
        unit = resolved.unit
        tasks = [self.tasks(label) for label in resolved.labels_below("of")]
        if tasks and all(isinstance(task, MapTask) for task in tasks):
            axes = {axis for task in tasks if isinstance(task, MapTask) for axis in task.matrix}
            for number, key in enumerate(reduction.group_by):
                if key not in axes and key not in GROUP_KEYS:
                    known = [*sorted(axes), *GROUP_KEYS]
                    hint = did_you_mean(key, known) or f"the keys are {', '.join(dict.fromkeys(known))}"
                    self.problems.add(unit.span("group_by", number), f"there is no group key `{key}`", hint)
            self._selection(unit, reduction.select)
        reducer = (resolved.label("reducer") or "").removeprefix(BUILTIN)
        if reducer in REDUCERS:
            for name in reduction.params:
                if name not in REDUCERS[reducer].params:
                    known = sorted(REDUCERS[reducer].params)
                    hint = did_you_mean(name, known) or f"its params are {', '.join(known) or 'none'}"
                    self.problems.add(unit.span("params", name), f"the reducer {reducer} has no param `{name}`", hint)

    def _selection(self, unit: Unit, select: str | None) -> None:
        from mrp.specs.expressions import ExpressionError, parse_expression

        try:
            asked = sorted(parse_expression(select).paths()) if select is not None else []
        except ExpressionError:
            return
        for path in asked:
            if path[0] not in TRIAL_FIELDS:
                hint = did_you_mean(path[0], TRIAL_FIELDS) or f"a trial has {', '.join(TRIAL_FIELDS)}"
                self.problems.add(unit.span("select"), f"`select`: no trial has a field `{path[0]}`", hint)

    def _outs(self, resolved: Resolved, command: documents.Command) -> None:
        unit = resolved.unit
        sources = {path for expansion in resolved.files_below("srcs") for path in expansion.files}
        taken: list[str] = []
        for number, out in enumerate(command.outs):
            place = unit.span("outs", number)
            if not is_plain_relative(out):
                self.problems.add(place, f"the output `{out}` is no plain path below the package", "like out/a.txt")
                continue
            if posixpath.join(unit.package, out) in sources:
                self.problems.add(place, f"`{out}` is a source and an output of {unit.label}", "write to another file")
            for other in taken:
                if out == other or out.startswith(f"{other}/") or other.startswith(f"{out}/"):
                    self.problems.add(place, f"the outputs `{other}` and `{out}` overlap", "keep the outer one")
            taken.append(out)

    def _image(self, resolved: Resolved, image: documents.Image) -> None:
        unit = resolved.unit
        if image.toolchain and image.base != "host":
            self.problems.add(unit.span("toolchain"), "a toolchain is a part of the machine", "it needs `base: host`")
        self._base(resolved, image.base)
        for number, layer in enumerate(image.layers):
            for source, target in (layer.copy_ or {}).items():
                self._guest_path(unit, ("layers", number, "copy", source), target)
            for place, target in enumerate(layer.dirs or ()):
                self._guest_path(unit, ("layers", number, "dirs", place), target)
            for target in layer.links or ():
                self._guest_path(unit, ("layers", number, "links", target), target)
            self._packages(resolved, image, number, layer)

    def _base(self, resolved: Resolved, base: str | documents.Dockerfile) -> None:
        """A base is of a kind that is known, and a Dockerfile brings nothing that is not pinned."""
        unit = resolved.unit
        dockerfile = resolved.files.get(("base", "dockerfile"))
        if dockerfile is not None:
            for address in downloads_of(self.root / dockerfile.files[0]):
                message = f"the Dockerfile of {unit.target.label} downloads {address}"
                self.problems.add(unit.span("base"), message, "put the file into its context, and COPY it")
        if not isinstance(base, str) or base.startswith("//"):
            return
        scheme, separator, _ = base.partition("///")
        if separator and scheme not in _SCHEMES:
            known = ", ".join(f"{known}///" for known in _SCHEMES)
            self.problems.add(unit.span("base"), f"`{base}` is of no kind that is known", f"there are {known}")
        elif "@" in base and not PINNED_IMAGE.match(base):
            message = f"`{base}` does not name an image by its whole digest"
            self.problems.add(unit.span("base"), message, "write name@sha256: and 64 hex digits")

    def _packages(self, resolved: Resolved, image: documents.Image, number: int, layer: documents.Layer) -> None:
        """Layers of packages lie over a file system of packages, and their locks hold what they name."""
        unit = resolved.unit
        kind = "deb" if layer.deb is not None else "pip"
        if layer.deb is None and layer.pip is None:
            return
        if image.base == "host" or (isinstance(image.base, str) and image.base.startswith(SOURCES)):
            message = f"a `{kind}` layer cannot lie over `{image.base}`"
            self.problems.add(unit.span("layers", number), message, "use `base: scratch`, or an image by digest")
            return
        field = "lock" if kind == "deb" else "pip"
        file = resolved.files.get(("layers", number, field))
        if file is None:
            return
        try:
            data = (self.root / file.files[0]).read_bytes()
            if layer.deb is not None:
                parse_deb_lock(data).closure(layer.deb)
            else:
                parse_requirements(data)
        except BuildFailed as error:
            self.problems.add(unit.span("layers", number, field), f"{file.files[0]}: {error}")
        except OSError:
            return  # a source that cannot be read is reported when all of them are

    def _guest_path(self, unit: Unit, location: tuple[str | int, ...], path: str) -> None:
        if not path.startswith("/") or safe_relative(path.strip("/") or ".") is None:
            message = f"`{path}` is no absolute path inside the sandbox"
            key = key_span_at(unit.node, location) if location[-1] == path else None
            self.problems.add(key or unit.span(*location), message, "write it from /, without `..`")

    def _entry(self, resolved: Resolved, operator: documents.Operator) -> None:
        unit = resolved.unit
        if operator.entry is None or not operator.srcs or resolved.labels_below("srcs"):
            return
        if len(resolved.files_below("srcs")) < len(operator.srcs):
            return
        paths = {path for expansion in resolved.files_below("srcs") for path in expansion.files}
        file, folder = module_files(unit.package, operator.entry)
        if file not in paths and not any(path.startswith(f"{folder}/") for path in paths):
            message = f"the srcs of {unit.label} hold no {file}, where `{operator.entry}` would be"
            self.problems.add(unit.span("entry"), message, "add it to srcs")

    def _sink(self, unit: Unit, sink: documents.Sink) -> None:
        if sink.type != "s3" and safe_relative(sink.path) is None:
            message = f"the sink's path `{sink.path}` leaves its package"
            self.problems.add(unit.span("path"), message, "write a path below the package's folder")
        if sink.type == "s3" and not sink.path.startswith("s3://"):
            self.problems.add(unit.span("path"), f"`{sink.path}` is no address of an s3 sink", "write s3://bucket/key")

    def _weights(self, resolved: Resolved, model: documents.Model) -> None:
        """What vLLM serves is pinned: a folder by its bytes, a name on a hub by a commit."""
        unit = resolved.unit
        if model.provider != "vllm" or resolved.files_below("weights"):
            return
        if not _COMMIT.match(model.revision or ""):
            place = unit.span("revision" if model.revision else "weights")
            message = f"the weights `{model.weights}` come from a hub, and no commit pins them"
            hint = "add `revision`, with the 40 hex digits of a commit; a folder is written ./folder"
            self.problems.add(place, message, hint)

    def _sampling(self, unit: Unit, model: documents.Model) -> None:
        for location, text in _texts(("sampling",), model.sampling):
            self._template(unit, location, text, ("params",), None)

    def _template(
        self, unit: Unit, location: tuple[str | int, ...], text: str, known: tuple[str, ...], params: Json
    ) -> list[Name]:
        """The names of a template, after reporting those that nothing fills; `params` is None when not known."""
        span = unit.span(*location)
        try:
            template = parse_template(text)
        except TemplateError as error:
            self.problems.add(_column(unit.node, location, span, error.column), error.message)
            return []
        names = [part for part in template.parts if isinstance(part, Name)]
        for part in names:
            place = _column(unit.node, location, span, part.column)
            if part.path[0] not in known:
                only = f"only {', '.join(known)} may stand here; `$${{` is a literal `${{`"
                hint = did_you_mean(part.path[0], known) or only
                self.problems.add(place, f"`${{{part}}}` stands for nothing here", hint)
            elif part.path[0] in ("record", "params") and len(part.path) == 1:
                self.problems.add(place, f"`${{{part}}}` needs a name after it", f"like ${{{part}.x}}")
            elif part.path[0] not in ("record", "params") and len(part.path) > 1:
                self.problems.add(place, f"`${{{part}}}` stands for nothing here", f"write ${{{part.path[0]}}}")
            elif part.path[0] == "params" and params is not None and part.path[1] not in params:
                hint = did_you_mean(part.path[1], params) or f"its params are {', '.join(sorted(params)) or 'none'}"
                self.problems.add(place, f"{unit.target.label} has no param `{part.path[1]}`", hint)
        return names


def check_condition(node: Node, location: tuple[str | int, ...], text: str, span: Span, problems: Problems) -> None:
    """Reports what is wrong with the expression at `location` of `node`, at its column where that can be told."""
    from mrp.specs.expressions import ExpressionError, parse_condition

    try:
        parse_condition(text)
    except ExpressionError as error:
        field = next(step for step in reversed(location) if isinstance(step, str))
        place = _column(node, location, span, error.column, problems.sources.word(span), text)
        problems.add(place, f"`{field}`, column {error.column}: {error.message}", error.hint)


def _column(
    node: Node, location: tuple[str | int, ...], span: Span, column: int, word: str = "", text: str = ""
) -> Span:
    """The place `column` characters into a text; the text's own place where it may be written with escapes."""
    if not span.end_column or column < 1 or find(node, location)[1] != len(location):
        return span
    if not text:
        value = find(node, location)[0].value
        text = value if isinstance(value, str) else ""
    quotes = span.end_column - span.column - len(text)
    if quotes not in (0, 2) or (word and text not in word):
        return span
    return span._replace(column=span.column + quotes // 2 + column - 1, end_column=0)


@cache
def _conditions(model: type[documents.Target]) -> tuple[str, ...]:
    """The fields of a kind that hold an expression."""
    return tuple(field for field in ("where", "expect", "select", "gate") if field in model.model_fields)


def _env(document: documents.Target) -> Mapping[str, str]:
    """The variables that a target sets; empty for kinds that set none."""
    if isinstance(document, (documents.Command, documents.Rollout, documents.Sandbox, documents.Image)):
        return document.env
    return {}


def _commands(unit: Unit) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Texts that reach a process as they are."""
    match unit.document:
        case documents.Command() | documents.Operator():
            yield from _texts(("command",), unit.document.command)
        case documents.Rollout() if unit.document.grade is not None:
            yield from _texts(("grade", "command"), unit.document.grade.command)
        case documents.Sandbox() if unit.document.setup is not None:
            yield from _texts(("setup", "run"), unit.document.setup.run)
        case documents.Dataset() if unit.document.generate is not None:
            yield from _texts(("generate", "command"), unit.document.generate.command)
    if unit.kind != "rollout":
        yield from _texts(("env",), _env(unit.document))


def _texts(location: tuple[str | int, ...], value: Json) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every text below a plain value, with its place."""
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts((*location, key), item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            if isinstance(item, str):
                yield (*location, number), item
            else:
                yield from _texts((*location, number), item)


def _names(text: str) -> list[Name]:
    try:
        return [part for part in parse_template(text).parts if isinstance(part, Name)]
    except TemplateError:
        return []

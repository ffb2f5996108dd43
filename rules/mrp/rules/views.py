"""Views: which parts of a record an agent, a grader and an agent that sees solutions find, and where.

Each field and each file of a record has one class: solution when `solution` names it, else private when `private`
does, else public. `starter` picks from what is public. So nothing private or of the solution can reach an agent by
being named twice. All here is pure: contents go in, contents come out; nothing is stored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import Protocol, TypeAlias

from mrp.cache.canonical import Json, canonical_bytes, canonical_text
from mrp.cache.digest import Digest
from mrp.rules.globs import Glob, parse_glob
from mrp.rules.interpolate import Name, Template, TemplateError, parse_template
from mrp.specs.errors import safe_relative
from mrp.specs.ir import DatasetTask, ViewSpec
from mrp.specs.suggest import did_you_mean

RECORD_FILE = "record.json"
FOLDER_FORMATS = ("dir", "harbor")

_HARBOR_PRIVATE = ("tests/**", "steps/*/tests/**", "environment/**", "task.toml")
_HARBOR_SOLUTION = ("solution/**", "steps/*/solution/**")

Content: TypeAlias = bytes | tuple[Digest, bool]
"""A file of a view: its bytes, or the digest of a source and whether it is executable."""


class ViewError(ValueError):
    """A record whose views cannot be made; the text says why."""


class Sight(Enum):
    """Who may see a field or file: all; graders; only agents that declare `sees: solution`."""

    PUBLIC = "public"
    PRIVATE = "private"
    SOLUTION = "solution"


@dataclass(frozen=True)
class Row:
    """One record as it was read: `path` is its file or folder, `line` counts from 1 and is 0 for folders.

    `natural_id` is the folder's name, or the key under which a JSON object held the row. For folders, `files` are
    relative to the record's folder and `sources` says from which file each field came.
    """

    path: str
    line: int
    fields: Mapping[str, Json]
    natural_id: str | None = None
    files: Mapping[str, tuple[Digest, bool]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Where it stands, for people: path:line, or the folder."""
        return f"{self.path}:{self.line}" if self.line else self.path


@dataclass(frozen=True)
class RecordViews:
    """The files of each view: /task for agents, /work, /task for graders, /task and /solution for solvers."""

    task: Mapping[str, Content]
    starter: Mapping[str, Content]
    grader: Mapping[str, Content]
    solver: Mapping[str, Content]
    solution: Mapping[str, Content]


class Views(Protocol):
    """How one dataset splits its records."""

    def public(self, row: Row) -> dict[str, Json]:
        """The fields of `row` that agents see."""

    def split(self, row: Row, identity: str) -> RecordViews:
        """All views of `row`; raises ViewError."""

    def unused(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """(one sentence, a hint) for each name or glob of the task that none of `rows` has."""


def dataset_views(task: DatasetTask) -> Views:
    """The views that `task` declares; raises ViewError when `check_views` would have something to say."""
    problems = check_views(task)
    if problems:
        raise ViewError("; ".join(problems))
    return _FolderViews(task) if task.format in FOLDER_FORMATS else _RowViews(task)


def check_views(task: DatasetTask) -> list[str]:
    """What is wrong with a dataset's views, id and split as declared, one sentence each; for the compiler."""
    problems = _split_problems(task)
    if task.generate is not None and task.format != "jsonl":
        problems.append(f"what is generated is jsonl; remove `format: {task.format}`")
    named = {"starter": task.starter, "private": task.private, "solution": task.solution}
    if task.of:
        problems += [
            f"`{name}` cannot stand beside `of`: the records keep the views of their own dataset"
            for name, view in named.items()
            if view != ViewSpec()
        ]
        if task.id is not None:
            problems.append("`id` cannot stand beside `of`: the records keep their ids")
    elif task.format in FOLDER_FORMATS:
        problems += _folder_problems(task, named)
    else:
        problems += _row_problems(task, named)
    return problems


def check_record_names(task: DatasetTask, names: Iterable[str]) -> list[str]:
    """What is wrong with `record.x` names in a template that agents see, one sentence each; for the compiler.

    `names` are dotted, as Template.names gives them; those that do not start with `record.` are not looked at.
    """
    problems = []
    for name in names:
        words = name.split(".")
        if words[0] != "record":
            continue
        if len(words) == 1:
            problems.append("`${record}` is the whole record; name a field, like ${record.id}")
            continue
        for sight, view in ((Sight.SOLUTION, task.solution), (Sight.PRIVATE, task.private)):
            if words[1] in view.fields:
                problems.append(f"`${{{name}}}` is a {sight.value} field, which agents must not see")
                break
    return problems


class _RowViews:
    """Views of rows: by field name, with files made from templates."""

    def __init__(self, task: DatasetTask) -> None:
        self._solution = frozenset(task.solution.fields)
        self._private = frozenset(task.private.fields) - self._solution
        self._hidden = self._private | self._solution
        self._files = {
            name: {path: parse_template(text) for path, text in view.files.items()}
            for name, view in (("starter", task.starter), ("private", task.private), ("solution", task.solution))
        }

    def public(self, row: Row) -> dict[str, Json]:
        return {name: value for name, value in row.fields.items() if name not in self._hidden}

    def split(self, row: Row, identity: str) -> RecordViews:
        fields, private, solution = row.fields, self._private, self._solution
        names = sorted(fields)
        # Each field is spelled once, for all the views that have it.
        spelled = {name: f"{canonical_text(name)}:{canonical_text(fields[name])}" for name in names}

        def seen(hidden: frozenset[str]) -> dict[str, Content]:
            text = ",".join([spelled[name] for name in names if name not in hidden])
            return {RECORD_FILE: f"{{{text}}}\n".encode()}

        has_private, has_solution = not private.isdisjoint(fields), not solution.isdisjoint(fields)
        task = seen(self._hidden)
        grader = seen(solution) if has_private else task
        if self._files["private"]:
            shown = {name: value for name, value in fields.items() if name not in solution}
            grader = {**grader, **_render(self._files["private"], shown, identity)}
        solved: Mapping[str, Json] = {}
        if self._files["solution"]:
            solved = {name: value for name, value in fields.items() if name not in private}
        return RecordViews(
            task=task,
            starter=_render(self._files["starter"], self.public(row), identity) if self._files["starter"] else {},
            grader=grader,
            solver=seen(private) if has_solution else task,
            solution=_render(self._files["solution"], solved, identity),
        )

    def unused(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        present: set[str] = set()
        for row in rows:
            present.update(row.fields)
        return [
            (f"`{view}` names the field {name!r}, which no record has", did_you_mean(name, present))
            for view, names in (("private", self._private), ("solution", self._solution))
            for name in sorted(names - present)
        ]


class _FolderViews:
    """Views of folders: by globs over their files."""

    def __init__(self, task: DatasetTask) -> None:
        self._declared = {
            "starter": task.starter.globs,
            "private": task.private.globs,
            "solution": task.solution.globs,
        }
        harbor = task.format == "harbor"
        private = _HARBOR_PRIVATE if harbor and not task.private.globs else task.private.globs
        solution = _HARBOR_SOLUTION if harbor and not task.solution.globs else task.solution.globs
        self._starter = tuple(map(parse_glob, task.starter.globs))
        self._private = tuple(map(parse_glob, private))
        self._solution = tuple(map(parse_glob, solution))

    def public(self, row: Row) -> dict[str, Json]:
        return self._fields(row, (Sight.PUBLIC,))

    def split(self, row: Row, identity: str) -> RecordViews:
        public = {
            path: file for path, file in row.files.items() if path != RECORD_FILE and self._sight(path) is Sight.PUBLIC
        }
        private = {
            path: file for path, file in row.files.items() if path != RECORD_FILE and self._sight(path) is Sight.PRIVATE
        }

        def record_file(*sights: Sight) -> bytes:
            return record_bytes({"id": identity, **self._fields(row, sights)})

        return RecordViews(
            task={**public, RECORD_FILE: record_file(Sight.PUBLIC)},
            starter=self._moved("starter", self._starter, row, Sight.PUBLIC),
            grader={**public, **private, RECORD_FILE: record_file(Sight.PUBLIC, Sight.PRIVATE)},
            solver={**public, RECORD_FILE: record_file(Sight.PUBLIC, Sight.SOLUTION)},
            solution=self._moved("solution", self._solution, row, Sight.SOLUTION),
        )

    def unused(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        paths = {path for row in rows for path in row.files}
        return [
            (f"`{view}` names {pattern!r}, which matches no file of any record", _folder_hint(pattern, paths))
            for view, patterns in self._declared.items()
            for pattern in patterns
            if not any(map(parse_glob(pattern).matches, paths))
        ]

    def _sight(self, path: str) -> Sight:
        if any(glob.matches(path) for glob in self._solution):
            return Sight.SOLUTION
        if any(glob.matches(path) for glob in self._private):
            return Sight.PRIVATE
        return Sight.PUBLIC

    def _fields(self, row: Row, sights: Sequence[Sight]) -> dict[str, Json]:
        seen = {path: self._sight(path) in sights for path in set(row.sources.values())}
        return {name: value for name, value in row.fields.items() if seen[row.sources[name]]}

    def _moved(self, view: str, globs: Sequence[Glob], row: Row, sight: Sight) -> dict[str, Content]:
        """The files of one class that `globs` name, without the literal folder of the first glob that does."""
        moved: dict[str, Content] = {}
        origins: dict[str, str] = {}
        for path in sorted(row.files):
            glob = next((glob for glob in globs if glob.matches(path)), None)
            if glob is None or self._sight(path) is not sight:
                continue
            target = glob.stripped(path)
            if target in moved:
                raise ViewError(f"`{view}` would put both {origins[target]} and {path} at {target}")
            moved[target], origins[target] = row.files[path], path
        if clash := _clash(moved):
            raise ViewError(f"`{view}` would make {clash} both a file and a folder")
        return moved


def record_bytes(fields: Mapping[str, Json]) -> bytes:
    """A record.json: canonical JSON and a newline."""
    return canonical_bytes(fields) + b"\n"


def _render(files: Mapping[str, Template], fields: Mapping[str, Json], identity: str) -> dict[str, Content]:
    if not files:
        return {}
    scope = {"record": {"id": identity, **fields}}
    rendered: dict[str, Content] = {}
    for path, template in files.items():
        try:
            rendered[path] = template.render(scope).encode()
        except TemplateError as error:
            raise ViewError(f"file {path}: {error.message}") from error
    return rendered


def _folder_hint(pattern: str, paths: Iterable[str]) -> str:
    folder = str(safe_relative(pattern)) + "/"
    return f"for all files of a folder write `{folder}**`" if any(path.startswith(folder) for path in paths) else ""


def _clash(paths: Iterable[str]) -> str | None:
    """A path that is both a file and a folder of another, or None."""
    known = set(paths)
    for path in sorted(known):
        folder = path.rpartition("/")[0]
        while folder:
            if folder in known:
                return folder
            folder = folder.rpartition("/")[0]
    return None


def _split_problems(task: DatasetTask) -> list[str]:
    problems = [f"`split` gives {name!r} a share below 0" for name, share in sorted(task.split.items()) if share < 0]
    if task.split and sum(task.split.values()) != Decimal(1):
        problems.append(f"the shares of `split` sum to {sum(task.split.values())}, and must sum to 1")
    if task.take is not None and task.take not in task.split:
        problems.append(f"there is no part {task.take!r} in `split`; it has {', '.join(sorted(task.split)) or 'none'}")
    return problems


def _folder_problems(task: DatasetTask, named: Mapping[str, ViewSpec]) -> list[str]:
    problems = []
    for name, view in named.items():
        if view.fields or view.files:
            problems.append(f"`{name}` of format {task.format} takes globs over files, not fields and templates")
        for pattern in view.globs:
            try:
                parse_glob(pattern)
            except ValueError as error:
                problems.append(f"`{name}`: {error}")
    return problems


def _row_problems(task: DatasetTask, named: Mapping[str, ViewSpec]) -> list[str]:
    problems = [
        f"`{name}` of format {task.format} takes field names, not globs" for name, view in named.items() if view.globs
    ]
    if task.starter.fields:
        field = task.starter.fields[0] if task.starter.fields[0].isidentifier() else "text"
        problems.append(
            "`starter` puts files into /work, and rows have none; "
            f'make one: starter: {{files: {{main.py: "${{record.{field}}}"}}}}'
        )
    solution = set(task.solution.fields)
    private = set(task.private.fields) - solution
    if task.id in private | solution:
        problems.append(f"`id` {task.id!r} cannot be a private or solution field, since agents are told their id")
    hidden = {"starter": (private, solution), "private": (set[str](), solution), "solution": (private, set[str]())}
    for name, view in named.items():
        reserved = name == "private"
        problems += _file_problems(name, view.files, *hidden[name], reserved=reserved)
    return problems


def _file_problems(
    name: str, files: Mapping[str, str], private: set[str], solution: set[str], *, reserved: bool
) -> list[str]:
    problems = []
    for path, text in files.items():
        place = f"`{name}.files` {path!r}"
        safe = safe_relative(path)
        if safe is None or str(safe) != path:
            problems.append(f"{place} must be a plain relative path, like src/main.py")
        elif reserved and path == RECORD_FILE:
            problems.append(f"{place} is where graders find the record's fields; choose another path")
        try:
            template = parse_template(text)
        except TemplateError as error:
            problems.append(f"{place}, column {error.column}: {error.message}")
            continue
        for part in template.parts:
            if not isinstance(part, Name):
                continue
            if part.path[0] != "record" or len(part.path) == 1:
                problems.append(f"{place}, column {part.column}: only `${{record.FIELD}}` may stand here, not {part}")
            elif part.path[1] in private | solution:
                kind = "private" if part.path[1] in private else "solution"
                problems.append(
                    f"{place}, column {part.column}: `{part}` is a {kind} field, which `{name}` must not show"
                )
    if clash := _clash(files):
        problems.append(f"`{name}.files` makes {clash!r} both a file and a folder")
    return problems

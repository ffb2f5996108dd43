"""An edit of sources patches the standing plan: only the tasks that it reaches are opened again.

What is not reached keeps its value without being looked up; should a blob of it turn out to be gone, the whole plan is
built instead. Any other change than one of a source's bytes (documents, folders, the host, mrp itself) has made the
snapshot useless before anything here is asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrp.cache.canonical import canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.store import Store
from mrp.rules.rule import OperatorValue, SandboxValue, TrialsValue, Value
from mrp.rules.value_json import value_from_json, value_to_json
from mrp.runtime import snapshot
from mrp.runtime.account import merged_lines, staying_lines
from mrp.runtime.recorded_plan import put_moved, with_sources
from mrp.runtime.report import TargetReport
from mrp.runtime.standing import Standing, unpack
from mrp.runtime.state import state_folder
from mrp.specs.decode import decode
from mrp.specs.ir import TASKS, CommandTask, MapTask, Plan, ReduceTask, Task
from mrp.specs.results import Ref

_MOST_MOVED = 1000
"""Sources that a recorded plan may differ in from the one that it names, before it is written whole again."""


class Patch:
    """What of a standing plan must be looked at again. `plan` holds those tasks, with the new digests of sources.

    `known`: the values that they need of tasks that stand. `lost`: outputs below mrp-out are missing.
    `standing_actions`: how many actions belong to other tasks, once `keep_lines` was told of these.
    """

    standing_actions = 0

    def __init__(self, found: snapshot.Comparison, standing: Standing, places: Sequence[int]) -> None:
        self.snapshot, self.moved, self.lost = found.snapshot, found.moved, found.lost
        self.standing = standing
        self._places = {standing.labels[place]: place for place in places}
        tasks = []
        for place in places:
            task = with_sources(standing.task(place), found.moved)
            standing.tasks[place] = canonical_bytes(task)
            tasks.append(decode(TASKS[task["task"]], task))
        head = {name: value for name, value in standing.head["plan"].items() if name != "ir"}
        self.plan = Plan(**{**vars(decode(Plan, {**head, "tasks": []})), "tasks": tuple(tasks)})
        needed = {need for place in places for need in standing.needs[place]} - set(places)
        self.known = {standing.labels[place]: self.value(place) for place in sorted(needed)}

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the chosen configs set: engine, sandbox and jobs."""
        settings: Mapping[str, Any] = self.standing.head["settings"]
        return settings

    @property
    def reported(self) -> Sequence[str]:
        """The labels whose outputs are published."""
        labels: Sequence[str] = self.standing.head["reported"]
        return labels

    def put_plan(self, store: Store) -> Digest:
        """Keep the whole plan, for the record of the run."""
        head = self.standing.head
        head["moved"] = {**head["moved"], **{path: list(now) for path, now in self.moved.items()}}
        if len(head["moved"]) <= _MOST_MOVED:
            return put_moved(head["base"], head["moved"], store)
        head["base"], head["moved"] = store.put_bytes(self.standing.plan_bytes()), {}
        return Digest(head["base"])

    def _is_rollout(self, place: int) -> bool:
        return bool(self.standing.task(place)["task"] == "MapTask")

    def reaches(self, label: str) -> bool:
        return label in self._places

    def value(self, place: int) -> Value:
        """The value that a task had."""
        return value_from_json(self.standing.value(place))

    def outputs(self, label: str) -> Mapping[str, Ref]:
        """The outputs of a target that stands."""
        place = self.standing.place(label)
        return {} if place is None else self.value(place).outputs

    def report(self, label: str) -> TargetReport:
        """The report of a target that stands."""
        told = self.standing.head["targets"][label]
        outputs = self.outputs(label) if told["outputs"] else {}
        return TargetReport(**{**told, "outputs": outputs})

    def sandboxes(self) -> set[tuple[Digest, bool]]:
        """Images in which the edit is likely to run processes, and whether these are Python operators."""
        found = set()
        for task in self.plan.tasks:
            for operator, sandbox in _processes(task):
                box, code = self.known.get(sandbox), self.known.get(operator)
                if isinstance(box, SandboxValue):
                    found.add((box.box.image, isinstance(code, OperatorValue) and code.task.entry is not None))
        return found

    def before(self) -> dict[str, TrialsValue]:
        """What the rollouts that are looked at came to."""
        values = {label: self.value(place) for label, place in self._places.items() if self._is_rollout(place)}
        return {label: value for label, value in values.items() if isinstance(value, TrialsValue)}

    def keep_lines(self, lines: Mapping[str, bytes], values: Mapping[str, Value]) -> None:
        """Put the digest lines of the tasks that were looked at into the standing plan."""
        order, texts = self.standing.line_places(), self.standing.lines
        before = sum(texts[order[label]].count(b"\n") for label in self._places)
        self.standing_actions = int(self.standing.head["actions"]) - before
        for label in self._places:
            value, new = values.get(label), lines.get(label, b"")
            if isinstance(value, TrialsValue) and value.dropped is not None:
                stay = staying_lines(texts[order[label]], value.dropped)
                self.standing_actions += len(stay)
                new = merged_lines(stay, new)
            texts[order[label]] = new

    def keep(self, values: Mapping[str, Value]) -> None:
        """Put what the tasks came to into the standing plan, and the new bytes of sources into the snapshot."""
        for label, place in self._places.items():
            self.standing.values[place] = canonical_bytes(value_to_json(values[label]))
        files = self.snapshot.files
        for place, path in enumerate(files.paths):
            if path in self.moved:
                files.replace(place, *self.moved[path])


def patch_of(root: Path, identity: Sequence[str]) -> Patch | None:
    """What an edit asks for, when a standing plan can be patched; None when the workspace must be compiled."""
    found = snapshot.take_compared(str(root), identity)
    if found is None:
        return None
    path = state_folder(root) / snapshot.FOLDER / f"{snapshot.file_name(identity)}.plan"
    try:
        standing = unpack(path.read_bytes(), found.snapshot.head["plan"])
    except (OSError, ValueError):
        return None
    if standing is None:
        return None
    moved = [place for place, path in enumerate(found.snapshot.files.paths) if path in found.moved]
    changed = {task for place in moved for task in standing.uses[place]}
    always = set(standing.head["always"])
    return Patch(found, standing, standing.users.reached(changed | always))


def _processes(task: Task) -> Iterator[tuple[str, str]]:
    """(operator or "", sandbox) of the processes that a task runs."""
    if isinstance(task, CommandTask):
        yield "", task.sandbox
    elif isinstance(task, MapTask):
        yield task.agent, task.sandbox
        if task.grade is not None and task.grade.result is None:
            yield task.grade.operator or "", task.grade.sandbox or task.sandbox
    elif isinstance(task, ReduceTask) and not task.reducer.startswith("builtin:"):
        yield task.reducer, task.sandbox

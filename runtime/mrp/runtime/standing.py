"""The standing plan: what the last build came to, task by task in compact columns, so that the next one patches it.

A file below `.mrp/snapshots` beside the snapshot that names its digest; it may be forgotten at any time. Tasks and
values are kept as JSON texts, and only those that a build touches are ever parsed; edges are arrays of numbers.

Format: a line of JSON (the head: lengths of the sections, the plan without its tasks, what was reported), then the
labels joined by NUL, edges to what a task needs and to what needs it, tasks that use each file of the snapshot, and
the texts of tasks, values and digest lines, each joined by NUL.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from mrp.cache.canonical import Json, canonical_bytes
from mrp.cache.digest import digest_bytes

_BETWEEN = b"\0"
"""Between texts; JSON has none."""


class Edges:
    """For each number a few others: `bounds` has one entry more than there are rows."""

    def __init__(self, bounds: "array[int]", ends: "array[int]") -> None:
        self._bounds, self._ends = bounds, ends

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> "Edges":
        bounds, ends = array("I", [0]), array("I")
        for row in rows:
            ends.extend(row)
            bounds.append(len(ends))
        return cls(bounds, ends)

    def __getitem__(self, place: int) -> Sequence[int]:
        return self._ends[self._bounds[place] : self._bounds[place + 1]]

    def turned(self, count: int) -> "Edges":
        """The same edges, from the `count` ends to the rows."""
        sizes = array("I", bytes(4 * (count + 1)))
        for end in self._ends:
            sizes[end + 1] += 1
        bounds = array("I", accumulate(sizes))
        nexts, ends = array("I", bounds), array("I", bytes(4 * len(self._ends)))
        for row in range(len(self._bounds) - 1):
            for end in self[row]:
                ends[nexts[end]] = row
                nexts[end] += 1
        return Edges(bounds, ends)

    def reached(self, places: Iterable[int]) -> list[int]:
        """These places and all that edges lead to from them, in order."""
        found = set(places)
        waiting = list(found)
        while waiting:
            new = set(self[waiting.pop()]) - found
            found |= new
            waiting.extend(new)
        return sorted(found)

    def pack(self) -> list[bytes]:
        return [self._bounds.tobytes(), self._ends.tobytes()]


class Standing:
    """`head` has `plan` (without tasks), `settings` of the configs, `reported` labels, `targets` (their reports), the
    number of `actions`, the places of tasks that are `always` looked at, and how the plan is recorded (`base` and
    `moved`).

    tasks, values: JSON texts in the plan's order. lines: those of digests.jsonl of each task, the tasks in order of
    their labels' JSON. `uses`: the tasks that name a file, by its place in the snapshot.
    """

    def __init__(
        self,
        head: dict[str, Any],
        labels: list[str],
        needs: Edges,
        users: Edges,
        uses: Edges,
        texts: Sequence[list[bytes]],
    ) -> None:
        self.head, self.labels, self.needs, self.users, self.uses = head, labels, needs, users, uses
        self.tasks, self.values, self.lines = texts

    def place(self, label: str) -> int | None:
        """Where a label stands in the plan's order, if it does."""
        try:
            return self.labels.index(label)
        except ValueError:
            return None

    def task(self, place: int) -> dict[str, Any]:
        task: dict[str, Any] = _parse(self.tasks[place])
        return task

    def value(self, place: int) -> Json:
        return _parse(self.values[place])

    def plan_bytes(self) -> bytes:
        """ir.json of the whole plan, as mrp.specs.ir.plan_bytes writes it."""
        before = {name: value for name, value in self.head["plan"].items() if name < "tasks"}
        after = {name: value for name, value in self.head["plan"].items() if name > "tasks"}
        start, end = canonical_bytes(before)[:-1], canonical_bytes(after)[1:]
        return b"".join([start, b',"tasks":[', b",".join(self.tasks), b"],", end])

    def digest_lines(self) -> bytes:
        """The bytes of digests.jsonl."""
        return b"".join(self.lines)

    def line_places(self) -> dict[str, int]:
        """Where each task's lines stand among `lines`."""
        return {label: place for place, label in enumerate(sorted(self.labels))}

    def pack(self) -> bytes:
        columns = ["\0".join(self.labels).encode()]
        for edges in (self.needs, self.users, self.uses):
            columns += edges.pack()
        columns += [_BETWEEN.join(texts) for texts in (self.tasks, self.values, self.lines)]
        head = canonical_bytes({"head": self.head, "sizes": [len(column) for column in columns]})
        return b"".join([head, b"\n", *columns])


def unpack(data: bytes, digest: str) -> Standing | None:
    """The standing plan in a file's bytes, if they are those that the snapshot names."""
    if digest_bytes(data) != digest:
        return None
    end = data.index(b"\n")
    outer = _parse(data[:end])
    view = memoryview(data)
    bounds = list(accumulate(outer["sizes"], initial=end + 1))
    columns = [view[start:stop] for start, stop in pairwise(bounds)]
    labels = str(columns[0], "utf-8").split("\0")
    edges = [Edges(_numbers("I", columns[at]), _numbers("I", columns[at + 1])) for at in (1, 3, 5)]
    texts = [bytes(column).split(_BETWEEN) for column in columns[7:]]
    return Standing(outer["head"], labels, edges[0], edges[1], edges[2], texts)


def _numbers(code: str, column: memoryview) -> "array[int]":
    return array(code, bytes(column))


def _parse(text: bytes) -> Any:
    from mrp.cache.canonical import parse_canonical

    return parse_canonical(text)

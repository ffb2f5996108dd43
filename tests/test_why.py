"""Why an action has another key: differences found in stored descriptions and followed to what a person edited."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from mrp.cache.canonical import Json, action_key, canonical_bytes
from mrp.cache.digest import Digest
from mrp.cache.store import Entry, Store
from mrp.runtime.merkle import Change, compare
from mrp.runtime.origins import Origins
from mrp.runtime.why import Explainer, Explanation, Identity, Known
from mrp.specs.ir import (
    DatasetTask,
    Files,
    GradeSpec,
    MapTask,
    OperatorTask,
    Plan,
    ProduceTask,
    ReduceTask,
    SinkSpec,
    SourceFile,
)

TRIAL, GRADE = ("//jobs:solve", "HumanEval/3", "trial"), ("//jobs:solve", "HumanEval/3", "grade")
EVAL = ("//jobs:eval", "", "reduction")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "cache") as opened:
        yield opened


def tree(store: Store, files: Mapping[str, str]) -> Digest:
    return store.put_tree({path: Entry("f", store.put_bytes(text.encode()), None) for path, text in files.items()})


def described(store: Store, value: Json) -> Digest:
    return store.put_bytes(canonical_bytes(value))


@dataclass
class World:
    """What one build had: keys and preimages by identity, and the sources of its plan."""

    store: Store
    keys: dict[Identity, Known] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def add(self, identity: Identity, preimage: Mapping[str, Json]) -> None:
        key, data = action_key({"action": identity[2], **preimage})
        self.keys[identity] = Known(key, data)

    def source(self, path: str) -> SourceFile:
        return SourceFile(path, self.store.put_bytes(self.sources[path].encode()))

    def plan(self) -> Plan:
        """A dataset, an agent, a rollout and what reduces and publishes it."""
        tasks = DatasetTask("//jobs:tasks", "jobs", "jsonl", Files((self.source("jobs/tasks.jsonl"),)), id="task_id")
        agent = OperatorTask("//jobs:agent", "agent", "1", "jobs", entry="solver:Solver")
        agent = OperatorTask(
            "//jobs:agent", "agent", "1", "jobs", "solver:S", files=Files((self.source("jobs/agents/solver.py"),))
        )
        solve = MapTask("//jobs:solve", tasks.label, agent.label, "builtin:host", grade=GradeSpec(("true",)))
        sink = SinkSpec("//jobs:sink", "json", "out.json")
        publish = ProduceTask("//jobs:publish", "//jobs:eval", "results", sink)
        return Plan(
            "test", (tasks, agent, solve, ReduceTask("//jobs:eval", (solve.label,), "builtin:stats"), publish), ()
        )


def build(store: Store, *, code: str = "a = 1\n", prompt: str = "add", test: str = "t", left: str = "x = 1") -> World:
    """One record, its trial, its grade, the reduction of them, and the publication of that."""
    world = World(store)
    world.sources = {
        "jobs/agents/solver.py": code,
        "jobs/tasks.jsonl": f'{{"task_id": "HumanEval/3", "prompt": "{prompt}", "test": "{test}"}}\n',
    }
    agent = described(store, {"version": "1", "files": tree(store, {"agents/solver.py": code})})
    task = tree(store, {"record.json": f'{{"task_id":"HumanEval/3","prompt":"{prompt}"}}'})
    base = described(store, {"agent": agent, "params": {"effort": "high"}, "timeout": Decimal(30)})
    world.add(TRIAL, {"base": base, "task": task, "starter": tree(store, {}), "sample": 0})
    work = tree(store, {"left.py": left})
    grader = tree(store, {"record.json": f'{{"prompt":"{prompt}","test":"{test}"}}'})
    world.add(GRADE, {"base": described(store, {"command": ["true"]}), "task": grader, "work": work})
    row = {"id": "HumanEval/3", "sample": 0, "rewards": {"reward": 1 if left == "x = 1" else 0}, "tree": work}
    other = {"id": "HumanEval/4", "sample": 0, "rewards": {"reward": 1}, "tree": "f" * 64}
    trials = store.put_bytes(b"".join(canonical_bytes(one) + b"\n" for one in (row, other)))
    world.add(EVAL, {"inputs": [["trials", trials]], "params": {}})
    return world


def explain(old: World, new: World, identity: Identity) -> Explanation:
    origins = Origins(new.store, new.plan(), old.plan())
    return Explainer(new.store, old.keys.get, new.keys.get, origins).explain(identity)


# -- the root is what a person edited ----------------------------------------------------------------------------


def test_an_agents_file_is_named_by_its_path_with_the_line_that_changed(store: Store) -> None:
    found = explain(build(store), build(store, code="a = 2\n"), TRIAL)
    assert found.roots() == ['jobs/agents/solver.py changed (line 1: "a = 1" -> "a = 2")']


def test_a_row_is_named_by_its_file_and_id_with_the_field_that_changed(store: Store) -> None:
    found = explain(build(store), build(store, prompt="subtract"), TRIAL)
    assert found.roots() == ['jobs/tasks.jsonl row HumanEval/3 changed: field prompt: "add" -> "subtract"']


def test_a_changed_test_changes_the_grade_alone(store: Store) -> None:
    old, new = build(store), build(store, test="u")
    assert explain(old, new, TRIAL).status == "same"
    assert explain(old, new, GRADE).roots() == ['jobs/tasks.jsonl row HumanEval/3 changed: field test: "t" -> "u"']


def test_a_grade_is_followed_into_its_trial(store: Store) -> None:
    found = explain(build(store), build(store, code="a = 2\n", left="x = 2"), GRADE)
    assert [cause.identity for cause in found.causes] == [TRIAL]
    assert found.roots() == ['jobs/agents/solver.py changed (line 1: "a = 1" -> "a = 2")']


def test_a_reduction_is_followed_into_the_trial_that_changed_and_no_other(store: Store) -> None:
    found = explain(build(store), build(store, code="a = 2\n", left="x = 2"), EVAL)
    assert [cause.identity for cause in found.causes] == [TRIAL, GRADE]
    assert found.roots() == ['jobs/agents/solver.py changed (line 1: "a = 1" -> "a = 2")']


def test_a_trial_that_is_not_reproducible_has_no_cause_and_says_what_came_out(store: Store) -> None:
    found = explain(build(store), build(store, left="x = 2"), EVAL)
    assert found.causes[0].identity == GRADE
    assert found.roots() == ['work/left.py: changed (line 1: "x = 1" -> "x = 2")']


def test_a_publication_is_followed_into_its_reduction(store: Store) -> None:
    old, new = build(store), build(store, code="a = 2\n", left="x = 2")
    publish = ("//jobs:publish", "", "produce")
    for world, result in ((old, "one"), (new, "two")):
        world.add(publish, {"content": [["document", store.put_bytes(f'{{"x":"{result}"}}'.encode())]], "rows": "r"})
    assert explain(old, new, publish).causes[0].identity == EVAL


def test_a_param_is_shown_with_both_values(store: Store) -> None:
    old, new = build(store), build(store)
    for world, effort in ((old, "high"), (new, "low")):
        world.add(TRIAL, {"base": described(store, {"params": {"effort": effort}}), "sample": 0})
    assert explain(old, new, TRIAL).roots() == ['params.effort: "high" -> "low"']


# -- the edges ---------------------------------------------------------------------------------------------------


def test_equal_keys_are_the_same(store: Store) -> None:
    assert explain(build(store), build(store), TRIAL).status == "same"


def test_what_was_never_built_is_new(store: Store) -> None:
    found = explain(World(store, sources=build(store).sources), build(store), TRIAL)
    assert (found.status, found.roots()) == ("new", ["//jobs:solve[HumanEval/3] (trial) is new"])


def test_a_forgotten_preimage_is_said_to_be_forgotten(store: Store) -> None:
    old, new = build(store), build(store, code="a = 2\n")
    old.keys[TRIAL] = Known(old.keys[TRIAL].key, None)
    assert explain(old, new, TRIAL).status == "forgotten"


def paths(changes: list[Change]) -> list[str]:
    return [change.path for change in changes]


def test_a_part_that_the_cache_lost_is_named_and_not_guessed(store: Store) -> None:
    gone = Digest("0" * 64)
    (change,) = compare({"agent": gone}, {"agent": described(store, {"version": "1"})}, store)
    assert (change.path, change.detail) == ("agent", "its content is no longer in the cache")


def test_files_that_came_and_went_and_became_executable(store: Store) -> None:
    blob = store.put_bytes(b"text")
    old = store.put_tree(
        {"gone": Entry("f", blob, None), "same": Entry("f", blob, None), "run": Entry("f", blob, None)}
    )
    new = store.put_tree(
        {"come": Entry("f", blob, None), "same": Entry("f", blob, None), "run": Entry("x", blob, None)}
    )
    found = {change.path: (change.old is None, change.new is None) for change in compare([old], [new], store)}
    assert found == {"[0]/come": (True, False), "[0]/gone": (False, True), "[0]/run": (False, False)}


def test_rows_are_paired_by_id_and_sample_whatever_their_order(store: Store) -> None:
    def rows(*texts: str) -> Digest:
        return store.put_bytes("".join(text + "\n" for text in texts).encode())

    old = rows('{"id":"a","v":1}', '{"id":"b","sample":1,"v":1}')
    new = rows('{"id":"b","sample":1,"v":2}', '{"id":"a","v":1}', '{"id":"c","v":1}')
    assert paths(compare({"inputs": old}, {"inputs": new}, store)) == ["inputs[b#1].v", "inputs[c]"]


def test_a_single_row_and_none_are_rows_too(store: Store) -> None:
    one, none = store.put_bytes(b'{"id":"a","v":1}\n'), store.put_bytes(b"")
    other = store.put_bytes(b'{"id":"a","v":2}\n')
    assert paths(compare([one], [other], store)) == ["[0][a].v"]
    assert paths(compare([none], [one], store)) == ["[0][a]"]


def test_lists_of_words_are_shown_whole(store: Store) -> None:
    (change,) = compare({"command": ["a", "b"]}, {"command": ["a", "c"]}, store)
    assert (change.old, change.new) == ('["a","b"]', '["a","c"]')


# -- long rows ---------------------------------------------------------------------------------------------------


class Counting:
    """A store that counts the blobs which are read whole."""

    def __init__(self, store: Store) -> None:
        self.read_whole = 0
        self._store = store
        self.size, self.read_tree, self.open_blob = store.size, store.read_tree, store.open_blob

    def get_bytes(self, digest: Digest) -> bytes:
        self.read_whole += 1
        return self._store.get_bytes(digest)


def long_rows(store: Store, count: int, **changed: int) -> Digest:
    """JSON lines of more than a MiB; `changed` gives rows another value."""
    lines = [
        {"id": f"r{number:05d}", "v": changed.get(f"r{number:05d}", 1), "pad": "x" * 400} for number in range(count)
    ]
    return store.put_bytes(b"".join(canonical_bytes(line) + b"\n" for line in lines))


def test_of_long_rows_only_those_that_differ_are_looked_at(store: Store) -> None:
    reading = Counting(store)
    old, new = long_rows(store, 3000), long_rows(store, 3001, r00007=2)
    found = compare({"inputs": old}, {"inputs": new}, reading)
    assert paths(found) == ["inputs[r00007].v", "inputs[r03000]"]
    assert reading.read_whole == 0


def test_long_rows_that_all_differ_are_counted_beyond_the_first(store: Store) -> None:
    old = long_rows(store, 3000)
    new = long_rows(store, 3000, **{f"r{number:05d}": 2 for number in range(3000)})
    found = compare([old], [new], Counting(store))
    assert paths(found)[:2] == ["[0][r00000].v", "[0][r00001].v"]
    assert (len(found), found[-1].detail) == (1001, "2000 more rows differ")


def test_long_texts_that_are_no_rows_are_compared_as_texts(store: Store) -> None:
    old, new = (store.put_bytes(b"{}\n" + word * 2**20) for word in (b"a\n", b"b\n"))
    (change,) = compare([old], [new], store)
    assert change.detail == f"{3 + 2**21} bytes -> {3 + 2**21} bytes"

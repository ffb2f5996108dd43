"""An evaluation: samples in a JSON lines file, a trivial agent, a trivial grader; mrp against Inspect AI."""

import json
import shutil
from itertools import count
from pathlib import Path

from benchmarks.environments import HERE, program
from benchmarks.measure import Finished
from benchmarks.terms import Benchmark, Contestant, Step, WrongWork
from benchmarks.workloads.mrp import Workspace

FILES = {
    "answer.py": """\
from mrp.sdk import Agent, Result


class Answer(Agent):
    def run(self, task, ctx):
        (task.work / "answer.txt").write_text(task.record["question"])
        return Result()
""",
    "same.py": """\
from mrp.sdk import Evaluator


class Same(Evaluator):
    def evaluate(self, subject, ctx):
        return {"reward": subject.file("answer.txt").read_text() == ctx.task.record["answer"]}
""",
    "BUILD.yaml": """\
mrp: 1
targets:
  samples: {kind: dataset, srcs: ["samples.jsonl"], id: id, private: [answer]}
  answer: {kind: agent, version: "1", entry: "answer:Answer", srcs: ["answer.py"], pure: true}
  same: {kind: evaluator, version: "1", entry: "same:Same", srcs: ["same.py"], pure: true}
  solve: {kind: rollout, over: ":samples", agent: ":answer", grade: {operator: ":same"}}
  eval: {kind: reduction, of: [solve], reducer: stats, expect: "reward.mean == 1"}
""",
}


def evaluation(size: int, *, rounds: int = 5) -> Benchmark:
    """An evaluation of `size` samples, first and after one of them was edited."""

    def contestants(folder: Path) -> list[Contestant]:
        return [_mrp(folder / "mrp", size), _inspect(folder / "inspect", size)]

    about = (
        f"{size:,} samples, a trivial agent and a trivial grader, both Python, no sandbox (mrp: both `pure`, isolation "
        "none allowed; Inspect AI: a solver that calls no model), whole processes. first: nothing is cached; edited: "
        "one sample is another; again: nothing happened. Inspect AI has no cache and always runs all."
    )
    return Benchmark(f"eval-{size}", about, ("first", "edited", "again"), rounds, contestants)


class Samples:
    """The file of the samples, of which one can be edited."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._edits = count(1)

    def write(self, edited: str = "question 7") -> None:
        """Write all samples; the text of one is `edited`."""
        texts = [edited if number == 7 else f"question {number}" for number in range(self._size)]
        lines = [json.dumps({"id": f"s{n:05d}", "question": text, "answer": text}) for n, text in enumerate(texts)]
        self._path.write_text("\n".join(lines) + "\n")

    def edit(self) -> None:
        """Give one sample a text that it never had."""
        self.write(f"question 7 in edition {next(self._edits)}")


def _mrp(folder: Path, size: int) -> Contestant:
    workspace = Workspace(folder, isolation="none")
    samples = Samples(workspace.root / "samples.jsonl", size)

    def prepare() -> None:
        workspace.write(FILES)
        samples.write()

    def check() -> None:
        result = json.loads((workspace.root / "mrp-out/eval/result.json").read_bytes())
        if (result["n"], result["reward"]["mean"]) != (size, 1):
            raise WrongWork(f"{result['n']} trials with a mean of {result['reward']['mean']}")

    # Each sample is a trial and its grade; the reduction is one more.
    everything = 2 * size + 1
    steps = {
        "first": workspace.build("//:eval", executed=everything, cached=0, before=workspace.forget, then=check),
        "edited": workspace.build("//:eval", executed=3, cached=everything - 3, before=samples.edit, then=check),
        "again": workspace.build("//:eval", executed=0, cached=everything, then=check),
    }
    return Contestant("mrp", prepare, steps)


def _inspect(folder: Path, size: int) -> Contestant:
    samples = Samples(folder / "samples.jsonl", size)

    def prepare() -> None:
        folder.mkdir(parents=True)
        samples.write()

    def forget() -> None:
        shutil.rmtree(folder / "logs", ignore_errors=True)

    def check(finished: Finished) -> None:
        if f"items: {size} accuracy: 1.0" not in finished.output:
            raise WrongWork("the evaluation did not score all samples with 1")

    command = (program("inspect_ai", "python"), str(HERE / "programs" / "inspect_eval.py"), "samples.jsonl")
    steps = {
        row: Step(command, folder, before=before, check=check)
        for row, before in {"first": forget, "edited": samples.edit}.items()
    }
    return Contestant("inspect_ai", prepare, steps, peer="inspect_ai")

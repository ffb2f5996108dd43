"""An evaluation of the samples in a JSON lines file by Inspect AI, with a trivial solver and scorer."""
# mypy: ignore-errors
# It runs in the environment of its peer, which mypy does not see.

import sys

from inspect_ai import Task, eval
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import Score, accuracy, scorer
from inspect_ai.solver import solver


@solver
def answer():
    async def solve(state, generate):
        state.output.completion = state.input_text
        return state

    return solve


@scorer(metrics=[accuracy()])
def same():
    async def score(state, target):
        return Score(value=1 if state.output.completion == target.text else 0)

    return score


samples = json_dataset(sys.argv[1], FieldSpec(input="question", target="answer", id="id"))
task = Task(dataset=samples, solver=answer(), scorer=same())
(log,) = eval(task, model="mockllm/model", display="none", log_dir="logs")
print(f"items: {log.results.completed_samples} accuracy: {log.results.scores[0].metrics['accuracy'].value}")

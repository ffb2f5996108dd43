"""The four kinds of operator: each is a class with one method, which may be `async`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Iterable, Iterator, Mapping
    from typing import Any

    from mrp.sdk.context import Context
    from mrp.sdk.values import Artifact, Result, Task, Trial, Write


class Agent:
    """Works on a task; what it leaves in `task.work` is the trial's output."""

    def run(self, task: Task, ctx: Context) -> Result | Awaitable[Result | None] | None:
        """Do the task. None means ok; an exception means failed, with its last line as the reason."""
        raise NotImplementedError(f"{type(self).__name__} needs a method run(self, task, ctx)")


class Reducer:
    """Makes one document of many trials."""

    def reduce(self, trials: Iterator[Trial], ctx: Context) -> Mapping[str, Any] | Awaitable[Mapping[str, Any]]:
        """The document that becomes result.json. Trials come once, in canonical order: by target, id and sample."""
        raise NotImplementedError(f"{type(self).__name__} needs a method reduce(self, trials, ctx)")


class Evaluator:
    """Judges an artifact: as a grader what a trial left in /work, as an evaluation the result of a target."""

    def evaluate(self, subject: Artifact, ctx: Context) -> Mapping[str, Any] | Awaitable[Mapping[str, Any]]:
        """The document that becomes result.json. A grader returns numbers by name, which are the trial's rewards."""
        raise NotImplementedError(f"{type(self).__name__} needs a method evaluate(self, subject, ctx)")


class Producer:
    """Turns an artifact into the files that a sink of type `files` will hold."""

    def produce(self, artifact: Artifact, ctx: Context) -> Iterable[Write] | AsyncIterable[Write]:
        """The files to write. A path may come only once; mrp does the writing, after the gate."""
        raise NotImplementedError(f"{type(self).__name__} needs a method produce(self, artifact, ctx)")

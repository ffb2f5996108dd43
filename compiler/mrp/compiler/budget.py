"""What a plan may cost: the declared costs of its trials, summed for each job and held against the job's budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from mrp.specs.ir import DatasetTask, JobTask, MapTask, Plan, Task, dependencies


@dataclass(frozen=True)
class Estimate:
    """usd and tokens of `trials` trials; `unknown_until` are datasets whose size is known only once they are built."""

    usd: Decimal = Decimal(0)
    tokens: int = 0
    trials: int = 0
    unknown_until: tuple[str, ...] = ()

    def plus(self, other: "Estimate") -> "Estimate":
        unknown = tuple(sorted({*self.unknown_until, *other.unknown_until}))
        return Estimate(self.usd + other.usd, self.tokens + other.tokens, self.trials + other.trials, unknown)


@dataclass(frozen=True)
class Overrun:
    """A cap that an estimate is above: `job` is None for the policy's; `unit` is usd or tokens."""

    job: str | None
    unit: str
    estimate: Decimal
    cap: Decimal


def known_counts(plan: Plan) -> dict[str, int]:
    """How many records those datasets have whose number stands in the plan itself."""
    return {
        task.label: task.generate.range
        for task in plan.tasks
        if isinstance(task, DatasetTask)
        and task.generate is not None
        and task.generate.range is not None
        and not (task.where or task.dedupe or task.take)
    }


def task_estimate(task: Task, counts: Mapping[str, int]) -> Estimate:
    """What one task's trials cost; `counts` are the numbers of records by dataset, as far as they are known."""
    if not isinstance(task, MapTask):
        return Estimate()
    records = counts.get(task.over)
    if records is None:
        return Estimate(unknown_until=(task.over,))
    trials = records * task.samples
    return Estimate(trials * task.cost.usd, trials * task.cost.tokens, trials)


def plan_estimate(plan: Plan, counts: Mapping[str, int]) -> Estimate:
    """What the whole plan costs when nothing is cached."""
    total = Estimate()
    for task in plan.tasks:
        total = total.plus(task_estimate(task, counts))
    return total


def job_estimates(plan: Plan, counts: Mapping[str, int]) -> dict[str, Estimate]:
    """What each job costs, with all that its members need; what two jobs share counts in both."""
    tasks = {task.label: task for task in plan.tasks}
    estimates: dict[str, Estimate] = {}
    for label, job in tasks.items():
        if isinstance(job, JobTask):
            total = Estimate()
            for needed in _closure(label, tasks):
                total = total.plus(task_estimate(tasks[needed], counts))
            estimates[label] = total
    return estimates


def overruns(plan: Plan, counts: Mapping[str, int]) -> list[Overrun]:
    """The budgets that the estimates are above, by job; the policy's cap, which holds for the whole plan, last."""
    tasks = {task.label: task for task in plan.tasks}
    found: list[Overrun] = []
    for label, estimate in sorted(job_estimates(plan, counts).items()):
        job = tasks[label]
        assert isinstance(job, JobTask)
        if job.usd is not None and estimate.usd > job.usd:
            found.append(Overrun(label, "usd", estimate.usd, job.usd))
        if job.tokens is not None and estimate.tokens > job.tokens:
            found.append(Overrun(label, "tokens", Decimal(estimate.tokens), Decimal(job.tokens)))
    total, most = plan_estimate(plan, counts), plan.policy.max_usd
    if most is not None and total.usd > most:
        found.append(Overrun(None, "usd", total.usd, most))
    return found


def _closure(label: str, tasks: Mapping[str, Task]) -> list[str]:
    found, waiting = {label}, [label]
    while waiting:
        for needed in dependencies(tasks[waiting.pop()]):
            if needed in tasks and needed not in found:
                found.add(needed)
                waiting.append(needed)
    return sorted(found)

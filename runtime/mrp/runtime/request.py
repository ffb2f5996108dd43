"""What of a plan a build is asked for: its options applied to the plan, purely."""

from dataclasses import replace

from mrp.rules.rule import Selection
from mrp.runtime.events import Warned
from mrp.runtime.options import BuildOptions
from mrp.specs.ir import JobTask, MapTask, Plan, ProduceTask, needed_labels


def adapted_plan(plan: Plan, options: BuildOptions) -> Plan:
    """The plan with produce left out where it must not run, and the next epoch where new samples are wanted."""
    tasks = []
    for task in plan.tasks:
        if isinstance(task, ProduceTask) and not options.produce:
            continue
        if isinstance(task, MapTask) and options.resample:
            task = replace(task, epoch=task.epoch + 1)
            options.on_event(Warned(f"resampling {task.label}; to keep these, commit `epoch: {task.epoch}`"))
        tasks.append(task)
    if len(tasks) == len(plan.tasks) and not options.resample:
        return plan
    labels = {task.label for task in tasks}
    tasks = [
        replace(task, of=tuple(label for label in task.of if label in labels)) if isinstance(task, JobTask) else task
        for task in tasks
    ]
    requested = tuple(label for label in plan.requested if task_label(label) in labels)
    return replace(plan, tasks=tuple(tasks), requested=requested)


def task_label(label: str) -> str:
    return label.partition("[")[0]


def selection_of(plan: Plan, options: BuildOptions) -> Selection:
    """Items asked for by label narrow their rollout, unless something else that was asked for needs all of it."""
    items: dict[str, set[str]] = {}
    for label in plan.requested:
        if "[" in label:
            items.setdefault(task_label(label), set()).add(label.partition("[")[2].removesuffix("]"))
    whole = needed_labels(plan, [label for label in plan.requested if "[" not in label])
    chosen = {label: frozenset(wanted) for label, wanted in items.items() if label not in whole}
    return Selection(chosen, options.items, options.limit)


def reported_labels(plan: Plan) -> list[str]:
    """Requested targets and the members of requested jobs, sorted, without builtins."""
    jobs = {task.label: task.of for task in plan.tasks if isinstance(task, JobTask)}
    found: set[str] = set()
    queue = [task_label(label) for label in plan.requested]
    while queue:
        label = queue.pop()
        if label not in found:
            found.add(label)
            queue.extend(jobs.get(label, ()))
    return sorted(label for label in found if not label.startswith("builtin:"))

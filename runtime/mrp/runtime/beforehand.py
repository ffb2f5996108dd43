"""What a plan says about records that stand in the workspace, found out before anything is executed or written down."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from mrp.cache.store import Store
from mrp.rules.rule import DatasetValue, RuleContext, Value
from mrp.runtime.sdk_tree import sdk_tree
from mrp.runtime.sources import Sources
from mrp.specs.errors import Diagnostic, SpecError, UsageError
from mrp.specs.ir import DatasetTask, MapTask, Plan
from mrp.specs.labels import parse_label
from mrp.specs.suggest import did_you_mean


def read_datasets(
    plan: Plan,
    root: Path,
    store: Store,
    known: Mapping[str, Value] = MappingProxyType({}),
    *,
    thorough: bool = True,
) -> dict[str, Value]:
    """The datasets that need no action, by label: files of the workspace at `root`, ranges, and what is `of` those.

    They are added to the `known` values, which may be asked for. thorough: whether all that the store should hold of
    records that were read before is looked for; a build need not do so until something turns out to be missing, since
    most records are of trials that need not run. Raises one SpecError with the faults of all of them, so that broken
    rows refuse the whole build.
    """
    values: dict[str, Value] = dict(known)
    context = RuleContext(
        store=store,
        values=values,
        host=lambda toolchain: None,
        import_sources=Sources(root, store).bring,
        sdk=lambda: sdk_tree(store),
    )
    faults: list[Diagnostic] = []
    for task in plan.tasks:
        if isinstance(task, DatasetTask) and _needs_no_action(task, values):
            try:
                from mrp.rules.dataset import DatasetRule

                values[task.label] = DatasetRule(task, context, thorough=thorough).value()
            except SpecError as error:
                faults.extend(error.diagnostics)
    if faults:
        raise SpecError(faults)
    return values


def check_items(plan: Plan, datasets: Mapping[str, Value], store: Store) -> None:
    """Raises UsageError for a requested item without a record, as far as `datasets` tells."""
    tasks = {task.label: task for task in plan.tasks}
    asked: dict[str, list[str]] = {}
    for label in plan.requested:
        task = tasks[label.partition("[")[0]] if "[" in label else None
        if isinstance(task, MapTask):
            asked.setdefault(task.over, []).append(label)
    for dataset, labels in asked.items():
        value = datasets.get(dataset)
        if isinstance(value, DatasetValue):
            from mrp.rules.records import read_index

            known = {record.id for record in read_index(value.index, store)}
            for label in labels:
                record = parse_label(label).record
                assert record is not None
                if record not in known:
                    near = did_you_mean(record, known) if len(record) > 2 else ""
                    hint = near or f"it has {len(known)} record{'' if len(known) == 1 else 's'}"
                    raise UsageError(f"there is no {label}: {dataset} has no record `{record}`; {hint}")


def _needs_no_action(task: DatasetTask, read: Mapping[str, Value]) -> bool:
    if task.files is not None:
        return not task.files.outputs
    counted = task.generate is not None and task.generate.range is not None
    return counted or (bool(task.of) and all(label in read for label in task.of))

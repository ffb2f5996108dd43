"""One invocation of build: compile, run the plan, publish what was asked for, write down what happened."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from pathlib import Path

from mrp.cache.canonical import Json, canonical_digest
from mrp.cache.errors import MissingBlob
from mrp.cache.filestats import FileDigests
from mrp.cache.inflight import InFlight
from mrp.cache.store import Store
from mrp.rules.rule import DatasetValue, DocumentValue, ProducedValue, RuleContext, Selection, TrialsValue, Value
from mrp.runtime import money, runs
from mrp.runtime.beforehand import check_items, read_datasets
from mrp.runtime.coordinator import Account, Coordinator, Failure, Settings, TaskState
from mrp.runtime.decide import Demand
from mrp.runtime.engine.local import LocalEngine
from mrp.runtime.events import AttemptFailed, Event, EventLog, RunFinished, RunStarted, Warned
from mrp.runtime.execute import Executor
from mrp.runtime.interrupt import Interrupt
from mrp.runtime.ledger import Ledger
from mrp.runtime.outputs import publish
from mrp.runtime.sandbox.protocol import Backend
from mrp.runtime.sandbox.registry import BACKENDS
from mrp.runtime.sdk_tree import sdk_tree
from mrp.runtime.secret_values import Secrets
from mrp.runtime.sources import Sources
from mrp.runtime.state import state_folder, unwritable
from mrp.specs.errors import Diagnostic, PolicyError, Span, UsageError
from mrp.specs.ir import JobTask, MapTask, Plan, ProduceTask, dependencies, plan_bytes
from mrp.specs.labels import parse_label
from mrp.specs.results import Ref
from mrp.specs.work import ISOLATION

_WORSE = ("ok", "held", "incomplete", "skipped", "failed")

_MOST_PASSES = 8
"""Each pass makes again what a lost or corrupt blob spoiled in the one before."""


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for; see DESIGN's flags. `cache` is the cache's folder, `root` the workspace."""

    root: Path
    targets: tuple[str, ...] = ()
    cache: Path | None = None
    jobs: int | None = None
    engine: str | None = None
    sandbox: str | None = None
    config: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    limit: int | None = None
    params: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    rebuild: tuple[str, ...] = ()
    resample: bool = False
    retry_limits: bool = False
    fail_fast: bool = False
    offline: bool = False
    produce: bool = True
    on_event: Callable[[Event], None] = lambda _: None
    interrupt: Interrupt = field(default_factory=Interrupt)


@dataclass(frozen=True)
class TargetReport:
    """A requested target: its digest and outputs where it has a value, `status` and the reason where it has none."""

    status: str
    digest: str | None = None
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    reason: str = ""
    partial: bool = False
    reproducible: bool = True

    def to_json(self) -> Json:
        return {
            "status": self.status,
            "digest": self.digest,
            "outputs": {name: ref.digest for name, ref in sorted(self.outputs.items())},
            "reason": self.reason,
            "partial": self.partial,
            "reproducible": self.reproducible,
        }


@dataclass(frozen=True)
class BuildReport:
    """What a build came to; `exit_code` as DESIGN section 6."""

    run_id: str
    status: str
    executed: int
    cached: int
    failed: int
    targets: Mapping[str, TargetReport]
    usd: Decimal
    estimate_usd: Decimal
    wall_s: Decimal
    exit_code: int
    failures: tuple[Failure, ...]
    folder: Path
    reason: str = ""

    def to_json(self) -> Json:
        return {
            "run_id": self.run_id,
            "status": self.status,
            "executed": self.executed,
            "cached": self.cached,
            "failed": self.failed,
            "targets": {label: target.to_json() for label, target in self.targets.items()},
            "cost": {"usd": str(self.usd), "estimate_usd": str(self.estimate_usd)},
            "wall_s": self.wall_s,
            "reason": self.reason,
        }


def cache_root() -> Path:
    """`$MRP_CACHE`, else the user's cache folder."""
    named = os.environ.get("MRP_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mrp"


def build(options: BuildOptions) -> BuildReport:
    """Compile the workspace and run the plan for the requested targets.

    Raises SpecError, PolicyError or UsageError before anything is executed or written, CacheError when the cache
    cannot be used.
    """
    with compiled_state(options, to_run=True) as (plan, chosen, store, digests):
        return run_plan(plan, chosen, store, digests)


@contextmanager
def compiled_state(
    options: BuildOptions, *, to_run: bool = False
) -> Iterator[tuple[Plan, BuildOptions, Store, FileDigests]]:
    """The plan of the workspace, the options with what the chosen configs set, the cache, and the memory of digests.

    The cache is opened, and made, only once the plan is whole: what is refused before leaves nothing behind. A plan
    that is only looked at may be for an engine that is not there.
    """
    from mrp.compiler.compile import compile_workspace

    _refuse_other_engines(options)
    with FileDigests.open(state_folder(options.root) / "files.sqlite") as digests:
        compiled = compile_workspace(
            options.root, options.targets, config=options.config, params=options.params, digests=digests
        )
        settings = compiled.settings
        chosen = replace(
            options,
            engine=options.engine or settings.engine,
            sandbox=options.sandbox or settings.sandbox,
            jobs=options.jobs or settings.jobs,
        )
        if to_run:
            _refuse_other_engines(chosen)
        with Store.open(options.cache or cache_root()) as store:
            yield compiled.plan, chosen, store, digests


@contextmanager
def open_state(options: BuildOptions) -> Iterator[tuple[Store, FileDigests]]:
    """The cache and the workspace's memory of file digests, closed again afterwards. Raises as `Store.open`."""
    _refuse_other_engines(options)
    with (
        Store.open(options.cache or cache_root()) as store,
        FileDigests.open(state_folder(options.root) / "files.sqlite") as digests,
    ):
        yield store, digests


def run_plan(plan: Plan, options: BuildOptions, store: Store, digests: FileDigests) -> BuildReport:
    """Run a plan. Raises SpecError, UsageError and PolicyError before anything is executed."""
    plan = _adapted(plan, options)
    datasets = _read_beforehand(plan, options, store)
    state = state_folder(options.root)
    runs.sweep_dead_runs(state)
    run = runs.Run(state)
    log = EventLog(run.folder / "events.jsonl", options.on_event)
    try:
        return _Building(plan, options, store, digests, datasets, run, log).run()
    except OSError as error:
        if error.filename is None:
            raise
        raise unwritable(Path(error.filename), error) from error
    finally:
        log.close()
        run.close()


class _Building:
    """One run: it owns the backend, which is started when the first process needs it."""

    def __init__(
        self,
        plan: Plan,
        options: BuildOptions,
        store: Store,
        digests: FileDigests,
        datasets: Mapping[str, Value],
        run: runs.Run,
        log: EventLog,
    ) -> None:
        self._datasets = datasets
        self._plan, self._options, self._store, self._digests = plan, options, store, digests
        self._run, self._log = run, log
        self._state = state_folder(options.root)
        self._slots = min(options.jobs or os.cpu_count() or 1, plan.policy.max_workers)
        self._backend: Backend | None = None
        self._started = time.monotonic()
        self._account = Account()
        self._selection = _selection(plan, options)

    def run(self) -> BuildReport:
        requested = self._plan.requested
        self._log.emit(RunStarted(self._run.run_id, requested, self._slots))
        plan_digest = self._store.put_bytes(plan_bytes(self._plan))
        self._check_isolation()
        executor = Executor(
            store=self._store,
            workspace=self._options.root,
            backend=self._require_backend,
            secrets=Secrets(self._plan.secrets, self._options.root),
            offline=self._options.offline,
            cancelled=lambda: self._options.interrupt.level > 1,
            on_failure=lambda action, number, reason: self._log.emit(
                AttemptFailed(action.label, action.item, action.kind.value, number, reason)
            ),
        )
        inflight = InFlight(self._store.root)
        engine = LocalEngine(self._slots, executor.execute)
        self._options.interrupt.listen(lambda level: self._interrupted(level, engine))
        try:
            coordinator = self._passes(engine, inflight)
        except BaseException:
            if self._backend is not None:
                self._backend.cancel()
            raise
        finally:
            engine.close()
            if self._backend is not None:
                self._backend.close()
            inflight.close()
        return self._finish(coordinator, plan_digest)

    def _passes(self, engine: LocalEngine, inflight: InFlight) -> Coordinator:
        provenance = {"run": self._run.run_id, "engine": "local"}
        accounts, members = _accounts(self._plan)
        walls = [cap for _, cap in money.Money(accounts, members).wall_caps()]
        wall = min([self._plan.policy.max_wall, *walls])
        for _ in range(_MOST_PASSES):
            self._account.begin_pass()
            for account in accounts:
                account.begin_pass()
            coordinator = Coordinator(
                plan=self._plan,
                known=self._datasets,
                context=self._context,
                store=self._store,
                inflight=inflight,
                engine=engine,
                slots=self._slots,
                money=money.Money(accounts, members),
                settings=Settings(
                    self._demand,
                    self._options.fail_fast,
                    provenance,
                    self._started + float(wall),
                ),
                interrupt=self._options.interrupt,
                emit=self._log.emit,
                account=self._account,
            )
            coordinator.run()
            lost = self._publish(coordinator)
            if self._options.interrupt.level or not (coordinator.damaged or lost):
                return coordinator
            self._log.emit(Warned("stored data was lost or damaged; what depends on it is made again"))
            self._datasets = _read_beforehand(self._plan, self._options, self._store)
        if lost is not None:
            raise lost
        return coordinator

    def _publish(self, coordinator: Coordinator) -> MissingBlob | None:
        """Show what was asked for under mrp-out; gives what the store turned out to have lost of it."""
        for label in _reported(self._plan):
            value = coordinator.values.get(label)
            try:
                if value is not None and value.outputs:
                    publish(self._options.root, label, value.outputs, self._store)
            except MissingBlob as error:
                return error
        return None

    def _context(self, values: Mapping[str, Value]) -> RuleContext:
        from mrp.runtime.images.host import describe_host

        def host(toolchain: tuple[str, ...]) -> Json:
            return describe_host(toolchain, self._digests)

        return RuleContext(
            store=self._store,
            values=values,
            host=host,
            import_sources=Sources(self._options.root, self._store).bring,
            sdk=cache(lambda: sdk_tree(self._store)),
            selection=self._selection,
        )

    def _demand(self, label: str) -> Demand:
        from mrp.specs.labels import parse_pattern

        target = parse_label(label) if not label.startswith("builtin:") else None
        rebuild = target is not None and any(
            parse_pattern(pattern).matches(target) for pattern in self._options.rebuild
        )
        return Demand(self._plan.policy.isolation, rebuild, self._options.retry_limits)

    def _require_backend(self) -> Backend:
        if self._backend is None:
            raise AssertionError("the backend is made before the engine starts")
        return self._backend

    def _check_isolation(self) -> None:
        required = self._plan.policy.isolation
        name = self._options.sandbox or "local"
        self._backend = BACKENDS[name](self._store, self._run.scratch, required)
        achieved = self._backend.isolation
        if ISOLATION.index(achieved) < ISOLATION.index(required):
            message = f"policy asks for isolation {required}, and the {name} backend reaches only {achieved} here"
            hint = "`mrp doctor` says what is missing; or allow less with `isolation:` in the policy file"
            raise PolicyError([Diagnostic(Span("policy", 1, 1), message, hint)])

    def _interrupted(self, level: int, engine: LocalEngine) -> None:
        if level > 1 and self._backend is not None:
            self._backend.cancel()
        engine.wake()

    def _finish(self, coordinator: Coordinator, plan_digest: str) -> BuildReport:
        targets = {label: self._target(label, coordinator) for label in _reported(self._plan)}
        targets |= {label: _group(members, targets) for label, members in _groups(self._plan, targets).items()}
        status, exit_code, reason = self._status(targets)
        lines = self._account.lines
        self._run.write_digests(line for line, _ in lines.values())
        ledger = Ledger(self._state / "ledger.sqlite")
        ledger.record(self._run.run_id, lines.values())
        ledger.close()
        failed = self._account.failed if exit_code else ()
        report = BuildReport(
            run_id=self._run.run_id,
            status=status,
            executed=len(self._account.executed),
            cached=len(self._account.cached),
            failed=len(failed),
            targets=targets,
            usd=self._account.usd,
            estimate_usd=self._account.estimate_usd,
            wall_s=Decimal(str(round(time.monotonic() - self._started, 3))),
            exit_code=exit_code,
            failures=tuple(self._account.failures[label] for label in sorted(self._account.failures)),
            folder=self._run.folder,
            reason=reason,
        )
        self._store.commit([])
        self._run.write_record({**report.to_json(), "plan": plan_digest, "requested": list(self._plan.requested)})
        self._log.emit(RunFinished(report.run_id, report.status, report.executed, report.cached, report.failed))
        return report

    def _target(self, label: str, coordinator: Coordinator) -> TargetReport:
        value = coordinator.values.get(label)
        failure = self._account.failures.get(label)
        state = coordinator.states[label]
        if value is None:
            status = "failed" if state is TaskState.FAILED else "skipped"
            return TargetReport(status, reason=failure.reason if failure else "")
        status, reason = ("failed", failure.reason) if failure else ("ok", "")
        if isinstance(value, TrialsValue) and value.scored < value.count:
            status, reason = "incomplete", value.problem
        if isinstance(value, ProducedValue):
            status = "held" if value.status == "held" else status
        return TargetReport(
            status,
            value_digest(value),
            value.outputs,
            reason,
            getattr(value, "partial", False),
            value.reproducible,
        )

    def _status(self, targets: Mapping[str, TargetReport]) -> tuple[str, int, str]:
        account = self._account
        if account.over_budget:
            return "budget", 3, account.over_budget
        if self._options.interrupt.level:
            return "cancelled", 130, "interrupted"
        if account.failed_fast and not account.failures:
            return "failed", 1, account.failed_fast
        if account.failures:
            codes = {failure.exit_code for failure in account.failures.values()}
            first = account.failures[min(account.failures)]
            if codes == {4}:
                return "infra", 4, first.reason
            return "failed", min(codes - {4}), first.reason
        for label, target in targets.items():
            if target.status == "incomplete":
                reason = f"{label} has trials without an outcome ({target.reason}); build again to run those"
                return "infra", 4, reason
        if any(target.status == "held" for target in targets.values()):
            return "held", 0, ""
        return "ok", 0, ""


def value_digest(value: Value) -> str:
    """One digest for all that a target gives to those that depend on it."""
    described: dict[str, Json] = {"outputs": {name: ref.to_json() for name, ref in value.outputs.items()}}
    if isinstance(value, DatasetValue):
        described["index"] = value.index
    if isinstance(value, TrialsValue | DocumentValue):
        described["partial"] = value.partial
    return canonical_digest(described)


def _refuse_other_engines(options: BuildOptions) -> None:
    if options.engine not in (None, "local"):
        raise UsageError(f"the engine {options.engine} is not part of this version; use --engine local")
    if options.sandbox is not None and options.sandbox not in BACKENDS:
        raise UsageError(f"the sandbox backend {options.sandbox} is not part of this version; use --sandbox local")


def _adapted(plan: Plan, options: BuildOptions) -> Plan:
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
    requested = tuple(label for label in plan.requested if _task_label(label) in labels)
    return replace(plan, tasks=tuple(tasks), requested=requested)


def _task_label(label: str) -> str:
    return label.partition("[")[0]


def _read_beforehand(plan: Plan, options: BuildOptions, store: Store) -> dict[str, Value]:
    """The datasets that need no action, once the items that were asked for are known to be among them.

    What is found damaged on the way is put aside by the store, so the next attempt makes it again.
    """
    for attempt in range(_MOST_PASSES):
        try:
            datasets = read_datasets(plan, options.root, store)
            check_items(plan, datasets, store)
            return datasets
        except MissingBlob:
            if attempt == _MOST_PASSES - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _selection(plan: Plan, options: BuildOptions) -> Selection:
    """Items asked for by label narrow their rollout, unless something else that was asked for needs all of it."""
    items: dict[str, set[str]] = {}
    for label in plan.requested:
        if "[" in label:
            items.setdefault(_task_label(label), set()).add(label.partition("[")[2].removesuffix("]"))
    whole = _needed(plan, [label for label in plan.requested if "[" not in label])
    chosen = {label: frozenset(wanted) for label, wanted in items.items() if label not in whole}
    return Selection(chosen, options.items, options.limit)


def _reported(plan: Plan) -> list[str]:
    """Requested targets and the members of requested jobs, sorted, without builtins."""
    jobs = {task.label: task.of for task in plan.tasks if isinstance(task, JobTask)}
    found: set[str] = set()
    queue = [_task_label(label) for label in plan.requested]
    while queue:
        label = queue.pop()
        if label not in found:
            found.add(label)
            queue.extend(jobs.get(label, ()))
    return sorted(label for label in found if not label.startswith("builtin:"))


def _groups(plan: Plan, targets: Mapping[str, TargetReport]) -> dict[str, tuple[str, ...]]:
    """Jobs and matrices all of whose members were asked for."""
    return {label: members for label, members in plan.aliases.items() if all(m in targets for m in members)}


def _group(members: tuple[str, ...], targets: Mapping[str, TargetReport]) -> TargetReport:
    """A job's or matrix's report: the worst status of its members, and one digest for theirs."""
    worst = max((targets[member] for member in members), key=lambda target: _WORSE.index(target.status))
    digests = {member: targets[member].digest for member in members}
    whole = canonical_digest(digests) if all(digests.values()) else None
    return TargetReport(
        worst.status,
        whole,
        reason=worst.reason,
        partial=any(targets[member].partial for member in members),
        reproducible=all(targets[member].reproducible for member in members),
    )


def _accounts(plan: Plan) -> tuple[list[money.Account], dict[str, tuple[int, ...]]]:
    """An account for each job with a budget and one for policy, and which tasks draw on which."""
    accounts = [money.Account("policy", usd=plan.policy.max_usd)]
    members = {task.label: [0] for task in plan.tasks}
    for task in plan.tasks:
        if not isinstance(task, JobTask) or (task.usd, task.tokens, task.wall) == (None, None, None):
            continue
        accounts.append(money.Account(task.label, task.usd, task.tokens, task.wall))
        for label in _needed(plan, [task.label]):
            members[label].append(len(accounts) - 1)
    return accounts, {label: tuple(indexes) for label, indexes in members.items()}


def _needed(plan: Plan, labels: Iterable[str]) -> set[str]:
    """These labels of a plan with all that they depend on."""
    needs = {task.label: dependencies(task) for task in plan.tasks}
    found: set[str] = set()
    queue = list(labels)
    while queue:
        label = queue.pop()
        if label not in found:
            found.add(label)
            queue.extend(needs[label])
    return found

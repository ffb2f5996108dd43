"""One invocation of build: compile, run the plan, publish what was asked for, write down what happened."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.cache.canonical import Json
from mrp.cache.errors import MissingBlob
from mrp.cache.filestats import FileDigests
from mrp.cache.inflight import InFlight
from mrp.cache.store import Store
from mrp.rules.rule import RuleContext, Value
from mrp.runtime import money, runs, trace
from mrp.runtime.account import Account, lines_by_label
from mrp.runtime.beforehand import check_items, read_datasets
from mrp.runtime.coordinator import Coordinator, Settings
from mrp.runtime.decide import Demand
from mrp.runtime.engine.local import BATCH_SECONDS, ELSEWHERE_SECONDS, LocalEngine
from mrp.runtime.events import AttemptFailed, EventLog, RunFinished, RunStarted, Warned
from mrp.runtime.execute import Executor
from mrp.runtime.host_facts import HostFacts
from mrp.runtime.incremental import Patch, patch_of
from mrp.runtime.ledger import Ledger
from mrp.runtime.models.late import LateGateway, LateSettings
from mrp.runtime.options import BuildOptions, cache_root
from mrp.runtime.outputs import publish
from mrp.runtime.place import check_isolation, check_place, place_of, refuse_unknown, start_backend
from mrp.runtime.remember import SETTINGS, Looked, clock_of, looked_at, remember, remember_patched
from mrp.runtime.report import BuildReport, overall_status, report_groups, report_target
from mrp.runtime.request import adapted_plan, reported_labels, selection_of
from mrp.runtime.sandbox.protocol import Backend, Cancelled
from mrp.runtime.sandbox.provider import Owner
from mrp.runtime.sandbox.registry import BackendSettings
from mrp.runtime.sdk_tree import sdk_tree
from mrp.runtime.secret_values import Secrets
from mrp.runtime.sources import Sources
from mrp.runtime.state import state_folder, unwritable
from mrp.specs.errors import SpecError
from mrp.specs.ir import Plan, plan_bytes
from mrp.specs.labels import parse_label
from mrp.specs.results import Ref

if TYPE_CHECKING:
    from mrp.compiler.compile import Compiled

_MOST_PASSES = 8
"""Each pass makes again what a lost or corrupt blob spoiled in the one before."""


def build(options: BuildOptions) -> BuildReport:
    """Compile the workspace and run the plan for the requested targets.

    Raises SpecError, PolicyError or UsageError before anything is executed or written, CacheError when the cache
    cannot be used.
    """
    if options.identity:
        report = _patched(options)
        if report is not None:
            return report
    began = clock_of(options.root) if options.identity else 0
    with _compiled(options) as (compiled, chosen, store, digests):
        looked = looked_at(compiled, began) if options.identity else None
        return run_plan(compiled.plan, chosen, store, digests, looked=looked)


def _patched(options: BuildOptions) -> BuildReport | None:
    """The build of an edit that touched only sources; None when the workspace must be compiled."""
    with trace.span("patch"):
        patch = patch_of(options.root, options.identity)
    if patch is None:
        return None
    chosen = _with_settings(options, patch.settings)
    try:
        with open_state(chosen) as (store, digests):
            return run_plan(patch.plan, chosen, store, digests, patch=patch)
    except StandingPlanLost:
        return None


@contextmanager
def compiled_state(
    options: BuildOptions, *, anywhere: bool = False
) -> Iterator[tuple[Plan, BuildOptions, Store, FileDigests]]:
    """The plan of the workspace, the options with what the chosen configs set, the cache, and the memory of digests.

    The cache is opened, and made, only once the plan is whole: what is refused before leaves nothing behind. Whether
    the place can run it is not asked where it may have run `anywhere`.
    """
    with _compiled(options, anywhere=anywhere) as (compiled, chosen, store, digests):
        yield compiled.plan, chosen, store, digests


@contextmanager
def _compiled(
    options: BuildOptions, *, anywhere: bool = False
) -> "Iterator[tuple[Compiled, BuildOptions, Store, FileDigests]]":
    from mrp.compiler.compile import compile_workspace

    refuse_unknown(options)
    with FileDigests.open(state_folder(options.root) / "files.digests") as digests:
        with trace.span("compile"):
            compiled = compile_workspace(
                options.root,
                options.targets,
                config=options.config,
                params=options.params,
                digests=digests,
                place=None if anywhere else lambda settings: place_of(_with_settings(options, vars(settings))),
            )
        chosen = _with_settings(options, vars(compiled.settings))
        refuse_unknown(chosen)
        with Store.open(options.cache or cache_root()) as store:
            yield compiled, chosen, store, digests


def _with_settings(options: BuildOptions, settings: Mapping[str, Any]) -> BuildOptions:
    """The options with what the chosen configs set where no flag does."""
    return replace(options, **{name: getattr(options, name) or settings[name] for name in SETTINGS})


@contextmanager
def open_state(options: BuildOptions) -> Iterator[tuple[Store, FileDigests]]:
    """The cache and the workspace's memory of file digests, closed again afterwards. Raises as `Store.open`."""
    refuse_unknown(options)
    with (
        Store.open(options.cache or cache_root()) as store,
        FileDigests.open(state_folder(options.root) / "files.digests") as digests,
    ):
        yield store, digests


def run_plan(
    plan: Plan,
    options: BuildOptions,
    store: Store,
    digests: FileDigests,
    *,
    looked: Looked | None = None,
    patch: Patch | None = None,
) -> BuildReport:
    """Run a plan. Raises SpecError, UsageError and PolicyError before anything is executed.

    With `looked`, what it comes to is remembered for the next build; a `patch` runs a part of a remembered plan.
    Raises StandingPlanLost when that part needs what the store has lost; then nothing was executed twice.
    """
    datasets: Mapping[str, Value] = {}
    if patch is None:
        check_place(plan, options)
        plan = adapted_plan(plan, options)
        datasets = _read_beforehand(plan, options, store, {}, thorough=False)
    state = state_folder(options.root)
    runs.sweep_dead_runs(state)
    run = runs.Run(state)
    log = EventLog(run.folder / "events.jsonl", options.on_event)
    try:
        return _Building(plan, options, store, digests, datasets, run, log, looked, patch).run()
    except (StandingPlanLost, SpecError):
        run.forget()
        raise
    except OSError as error:
        if error.filename is None:
            raise
        raise unwritable(Path(error.filename), error) from error
    finally:
        log.close()
        run.close()


class StandingPlanLost(Exception):
    """What an edit does not reach is not whole any more, so that the whole plan must be built."""


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
        looked: Looked | None,
        patch: Patch | None,
    ) -> None:
        self._datasets = datasets
        self._plan, self._options, self._store = plan, options, store
        self._run, self._log = run, log
        self._looked, self._patch = looked, patch
        self._facts = HostFacts(digests)
        self._state = state_folder(options.root)
        # One more than cores, as other build tools have it: a core is never idle while an action is laid out or kept.
        self._slots = min(options.jobs or (os.cpu_count() or 1) + 1, plan.policy.max_workers)
        self._backend: Backend | None = None
        self._secrets = Secrets(plan.secrets, options.root)
        self._money = money.Money(*money.open_accounts(plan))
        self._models = LateGateway(self._late_settings)
        self._started = time.monotonic()
        self._sdk = cache(lambda: sdk_tree(store))
        self._account = Account()
        self._selection = selection_of(plan, options)
        self._reported = patch.reported if patch is not None else reported_labels(plan)

    def run(self) -> BuildReport:
        requested = self._plan.requested
        self._log.emit(RunStarted(self._run.run_id, requested, self._slots))
        if self._patch is not None:
            plan_digest = self._patch.put_plan(self._store)
        else:
            plan_digest = self._store.put_bytes(plan_bytes(self._plan))
        executor = Executor(
            store=self._store,
            workspace=self._options.root,
            backend=self._require_backend,
            secrets=self._secrets,
            offline=self._options.offline,
            cancelled=lambda: self._options.interrupt.level > 1,
            on_failure=lambda action, number, reason: self._log.emit(
                AttemptFailed(action.label, action.item, action.kind.value, number, reason)
            ),
            gateway=self._models.gateway,
        )
        inflight = InFlight(self._store.root)
        batch_seconds = BATCH_SECONDS if (self._options.engine or "local") == "local" else ELSEWHERE_SECONDS
        engine = LocalEngine(self._slots, executor.execute, executor.execute_many, batch_seconds)
        self._options.interrupt.listen(lambda level: self._interrupted(level, engine))
        try:
            if self._patch is not None:
                self._make_ready(self._patch)
            coordinator = self._passes(engine, inflight)
        except BaseException:
            self._kill()
            raise
        finally:
            engine.close()
            self._account.usd += self._models.close()
            if self._backend is not None:
                self._backend.close()
            inflight.close()
        return self._finish(coordinator, plan_digest)

    def _make_ready(self, patch: Patch) -> None:
        """An edit will run something: what processes need starts while rows are read and keys are made."""
        if patch.moved:
            self._prepare_backend()
            for image, with_sdk in sorted(patch.sandboxes()):
                self._require_backend().warm(image, self._sdk() if with_sdk else None)
        self._datasets = _read_beforehand(self._plan, self._options, self._store, patch.known, thorough=False)

    def _passes(self, engine: LocalEngine, inflight: InFlight) -> Coordinator:
        provenance = {"run": self._run.run_id, "engine": self._options.engine or "local"}
        if self._options.sandbox:
            provenance["sandbox"] = self._options.sandbox
        walls = [cap for _, cap in self._money.wall_caps()]
        wall = min([self._plan.policy.max_wall, *walls])
        for _ in range(_MOST_PASSES):
            self._account.begin_pass()
            self._money.begin_pass()
            coordinator = Coordinator(
                plan=self._plan,
                known=self._datasets,
                context=self._context,
                store=self._store,
                inflight=inflight,
                engine=engine,
                slots=self._slots,
                money=self._money,
                settings=Settings(
                    self._demand,
                    self._options.fail_fast,
                    provenance,
                    self._prepare_backend,
                    self._started + float(wall),
                ),
                interrupt=self._options.interrupt,
                emit=self._log.emit,
                account=self._account,
            )
            coordinator.run()
            with trace.span("publish"):
                lost = self._publish(coordinator)
            if self._options.interrupt.level or not (coordinator.damaged or lost):
                return coordinator
            if self._patch is not None:
                raise StandingPlanLost
            self._log.emit(Warned("stored data was lost or damaged; what depends on it is made again"))
            self._datasets = _read_beforehand(self._plan, self._options, self._store, {}, thorough=True)
        if lost is not None:
            raise lost
        return coordinator

    def _publish(self, coordinator: Coordinator) -> MissingBlob | None:
        """Show what was asked for under mrp-out; gives what the store turned out to have lost of it."""
        for label in self._reported:
            try:
                outputs = self._outputs(label, coordinator.values)
                if outputs:
                    publish(self._options.root, label, outputs, self._store)
            except MissingBlob as error:
                return error
        return None

    def _outputs(self, label: str, values: Mapping[str, Value]) -> Mapping[str, Ref]:
        """What must be published of a label; nothing for one that stands and is there."""
        patch = self._patch
        if patch is not None and not patch.reaches(label):
            return patch.outputs(label) if patch.lost else {}
        value = values.get(label)
        return value.outputs if value is not None else {}

    def _context(self, values: Mapping[str, Value]) -> RuleContext:
        return RuleContext(
            store=self._store,
            values=values,
            host=self._facts.describe,
            import_sources=Sources(self._options.root, self._store).bring,
            sdk=self._sdk,
            selection=self._selection,
            before=self._patch.before() if self._patch is not None else {},
        )

    def _demand(self, label: str) -> Demand:
        from mrp.specs.labels import parse_pattern

        target = parse_label(label) if not label.startswith("builtin:") else None
        rebuild = target is not None and any(
            parse_pattern(pattern).matches(target) for pattern in self._options.rebuild
        )
        return Demand(self._plan.policy.isolation, rebuild, self._options.retry_limits)

    def _require_backend(self) -> Backend:
        assert self._backend is not None, "the coordinator prepares the backend before it submits anything"
        return self._backend

    def _prepare_backend(self) -> int:
        """Start the backend, once something must run; gives how many actions may run at once.

        Raises PolicyError when it isolates less than policy asks.
        """
        if self._backend is not None:
            return self._slots
        options, policy = self._options, self._plan.policy
        with trace.span("start backend"):
            # It is known before it has started, so that an interrupt reaches it.
            self._backend = start_backend(
                options, policy.isolation, self._store, self._run.scratch, self._run.run_id, self._slots
            )
            # Interrupted while it starts, it gives no action a process; these end as all that are cancelled do.
            with suppress(Cancelled):
                check_isolation(self._backend, options, policy.isolation)
                if options.address is not None and options.jobs is None:
                    # A cluster that was joined has a size of its own.
                    self._slots = min(getattr(self._backend, "slots", self._slots), policy.max_workers)
        return self._slots

    def _late_settings(self) -> LateSettings:
        options = self._options
        place = self._run.scratch / "models"
        place.mkdir(exist_ok=True)
        return LateSettings(
            sandboxes=BackendSettings(self._store, place, self._plan.policy.isolation, Owner("", self._run.run_id)),
            host=self._facts.describe,
            logs=self._run.folder,
            calls=options.calls,
            money=self._money,
            secrets=self._secrets,
            warn=lambda sentence: self._log.emit(Warned(sentence)),
            listen=os.environ.get("MRP_GATEWAY_HOST") or None,
        )

    def _interrupted(self, level: int, engine: LocalEngine) -> None:
        if level > 1:
            self._kill()
        engine.wake()

    def _kill(self) -> None:
        """Let nothing run on. From any thread, and from a signal handler."""
        if self._backend is not None:
            self._backend.cancel()
        self._models.kill()

    def _finish(self, coordinator: Coordinator, plan_digest: str) -> BuildReport:
        failures, patch = self._account.failures, self._patch
        targets = {
            label: patch.report(label)
            if patch is not None and not patch.reaches(label)
            else report_target(coordinator.values.get(label), failures.get(label))
            for label in self._reported
        }
        targets |= report_groups(self._plan, targets)
        interrupted = self._options.interrupt.level > 0
        status, exit_code, reason = overall_status(self._account, targets, interrupted)
        by_label = lines_by_label(self._account.lines)
        if patch is not None:
            patch.keep_lines(by_label, coordinator.values)
        text = patch.standing.digest_lines() if patch is not None else b"".join(by_label.values())
        self._run.write_digests(text)
        ledger = Ledger(self._state / "ledger.sqlite")
        ledger.record(self._run.run_id, self._account.lines)
        ledger.close()
        failed = self._account.failed if exit_code else ()
        report = BuildReport(
            run_id=self._run.run_id,
            status=status,
            executed=self._account.lines.executed,
            cached=len(self._account.lines)
            - self._account.lines.executed
            + (patch.standing_actions if patch is not None else 0),
            failed=len(failed),
            targets=targets,
            usd=self._account.usd,
            estimate_usd=self._account.estimate_usd,
            wall_s=Decimal(str(round(time.monotonic() - self._started, 3))),
            exit_code=exit_code,
            failures=tuple(failures[label] for label in sorted(failures)),
            folder=self._run.folder,
            reason=reason,
        )
        self._store.commit([])
        record = {**report.to_json(), "plan": plan_digest, "requested": list(self._plan.requested)}
        sealed = self._run.write_record(record)
        self._log.emit(RunFinished(report.run_id, report.status, report.executed, report.cached, report.failed))
        if report.status in ("ok", "held"):
            self._remember(coordinator.values, by_label, report, sealed)
        return report

    def _remember(
        self, values: Mapping[str, Value], lines: Mapping[str, bytes], report: BuildReport, record: Mapping[str, Json]
    ) -> None:
        root, store = self._options.root, self._store
        if self._patch is not None:
            self._patch.keep(values)
            remember_patched(root, self._patch.snapshot, self._patch.standing, report, record, store)
        elif self._looked is not None:
            identity = self._options.identity
            remember(root, identity, self._looked, self._plan, values, lines, report, record, self._facts, store)


def _read_beforehand(
    plan: Plan, options: BuildOptions, store: Store, known: Mapping[str, Value], *, thorough: bool
) -> dict[str, Value]:
    """The values that are `known` and the datasets that need no action, once the items asked for are among them.

    thorough: as mrp.runtime.beforehand.read_datasets, which a first pass need not be.

    What is found damaged on the way is put aside by the store, so the next attempt makes it again.
    """
    for attempt in range(_MOST_PASSES):
        try:
            with trace.span("read datasets"):
                datasets = read_datasets(plan, options.root, store, known, thorough=thorough)
                check_items(plan, datasets, store)
            return datasets
        except MissingBlob:
            if attempt == _MOST_PASSES - 1:
                raise
    raise AssertionError("the last attempt returns or raises")

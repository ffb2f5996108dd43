"""Carrying out one action: the only place that knows which work needs a sandbox, the network or a sink."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.errors import CacheError, MissingBlob
from mrp.cache.store import Store
from mrp.rules.action import Action, Attempt, EngineWork, ProcessWork
from mrp.rules.fetching import Fetch
from mrp.rules.image import ImageWork
from mrp.rules.produce import Publish, producer_writes, published_rows
from mrp.runtime.money import OverBudget
from mrp.runtime.sandbox.protocol import Backend, Cancelled
from mrp.runtime.secret_values import Secrets
from mrp.runtime.state import unwritable
from mrp.specs.errors import BuildFailed, InfraError, MrpError
from mrp.specs.results import Byproducts, Outcome, Ref, Result, Usage
from mrp.specs.work import ENGINE, Completed, Process

if TYPE_CHECKING:
    from mrp.runtime.models.gateway import Gateway

_LONGEST_WAIT = 5.0


@dataclass(frozen=True)
class Executed:
    """How an action ended: its final attempt, or `attempt` None with the outcome that says why there is no result.

    `failures` are the reasons of the attempts before, oldest first. `damaged`: a stored input was lost or corrupt, so
    that another pass, which makes it again, may succeed.
    """

    action: Action
    outcome: Outcome
    attempt: Attempt | None
    reason: str = ""
    failures: tuple[str, ...] = ()
    usage: Usage = Usage()
    damaged: bool = False


@dataclass
class Executor:
    """Executes actions, many at a time, from any thread; `cancelled` tells that no further attempt may begin.

    `gateway` is where the actions that have a model find it.
    """

    store: Store
    workspace: Path
    backend: Callable[[], Backend]
    secrets: Secrets
    offline: bool
    cancelled: Callable[[], bool]
    on_failure: Callable[[Action, int, str], None]
    gateway: Callable[[], "Gateway"]

    def execute(self, action: Action, first: Callable[[], Attempt] | None = None) -> Executed:
        """Try until there is a result or no retry is left. Raises only what `on_failure` does.

        `first` gives what came of the first attempt, when that was made elsewhere, or raises why it came to nothing.
        """
        executed = self._execute(action, first)
        if action.model is None:
            return executed
        usd, tokens = self.gateway().take_spent(action.key)
        return replace(executed, usage=replace(executed.usage, usd=usd, tokens=tokens))

    def _execute(self, action: Action, first: Callable[[], Attempt] | None) -> Executed:
        failures: list[str] = []
        started = time.monotonic()
        while True:
            if first is None and self.cancelled():
                return _stopped(action, failures)
            try:
                attempt = first() if first is not None else self._once(action)
            except Cancelled:
                return _stopped(action, failures)
            except OverBudget as error:
                return Executed(action, Outcome.BUDGET, None, str(error), tuple(failures))
            except InfraError as error:
                failures.append(str(error))
                self.on_failure(action, len(failures), str(error))
                if not error.retryable or len(failures) > action.retries:
                    return Executed(action, Outcome.INFRA_ERROR, None, str(error), tuple(failures))
                first = None
                time.sleep(min(_LONGEST_WAIT, 0.1 * 2 ** len(failures)))
            except CacheError as error:
                damaged = isinstance(error, MissingBlob)
                return Executed(action, Outcome.INFRA_ERROR, None, str(error), tuple(failures), damaged=damaged)
            except BuildFailed as error:
                return Executed(action, Outcome.FAILED, None, str(error), tuple(failures))
            except MrpError as error:
                return Executed(action, Outcome.DENIED, None, str(error), tuple(failures))
            except Exception as error:
                reason = str(unwritable(self.workspace, error)) if isinstance(error, OSError) else ""
                reason = reason or f"{type(error).__name__}: {error}"
                return Executed(action, Outcome.INFRA_ERROR, None, reason, tuple(failures))
            else:
                return self._finish(action, attempt, failures, started)

    def execute_many(
        self,
        actions: Sequence[Action],
        finished: Callable[[Executed], None],
        returned: Callable[[Sequence[Action]], None] | None,
    ) -> None:
        """Execute actions one after the other, as many as can together; `finished` gets each as soon as it ended.

        What has not begun behind one that takes long goes to `returned`, unless that is None. Raises as `execute`.
        """
        together = 0
        while together < len(actions) and may_share(actions[together]):
            together += 1
        if together > 1:
            together = self._together(actions[:together], actions[together:], finished, returned)
        else:
            together = 0
        for action in actions[together:]:
            finished(self.execute(action))

    def _together(
        self,
        actions: Sequence[Action],
        others: Sequence[Action],
        finished: Callable[[Executed], None],
        returned: Callable[[Sequence[Action]], None] | None,
    ) -> int:
        """Execute the first of `actions` by one call of the backend; gives how many of all need nothing more."""
        works = [cast("ProcessWork", action.work) for action in actions]
        ended, given_back = 0, len(actions)

        def conclude(number: int, came: Completed | InfraError | Cancelled) -> None:
            nonlocal ended
            ended = number + 1
            action, work = actions[number], works[number]

            def first() -> Attempt:
                if not isinstance(came, Completed):
                    raise came
                return work.conclude(came, self.store)

            finished(self.execute(action, first))

        def give_back(number: int) -> None:
            nonlocal given_back
            given_back = number
            assert returned is not None
            returned([*actions[number:], *others])

        try:
            taken = self.backend().run_many(
                [work.process for work in works],
                tags=[_tag(action) for action in actions],
                finished=conclude,
                returned=give_back if returned is not None else None,
            )
        except Cancelled:
            for number in range(ended, given_back):
                conclude(number, Cancelled())
            taken = len(actions)
        return len(actions) + len(others) if given_back < len(actions) else taken

    def _finish(self, action: Action, attempt: Attempt, failures: list[str], started: float) -> Executed:
        byproducts = attempt.byproducts
        usage = byproducts.usage
        if action.model is None and (action.usd or action.tokens or not usage.wall_s):
            wall = usage.wall_s or Decimal(f"{time.monotonic() - started:.3f}")
            usage = Usage(wall, usage.cpu_s, usage.max_rss, action.usd, action.tokens)
        determinism = _determinism(action)
        if failures or usage is not byproducts.usage or determinism != byproducts.determinism:
            byproducts = replace(byproducts, attempt=len(failures) + 1, usage=usage, determinism=determinism)
            attempt = Attempt(attempt.result, byproducts)
        return Executed(action, attempt.result.outcome, attempt, byproducts.reason, tuple(failures), usage)

    def _once(self, action: Action) -> Attempt:
        work = action.work
        process = process_of(work)
        if process is not None:
            values = self.secrets.values(process.box.secrets)
            if action.model is None:
                completed = self.backend().run(process, secrets=values, tag=_tag(action))
                return cast("ProcessWork", work).conclude(completed, self.store)
            with self.gateway().session(action, action.model) as session:
                completed = self.backend().run(process, secrets=values, tag=_tag(action), endpoint=session.endpoint)
                return session.conclude(cast("ProcessWork", work).conclude(completed, self.store))
        if isinstance(work, EngineWork):
            return work.perform(self.store)
        if isinstance(work, ImageWork):
            return self._image(work)
        if isinstance(work, Fetch):
            return self._fetch(work)
        if isinstance(work, Publish):
            return self._publish(action, work)
        raise InfraError(f"{action.label} asks for {type(work).__name__}, which nothing here can do", retryable=False)

    def _image(self, work: ImageWork) -> Attempt:
        from mrp.runtime.images.make import perform

        outputs = perform(work, self.store, offline=self.offline)
        return Attempt(Result(Outcome.OK, outputs=outputs), Byproducts(isolation=ENGINE))

    def _fetch(self, work: Fetch) -> Attempt:
        from mrp.runtime.fetch import fetch

        values = self.secrets.values([work.spec.secret] if work.spec.secret else [])
        tree = fetch(work.spec, self.workspace, self.store, offline=self.offline, secrets=values, unpack=work.unpack)
        return Attempt(Result(Outcome.OK, outputs={"files": Ref("tree", tree)}), Byproducts(isolation=ENGINE))

    def _publish(self, action: Action, work: Publish) -> Attempt:
        from mrp.runtime.produce import produce

        content: Iterable[Json] | Ref
        if work.kind == "tree":
            assert isinstance(work.content, Ref)
            content = work.content
        else:
            content = producer_writes(work, self.store) if work.kind == "writes" else published_rows(work, self.store)
        outcome = produce(
            work.sink,
            content,
            workspace=self.workspace,
            label=work.label,
            artifact=Digest(action.key),
            store=self.store,
        )
        # Whether the sink held it already says something of this machine, and nothing of the content.
        byproducts = Byproducts(isolation=ENGINE, metrics={"status": outcome.status})
        return Attempt(Result(Outcome.OK, values={"content": outcome.digest}), byproducts)


def may_share(action: Action) -> bool:
    """Whether an action may be executed together with others like it."""
    process = process_of(action.work)
    return process is not None and process.pure and not process.model and not process.box.secrets


def process_of(work: object) -> Process | None:
    """The process of a ProcessWork; asked for by name, since checking a protocol takes longer than some items."""
    process = getattr(work, "process", None)
    return process if isinstance(process, Process) else None


def _determinism(action: Action) -> str:
    """See mrp.specs.results.Byproducts."""
    process = process_of(action.work)
    if process is not None and process.box.network != "none":
        return "sampled"
    if action.model is not None:
        return "seeded" if action.model.seeded else "sampled"
    return "pure"


def _tag(action: Action) -> str:
    return f"{action.label}[{action.item}]" if action.item else action.label


def _stopped(action: Action, failures: Sequence[str]) -> Executed:
    return Executed(action, Outcome.CANCELLED, None, "the build was stopped", tuple(failures))

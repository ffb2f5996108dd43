"""Carrying out one action: the only place that knows which work needs a sandbox, the network or a sink."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.errors import CacheError, MissingBlob
from mrp.cache.store import Store
from mrp.rules.action import Action, Attempt, EngineWork, ProcessWork
from mrp.rules.fetching import Fetch
from mrp.rules.image import MakeImage
from mrp.rules.produce import Publish, producer_writes, published_rows
from mrp.runtime.sandbox.protocol import Backend, Cancelled
from mrp.runtime.secret_values import Secrets
from mrp.runtime.state import unwritable
from mrp.specs.errors import BuildFailed, InfraError, MrpError
from mrp.specs.results import Byproducts, Outcome, Ref, Result, Usage
from mrp.specs.work import ENGINE

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
    """Executes actions, many at a time, from any thread; `cancelled` tells that no further attempt may begin."""

    store: Store
    workspace: Path
    backend: Callable[[], Backend]
    secrets: Secrets
    offline: bool
    cancelled: Callable[[], bool]
    on_failure: Callable[[Action, int, str], None]

    def execute(self, action: Action) -> Executed:
        """Try until there is a result or no retry is left. Raises only what `on_failure` does."""
        failures: list[str] = []
        started = time.monotonic()
        while True:
            if self.cancelled():
                return Executed(action, Outcome.CANCELLED, None, "the build was stopped", tuple(failures))
            try:
                attempt = self._once(action)
            except Cancelled:
                return Executed(action, Outcome.CANCELLED, None, "the build was stopped", tuple(failures))
            except InfraError as error:
                failures.append(str(error))
                self.on_failure(action, len(failures), str(error))
                if not error.retryable or len(failures) > action.retries:
                    return Executed(action, Outcome.INFRA_ERROR, None, str(error), tuple(failures))
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

    def _finish(self, action: Action, attempt: Attempt, failures: list[str], started: float) -> Executed:
        wall = Decimal(str(round(time.monotonic() - started, 3)))
        usage = replace(attempt.byproducts.usage, usd=action.usd, tokens=action.tokens)
        if not usage.wall_s:
            usage = replace(usage, wall_s=wall)
        byproducts = replace(attempt.byproducts, attempt=len(failures) + 1, usage=usage)
        attempt = Attempt(attempt.result, byproducts)
        return Executed(action, attempt.result.outcome, attempt, byproducts.reason, tuple(failures), usage)

    def _once(self, action: Action) -> Attempt:
        work = action.work
        if isinstance(work, ProcessWork):
            values = self.secrets.values(work.process.box.secrets)
            tag = f"{action.label}[{action.item}]" if action.item else action.label
            completed = self.backend().run(work.process, secrets=values, tag=tag)
            return work.conclude(completed, self.store)
        if isinstance(work, EngineWork):
            return work.perform(self.store)
        if isinstance(work, MakeImage):
            return self._image(work)
        if isinstance(work, Fetch):
            return self._fetch(work)
        if isinstance(work, Publish):
            return self._publish(action, work)
        raise InfraError(f"{action.label} asks for {type(work).__name__}, which nothing here can do", retryable=False)

    def _image(self, work: MakeImage) -> Attempt:
        from mrp.runtime.images.layers import image_layers, make_image

        description = make_image(work, self.store)
        layers = image_layers(description, self.store)
        # The layers' trees are outputs as well, so that an image that lost one of their files is no hit.
        outputs = {"image": Ref("blob", description)}
        outputs |= {f"layer-{number}": Ref("tree", tree) for number, tree in enumerate(layers)}
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

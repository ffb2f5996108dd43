"""Where a build runs: the engine and the sandbox backend that its options name, refused, checked and started."""

from collections.abc import Iterable
from pathlib import Path

from mrp.cache.store import Store
from mrp.runtime import runs
from mrp.runtime.engine.protocol import EngineSettings
from mrp.runtime.engine.registry import ENGINES
from mrp.runtime.options import BuildOptions
from mrp.runtime.sandbox.protocol import Backend
from mrp.runtime.sandbox.provider import Owner
from mrp.runtime.sandbox.registry import BACKENDS, BackendSettings
from mrp.runtime.state import owner_of, state_folder
from mrp.specs.backends import BACKENDS as BACKEND_NAMES
from mrp.specs.backends import ENGINES as ENGINE_NAMES
from mrp.specs.backends import Place
from mrp.specs.errors import Diagnostic, PolicyError, Span, SpecError, UsageError
from mrp.specs.ir import Plan
from mrp.specs.suggest import did_you_mean
from mrp.specs.work import ISOLATION

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def refuse_unknown(options: BuildOptions) -> None:
    """Raise UsageError for words that name no place."""
    if options.engine is not None and options.engine not in ENGINE_NAMES:
        near = _near(options.engine, ENGINE_NAMES, "--sandbox", BACKEND_NAMES)
        raise UsageError(f"there is no engine {options.engine}; {near}")
    if options.sandbox is not None and options.sandbox not in BACKEND_NAMES:
        near = _near(options.sandbox, BACKEND_NAMES, "--engine", ENGINE_NAMES)
        raise UsageError(f"there is no sandbox backend {options.sandbox}; {near}")
    if options.engine == "modal" and options.sandbox not in (None, "modal"):
        raise UsageError(f"the modal engine isolates with modal's own sandboxes; leave out --sandbox {options.sandbox}")
    if options.address is not None and options.engine != "ray":
        raise UsageError("--address is that of a Ray cluster; add --engine ray")


def _near(word: str, known: Iterable[str], other_flag: str, others: Iterable[str]) -> str:
    if word in others:
        return f"write {other_flag} {word}"
    return did_you_mean(word, known) or f"use one of {', '.join(known)}"


def place_of(options: BuildOptions) -> Place:
    """The place that the options name, once those of the configs are among them."""
    address = options.address
    # No other machine can join a cluster whose address is this one's loopback.
    joined = address is not None and address.rpartition(":")[0] not in _LOOPBACK
    shared = options.engine == "ray" and joined
    return Place(options.engine or "local", options.sandbox or "local", shared)


def check_place(plan: Plan, options: BuildOptions) -> None:
    """Raise SpecError for what a plan asks of a place that cannot give it; only plans without YAML get so far."""
    from mrp.compiler.places import misplaced

    found = [
        Diagnostic(Span(f"{wrong.label} in the plan", 1, 1), wrong.message, wrong.hint)
        for wrong in misplaced(plan.tasks, place_of(options))
    ]
    if found:
        raise SpecError(found)


def start_backend(options: BuildOptions, required: str, store: Store, scratch: Path, run: str, slots: int) -> Backend:
    """The backend for a run, by its id, with room for `slots` processes. Raises InfraError where there is none."""
    place, state = place_of(options), state_folder(options.root)
    # Only services keep sandboxes that the next start must know again.
    owner = Owner("" if place == Place() else owner_of(state), run)
    settings = BackendSettings(store, scratch, required, owner, lambda run: runs.is_alive(state, run))
    if place.engine == "local":
        return BACKENDS[place.sandbox](settings)
    return ENGINES[place.engine](EngineSettings(settings, place.sandbox, options.address, slots))


def check_isolation(backend: Backend, options: BuildOptions, required: str) -> None:
    """Wait until a backend has started. Raises PolicyError when it isolates less than `required`."""
    place, achieved = place_of(options), backend.isolation
    if ISOLATION.index(achieved) < ISOLATION.index(required):
        message = f"policy asks for isolation {required}, and the {place.backend} backend reaches only {achieved} here"
        hint = "`mrp doctor` says what is missing; or allow less with `isolation:` in the policy file"
        raise PolicyError([Diagnostic(Span("policy", 1, 1), message, hint)])

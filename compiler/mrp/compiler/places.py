"""Places: what of a plan the chosen engine and sandbox backend cannot run, found before anything runs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from mrp.cache.canonical import number_text
from mrp.compiler.lower import HOST_IMAGE, HOST_SANDBOX
from mrp.compiler.references import Location
from mrp.specs import ir
from mrp.specs.backends import BACKENDS, Place
from mrp.specs.quantity import size_text

_PORTABLE = "use `base: scratch` with a `deb` layer, or an image by digest"


@dataclass(frozen=True)
class Misplaced:
    """What cannot run there: whose field it is, one sentence, the next step."""

    label: str
    location: Location
    message: str
    hint: str


def misplaced(tasks: Iterable[ir.Task], place: Place) -> Iterator[Misplaced]:
    """All of a plan that `place` cannot run, in order of the tasks."""
    known = {task.label: task for task in tasks}
    for task in known.values():
        if isinstance(task, ir.SandboxTask):
            yield from _box(task, known, place)
        elif isinstance(task, ir.ImageTask):
            yield from _image(task, place)
        elif runs_in_host_sandbox(task) and not _shows_host(place):
            message = f"{task.label} runs in {HOST_SANDBOX}, the machine's own system, which {place.name} does not have"
            yield Misplaced(
                task.label, ("sandbox",), message, f"give it a `sandbox:` whose image is portable: {_PORTABLE}"
            )
        if isinstance(task, ir.MapTask) and task.model is not None and not BACKENDS[place.backend].models:
            message = f"{task.label} calls a model, which a sandbox of {place.name} cannot reach"
            yield Misplaced(task.label, ("model",), message, "use another `--sandbox`")


def runs_in_host_sandbox(task: ir.Task) -> bool:
    """Whether processes of a task run in builtin:host."""
    if getattr(task, "sandbox", None) != HOST_SANDBOX:
        return False
    builtin_reducer = isinstance(task, ir.ReduceTask) and task.reducer.startswith("builtin:")
    return not (builtin_reducer or (isinstance(task, ir.ProduceTask) and task.producer is None))


def _box(task: ir.SandboxTask, known: Mapping[str, ir.Task], place: Place) -> Iterator[Misplaced]:
    able, limits = BACKENDS[place.backend], task.limits
    if task.label != HOST_SANDBOX and task.image == HOST_IMAGE and not _shows_host(place):
        message = f"{task.label} shows the machine's own system, which {place.name} does not have"
        yield Misplaced(task.label, ("image",), message, f"give it an `image:` that is portable: {_PORTABLE}")
    if limits.gpus is not None and not able.gpus:
        yield Misplaced(task.label, ("limits", "gpus"), f"{place.name} has no GPUs", _others("gpus"))
    if limits.resources and place.engine != "ray":
        hint = "remove `resources`, or run it with --engine ray --address and that of a cluster which has them"
        yield Misplaced(task.label, ("limits", "resources"), f"{place.name} has no resources by name", hint)
    if task.allow is not None and not able.allow:
        hint = "remove `allow`, and put only what may be executed into the image"
        yield Misplaced(task.label, ("allow",), f"{place.name} cannot limit what is executed", hint)
    if isinstance(task.network, tuple) and "hosts" not in able.networks:
        hint = "use `network: none` or `open`, or run it with --sandbox local"
        yield Misplaced(task.label, ("network",), f"{place.name} cannot keep an allowlist of hosts", hint)
    caps: tuple[tuple[str, Decimal | int, Decimal | int | None], ...] = (
        ("cpus", limits.cpus, able.most_cpus),
        ("memory", limits.memory, able.most_memory),
        ("disk", limits.disk, able.most_disk),
    )
    for name, asked, most in caps:
        if most is not None and asked > most:
            message = f"{_amount(asked)} of {name} is more than {place.name} gives, which is {_amount(most)}"
            yield Misplaced(task.label, ("limits", name), message, "ask for less, or use another `--sandbox`")


def _image(task: ir.ImageTask, place: Place) -> Iterator[Misplaced]:
    if not isinstance(task.base, str) or task.label == HOST_IMAGE:
        return
    if task.base == "host" and not _shows_host(place):
        message = f"`base: host` is the machine's own system, which {place.name} does not have"
        yield Misplaced(task.label, ("base",), message, _PORTABLE)
    knowing = [name for name, able in BACKENDS.items() if task.base.startswith(able.sources)]
    if knowing and place.backend not in knowing:
        hint = f"run it with --sandbox {knowing[0]}, or {_PORTABLE}"
        message = f"{task.base} is known to {' and '.join(knowing)} alone, not to {place.name}"
        yield Misplaced(task.label, ("base",), message, hint)


def _shows_host(place: Place) -> bool:
    return BACKENDS[place.backend].host_images and not place.shared


def _others(ability: str) -> str:
    names = [name for name, able in BACKENDS.items() if getattr(able, ability)]
    return f"remove `{ability}`, or run it with --sandbox {' or '.join(names)}"


def _amount(value: Decimal | int) -> str:
    return size_text(value) if isinstance(value, int) else number_text(value)

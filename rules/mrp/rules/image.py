"""Images: a base, layers over it, an environment and a user, described as one JSON document in the store."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.store import Entry
from mrp.rules.action import Action, ActionKind, make_action, put_description
from mrp.rules.fetching import Fetch, fetch_preimage
from mrp.rules.rule import ImageValue, NoAction, Rule, RuleContext, Settled, needed
from mrp.specs.errors import InfraError
from mrp.specs.ir import FetchSpec, ImageTask, LayerSpec
from mrp.specs.results import Result

_LATER_LAYERS = {"pip", "npm", "deb", "run"}


@dataclass(frozen=True)
class Layer:
    """A layer whose inputs are digests: `tree` holds files at guest paths or the archive; `value` the rest."""

    kind: str
    tree: Digest
    value: Json = None

    def to_json(self) -> Json:
        return {"kind": self.kind, "tree": self.tree, "value": self.value}


@dataclass(frozen=True)
class MakeImage:
    """Work: lay `layers` over `base` and write the image's description."""

    base: Json
    layers: tuple[Layer, ...]
    env: dict[str, str]
    user: str


def image_rule(task: ImageTask, context: RuleContext) -> Rule:
    """The machine's own /usr with layers over it. Raises InfraError for bases and layers that nothing here builds."""
    base = _base(task, context)
    if task.label.startswith("builtin:"):
        description = {"base": base, "layers": [], "env": {}, "user": task.user}
        return NoAction(ImageValue(put_description(context.store, description)))
    for layer in task.layers:
        if layer.kind in _LATER_LAYERS:
            raise InfraError(
                f"{task.label} has a `{layer.kind}` layer, which this version cannot build; use copy, tar, dirs or"
                " links",
                retryable=False,
            )
    return ImageRule(task, base, context)


class ImageRule:
    """Archives that are somewhere else are fetched first, each in an action of its own."""

    def __init__(self, task: ImageTask, base: Json, context: RuleContext) -> None:
        self._task, self._base, self._context = task, base, context
        self._reproducible = context.reproducible(task)
        self._fetched: dict[str, Settled] = {}
        self._made: Settled | None = None

    def start(self) -> Iterator[Action]:
        fetches = [self._fetch(number, layer) for number, layer in enumerate(self._task.layers) if _address(layer)]
        self._outstanding = len(fetches)
        yield from fetches or [self._image()]

    def settled(self, settled: Settled) -> Iterator[Action]:
        if settled.action.kind is ActionKind.IMAGE:
            self._made = settled
            return
        self._fetched[settled.action.item] = settled
        self._outstanding -= 1
        if not self._outstanding and all(fetch.result is not None for fetch in self._fetched.values()):
            yield self._image()

    def value(self) -> ImageValue:
        for settled in self._fetched.values():
            self._brought(settled)
        assert self._made is not None, "value() before the action settled"
        result = needed(self._made, f"{self._task.label} {self._made.outcome.value}")
        image = result.outputs["image"]
        return ImageValue(image.digest, {"image": image}, self._reproducible)

    def _fetch(self, number: int, layer: LayerSpec) -> Action:
        spec = FetchSpec(url=_address(layer), sha256=layer.value["sha256"])
        preimage = fetch_preimage(spec, unpack=False)
        return make_action(ActionKind.FETCH, self._task.label, f"layer-{number}", preimage, Fetch(spec, unpack=False))

    def _image(self) -> Action:
        task, context = self._task, self._context
        layers = tuple(self._layer(number, layer) for number, layer in enumerate(task.layers))
        preimage = {
            "base": put_description(context.store, self._base),
            "layers": [layer.to_json() for layer in layers],
            "env": dict(task.env),
            "user": task.user,
        }
        work = MakeImage(self._base, layers, dict(task.env), task.user)
        return make_action(ActionKind.IMAGE, task.label, "", preimage, work, reproducible=self._reproducible)

    def _layer(self, number: int, layer: LayerSpec) -> Layer:
        if layer.kind == "copy":
            return Layer("copy", _copied(layer, self._context))
        if layer.kind != "tar":
            return Layer(layer.kind, self._context.files_tree(layer.files), layer.value)
        pin = {"sha256": layer.value["sha256"]}
        if _address(layer) is None:
            return Layer("tar", self._context.files_tree(layer.files), pin)
        return Layer("tar", self._brought(self._fetched[f"layer-{number}"]).outputs["files"].digest, pin)

    def _brought(self, settled: Settled) -> Result:
        return needed(settled, f"{self._task.label} {settled.outcome.value}")


def _address(layer: LayerSpec) -> str | None:
    """Where the archive of a tar layer is downloaded from; None when it is a file, or another layer."""
    return layer.value.get("url") if layer.kind == "tar" else None


def _base(task: ImageTask, context: RuleContext) -> Any:
    base = task.base
    if base == "host":
        return context.host(task.toolchain)
    if isinstance(base, str) and base.startswith("//"):
        return {"image": context.value(base, ImageValue).image}
    raise InfraError(
        f"{task.label} has the base {base!r}, which needs a container backend that this version does not have yet;"
        " use `base: host`",
        retryable=False,
    )


def _copied(layer: LayerSpec, context: RuleContext) -> Digest:
    entries: dict[str, Entry] = {}
    for destination, files, strip in layer.copy:
        folder = destination.strip("/")
        for path, entry in context.store.read_tree(context.files_tree(files)).items():
            inner = path if not strip else "" if path == strip else path.removeprefix(f"{strip}/")
            entries[posixpath.join(folder, inner) if inner else folder] = entry
    return context.store.put_tree(entries)

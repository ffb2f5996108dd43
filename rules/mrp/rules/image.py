"""Images: a base, layers over it, an environment and a user, described as one JSON document in the store."""

import posixpath
from dataclasses import dataclass
from typing import Any

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.store import Entry
from mrp.rules.action import ActionKind, make_action, put_description
from mrp.rules.rule import ImageValue, NoAction, OneAction, Rule, RuleContext
from mrp.specs.errors import InfraError
from mrp.specs.ir import ImageTask, LayerSpec

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
    """The machine's own /usr with layers over it; other bases are described, keyed, and refused when they must run."""
    base = _base(task, context)
    if task.label.startswith("builtin:"):
        description = {"base": base, "layers": [], "env": {}, "user": task.user}
        return NoAction(ImageValue(put_description(context.store, description)))
    layers = tuple(_layer(task, layer, context) for layer in task.layers)
    preimage = {
        "base": put_description(context.store, base),
        "layers": [layer.to_json() for layer in layers],
        "env": dict(task.env),
        "user": task.user,
    }
    work = MakeImage(base, layers, dict(task.env), task.user)
    return ImageRule(make_action(ActionKind.IMAGE, task.label, "", preimage, work))


class ImageRule(OneAction):
    def value(self) -> ImageValue:
        result = self.result()
        return ImageValue(result.outputs["image"].digest, result.outputs)


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


def _layer(task: ImageTask, layer: LayerSpec, context: RuleContext) -> Layer:
    if layer.kind in _LATER_LAYERS:
        raise InfraError(
            f"{task.label} has a `{layer.kind}` layer, which this version cannot build; use copy, tar, dirs or links",
            retryable=False,
        )
    if layer.kind == "copy":
        return Layer("copy", _copied(layer, context))
    return Layer(layer.kind, context.files_tree(layer.files), layer.value)


def _copied(layer: LayerSpec, context: RuleContext) -> Digest:
    entries: dict[str, Entry] = {}
    for destination, files, strip in layer.copy:
        folder = destination.strip("/")
        for path, entry in context.store.read_tree(context.files_tree(files)).items():
            inner = path if not strip else "" if path == strip else path.removeprefix(f"{strip}/")
            entries[posixpath.join(folder, inner) if inner else folder] = entry
    return context.store.put_tree(entries)

"""Models: what of one can change an answer, and so is a part of keys."""

import posixpath
from collections.abc import Mapping
from decimal import Decimal

from mrp.cache.canonical import Json
from mrp.cache.digest import Digest
from mrp.cache.store import Entry
from mrp.rules.action import put_description
from mrp.rules.calling import ModelUse
from mrp.rules.interpolate import Name, TemplateError, parse_template
from mrp.rules.rule import ModelValue, NoAction, RuleContext
from mrp.specs.errors import BuildFailed
from mrp.specs.ir import ModelTask

_PLACE = ("url", "secret", "price", "health", "max_concurrency", "tokens_per_minute")
"""Members of the document that say where, for how much and how fast it answers, and not what."""

_SERVING = ("replicas", "port", "gpus", "as")
"""The same among the members of `serve`."""

_FILES = ("weights", "script", "template")


def model_rule(task: ModelTask, context: RuleContext) -> NoAction:
    """Pins a model: files by digest, and its document without what says only where it is and what it costs."""
    tree = context.files_tree(task.files)
    identity = {name: value for name, value in task.spec.items() if name not in (*_PLACE, *_FILES, "sampling")}
    if isinstance(identity.get("serve"), Mapping):
        identity["serve"] = {name: value for name, value in identity["serve"].items() if name not in _SERVING}
    for name in _FILES:
        identity[name] = _content(task, name, tree, context)
    return NoAction(ModelValue(task, identity, tree, reproducible=context.reproducible(task)))


def model_name(task: ModelTask) -> str:
    """The declared name, else the weights' last word, else the provider's; never a label, which is in no key."""
    weights = task.spec.get("weights")
    name = task.spec.get("model") or (posixpath.basename(weights) if weights else None)
    return str(name or task.spec["provider"])


def model_use(
    value: ModelValue,
    params: Mapping[str, Json],
    context: RuleContext,
    *,
    calls: int | None = None,
    tokens: int | None = None,
    usd: Decimal | None = None,
) -> ModelUse:
    """The model as a target with these params calls it. Raises BuildFailed when its sampling names no param of them."""
    label, spec = value.task.label, value.task.spec
    try:
        sampling = _filled(spec.get("sampling") or {}, {"params": params})
    except TemplateError as error:
        raise BuildFailed(f"{label}: sampling: {error}") from None
    name = model_name(value.task)
    described: dict[str, Json] = {**value.identity, "name": name, "sampling": sampling}
    if usd is not None:
        # What a limit in dollars allows is decided by the price.
        described["price"] = spec["price"]
    description = put_description(context.store, described)
    return ModelUse(label, name, spec, value.tree, sampling, description, calls, tokens, usd)


def _content(task: ModelTask, name: str, tree: Digest, context: RuleContext) -> Json:
    """The digest of the file or folder that a member of the document names; else the member as it is."""
    path = task.spec.get(name)
    if not isinstance(path, str):
        return path
    exact = [source.digest for source in task.files.sources if source.path == path]
    if exact:
        return {"file": exact[0]}
    below = {
        source.path.removeprefix(f"{path}/"): Entry("x" if source.executable else "f", source.digest, None)
        for source in task.files.sources
        if source.path.startswith(f"{path}/")
    }
    return {"tree": context.store.put_tree(below)} if below else path


def _filled(value: Json, scope: Mapping[str, Json]) -> Json:
    """Sampling with its templates filled in; a text that is one name alone becomes that value, whatever its type."""
    if isinstance(value, str):
        template = parse_template(value)
        if len(template.parts) == 1 and isinstance(template.parts[0], Name):
            template.render(scope)
            found: Json = scope
            for word in template.parts[0].path:
                found = found[word]
            return found
        return template.render(scope)
    if isinstance(value, Mapping):
        return {name: _filled(item, scope) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(item, scope) for item in value]
    return value

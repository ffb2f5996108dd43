"""`{select: {name: value, default: value}}` becomes the value of the chosen config, before anything else looks.

It may stand for any value below a target, at any depth, also within another select's branch.
"""

from collections.abc import Collection, Iterator

from mrp.compiler.problems import Problems
from mrp.specs.suggest import did_you_mean
from mrp.specs.yaml import Node

DEFAULT = "default"

_HOLDERS = (dict, list)


def has_select(node: Node) -> bool:
    """Whether any value below `node` is a select."""
    value = node.value
    if isinstance(value, dict):
        if "select" in value and _branches(node) is not None:
            return True
        return any(isinstance(item.value, _HOLDERS) and has_select(item) for item in value.values())
    return isinstance(value, list) and any(isinstance(item.value, _HOLDERS) and has_select(item) for item in value)


def check_selects(node: Node, known: Collection[str] | None, problems: Problems) -> None:
    """Reports config names that mrp.yaml does not know (None: it could not be read), and selects without branches."""
    for branches in _selects(node):
        assert isinstance(branches.value, dict)
        if not branches.value:
            problems.add(branches.span, "this select has no branches", "write a value for `default`")
        for name in branches.value:
            if known is not None and name != DEFAULT and name not in known:
                hint = did_you_mean(name, [*known, DEFAULT]) or "name it under `configs` of mrp.yaml"
                problems.add(branches.key_spans[name], f"there is no config `{name}`", hint)


def resolve_selects(node: Node, chosen: Collection[str], problems: Problems | None) -> Node | None:
    """`node` with each select replaced by its branch for the `chosen` configs.

    None when some select has no branch for them, or two: which goes to `problems`, unless that is None.
    """
    branches = _branches(node)
    if branches is not None:
        branch = _choose(branches, chosen, problems)
        return None if branch is None else resolve_selects(branch, chosen, problems)
    value = node.value
    if isinstance(value, dict):
        fields = {key: resolve_selects(item, chosen, problems) for key, item in value.items()}
        whole = {key: item for key, item in fields.items() if item is not None}
        return node._replace(value=whole) if len(whole) == len(value) else None
    if isinstance(value, list):
        items = [resolve_selects(item, chosen, problems) for item in value]
        kept = [item for item in items if item is not None]
        return node._replace(value=kept) if len(kept) == len(value) else None
    return node


def _choose(branches: Node, chosen: Collection[str], problems: Problems | None) -> Node | None:
    assert isinstance(branches.value, dict)
    matching = [name for name in branches.value if name in chosen and name != DEFAULT]
    if len(matching) == 1:
        chosen_branch: Node = branches.value[matching[0]]
        return chosen_branch
    if not matching and DEFAULT in branches.value:
        default: Node = branches.value[DEFAULT]
        return default
    if problems is None or not branches.value:
        return None
    if matching:
        both = " and ".join(f"`{name}`" for name in matching)
        problems.add(branches.span, f"the chosen configs {both} both match this select", "choose one of them")
    else:
        names = ", ".join(f"`{name}`" for name in sorted(chosen)) or "none"
        problems.add(branches.span, f"no branch of this select matches (configs chosen: {names})", "add a `default`")
    return None


def _branches(node: Node) -> Node | None:
    """The mapping below `select`, when `node` is a select and not a mapping that has such a field among others."""
    if isinstance(node.value, dict) and len(node.value) == 1:
        inner: Node | None = node.value.get("select")
        if inner is not None and isinstance(inner.value, dict):
            return inner
    return None


def _selects(node: Node) -> Iterator[Node]:
    branches = _branches(node)
    if branches is not None:
        yield branches
    if isinstance(node.value, dict):
        for item in node.value.values():
            yield from _selects(item)
    elif isinstance(node.value, list):
        for item in node.value:
            yield from _selects(item)

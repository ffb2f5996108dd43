"""What a word of a query names: one target or file, or all that match a pattern."""

import re
from collections.abc import Iterator

from mrp.compiler.graph import TargetGraph, Vertex
from mrp.compiler.query_syntax import QueryError, Word
from mrp.specs.suggest import did_you_mean, nearest

_ALL, _ALL_AND_FILES = ("all",), ("*", "all-targets")
_CELL_OR_ITEM = re.compile(r"(?P<target>//[^@\[]*)[@\[]")


def find(word: Word, graph: TargetGraph, package: str) -> set[str]:
    """The labels that `word` names; `package` is where relative labels start. Raises QueryError.

    `//...`, `//p/...` and `//p:all` are targets; `//p:*` are targets and files. A `*` elsewhere in a name matches any
    characters of a target's name. A word without `//` and `:` is a name in `package`, or the path of a file.
    """
    text = word.text
    absolute = _absolute(text, package)
    if absolute in graph:
        return {absolute}
    place, name = absolute[2:].rsplit(":", 1) if ":" in absolute else (absolute[2:], "")
    if not name or name in _ALL or "*" in name or name in _ALL_AND_FILES:
        return _matching(word, place, name, graph)
    if not text.startswith(("//", ":")):
        at_path = {vertex.label for vertex in graph if vertex.is_file and vertex.path == text}
        if at_path:
            return at_path
    raise _unknown(word, absolute, place, name, graph)


def _absolute(text: str, package: str) -> str:
    """`text` as `//package:name`, or as `//package/...` for patterns of folders."""
    if not text.startswith("//"):
        if text == "..." or text.endswith("/..."):
            return f"//{package}/{text}" if package else f"//{text}"
        return f"//{package}{text}" if text.startswith(":") else f"//{package}:{text}"
    if ":" in text or text.endswith("..."):
        return text
    cell = re.search(r"[@\[]", text)
    folder, rest = (text[: cell.start()], text[cell.start() :]) if cell else (text, "")
    return f"{folder}:{folder.rsplit('/', 1)[-1]}{rest}"


def _matching(word: Word, place: str, name: str, graph: TargetGraph) -> set[str]:
    below = place.removesuffix("...").rstrip("/") if place == "..." or place.endswith("/...") else None
    folder = place if below is None else below
    vertices = list(_in_folder(graph, folder, deep=below is not None))
    if not vertices and folder:
        hint = did_you_mean(folder, {vertex.package for vertex in graph}) or "see `mrp query //... --output package`"
        raise QueryError(f"`{word.text}` names no package of this workspace", word.column, hint)
    if name in _ALL_AND_FILES:
        return {vertex.label for vertex in vertices}
    targets = [vertex for vertex in vertices if not vertex.is_file]
    if not name or name in _ALL:
        return {vertex.label for vertex in targets}
    glob = re.compile(".*".join(map(re.escape, name.split("*"))), re.DOTALL)
    found = {vertex.label for vertex in targets if glob.fullmatch(vertex.name)}
    if not found:
        raise QueryError(f"`{word.text}` matches no target", word.column, f"see `mrp query //{folder}:all`")
    return found


def _in_folder(graph: TargetGraph, folder: str, *, deep: bool) -> Iterator[Vertex]:
    for vertex in graph:
        if vertex.package == folder or (deep and (not folder or vertex.package.startswith(f"{folder}/"))):
            yield vertex


def _unknown(word: Word, absolute: str, place: str, name: str, graph: TargetGraph) -> QueryError:
    inner = _CELL_OR_ITEM.match(absolute)
    if inner and inner["target"] in graph:
        hint = f"ask for `{inner['target']}`"
        return QueryError(f"queries see whole targets, and `{word.text}` is a part of one", word.column, hint)
    hint = did_you_mean(absolute, (vertex.label for vertex in graph if vertex.package == place))
    if not hint:
        packages = {vertex.package for vertex in graph if vertex.name == name}
        package = nearest(place, packages)
        hint = f"did you mean `//{package}:{name}`?" if package is not None else ""
    if not hint and not any(vertex.package == place for vertex in graph):
        hint = did_you_mean(place, {vertex.package for vertex in graph}) or f"there is no package `//{place}`"
    return QueryError(f"`{word.text}` is no target or file of this workspace", word.column, hint)

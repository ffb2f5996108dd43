"""What a word of a query names: one target or file, or all that match a pattern."""

from mrp.compiler.graph import TargetGraph, Vertex
from mrp.compiler.query_syntax import QueryError, Word
from mrp.specs.labels import Label, LabelError, Pattern, parse_label, parse_pattern
from mrp.specs.suggest import did_you_mean, nearest

_WITH_FILES = (":*", ":all-targets")


def find(word: Word, graph: TargetGraph, package: str) -> set[str]:
    """The labels that `word` names; `package` is where relative labels start. Raises QueryError.

    Patterns such as `//...`, `//p/...`, `//p:all` and `//p:eval*` are targets; `//p:*` is targets and files. A word
    without `//` and `:` is a name in `package`, or else the path of a file from the workspace's root.
    """
    absolute = _absolute(word.text, package)
    if absolute in graph:
        return {absolute}
    if not word.text.startswith(("//", ":")):
        at_path = {vertex.label for vertex in graph if vertex.is_file and vertex.path == word.text}
        if at_path:
            return at_path
    if absolute.endswith(_WITH_FILES):
        return _matching(word, _pattern(word, absolute.rpartition(":")[0] + ":all"), graph, files=True)
    pattern = _pattern(word, absolute)
    if pattern.record is not None or pattern.cell:
        raise _part_of_a_target(word, pattern, graph)
    if pattern.label is not None and pattern.name is not None:
        raise _unknown(word, pattern.label, graph)
    return _matching(word, pattern, graph, files=False)


def _absolute(text: str, package: str) -> str:
    """`text` with its package, as far as that can be done by looking at its beginning and end."""
    if text.startswith("builtin:"):
        return text
    if text.startswith("//"):
        short = ":" not in text and "..." not in text and "@" not in text and "[" not in text
        return f"{text}:{text.rpartition('/')[2]}" if short else text
    if text == "..." or text.endswith("/..."):
        return f"//{package}/{text}" if package else f"//{text}"
    return f"//{package}{text}" if text.startswith(":") else f"//{package}:{text}"


def _pattern(word: Word, absolute: str) -> Pattern:
    try:
        pattern = parse_pattern(absolute)
    except LabelError:
        # The reasons of the label's own grammar are about `absolute`; people look for what they wrote.
        pattern = None
    if pattern is None or word.text.startswith("-"):
        hint = "to leave something out, write `e - x`" if word.text.startswith("-") else _guess(word.text)
        raise QueryError(f"`{word.text}` is no label, pattern or file of this workspace", word.column, hint)
    return pattern


def _guess(text: str) -> str:
    guess = "//" + text.lstrip("/")
    try:
        return f"did you mean `{parse_label(guess)}`?"
    except LabelError:
        return "write //package:name"


def _matching(word: Word, pattern: Pattern, graph: TargetGraph, *, files: bool) -> set[str]:
    candidates = [vertex for vertex in graph if files or not vertex.is_file]
    found = {vertex.label for vertex in candidates if pattern.matches(Label(vertex.package, vertex.name))}
    everything = pattern.name is None
    if found or (everything and any(pattern.matches(Label(vertex.package, vertex.name)) for vertex in graph)):
        return found
    if pattern.below and not pattern.package:
        return found
    packages = {vertex.package for vertex in graph}
    if pattern.package in packages:
        hint = f"`mrp query //{pattern.package}:all` shows what is there"
        raise QueryError(f"`{word.text}` matches no target", word.column, hint)
    near = nearest(pattern.package, packages)
    name = "/..." if pattern.below else f":{pattern.name or 'all'}"
    shown = "`mrp query //... --output package` shows the packages"
    hint = f"did you mean `//{near}{name}`?" if near is not None else shown
    raise QueryError(f"`{word.text}` matches no package of this workspace", word.column, hint)


def _part_of_a_target(word: Word, pattern: Pattern, graph: TargetGraph) -> QueryError:
    if pattern.label is not None and str(pattern.label.target) not in graph:
        return _unknown(word, pattern.label.target, graph)
    target = str(pattern.label.target) if pattern.label else f"//{pattern.package}:{pattern.name}"
    return QueryError(
        f"`{word.text}` is a part of a target, and queries see whole ones", word.column, f"ask for `{target}`"
    )


def _unknown(word: Word, label: Label, graph: TargetGraph) -> QueryError:
    message = f"`{word.text}` is no target or file of this workspace"
    if label.builtin:
        return QueryError(f"`{word.text}` is brought by mrp and no part of the graph", word.column)
    here = [vertex for vertex in graph if vertex.package == label.package]
    hint = did_you_mean(str(label), (vertex.label for vertex in here)) or _elsewhere(label, graph)
    if not hint and not here:
        hint = f"there is no package `//{label.package}`"
    return QueryError(message, word.column, hint)


def _elsewhere(label: Label, graph: TargetGraph) -> str:
    """A hint at a target of the same name in a package that is spelled nearly so."""
    others: list[Vertex] = [vertex for vertex in graph if vertex.name == label.name]
    package = nearest(label.package, {vertex.package for vertex in others})
    return f"did you mean `//{package}:{label.name}`?" if package is not None else ""

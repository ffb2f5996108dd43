"""The parts that the text of a label or pattern falls into, still percent-encoded, or why it is neither.

label.lark is the grammar. It is loaded only for a text that the regular expressions below do not take, to say where
it stops; that both take the same texts and find the same parts is tested.
"""

import re
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lark import Lark

NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"
COMPONENT = r"\.?[A-Za-z0-9_+-][A-Za-z0-9_.+-]*"
PLAIN = re.compile(rf"(?://({COMPONENT}(?:/{COMPONENT})*)?)?:({NAME})\Z")
"""A target of a named package, or of the same one; nearly all labels are one."""

BELOW = re.compile(rf"//(?:({COMPONENT}(?:/{COMPONENT})*)/)?\.\.\.\Z")
"""A package and all below it, without wildcards."""

_NAME_GLOB = r"[A-Za-z0-9*?][A-Za-z0-9_.+*?-]*"
_COMPONENT_GLOB = r"\.?[A-Za-z0-9_+*?-][A-Za-z0-9_.+*?-]*"
_ENCODED = "%[0-9A-Fa-f]{2}"
_IN_VALUE = r"[^%,=@#\[\]\x00-\x20\x7f]"
_IN_RECORD = r"[^%#\[\]\x00-\x1f\x7f]"
_AXIS = rf"[A-Za-z_][A-Za-z0-9_-]*={_IN_VALUE}*(?:{_ENCODED}{_IN_VALUE}*)*"
_CELL = rf"(?:@(?P<cell>{_AXIS}(?:,{_AXIS})*))?"
_RECORD = rf"(?:{_IN_RECORD}|{_ENCODED}){_IN_RECORD}*(?:{_ENCODED}{_IN_RECORD}*)*"
_ITEM = rf"(?:\[(?P<record>{_RECORD})(?:#(?P<sample>0|[1-9][0-9]{{0,8}}))?\])?"


class LabelError(ValueError):
    """A text is no label. `column` is 1-based in that text; `hint` is the next step."""

    def __init__(self, message: str, hint: str = "", column: int = 1) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint
        self.column = column


class Parts(NamedTuple):
    """What a text is made of.

    form: full (`//p:n`), short (`//p`), local (`:n`), bare (`n`), below (`//p/...`) or builtin. name: "" for below.
    cell: axes and values as written. exclude: whether a `-` stands before a pattern.
    """

    form: str
    package: str = ""
    name: str = ""
    cell: tuple[tuple[str, str], ...] = ()
    record: str | None = None
    sample: int | None = None
    exclude: bool = False


def read_parts(text: str, what: str) -> Parts:
    """The parts of `text`, which should be a `label` or a `pattern`, as `what` says. Raises LabelError."""
    return scan(text, what) or parse(text, what)


def scan(text: str, what: str) -> Parts | None:
    """The parts, found without the grammar; None for what is no such text."""
    found = _expression(what).match(text)
    if found is None:
        return None
    groups = found.groupdict()
    exclude = groups.get("minus") is not None
    for form in ("builtin", "below", "local", "bare", "full", "short"):
        if groups.get(form) is not None:
            break
    else:
        return None
    if form == "below":
        return Parts(form, groups["below"][2:-3].removesuffix("/"), exclude=exclude)
    package = groups["short"] or ""
    name = package.rpartition("/")[2] if form == "short" else groups[form]
    axes = (axis.partition("=") for axis in (groups["cell"] or "").split(",") if axis)
    sample = None if groups["sample"] is None else int(groups["sample"])
    cell = tuple((axis, value) for axis, _, value in axes)
    return Parts(form, package, name, cell, groups["record"], sample, exclude)


@cache
def _expression(what: str) -> re.Pattern[str]:
    globs = what == "pattern"
    name, component = (_NAME_GLOB, _COMPONENT_GLOB) if globs else (NAME, COMPONENT)
    package = f"{component}(?:/{component})*"
    address = rf"(?://(?P<short>{package})?(?::(?P<full>{name}))?|:(?P<local>{name})|(?P<bare>{name}))"
    builtin = rf"builtin:(?P<builtin>{name})"
    if not globs:
        return re.compile(rf"(?:{builtin}|{address}{_CELL}{_ITEM})\Z")
    below = rf"(?P<below>//(?:{package}/)?\.\.\.)"
    return re.compile(rf"(?P<minus>-)?(?:{builtin}|{below}|{address}{_CELL}{_ITEM})\Z")


# -- by the grammar ----------------------------------------------------------------------------------------------


def parse(text: str, what: str) -> Parts:
    """The parts, found by the grammar. Raises LabelError."""
    from lark.exceptions import UnexpectedInput, UnexpectedToken

    try:
        tree: Any = _grammar().parse(text, start=what)
    except UnexpectedInput as error:
        ended = isinstance(error, UnexpectedToken) and error.token.type == "$END"
        raise _explain(text, what, len(text) + 1 if ended else error.column) from None
    children = list(tree.children)
    exclude = getattr(children[0], "type", "") == "MINUS"
    children = children[exclude:]
    if tree.data == "builtin":
        return Parts("builtin", name=str(children[-1]), exclude=exclude)
    if tree.data == "below":
        return Parts("below", str(children[0]) if len(children) > 1 else "", exclude=exclude)
    form = str(children[0].data)
    words = [str(child) for child in children[0].children]
    package = words[0] if form == "short" or len(words) > 1 else ""
    name = package.rpartition("/")[2] if form == "short" else words[-1]
    cell: list[tuple[str, str]] = []
    record, sample = None, None
    for part in children[1:]:
        if part.data == "item":
            record = str(part.children[0])
            sample = int(part.children[1]) if len(part.children) > 1 else None
        else:
            cell += [(str(axis.children[0]), "".join(map(str, axis.children[1:]))) for axis in part.children]
    return Parts(form, package, name, tuple(cell), record, sample, exclude)


@cache
def _grammar() -> "Lark":
    from lark import Lark

    return Lark.open("label.lark", rel_to=__file__, parser="lalr", start=["label", "pattern"])


_USUAL = "write //package:name, or :name in the same package"


def _explain(text: str, what: str, column: int) -> LabelError:
    """Why `text` is no label or pattern; the grammar stopped at `column`, one past the end if it wanted more."""
    shown = text if len(text) <= 80 else text[:77] + "..."
    message = f"`{shown}` is not a {what}"
    body = text.removeprefix("-")
    guess = "//" + body.lstrip("/")
    if not text.strip():
        return LabelError(f"a {what} is empty", _USUAL)
    if text != text.strip():
        return LabelError(message, "remove the spaces around it", 1 if text[0].isspace() else len(text))
    if what == "label" and (body.endswith("...") or "*" in body):
        return LabelError(f"{message} but a pattern for several", "name one target")
    if not body.startswith(("//", ":", "builtin:")) and (PLAIN.match(guess) or BELOW.match(guess)):
        return LabelError(message, f"did you mean `{guess}`?")
    if ".." in re.split("[/:@[]", body):
        return LabelError(f"{message}: it climbs out of the workspace", _USUAL, text.index("..") + 1)
    if column > len(text):
        return LabelError(f"{message}: it ends too early", "close the `[`" if "[" in body else _USUAL, column)
    letter = text[max(1, column) - 1]
    before = text[: column - 1]
    hint = _USUAL
    if "]" in before:
        hint = "nothing may follow the item"
    elif "[" in before and "#" in before:
        hint = "a sample is a whole number, like #2"
    elif "[" in before:
        hint = "write an id between [ and ]" if letter in "]#" else f"in an id write %{ord(letter):02X} for it"
    return LabelError(f"{message}: `{letter}` cannot stand in column {column}", hint, column)

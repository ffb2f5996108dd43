"""The lines that say what a build came to, shared by builds and by the answer that needs none."""

TYPE_CHECKING = False  # what `typing` says, without loading it
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PAGE = 16 * 2**10
"""Bytes of a result.md beyond which it is not printed."""


def result_lines(root: str, targets: "Iterable[tuple[str, str, bool, str]]") -> list[str]:
    """What to print of targets with outputs: (label, folder below `root`, whether it has a result.md, marks)."""
    lines = []
    for label, folder, has_page, marks in targets:
        if has_page:
            page = _page(f"{root}/{folder}/result.md")
            if page:
                lines.append(page)
        lines.append(f"{label} -> {folder}/{marks}")
    return lines


def last_line(executed: int, cached: int, failed: int) -> str:
    total = executed + cached
    return f"{total} action{'' if total == 1 else 's'}: {executed} executed, {cached} cached, {failed} failed"


def _page(path: str) -> str:
    """A result page without what could steer a terminal; "" when there is none, or a long one."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_PAGE + 1)
    except OSError:
        return ""
    return "" if len(text) > MAX_PAGE else "".join(c for c in text if c.isprintable() or c in "\n\t").rstrip("\n")

"""Diagnostics as short lines that tests compare: `line:column message | hint`."""

from collections.abc import Iterable

from mrp.specs.errors import Diagnostic, SpecError
from mrp.specs.validate import validate_build
from mrp.specs.yaml import Sources, parse_yaml


def shown(diagnostics: Iterable[Diagnostic]) -> list[str]:
    """One line a diagnostic, in the order of their places."""
    return [
        f"{item.span.line}:{item.span.column} {item.message}" + (f" | {item.hint}" if item.hint else "")
        for item in sorted(diagnostics, key=lambda item: (item.span, item.message))
    ]


def syntax_errors(text: str | bytes) -> list[str]:
    """What parse_yaml says is wrong with `text`; empty when it is right."""
    try:
        parse_yaml(text if isinstance(text, bytes) else text.encode(), "f.yaml")
    except SpecError as error:
        return shown(error.diagnostics)
    return []


def build_errors(text: str) -> list[str]:
    """What is wrong with a BUILD.yaml."""
    sources = Sources({"BUILD.yaml": text.encode()})
    return shown(validate_build(parse_yaml(text.encode(), "BUILD.yaml"), sources)[1])


def target_errors(text: str) -> list[str]:
    """What is wrong with one target `t`, written as a flow mapping that starts in line 3, column 6."""
    return build_errors(f"mrp: 1\ntargets:\n  t: {text}\n")

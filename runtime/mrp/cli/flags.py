"""The flags that build, plan, run and check share, and the BuildOptions that they mean."""

import argparse
import json
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.cache.canonical import Json
from mrp.cli.workspace import absolute
from mrp.specs.errors import UsageError

if TYPE_CHECKING:
    from mrp.runtime.options import BuildOptions


def add_compile_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that change the plan."""
    parser.add_argument(
        "--config", action="append", default=[], metavar="NAME", help="a config of mrp.yaml; repeatable"
    )
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="LABEL:NAME=VALUE",
        help="set a param: JSON or a word, or @FILE with JSON; it enters the key; repeatable",
    )


def add_selection_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that choose what of a plan is run."""
    parser.add_argument(
        "--items", action="append", default=[], metavar="GLOB", help="only items whose id matches; results are partial"
    )
    parser.add_argument(
        "--limit", type=_count, metavar="N", help="only the first N items of each rollout; results are partial"
    )
    parser.add_argument(
        "--rebuild", action="append", default=[], metavar="PATTERN", help="run these even if cached; repeatable"
    )
    parser.add_argument("--resample", action="store_true", help="draw sampled results anew, with the next epoch")
    parser.add_argument("--retry-limits", action="store_true", help="run again what a wall limit ended")


def add_place_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that choose where it is run."""
    parser.add_argument("--engine", metavar="NAME", help="where actions run: local, ray or modal")
    parser.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster that runs already")
    parser.add_argument("--sandbox", metavar="NAME", help="what isolates them: local, docker, modal or daytona")


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that choose how it is run."""
    parser.add_argument(
        "-j", "--jobs", type=_positive, metavar="N", help="actions at a time (default: one more than cores)"
    )
    add_place_flags(parser)
    parser.add_argument("--offline", action="store_true", help="fetch nothing from the network")


def add_build_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a build that is no experiment."""
    add_engine_flags(parser)
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first item that is not ok")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write a trace of mrp's own time and of the actions', for Perfetto"
    )


def build_options(arguments: argparse.Namespace, root: Path, **more: Any) -> "BuildOptions":
    """The options that the flags of `arguments` mean; those that a verb lacks keep their defaults."""
    from mrp.runtime.options import BuildOptions

    given = vars(arguments)
    return BuildOptions(
        root=root,
        targets=tuple(absolute(target, root) for target in given.get("targets", ())),
        jobs=given.get("jobs"),
        engine=given.get("engine"),
        sandbox=given.get("sandbox"),
        address=given.get("address"),
        config=tuple(given.get("config", ())),
        items=tuple(given.get("items", ())),
        limit=given.get("limit"),
        params=params(given.get("param", ()), root),
        rebuild=tuple(_pattern(pattern, root) for pattern in given.get("rebuild", ())),
        resample=given.get("resample", False),
        retry_limits=given.get("retry_limits", False),
        fail_fast=given.get("fail_fast", False),
        offline=given.get("offline", False),
        **more,
    )


def need_targets(arguments: argparse.Namespace) -> None:
    """Raises UsageError when no target was named."""
    if not arguments.targets:
        raise UsageError(
            f"mrp {arguments.verb} needs a target, like //jobs:eval or //...; `mrp query //...` lists them"
        )


def params(words: "list[str] | tuple[str, ...]", root: Path) -> dict[str, dict[str, Json]]:
    """`//jobs:solve:effort=high` as {label: {name: value}}; raises UsageError."""
    found: dict[str, dict[str, Json]] = {}
    for word in words:
        left, equals, text = word.partition("=")
        label, colon, name = left.rpartition(":")
        if not (equals and colon and name and label.strip(":/")):
            raise UsageError(f"--param {word!r} is not LABEL:NAME=VALUE, like //jobs:solve:effort=high")
        found.setdefault(absolute(label, root), {})[name] = _file(text[1:]) if text.startswith("@") else _value(text)
    return found


def _pattern(word: str, root: Path) -> str:
    from mrp.specs.labels import LabelError, parse_pattern

    text = absolute(word, root)
    try:
        parse_pattern(text)
    except LabelError as error:
        raise UsageError(f"--rebuild: {error}") from None
    return text


def _value(text: str) -> Json:
    """JSON where it is JSON, else the word itself."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_no_constant)
    except ValueError:
        return text


def _file(path: str) -> Json:
    try:
        return json.loads(Path(path).read_bytes(), parse_float=Decimal, parse_constant=_no_constant)
    except OSError as error:
        raise UsageError(f"--param @{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise UsageError(f"--param @{path}: not JSON ({error})") from None


def _no_constant(word: str) -> Json:
    raise ValueError(f"{word} is no JSON number")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)

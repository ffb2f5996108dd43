"""`mrp query` asks the target graph; `mrp graph` draws what a target depends on."""

import argparse
import json
import subprocess
from decimal import Decimal
from pathlib import Path

from mrp.cli.past import RecordedPast
from mrp.cli.screen import Screen
from mrp.cli.workspace import absolute, find_root, state_folder, write_file
from mrp.specs.errors import InfraError, UsageError

_PICTURES = (".svg", ".png", ".pdf")


def configure_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="QUERY", help="an expression, or a function and its arguments")
    parser.add_argument(
        "--output",
        default="label",
        metavar="NOTATION",
        help="label, label_kind, build, location, package, minrank, maxrank, graph (dot), mermaid, json, jsonl",
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="NAME", help="a config of mrp.yaml; repeatable"
    )


def configure_graph(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="what to draw, with all below (default: //...)")
    parser.add_argument("--output", default="graph", metavar="NOTATION", help="graph (dot) or mermaid")
    parser.add_argument("-o", "--file", metavar="FILE", help="write here; .svg, .png and .pdf are drawn with dot")
    parser.add_argument(
        "--config", action="append", default=[], metavar="NAME", help="a config of mrp.yaml; repeatable"
    )


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    return _query(arguments, screen) if arguments.verb == "query" else _graph(arguments, screen)


def _query(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.compiler.analysis import load_graph
    from mrp.compiler.query import from_words, run_query
    from mrp.compiler.query_output import render

    root = find_root()
    text = from_words(arguments.words)
    graph = load_graph(root, tuple(arguments.config))
    past = RecordedPast(root, tuple(arguments.config)) if state_folder(root).is_dir() else None
    try:
        result = run_query(text, graph, patterns_base_package=_package(root), past=past)
    finally:
        if past is not None:
            past.close()
    if screen.json:
        screen.document(json.loads(render(result, graph, "json"), parse_float=Decimal))
    else:
        rendered = render(result, graph, arguments.output)
        if rendered:
            screen.answer(rendered)
    return 0


def _graph(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.compiler.analysis import load_graph
    from mrp.compiler.query import run_query
    from mrp.compiler.query_output import render

    if arguments.output not in ("graph", "mermaid"):
        raise UsageError(f"mrp graph draws graph or mermaid, not {arguments.output!r}")
    root = find_root()
    graph = load_graph(root, tuple(arguments.config))
    targets = [absolute(target, root) for target in arguments.targets or ["//..."]]
    included = " + ".join(f'deps("{target}")' for target in targets if not target.startswith("-"))
    excluded = "".join(f' - "{target[1:]}"' for target in targets if target.startswith("-"))
    result = run_query(included + excluded, graph, patterns_base_package=_package(root))
    text = render(result, graph, arguments.output)
    if screen.json:
        screen.document({"notation": arguments.output, "graph": text, "labels": list(result.labels)})
    if arguments.file is not None:
        _write(Path(arguments.file), text, arguments.output)
        screen.answer(f"wrote {arguments.file}: {len(result.labels)} targets and files")
    else:
        screen.answer(text)
    return 0


def _package(root: Path) -> str:
    package = Path.cwd().relative_to(root).as_posix()
    return "" if package == "." else package


def _write(path: Path, text: str, notation: str) -> None:
    if path.suffix not in _PICTURES:
        write_file(path, text.encode())
        return
    if notation != "graph":
        raise UsageError(f"{path} can only be drawn from --output graph")
    try:
        done = subprocess.run(["dot", f"-T{path.suffix[1:]}", "-o", str(path)], input=text, text=True, check=False)
    except FileNotFoundError:
        raise InfraError("dot is not installed; apt-get install graphviz, or use --output mermaid") from None
    if done.returncode != 0:
        raise InfraError(f"dot could not draw {path} (exit code {done.returncode})")

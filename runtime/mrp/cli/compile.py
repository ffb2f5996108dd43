"""`mrp compile` writes a plan; `mrp run` executes one without any YAML."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mrp.cache.canonical import canonical_bytes
from mrp.cli.flags import add_build_flags, add_compile_flags, add_selection_flags, build_options, need_targets
from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root, write_file
from mrp.specs.errors import UsageError

if TYPE_CHECKING:
    from mrp.runtime.options import BuildOptions
    from mrp.runtime.report import BuildReport
    from mrp.specs.ir import Plan


def configure_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="labels and patterns")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where to write the three files")
    add_compile_flags(parser)


def configure_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="DIR", help="a folder that mrp compile wrote, or its ir.json")
    add_selection_flags(parser)
    add_build_flags(parser)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    return _compile(arguments, screen) if arguments.verb == "compile" else _run(arguments, screen)


def _compile(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.cache.filestats import FileDigests
    from mrp.cli.workspace import state_folder
    from mrp.compiler.compile import compile_workspace
    from mrp.specs.ir import plan_bytes

    need_targets(arguments)
    root = find_root()
    options = build_options(arguments, root)
    with FileDigests.open(state_folder(root) / "files.digests") as digests:
        compiled = compile_workspace(
            root, options.targets, config=options.config, params=options.params, digests=digests
        )
    folder = Path(arguments.output)
    files = {
        "ir.json": plan_bytes(compiled.plan),
        "manifest.json": canonical_bytes(compiled.manifest),
        "policy_report.json": canonical_bytes(compiled.policy_report),
    }
    for name, data in files.items():
        write_file(folder / name, data)
    tasks = len(compiled.plan.tasks)
    if screen.json:
        screen.document({"folder": str(folder), "files": sorted(files), "tasks": tasks})
    screen.answer(f"wrote {', '.join(sorted(files))} to {folder}: {tasks} tasks")
    return 0


def _run(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.cli.build import run_build, show
    from mrp.runtime.build import open_state, run_plan

    plan = _read(Path(arguments.plan))
    try:
        root = find_root()
    except UsageError:
        root = Path.cwd()

    def execute(options: "BuildOptions") -> "BuildReport":
        with open_state(options) as (store, digests):
            return run_plan(plan, options, store, digests)

    report = run_build(screen, lambda **more: build_options(arguments, root, **more), execute, arguments.profile)
    return show(report, root, screen)


def _read(path: Path) -> "Plan":
    from mrp.specs.ir import parse_plan

    file = path / "ir.json" if path.is_dir() else path
    try:
        return parse_plan(file.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{file} is not there; write it with mrp compile //some:target -o {path}") from None
    except ValueError as error:
        reason = f"it is not JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UsageError(f"{file} is no plan that this version can read: {reason}") from None
    except (KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{file} is no plan that this version can read: {reason}") from None

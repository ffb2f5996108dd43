"""`mrp policy show|check`: the policy in force, and whether targets hold to it."""

import argparse
from typing import TYPE_CHECKING

from mrp.cache.canonical import Json, canonical_text
from mrp.cli.flags import add_compile_flags, build_options
from mrp.cli.screen import Screen
from mrp.cli.workspace import find_root, state_folder

if TYPE_CHECKING:
    from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("show", "check"), help="show the policy, or check targets against it")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="check: what to check (default: //...)")
    add_compile_flags(parser)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    root = find_root()
    return _show(root, screen) if arguments.what == "show" else _check(root, arguments, screen)


def _show(root: "Path", screen: Screen) -> int:
    from mrp.compiler.problems import Problems
    from mrp.compiler.workspace import open_workspace

    problems = Problems()
    workspace = open_workspace(root, problems)
    problems.raise_if_any()
    settings: dict[str, Json] = workspace.policy.model_dump(mode="python", exclude={"mrp"})
    named = workspace.file.policy is not None
    if screen.json:
        screen.document({"path": workspace.policy_path if named else None, "policy": settings})
    screen.answer(f"# {workspace.policy_path}" if named else "# the built-in policy (mrp.yaml names none)")
    for name, value in settings.items():
        screen.answer(f"{name}: {canonical_text(value)}")
    return 0


def _check(root: "Path", arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.cache.filestats import FileDigests
    from mrp.compiler.compile import compile_workspace

    options = build_options(arguments, root)
    with FileDigests.open(state_folder(root) / "files.digests") as digests:
        compiled = compile_workspace(
            root, options.targets or ("//...",), config=options.config, params=options.params, digests=digests
        )
    if screen.json:
        screen.document(compiled.policy_report)
    screen.answer(f"{len(compiled.plan.tasks)} tasks hold to the policy")
    return 0

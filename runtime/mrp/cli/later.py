"""Verbs whose machinery is not part of this version: they say so, and what to do meanwhile."""

import argparse
from typing import NoReturn

from mrp.cli.screen import Screen
from mrp.specs.errors import UsageError

_MEANWHILE = {
    "registry": "name operators by their label in the workspace",
    "attest": "`mrp diff` and `mrp replay` compare digests",
    "verify-attestation": "`mrp diff` and `mrp replay` compare digests",
    "approve": "lower or remove the gate of a held produce, and build it again",
    "session": "use a rollout",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="WORD", help="not read yet")


def run(arguments: argparse.Namespace, screen: Screen) -> NoReturn:
    """Always raises UsageError."""
    raise UsageError(f"`mrp {arguments.verb}` is not part of this version; {_MEANWHILE[arguments.verb]}")

"""`mrp schema`: JSON Schemas of the documents that people write, for editors."""

import argparse
import json
from pathlib import Path

from mrp.cli.screen import Screen
from mrp.cli.workspace import write_file
from mrp.specs.errors import UsageError
from mrp.specs.suggest import did_you_mean


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("document", nargs="?", help="build, workspace, policy, operator or operators.lock")
    parser.add_argument("-o", "--output", metavar="DIR", help="write all of them here, as NAME.schema.json")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from mrp.specs.schemas import DOCUMENTS, header_line, json_schema

    if arguments.output is not None:
        folder = Path(arguments.output)
        for name in DOCUMENTS:
            write_file(folder / f"{name}.schema.json", _text(json_schema(name)).encode())
        if screen.json:
            screen.document({"folder": str(folder), "documents": list(DOCUMENTS)})
        screen.answer(f"wrote {len(DOCUMENTS)} schemas to {folder}; the first line of a BUILD.yaml that uses them:")
        screen.answer(header_line(str(folder / "build.schema.json")))
    elif arguments.document is None:
        if screen.json:
            screen.document(list(DOCUMENTS))
        screen.answer("\n".join(DOCUMENTS))
    elif arguments.document not in DOCUMENTS:
        hint = did_you_mean(arguments.document, DOCUMENTS) or f"the documents are {', '.join(DOCUMENTS)}"
        raise UsageError(f"there is no schema of {arguments.document!r}; {hint}")
    elif screen.json:
        screen.document(json_schema(arguments.document))
    else:
        screen.answer(_text(json_schema(arguments.document)))
    return 0


def _text(schema: object) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False, sort_keys=True) + "\n"

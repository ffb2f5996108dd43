"""The tables of docs/language.md, made from the models: `python tests/support/reference.py` writes them anew."""

import json
import re
from pathlib import Path

from mrp.specs import documents
from mrp.specs.documents import Document, Target
from mrp.specs.expectation import document_fields, expected
from mrp.specs.meanings import meaning, shown_default

LANGUAGE = Path(__file__).parents[2] / "docs" / "language.md"
_TABLE = re.compile(r"<!-- fields of (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def field_table(model: type[Document]) -> str:
    """One row a field: name, what it takes, its default or `required`, its meaning. Not those of every target."""
    common = document_fields(Target) if issubclass(model, Target) and model is not Target else {}
    rows = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    for name, (wanted, required) in document_fields(model).items():
        if name in common:
            continue
        default = shown_default(model, name)
        shown = "" if default in (None, "", [], {}) else f"`{json.dumps(default).strip(chr(34))}`"
        rows.append(f"| `{name}` | {expected(wanted)} | {'required' if required else shown} | {meaning(model, name)} |")
    return "\n".join(rows)


def documented_models(text: str) -> list[str]:
    """The models that have a table in `text`."""
    return _TABLE.findall(text)


def with_fresh_tables(text: str) -> str:
    """`text` with every table as the models want it."""

    def fresh(match: re.Match[str]) -> str:
        model: type[Document] = getattr(documents, match[1])
        return f"<!-- fields of {match[1]} -->\n{field_table(model)}\n<!-- end -->"

    return _TABLE.sub(fresh, text)


if __name__ == "__main__":
    LANGUAGE.write_text(with_fresh_tables(LANGUAGE.read_text()))

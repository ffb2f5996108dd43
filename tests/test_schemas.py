"""Editors are told what mrp accepts: the schemas, and the reference for people, follow the models."""

import re
from typing import Any

import pytest
from support.json_schema import fits
from support.reference import LANGUAGE, documented_models, with_fresh_tables

from mrp.specs.documents import (
    KINDS,
    BuildFile,
    Document,
    OperatorFile,
    OperatorsLock,
    PolicyFile,
    WorkspaceFile,
)
from mrp.specs.expectation import document_fields
from mrp.specs.meanings import MEANINGS, meaning
from mrp.specs.schemas import DOCUMENTS, header_line, json_schema
from mrp.specs.validate import validate, validate_build
from mrp.specs.yaml import Sources, parse_yaml, plain

MODELS: dict[str, type[Document]] = {
    "workspace": WorkspaceFile,
    "policy": PolicyFile,
    "operator": OperatorFile,
    "operators.lock": OperatorsLock,
}
EXAMPLES: list[tuple[str, str]] = re.findall(r"```yaml\n# document: (\S+)\n(.*?)```", LANGUAGE.read_text(), re.DOTALL)


def all_models() -> set[type[Document]]:
    """Every model that some document holds, at any depth."""
    found: set[type[Document]] = set()
    waiting: list[Any] = [WorkspaceFile, BuildFile, PolicyFile, OperatorFile, OperatorsLock, *KINDS.values()]
    while waiting:
        model = waiting.pop()
        if model not in found:
            found.add(model)
            for wanted, _ in document_fields(model).values():
                types = [wanted]
                while types:
                    part = types.pop()
                    types += part.arguments
                    waiting += [part.model] if part.model else []
    return found


def fits_document(document: str, text: str) -> bool:
    schema = json_schema(document)
    return fits(plain(parse_yaml(text.encode(), "f.yaml")), schema, schema)


def test_there_is_an_example_of_every_document_and_kind() -> None:
    assert {document for document, _ in EXAMPLES} == set(DOCUMENTS)
    kinds = {kind for _, text in EXAMPLES for kind in re.findall(r"\bkind: (\w+)", text)}
    assert kinds == set(KINDS)


@pytest.mark.parametrize(("document", "text"), EXAMPLES, ids=lambda value: value.replace("\n", " ")[:40])
def test_the_examples_of_the_reference_are_right(document: str, text: str) -> None:
    assert fits_document(document, text)
    sources = Sources({"docs/language.md": text.encode()})
    node = parse_yaml(text.encode(), "docs/language.md")
    if document == "build" and "select:" not in text:
        assert validate_build(node, sources)[1] == []
    elif document != "build":
        assert validate(MODELS[document], node, sources)[1] == []


def test_the_reference_has_a_fresh_table_of_every_model() -> None:
    text = LANGUAGE.read_text()
    assert with_fresh_tables(text) == text, "write the tables anew with: python tests/support/reference.py"
    operators = {"Agent", "Reducer", "Producer", "Evaluator"}
    undocumented = {model.__name__ for model in all_models()} - set(documented_models(text)) - operators
    assert undocumented == set()
    assert {"Operator", "Agent", "Target"} <= set(documented_models(text))


def test_every_field_has_a_meaning_and_every_meaning_a_field() -> None:
    used = set()
    for model in all_models():
        for field in document_fields(model):
            assert meaning(model, field)
            owner = next(a.__name__ for a in model.__mro__ if field in MEANINGS.get(a.__name__, {}))
            used.add((owner, field))
    assert {(owner, field) for owner, fields in MEANINGS.items() for field in fields} == used


BUILD = "mrp: 1\ntargets: {t: %s}"
WRONG = [
    ("build", "targets: {}"),
    ("build", "mrp: 2\ntargets: {}"),
    ("build", "mrp: 1\ntargets: {}\nx: 1"),
    ("build", BUILD % "{}"),
    ("build", BUILD % "{kind: rolout}"),
    ("build", "mrp: 1\ntargets: {bad name: {kind: job, of: [a]}}"),
    ("build", BUILD % "{kind: job}"),
    ("build", BUILD % "{kind: job, of: []}"),
    ("build", BUILD % "{kind: job, of: [a], samples: 1}"),
    ("build", BUILD % "{kind: rollout, over: a, agent: b, samples: 0}"),
    ("build", BUILD % "{kind: rollout, over: a, agent: b, samples: {select: {}}}"),
    ("build", BUILD % "{kind: rollout, over: a, agent: b, samples: {select: {gpu: many}}}"),
    ("build", BUILD % "{kind: rollout, over: a, agent: b, timeout: 60}"),
    ("build", BUILD % "{kind: sandbox, limits: {memory: 4gb}}"),
    ("build", BUILD % "{kind: dataset, srcs: [a], format: {select: {gpu: jsn}}}"),
    ("build", BUILD % "{kind: agent, version: 1.0, entry: 'a:B'}"),
    ("workspace", "mrp: 1"),
    ("workspace", "mrp: 1\nname: x\nconfigs: {gpu: {engin: ray}}"),
    ("policy", "mrp: 1\nisolation: strong"),
    ("operator", "mrp: 1\nkind: job\nname: x\nversion: '1'"),
    ("operators.lock", "mrp: 1\noperators: {x: {version: '1', digest: abc}}"),
]


@pytest.mark.parametrize(("document", "text"), WRONG)
def test_a_schema_refuses_what_mrp_refuses(document: str, text: str) -> None:
    assert not fits_document(document, text)


def test_any_field_of_a_target_may_be_selected() -> None:
    text = BUILD % "{kind: sandbox, limits: {cpus: {select: {gpu: 8, default: 2}}}, network: {select: {default: none}}}"
    assert fits_document("build", text)


def test_an_unknown_document_has_no_schema() -> None:
    with pytest.raises(KeyError):
        json_schema("nothing")


def test_fields_and_defaults_are_shown_to_editors() -> None:
    limits = json_schema("build")["$defs"]["Limits"]["properties"]
    assert (limits["memory"]["default"], limits["wall"]["default"], limits["cpus"]["default"]) == ("2GiB", "10m", 1)
    assert limits["pids"]["description"] == "Processes and threads at once."


def test_the_header_line_is_the_one_that_editors_read() -> None:
    assert header_line(".mrp/build.json") == "# yaml-language-server: $schema=.mrp/build.json"

"""JSON Schemas of the documents that people write, for editors; mrp itself validates with the models.

They say what the models say, and two things more: a BUILD.yaml's targets are told apart by `kind`, and every field of
a target may be `{select: {...}}`.
"""

from typing import Any, TypeAlias

from pydantic.json_schema import models_json_schema

from mrp.specs.documents import KINDS, Document, OperatorFile, OperatorsLock, PolicyFile, WorkspaceFile
from mrp.specs.meanings import meaning, shown_default
from mrp.specs.validate import TARGET_NAME

Schema: TypeAlias = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SINGLE: dict[str, tuple[str, type[Document]]] = {
    "workspace": ("mrp.yaml", WorkspaceFile),
    "policy": ("policy.yaml", PolicyFile),
    "operator": ("operator.yaml", OperatorFile),
    "operators.lock": ("operators.lock", OperatorsLock),
}

DOCUMENTS = ("build", *_SINGLE)
"""The names that `json_schema` knows."""


def json_schema(document: str) -> Schema:
    """The schema of one of DOCUMENTS. Raises KeyError for other names."""
    if document == "build":
        return _build_schema()
    title, model = _SINGLE[document]
    definitions = _definitions([model])
    root = definitions.pop(model.__name__)
    return {"$schema": _DIALECT, **root, "title": title, **({"$defs": definitions} if definitions else {})}


def header_line(schema_path: str) -> str:
    """The comment that makes the YAML language server check a document; the path is relative to that document."""
    return f"# yaml-language-server: $schema={schema_path}"


def _build_schema() -> Schema:
    definitions = {name: _with_select(schema) for name, schema in _definitions(list(KINDS.values())).items()}
    for kind, model in KINDS.items():
        schema = definitions[model.__name__]
        schema["properties"] = {"kind": {"const": kind}, **schema["properties"]}
        schema["required"] = ["kind", *schema.get("required", [])]
    definitions["AnyTarget"] = {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(KINDS), "description": "What the target is; it decides its fields."}},
        "allOf": [
            {
                "if": {"required": ["kind"], "properties": {"kind": {"const": kind}}},
                "then": {"$ref": f"#/$defs/{model.__name__}"},
            }
            for kind, model in KINDS.items()
        ],
    }
    return {
        "$schema": _DIALECT,
        "title": "BUILD.yaml",
        "description": "The targets of a package, by name.",
        "type": "object",
        "required": ["mrp", "targets"],
        "additionalProperties": False,
        "properties": {
            "mrp": {"const": 1, "description": "The version of the language."},
            "targets": {
                "type": "object",
                "propertyNames": {"pattern": f"^{TARGET_NAME.pattern.removesuffix(chr(92) + 'Z')}$"},
                "additionalProperties": {"$ref": "#/$defs/AnyTarget"},
            },
        },
        "$defs": definitions,
    }


def _definitions(models: list[type[Document]]) -> dict[str, Schema]:
    """The models and all that they hold, by class name, each field with its meaning."""
    _, generated = models_json_schema([(model, "validation") for model in models], by_alias=True)
    definitions: dict[str, Schema] = generated["$defs"]
    known = {model.__name__: model for model in _all_models(Document)}
    for name, schema in definitions.items():
        schema.pop("title", None)
        for field, property_schema in schema.get("properties", {}).items():
            property_schema.pop("title", None)
            property_schema["description"] = meaning(known[name], field)
            property_schema.pop("default", None)
            default = shown_default(known[name], field)
            if default not in (None, "", [], {}):
                property_schema["default"] = default
    return definitions


def _all_models(model: type[Document]) -> list[type[Document]]:
    return [model, *(below for child in model.__subclasses__() for below in _all_models(child))]


def _with_select(schema: Schema) -> Schema:
    """The same schema, in which each field may also be chosen by configuration."""
    properties = {}
    for field, plain in schema.get("properties", {}).items():
        outside = {key: plain[key] for key in ("description", "default") if key in plain}
        value = {key: plain[key] for key in plain if key not in outside}
        select = {"type": "object", "minProperties": 1, "additionalProperties": value}
        chosen = {
            "type": "object",
            "required": ["select"],
            "additionalProperties": False,
            "properties": {"select": select},
        }
        properties[field] = {"anyOf": [value, chosen], **outside}
    return {**schema, "properties": properties}

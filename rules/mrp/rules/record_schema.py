"""A dataset's JSON Schema: each record is held against it before any is used.

Nothing is ever fetched for a `$ref`: a schema refers to itself, or is refused.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from mrp.cache.canonical import Json
from mrp.rules.formats import BadData, json_object

_MAX_MESSAGE = 300
_DECIMAL = re.compile(r"Decimal\('([^']*)'\)")


class RecordSchema:
    """A schema, checked to be one; without `$schema` it is of draft 2020-12."""

    def __init__(self, data: bytes) -> None:
        """Raises BadData when `data` is no JSON Schema."""
        import jsonschema
        from referencing.jsonschema import EMPTY_REGISTRY

        schema = json_object(data)
        kind: Any = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise BadData(f"is no JSON Schema: {_place(error)}{_shown(error.message)}") from None
        checker = kind.TYPE_CHECKER.redefine("number", _is_number).redefine("integer", _is_integer)
        extended: Any = jsonschema.validators.extend
        self._validator = extended(kind, type_checker=checker)(schema, registry=EMPTY_REGISTRY)

    def faults(self, record: Json) -> Iterator[str]:
        """One sentence for each way in which `record` breaks the schema."""
        from referencing.exceptions import Unresolvable

        try:
            for error in self._validator.iter_errors(record):
                yield f"{_place(error)}{_shown(error.message)}"
        except Unresolvable as error:
            yield f"the schema's $ref {error.ref!r} leads nowhere; mrp fetches no schemas"
        except (ArithmeticError, RecursionError) as error:
            yield f"the schema cannot judge this record: {type(error).__name__}"


def _is_number(checker: object, value: object) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _is_integer(checker: object, value: object) -> bool:
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)


def _place(error: Any) -> str:
    path = ".".join(map(str, error.absolute_path))
    return f"{path}: " if path else ""


def _shown(message: str) -> str:
    message = _DECIMAL.sub(r"\1", message)
    return message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "..."

"""As much of JSON Schema as mrp.specs.schemas uses; a keyword that is not known here is an error."""

import re
from decimal import Decimal
from typing import Any

_IGNORED = {"$schema", "$defs", "title", "description", "default"}
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, Decimal),
    "null": (type(None),),
}


def fits(value: Any, schema: Any, root: Any) -> bool:
    """Whether `value` is valid under `schema`, whose references point into `root`."""
    return schema is True or all(_holds(word, value, schema, root) for word in schema if word not in _IGNORED)


def _holds(word: str, value: Any, schema: Any, root: Any) -> bool:
    wanted = schema[word]
    match word:
        case "$ref":
            return fits(value, root["$defs"][wanted.removeprefix("#/$defs/")], root)
        case "type":
            return isinstance(value, _TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
        case "const":
            return type(value) is type(wanted) and bool(value == wanted)
        case "enum":
            return value in wanted
        case "anyOf":
            return any(fits(value, branch, root) for branch in wanted)
        case "allOf":
            return all(fits(value, branch, root) for branch in wanted)
        case "if":
            return not fits(value, wanted, root) or fits(value, schema["then"], root)
        case "then":
            return True
        case "required":
            return not isinstance(value, dict) or set(wanted) <= set(value)
        case "properties":
            return not isinstance(value, dict) or all(fits(value[k], wanted[k], root) for k in wanted if k in value)
        case "additionalProperties":
            others = set(value) - set(schema.get("properties", {})) if isinstance(value, dict) else set()
            return all(wanted is not False and fits(value[key], wanted, root) for key in others)
        case "propertyNames":
            return not isinstance(value, dict) or all(fits(key, wanted, root) for key in value)
        case "items":
            return not isinstance(value, list) or all(fits(item, wanted, root) for item in value)
        case "minItems" | "minProperties":
            return not isinstance(value, list | dict) or len(value) >= wanted
        case "pattern":
            return not isinstance(value, str) or re.search(wanted, value) is not None
        case "minimum":
            return not isinstance(value, int | Decimal) or value >= wanted
        case "maximum":
            return not isinstance(value, int | Decimal) or value <= wanted
    raise AssertionError(f"the keyword {word} is not known here")

"""What keeps a JSON schema from being used: every fault, with its path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from edgeprism.reason.schema_check import is_of
from edgeprism.reason.schema_formats import knows_format
from edgeprism.reason.schema_pattern import may_take_forever
from edgeprism.reason.schema_refs import Placed, References

MAX_REPEAT = 1000  # items, properties, values of an enum, least characters
MAX_DEPTH = 32  # schemas in one another, as they are written
MAX_SCHEMAS = 20_000  # as they are written
MAX_CHARS = 65_536  # of a schema's texts and names, with two for each value
MAX_PATTERN = 2000  # characters of one regular expression
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")

# Keywords that demand nothing of a value. `discriminator` is OpenAPI's, as Pydantic writes it.
_REMARKS = {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$anchor",
            "$defs", "definitions", "deprecated", "readOnly", "writeOnly", "discriminator",
            "contentMediaType", "contentEncoding", "contentSchema", "$vocabulary"}  # fmt: skip
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "contains", "additionalProperties", "propertyNames", "not", "if", "then",
            "else")  # fmt: skip
_MAPS = ("properties", "patternProperties", "dependentSchemas")
_SIZES = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
          "minContains", "maxContains")  # fmt: skip
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_OTHERS = ("type", "enum", "const", "required", "dependentRequired", "pattern", "format",
           "uniqueItems", "$ref")  # fmt: skip
_KNOWN = {*_REMARKS, *_LISTS, *_SCHEMAS, *_MAPS, *_SIZES, *_BOUNDS, *_OTHERS}
# May exceed MAX_REPEAT: the grammar then writes up to MAX_REPEAT.
_CLIPPED = ("maxLength", "maxProperties", "maxContains")
_NEWEST = "2020-12"


def schema_faults(references: References) -> list[str]:
    """Return every fault of a schema as "path: what"; [] where it can be used."""
    faults: list[str] = []
    pending = [(Placed(references.whole), "$", 0)]
    drafts = str(references.whole.get("$schema", _NEWEST)) if _is_map(references.whole) else ""
    for place, path, depth in pending:  # grows while it is read
        place = references.enter(place)
        schema = place.schema
        if isinstance(schema, bool) and depth:
            continue
        if not isinstance(schema, dict):
            faults.append(_fault(path, f"{_short(schema)} is not an object"))
            continue
        if depth > MAX_DEPTH or len(pending) > MAX_SCHEMAS:
            faults.append(_fault(path, "the schema is too large or too deep"))
            break
        found = [*_keyword_faults(schema, path), *_reference_faults(place, references, path)]
        if "prefixItems" in schema and _NEWEST not in drafts:
            found.append(_fault(path, f"'prefixItems' needs $schema {_NEWEST}"))
        faults += found
        pending += [
            (Placed(inner, place.base), inner_path, depth + 1)
            for inner, inner_path in _inner(schema, path)
        ]
    return faults


def bulk_faults(schema: Any) -> list[str]:
    """Return the fault of a schema that is too large to be looked at; [] for any other.

    Compiling a schema takes time that grows with it, and sooner with its patterns.
    """
    left, pending = MAX_CHARS, [schema]
    while pending:
        value = pending.pop()
        left -= 2
        if isinstance(value, str):
            left -= len(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            left -= value.bit_length() // 3
        elif isinstance(value, list):
            left -= len(value)
            pending += value[: max(0, left)]
        elif isinstance(value, dict):
            left -= sum(map(len, map(str, value)))
            pending += value.values() if left >= 0 else ()
        if left < 0:
            return [f"$: holds more than {MAX_CHARS:,} characters"]
    return []


def _inner(schema: dict[str, Any], path: str) -> Iterator[tuple[Any, str]]:
    """Yield the schemas within a schema, with their paths."""
    for name in _MAPS:
        if _is_map(schema.get(name)):
            middle = "" if name == "properties" else f".{name}"
            for key, inner in schema[name].items():
                yield inner, f"{path}{middle}.{key}"
    for name in _LISTS:
        if isinstance(schema.get(name), list):
            for i, inner in enumerate(schema[name]):
                yield inner, f"{path}.{name}[{i}]"
    for name in _SCHEMAS:
        if isinstance(schema.get(name), (dict, bool)):
            yield schema[name], f"{path}[]" if name == "items" else f"{path}.{name}"
    for name in ("$defs", "definitions"):
        if _is_map(schema.get(name)):
            for key, inner in schema[name].items():
                yield inner, f"{path}.{name}.{key}"


def _keyword_faults(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name in schema:
        if name not in _KNOWN and not name.startswith("x-"):
            yield _fault(path, f"{name!r} is not understood here")
    yield from _type_faults(schema, path)
    yield from _size_faults(schema, path)
    for name in _BOUNDS:
        if name in schema and not _is_number(schema[name]):
            yield _fault(path, f"{name} must be a number")
        elif name == "multipleOf" and name in schema and schema[name] <= 0:
            yield _fault(path, "multipleOf must be above 0")
    for name in _LISTS:
        if name in schema and not (
            isinstance(schema[name], list) and 0 < len(schema[name]) <= MAX_REPEAT
        ):
            yield _fault(f"{path}.{name}", "must list schemas")
    if isinstance(schema.get("oneOf"), list) and _overlap(schema["oneOf"]):
        yield _fault(f"{path}.oneOf", "its schemas must differ in type; use anyOf")
    for name in _SCHEMAS:
        if name in schema and not isinstance(schema[name], (dict, bool)):
            if name == "items" and isinstance(schema[name], list):
                yield _fault(path, "items must be one schema; a tuple's are prefixItems")
            else:
                yield _fault(f"{path}.{name}", "may only be a schema, true or false")
    yield from _object_faults(schema, path)
    yield from _text_faults(schema, path)
    yield from _enum_faults(schema, path)


def _overlap(options: list[Any]) -> bool:
    """Return whether two schemas that only name a type allow the same values."""
    kinds = [
        option["type"]
        for option in options
        if _is_map(option)
        and set(option) - _REMARKS == {"type"}
        and isinstance(option["type"], str)
    ]
    return len(set(kinds)) < len(kinds) or {"integer", "number"} <= set(kinds)


def _type_faults(schema: dict[str, Any], path: str) -> Iterator[str]:
    kinds = schema.get("type", "null")
    if kinds == []:
        yield _fault(path, "type must list schemas' types")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in TYPES:
            yield _fault(path, f"type {kind!r} is none of {', '.join(TYPES)}")


def _size_faults(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name in _SIZES:
        if name in schema and (
            not _is_count(schema[name]) or (name not in _CLIPPED and schema[name] > MAX_REPEAT)
        ):
            size = name[3:]
            yield _fault(path, f"min{size} and max{size} are from 0 to {MAX_REPEAT}")
            return
    for size in ("Length", "Items", "Properties"):
        if schema.get(f"max{size}", MAX_REPEAT) < schema.get(f"min{size}", 0):
            yield _fault(path, f"max{size} is below min{size}")


def _object_faults(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name in _MAPS:
        if name in schema and not (_is_map(schema[name]) and len(schema[name]) <= MAX_REPEAT):
            yield _fault(f"{path}.{name}", f"is no object of up to {MAX_REPEAT}")
    if _is_map(schema.get("properties")):
        for name in schema["properties"]:
            if not json.dumps(name, ensure_ascii=False).isprintable():
                yield _fault(path, f"{name!a} cannot be printed")
    if "required" in schema and not _is_names(schema["required"]):
        yield _fault(f"{path}.required", "must list names")
    dependent = schema.get("dependentRequired", {})
    if not _is_map(dependent) or not all(map(_is_names, dependent.values())):
        yield _fault(f"{path}.dependentRequired", "must list names for each name")
    if not isinstance(schema.get("uniqueItems", True), bool):
        yield _fault(path, "uniqueItems may only be true or false")


def _text_faults(schema: dict[str, Any], path: str) -> Iterator[str]:
    patterns = [schema["pattern"]] if "pattern" in schema else []
    if _is_map(schema.get("patternProperties")):
        patterns += schema["patternProperties"]
    for pattern in patterns:
        if isinstance(pattern, str) and len(pattern) > MAX_PATTERN:
            yield _fault(path, f"a pattern of {len(pattern):,} characters; at most {MAX_PATTERN:,}")
        elif not isinstance(pattern, str) or not _compiles(pattern):
            yield _fault(path, f"pattern {_short(pattern)} is no regular expression")
        elif may_take_forever(pattern):
            yield _fault(path, f"pattern {_short(pattern)} may take forever to check")
    if "format" in schema and not knows_format(schema["format"]):
        yield _fault(path, f"format {_short(schema['format'])} is not known")


def _enum_faults(schema: dict[str, Any], path: str) -> Iterator[str]:
    if "enum" not in schema and "const" not in schema:
        return
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    if "enum" in schema and "const" in schema:
        yield _fault(path, "enum and const exclude each other")
    if not isinstance(values, list) or not 0 < len(values) <= MAX_REPEAT:
        yield _fault(path, f"enum must list from 1 to {MAX_REPEAT} values")
        return
    kinds = schema.get("type")
    listed = kinds if isinstance(kinds, list) else [kinds]
    if kinds is not None and not any(is_of(value, kind) for value in values for kind in listed):
        yield _fault(path, "a value is not of the type")
    try:
        texts = [json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values]
    except (ValueError, RecursionError):
        texts = ["\x00"]
    if not all(map(str.isprintable, texts)):
        yield _fault(path, "a value cannot be printed")


def _reference_faults(place: Placed, references: References, path: str) -> Iterator[str]:
    schema = place.schema
    if "$ref" in schema:
        target = references.target(schema["$ref"], place.base)
        if target is None or not isinstance(target.schema, (dict, bool)):
            yield _fault(path, f"$ref {_short(schema['$ref'])} leads nowhere in this schema")
    identifier = schema.get("$id", "")
    if not isinstance(identifier, str) or "#" in identifier.rstrip("#"):
        yield _fault(path, f"$id {_short(identifier)} is no address")


def _fault(path: str, what: str) -> str:
    return f"{ascii(path)[1:-1][:200]}: {what}"


def _short(value: Any) -> str:
    try:
        return ascii(value)[:80]
    except RecursionError:
        return "…"


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < 1e300


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True

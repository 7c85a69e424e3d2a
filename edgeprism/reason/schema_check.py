"""Whether a JSON value is valid against a JSON schema, by the rules of draft 2020-12.

`jsonschema` would do this too, but it is not among the runtime's dependencies, and it drops
keywords that it does not know. The tests hold this module against it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from edgeprism.reason.schema_formats import has_format
from edgeprism.reason.schema_pattern import longest_searched
from edgeprism.reason.schema_refs import Placed, References

_DEEPEST = 400  # references and schemas in one another while a value is checked


class Validator:
    """Checks values against one schema.

    A format counts as a demand, and a value must be valid as well to those who take a format for a
    remark: within "not" the two differ.
    """

    def __init__(self, schema: Any, references: References) -> None:
        self._place = Placed(schema)
        self._checks = [_Check(references, formats) for formats in (True, False)]

    def fault(self, value: Any, place: Placed | None = None) -> str:
        """Return what makes `value` invalid, as "$.path: what"; "" for a valid value.

        `place` is a part of the schema to check against instead of the whole.
        """
        try:
            for check in self._checks:
                if fault := next(check.faults(value, place or self._place, "$", 0), ""):
                    return fault
        except _TooLongToSearch as error:
            return str(error)
        return ""


def same(value: Any, other: Any) -> bool:
    """Return whether two values are the same JSON: 1 is 1.0, but not true."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(same(v, other[k]) for k, v in value.items())
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(same, value, other))
    return bool(value == other)


def is_among(value: Any, others: list[Any]) -> bool:
    """Return whether `others` holds a value that is the same JSON."""
    if isinstance(value, str):  # by far the fastest: a text equals texts alone
        return value in others
    return any(same(value, other) for other in others)


def is_of(value: Any, kind: Any) -> bool:
    """Return whether a value has one of JSON Schema's types; 1.0 is an integer."""
    if isinstance(value, bool):
        return bool(kind == "boolean")
    if isinstance(value, int):
        return kind in ("integer", "number")
    if isinstance(value, float):
        return kind == "number" or (kind == "integer" and value.is_integer())
    kinds: dict[str, type] = {"string": str, "array": list, "object": dict, "null": type(None)}
    return isinstance(kind, str) and kind in kinds and isinstance(value, kinds[kind])


class _TooLongToSearch(Exception):
    """Searching a text for a pattern could take minutes, so whether it is valid is not known."""


def _found(pattern: str, text: str) -> bool:
    longest = longest_searched(pattern)
    if len(text) > longest:
        raise _TooLongToSearch(
            f"a text of {len(text)} characters is too long to be searched for {pattern!r} (at most "
            f"{longest})"
        )
    return re.search(pattern, text) is not None


class _Check:
    """Checks values; `formats` says whether a format is a demand."""

    def __init__(self, references: References, formats: bool) -> None:
        self.references, self.formats = references, formats

    def valid(self, value: Any, place: Placed, depth: int) -> bool:
        return next(self.faults(value, place, "", depth + 1), None) is None

    def faults(self, value: Any, place: Placed, path: str, depth: int) -> Iterator[str]:
        """Yield every fault of a value against a schema."""
        if depth > _DEEPEST:
            yield f"{path}: nests too deeply"
            return
        if isinstance(place.schema, bool):
            if not place.schema:
                yield f"{path}: nothing is allowed here"
            return
        place = self.references.enter(place)
        schema = place.schema
        if "$ref" in schema:
            target = self.references.target(schema["$ref"], place.base)
            if target is None:
                yield f"{path}: a reference that leads nowhere"
            else:
                yield from self.faults(value, target, path, depth + 1)
        for part in (self._general, self._combined):
            yield from part(value, place, path, depth)
        if isinstance(value, str):
            yield from self._string(value, schema, path)
        elif isinstance(value, list):
            yield from self._array(value, place, path, depth)
        elif isinstance(value, dict):
            yield from self._object(value, place, path, depth)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield from number_faults(value, schema, path)

    def _general(self, value: Any, place: Placed, path: str, depth: int) -> Iterator[str]:
        schema = place.schema
        kinds = schema.get("type")
        listed = kinds if isinstance(kinds, list) else [kinds]
        if kinds is not None and not any(is_of(value, kind) for kind in listed):
            yield f"{path}: is not of type {' or '.join(map(str, listed))}"
        if "enum" in schema and not is_among(value, schema["enum"]):
            yield f"{path}: is none of the values of enum"
        if "const" in schema and not same(value, schema["const"]):
            yield f"{path}: is not the value of const"

    def _combined(self, value: Any, place: Placed, path: str, depth: int) -> Iterator[str]:
        schema, base = place.schema, place.base

        def fits(inner: Any) -> bool:
            return self.valid(value, Placed(inner, base), depth)

        for inner in schema.get("allOf", ()):
            yield from self.faults(value, Placed(inner, base), path, depth + 1)
        if "anyOf" in schema and not any(map(fits, schema["anyOf"])):
            yield f"{path}: fits no schema of anyOf"
        if "oneOf" in schema and sum(map(fits, schema["oneOf"])) != 1:
            yield f"{path}: does not fit exactly one schema of oneOf"
        if "not" in schema and fits(schema["not"]):
            yield f"{path}: fits the schema of not"
        if "if" in schema:
            branch = "then" if fits(schema["if"]) else "else"
            if branch in schema and not fits(schema[branch]):
                yield f"{path}: does not fit the schema of {branch}"

    def _string(self, value: str, schema: Any, path: str) -> Iterator[str]:
        if len(value) < schema.get("minLength", 0):
            yield f"{path}: has fewer than {schema['minLength']} characters"
        if len(value) > schema.get("maxLength", math.inf):
            yield f"{path}: has more than {schema['maxLength']} characters"
        if "pattern" in schema and not _found(schema["pattern"], value):
            yield f"{path}: does not match the pattern {schema['pattern']!r}"
        if self.formats and "format" in schema and not has_format(value, schema["format"]):
            yield f"{path}: is no {schema['format']}"

    def _array(self, value: list[Any], place: Placed, path: str, depth: int) -> Iterator[str]:
        schema, base = place.schema, place.base
        if len(value) < schema.get("minItems", 0):
            yield f"{path}: has fewer than {schema['minItems']} items"
        if len(value) > schema.get("maxItems", math.inf):
            yield f"{path}: has more than {schema['maxItems']} items"
        first = schema.get("prefixItems", [])
        for i, item in enumerate(value):
            inner = first[i] if i < len(first) else schema.get("items", True)
            yield from self.faults(item, Placed(inner, base), f"{path}[{i}]", depth + 1)
        if schema.get("uniqueItems") and any(
            same(item, other) for i, item in enumerate(value) for other in value[:i]
        ):
            yield f"{path}: has the same item twice"
        if "contains" in schema:
            hits = sum(self.valid(item, Placed(schema["contains"], base), depth) for item in value)
            if not schema.get("minContains", 1) <= hits <= schema.get("maxContains", math.inf):
                yield f"{path}: has {hits} items of the kind that contains asks for"

    def _object(self, value: dict[str, Any], place: Placed, path: str, depth: int) -> Iterator[str]:
        schema, base = place.schema, place.base
        yield from _names_faults(value, schema, path)
        properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name, item in value.items():
            inner = [properties[name]] if name in properties else []
            inner += [each for pattern, each in patterns.items() if _found(pattern, name)]
            if not inner and "additionalProperties" in schema:
                inner = [schema["additionalProperties"]]
            for each in inner:
                yield from self.faults(item, Placed(each, base), f"{path}.{name}", depth + 1)
            if "propertyNames" in schema and not self.valid(
                name, Placed(schema["propertyNames"], base), depth
            ):
                yield f"{path}: has a property of the name {name!r}"
        for name, inner_schema in schema.get("dependentSchemas", {}).items():
            if name in value:
                yield from self.faults(value, Placed(inner_schema, base), path, depth + 1)


def _names_faults(value: dict[str, Any], schema: Any, path: str) -> Iterator[str]:
    missing = [name for name in schema.get("required", ()) if name not in value]
    for name, others in schema.get("dependentRequired", {}).items():
        if name in value:
            missing += [other for other in others if other not in value]
    if missing:
        yield f"{path}: lacks {', '.join(map(repr, missing))}"
    if len(value) < schema.get("minProperties", 0):
        yield f"{path}: has fewer than {schema['minProperties']} properties"
    if len(value) > schema.get("maxProperties", math.inf):
        yield f"{path}: has more than {schema['maxProperties']} properties"


_BOUNDS: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("minimum", lambda value, bound: value >= bound, "is below"),
    ("maximum", lambda value, bound: value <= bound, "is above"),
    ("exclusiveMinimum", lambda value, bound: value > bound, "is not above"),
    ("exclusiveMaximum", lambda value, bound: value < bound, "is not below"),
)


def number_faults(value: float, schema: Any, path: str) -> Iterator[str]:
    """Yield how a number breaks the bounds of a schema."""
    for name, holds, what in _BOUNDS:
        if name in schema and not holds(value, schema[name]):
            yield f"{path}: {what} {schema[name]}"
    if "multipleOf" in schema and not _is_multiple(value, schema["multipleOf"]):
        yield f"{path}: is no multiple of {schema['multipleOf']}"


def _is_multiple(value: float, step: float) -> bool:
    """Return whether value / step is whole, as validators that work with doubles see it."""
    if isinstance(value, int) and isinstance(step, int):
        return value % step == 0
    try:
        return (value / step).is_integer()
    except OverflowError:
        return False

"""A JSON schema without combinators: the alternatives that `$ref`, allOf, anyOf and oneOf leave.

A view is what the grammar needs to know of one alternative. It may leave things out: the finished
text is checked against the schema itself.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgeprism.reason.schema_check import is_among, is_of
from edgeprism.reason.schema_refs import Placed, References

MAX_VIEWS = 400
# How often a definition may hold itself before the grammar lets it end.
MAX_RECURSION = 3
_SCALARS = frozenset(("string", "number", "integer", "boolean", "null"))
_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties",
               "patternProperties", "propertyNames"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}  # fmt: skip
_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains")


class NothingFits(Exception):
    """No value fits a schema, or none that ends; `path` and `why` say which and why."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


class TooManyViews(Exception):
    """A schema has too many alternatives."""


@dataclass(frozen=True)
class View:
    """One alternative of a schema."""

    types: frozenset[str] | None = None
    sizes: dict[str, Any] = field(default_factory=dict)  # bounds of numbers, lengths and counts
    enum: list[Any] | None = None
    patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    properties: dict[str, tuple[Placed, ...]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    additional: tuple[Placed, ...] = ()
    names: tuple[Placed, ...] = ()
    items: tuple[Placed, ...] = ()
    first: tuple[tuple[Placed, ...], ...] = ()
    contains: tuple[Placed, ...] = ()
    inferred: frozenset[str] = frozenset()  # types whose keywords occur, where no type is named
    inside: tuple[int, ...] = ()  # the references that led here

    def kinds(self, *, or_any: bool) -> frozenset[str]:
        """Return the types to write; with `or_any`, scalars where nothing tells a type."""
        if self.types is not None:
            return self.types
        return self.inferred or (_SCALARS - {"integer"} if or_any else frozenset())


def views(
    places: Iterable[Placed], references: References, path: str, inside: tuple[int, ...]
) -> list[View]:
    """Return the alternatives of values that fit all of `places`.

    `inside` names the references that are open around them. Raises NothingFits if there is no
    alternative, TooManyViews if there are more than MAX_VIEWS.
    """
    found = [View(inside=inside)]
    for place in places:
        found = _crossed(found, _views(place, references, path, inside, ()), path)
    return found


def _views(
    place: Placed,
    references: References,
    path: str,
    inside: tuple[int, ...],
    chain: tuple[int, ...],
) -> list[View]:
    if isinstance(place.schema, bool):
        if not place.schema:
            raise NothingFits(path, "nothing is allowed here")
        return [View(inside=inside)]
    place = references.enter(place)
    schema, base = place.schema, place.base
    found = [_own_view(schema, base, inside)]

    def inner(each: Any) -> list[View]:
        return _views(Placed(each, base), references, path, inside, chain)

    if "$ref" in schema:
        target = references.target(schema["$ref"], base)
        if target is None:
            raise NothingFits(path, f"$ref {schema['$ref']!r} leads nowhere")
        mark = id(target.schema)
        if mark in chain or inside.count(mark) >= MAX_RECURSION:
            raise NothingFits(path, f"{schema['$ref']} holds itself")
        opened = (*inside, mark)
        found = _crossed(found, _views(target, references, path, opened, (*chain, mark)), path)
    for each in schema.get("allOf", ()):
        found = _crossed(found, inner(each), path)
    for name in ("anyOf", "oneOf"):
        if name in schema:
            options = _possible(inner, schema[name])
            found = _crossed(found, options, path)
    return found


def _possible(inner: Callable[[Any], list[View]], options: Sequence[Any]) -> list[View]:
    """Return the views of those options that a value can fit; raise the last one's reason."""
    found: list[View] = []
    reason: NothingFits | None = None
    for option in options:
        try:
            found += inner(option)
        except NothingFits as nothing:
            reason = nothing
    if not found and reason is not None:
        raise reason
    return found


def _own_view(schema: dict[str, Any], base: str, inside: tuple[int, ...]) -> View:
    """Return the view of a schema's own keywords."""
    kinds = schema.get("type")

    def placed(name: str) -> tuple[Placed, ...]:
        return (Placed(schema[name], base),) if name in schema else ()

    enum = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return View(
        types=None if kinds is None else frozenset(kinds if isinstance(kinds, list) else [kinds]),
        sizes={
            name: schema[name] for name in (*_LARGER, *_SMALLER, "multipleOf") if name in schema
        },
        enum=enum,
        patterns=(schema["pattern"],) if "pattern" in schema else (),
        formats=(schema["format"],) if "format" in schema else (),
        properties={
            name: (Placed(each, base), *_by_pattern(schema, name, base))
            for name, each in schema.get("properties", {}).items()
        },
        required=tuple(schema.get("required", ())),
        additional=placed("additionalProperties"),
        names=placed("propertyNames"),
        items=placed("items"),
        first=tuple((Placed(each, base),) for each in schema.get("prefixItems", ())),
        contains=placed("contains"),
        inferred=frozenset(
            kind for kind, names in _OF_TYPE.items() if any(name in schema for name in names)
        ),
        inside=inside,
    )


def _by_pattern(schema: dict[str, Any], name: str, base: str) -> list[Placed]:
    """Return what patternProperties demands of the property `name`."""
    patterns = schema.get("patternProperties", {})
    return [Placed(each, base) for pattern, each in patterns.items() if re.search(pattern, name)]


def _crossed(left: list[View], right: list[View], path: str) -> list[View]:
    """Return what fits a view of both lists; raises NothingFits if none does."""
    if len(left) * len(right) > MAX_VIEWS:
        raise TooManyViews
    found = [both for a, b in itertools.product(left, right) if (both := _merged(a, b))]
    if not found:
        raise NothingFits(path, "its demands exclude each other")
    return found


def _merged(a: View, b: View) -> View | None:
    """Return the view of what fits both; None if that is nothing."""
    types = a.types if b.types is None else b.types if a.types is None else _common(a, b)
    enum = a.enum if b.enum is None else b.enum
    if a.enum is not None and b.enum is not None:
        enum = [value for value in a.enum if is_among(value, b.enum)]
    if enum is not None and types is not None:
        enum = [value for value in enum if any(is_of(value, kind) for kind in types)]
    if types == frozenset() or enum == []:
        return None
    sizes = {**a.sizes, **b.sizes}
    for name in a.sizes.keys() & b.sizes.keys():
        pick = max if name in _LARGER else min
        sizes[name] = pick(a.sizes[name], b.sizes[name])
    longest = max(len(a.first), len(b.first))
    return replace(
        a,
        types=types,
        sizes=sizes,
        enum=enum,
        patterns=(*a.patterns, *b.patterns),
        formats=(*a.formats, *b.formats),
        properties=_properties(a, b),
        required=tuple(dict.fromkeys((*a.required, *b.required))),
        additional=(*a.additional, *b.additional),
        names=(*a.names, *b.names),
        items=(*a.items, *b.items),
        first=tuple((*_item(a, i), *_item(b, i)) for i in range(longest)),
        contains=(*a.contains, *b.contains),
        inferred=a.inferred | b.inferred,
        inside=max(a.inside, b.inside, key=len),
    )


def _common(a: View, b: View) -> frozenset[str]:
    first, second = a.types or frozenset(), b.types or frozenset()
    common = set(first & second)
    if ("integer" in first and "number" in second) or ("number" in first and "integer" in second):
        common.add("integer")
    return frozenset(common)


def _properties(a: View, b: View) -> dict[str, tuple[Placed, ...]]:
    """Return both views' properties; one that a view does not list must fit its `additional`."""
    names = dict.fromkeys((*a.properties, *b.properties))
    return {
        name: (*a.properties.get(name, a.additional), *b.properties.get(name, b.additional))
        for name in names
    }


def _item(view: View, index: int) -> tuple[Placed, ...]:
    return view.first[index] if index < len(view.first) else view.items

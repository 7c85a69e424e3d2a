"""JSON schema → the shape of an answer: a grammar, and a check of the finished text.

This module supports a part of JSON Schema 2020-12. It names and refuses every other keyword, so
that an answer in the grammar always validates against the whole schema. The grammar writes all
properties of an object, in the schema's order, with one blank after ":" and ",".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from edgeprism.errors import UsageError
from edgeprism.reason.shape import Shape, literal

MAX_DEPTH = 16
MAX_REPEAT = 1000  # maxItems, maxLength, properties, values of an enum
MAX_SPAN = 1000  # integers between minimum and maximum
MAX_NODES = 5000  # schemas within the schema; one counts again at each reference to it
MAX_GRAMMAR = 1_000_000  # characters; llama.cpp writes out repeats, so each counts as ten

_TOO_LARGE = "the schema is too large or too deep"
_COMMENTS = {"title", "description", "default", "examples", "$schema", "$id", "$comment",
             "$defs", "definitions", "deprecated", "readOnly", "writeOnly"}  # fmt: skip
_OWN = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum"},
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
}
_WHOLE = '("0" | [1-9] [0-9]{0,14})'
_RULES = {
    # Without \u escapes: a surrogate pair of them would be one character for maxLength.
    "char": r"[\x20-\x21\x23-\x5B\x5D-\x7E\u00A0-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]"
    r' | "\\" ["\\/bfnrt]',
    "integer": f'"-"? {_WHOLE}',
    "number": f'"-"? {_WHOLE} ("." [0-9]{{1,15}})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
}


def text_to_shape(text: str, where: str) -> Shape:
    """Return the shape of a JSON schema's text.

    Raises UsageError; `where` names the schema in the message.
    """
    try:
        schema = _parse(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: not JSON: {error}.", "Give a file with a JSON schema."
        ) from None
    return schema_to_shape(schema, where)


def _parse(text: str) -> Any:
    """Parse JSON without NaN and Infinity, which Python's reader accepts against the standard."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def schema_to_shape(schema: Any, where: str = "the schema") -> Shape:
    """Return the shape of answers that validate against `schema`.

    Raises UsageError that lists all faults, each with its path.
    """
    grammar = _Grammar(schema)
    root = grammar.rule_for(schema, "$", 0, ())
    if grammar.faults:
        raise UsageError(
            f"{where} cannot be used:",
            "Understood: type, properties, required, items, minItems, maxItems, minLength, "
            "maxLength, minimum with maximum of integers, enum, const, anyOf, oneOf, local $ref.",
            grammar.faults[:20],
        )
    rules = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in grammar.rules.items())]

    def accepts(text: str) -> bool:
        try:
            return grammar.fits(_parse(text), schema)
        except (ValueError, RecursionError):
            return False

    return Shape("\n".join(rules) + "\n", accepts, _as_object(schema), _unwrapped(schema))


def _as_object(schema: Any) -> dict[str, Any]:
    """Wrap a schema in an object, which servers require at the top."""
    if schema.get("type") == "object":
        return dict(schema)
    inner = {k: v for k, v in schema.items() if k not in ("$defs", "definitions")}
    outer = {k: v for k, v in schema.items() if k in ("$defs", "definitions")}
    return {
        **outer, "type": "object", "properties": {"answer": inner}, "required": ["answer"],
        "additionalProperties": False,
    }  # fmt: skip


def _unwrapped(schema: Any) -> Any:
    whole = schema.get("type") == "object"
    return lambda value: json.dumps(value if whole else value["answer"], ensure_ascii=False)


class _Grammar:
    """Collects the rules and the faults of a schema."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.rules: dict[str, str] = {}
        self.faults: list[str] = []
        self.names: dict[str, str] = {}  # body → rule
        self.nodes = self.size = 0

    def rule_for(self, schema: Any, path: str, depth: int, inside: tuple[str, ...]) -> str:
        """Return the name of a rule that writes `schema`; `inside` holds the open references."""
        self.nodes += 1
        if self.nodes > MAX_NODES or self.size > MAX_GRAMMAR or depth > MAX_DEPTH:
            return self._fault(path, _TOO_LARGE)
        if not isinstance(schema, dict):
            return self._fault(path, f"{json.dumps(schema)[:40]} is not an object")
        if "$ref" in schema:
            return self._reference(schema, path, depth, inside)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._union(schema, keyword, path, depth, inside)
        if "enum" in schema or "const" in schema:
            return self._constant(schema, path)
        kind = schema.get("type")
        if isinstance(kind, list):
            options = [_of_kind(schema, k) for k in kind]
            return self._union({"anyOf": options}, "anyOf", path, depth, inside)
        if not isinstance(kind, str) or kind not in _OWN:
            return self._fault(path, f"type {kind!r} is none of {', '.join(_OWN)}")
        self._only(schema, _OWN[kind] | {"type"}, path)
        if kind == "object":
            return self._object(schema, path, depth, inside)
        if kind == "array":
            return self._array(schema, path, depth, inside)
        if kind == "string":
            return self._string(schema, path)
        if kind == "integer" and ("minimum" in schema or "maximum" in schema):
            return self._span(schema, path)
        return self._basic(kind)

    def fits(self, value: Any, schema: Any) -> bool:
        """Return whether a parsed answer validates against `schema`, which `rule_for` accepted."""
        if "$ref" in schema:
            return self.fits(value, self._target(schema["$ref"]))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return any(self.fits(value, option) for option in schema[keyword])
        if "enum" in schema or "const" in schema:
            return any(_same(value, constant) for constant in _constants(schema))
        kind = schema["type"]
        if isinstance(kind, list):
            return any(self.fits(value, _of_kind(schema, k)) for k in kind)
        if kind == "object":
            properties = schema.get("properties", {})
            return (
                isinstance(value, dict)
                and set(schema.get("required", ())) <= set(value)
                and (schema.get("additionalProperties", True) or set(value) <= set(properties))
                and all(self.fits(v, properties[k]) for k, v in value.items() if k in properties)
            )
        if kind in ("array", "string"):
            expected, size = (list, "Items") if kind == "array" else (str, "Length")
            low, high = schema.get(f"min{size}", 0), schema.get(f"max{size}", float("inf"))
            fits = isinstance(value, expected) and low <= len(value) <= high
            return fits and (kind == "string" or all(self.fits(v, schema["items"]) for v in value))
        if kind == "integer":
            low, high = schema.get("minimum", -float("inf")), schema.get("maximum", float("inf"))
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        kinds: dict[str, Any] = {"number": (int, float), "boolean": bool, "null": type(None)}
        return isinstance(value, kinds[kind]) and (kind != "number" or not isinstance(value, bool))

    # ---- a rule for each kind of schema

    def _object(
        self, schema: dict[str, Any], path: str, depth: int, inside: tuple[str, ...]
    ) -> str:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict) or len(properties) > MAX_REPEAT:
            return self._fault(f"{path}.properties", f"is no object of up to {MAX_REPEAT}")
        required = schema.get("required", [])
        if not isinstance(required, list) or any(
            not isinstance(name, str) or name not in properties for name in required
        ):
            self._fault(f"{path}.required", "names what is not in properties")
        if schema.get("additionalProperties", False) not in (True, False):
            self._fault(f"{path}.additionalProperties", "may only be true or false")
        parts = []
        for name, inner in properties.items():
            rule = self.rule_for(inner, f"{path}.{name}", depth + 1, inside)
            quoted = json.dumps(name, ensure_ascii=False)
            if not quoted.isprintable():
                self._fault(path, f"{name!a} cannot be printed")
            parts.append(f"{literal(f'{quoted}: ')} {rule}")
        return self._add('"{" ' + ' ", " '.join(parts) + ' "}"')

    def _array(self, schema: dict[str, Any], path: str, depth: int, inside: tuple[str, ...]) -> str:
        low, high = self._bounds(schema, "Items", path)
        if "items" not in schema:
            return self._fault(path, "an array needs items")
        item = self.rule_for(schema["items"], f"{path}[]", depth + 1, inside)
        if high == 0:
            return self._add('"[]"')
        more = f"{{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
        several = f'{item} (", " {item}){more}'
        body = f'"[" {several} "]"' if low else f'"[" ({several})? "]"'
        return self._add(body, repeats=low if high is None else high)

    def _string(self, schema: dict[str, Any], path: str) -> str:
        low, high = self._bounds(schema, "Length", path)
        char = self._basic("char")
        body = f'"\\"" {char}{{{low},{"" if high is None else high}}} "\\""'
        return self._add(body, repeats=low if high is None else high)

    def _span(self, schema: dict[str, Any], path: str) -> str:
        low: Any = schema.get("minimum")
        high: Any = schema.get("maximum")
        if not _is_count(low, signed=True) or not _is_count(high, signed=True):
            return self._fault(path, "minimum and maximum must both be whole numbers")
        if not 0 <= high - low <= MAX_SPAN:
            return self._fault(path, f"minimum to maximum must span from 0 to {MAX_SPAN}")
        return self._add(" | ".join(literal(str(n)) for n in range(low, high + 1)))

    def _constant(self, schema: dict[str, Any], path: str) -> str:
        self._only(schema, {"enum", "const", "type"}, path)
        values = _constants(schema)
        if not isinstance(values, list) or not 0 < len(values) <= MAX_REPEAT:
            return self._fault(path, f"enum must list from 1 to {MAX_REPEAT} values")
        if "enum" in schema and "const" in schema:
            return self._fault(path, "enum and const exclude each other")
        kinds = schema.get("type")
        for kind in kinds if isinstance(kinds, list) else [kinds] if kinds else []:
            if not isinstance(kind, str) or kind not in _OWN:
                return self._fault(path, f"type {kind!r} is none of {', '.join(_OWN)}")
        if kinds is not None and not all(_is_of(value, kinds) for value in values):
            return self._fault(path, "a value is not of the type")
        try:
            texts = [json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values]
        except (ValueError, RecursionError):
            return self._fault(path, "a value cannot be printed")
        if not all(map(str.isprintable, texts)):
            return self._fault(path, "a value cannot be printed")
        return self._add(" | ".join(literal(text) for text in texts))

    def _union(
        self, schema: dict[str, Any], keyword: str, path: str, depth: int, inside: tuple[str, ...]
    ) -> str:
        self._only(schema, {keyword}, path)
        options = schema[keyword]
        if not isinstance(options, list) or not 0 < len(options) <= MAX_REPEAT:
            return self._fault(f"{path}.{keyword}", "must list schemas")
        if keyword == "oneOf" and not self._distinct(options):
            return self._fault(f"{path}.{keyword}", "its schemas must differ in type; use anyOf")
        return self._add(
            " | ".join(
                self.rule_for(option, f"{path}.{keyword}[{i}]", depth + 1, inside)
                for i, option in enumerate(options)
            )
        )

    def _distinct(self, options: list[Any]) -> bool:
        """Return whether the schemas' types exclude each other."""
        kinds = [option.get("type") if isinstance(option, dict) else None for option in options]
        number = {"integer", "number"} <= {k for k in kinds if isinstance(k, str)}
        return (
            all(isinstance(k, str) for k in kinds) and len(set(kinds)) == len(kinds) and not number
        )

    def _reference(
        self, schema: dict[str, Any], path: str, depth: int, inside: tuple[str, ...]
    ) -> str:
        self._only(schema, {"$ref"}, path)
        target = schema["$ref"]
        if target in inside:
            return self._fault(path, f"{target} holds itself")
        inner = self._target(target)
        if inner is None:
            return self._fault(
                path, f"$ref {target!r} leads nowhere (only #/$defs/… and #/definitions/…)"
            )
        return self.rule_for(inner, path, depth + 1, (*inside, target))

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith(
            ("#/$defs/", "#/definitions/")
        ):
            return None
        value = self.whole
        for part in reference[2:].split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(value, dict) or part not in value:
                return None
            value = value[part]
        return value

    # ---- parts

    def _only(self, schema: dict[str, Any], known: set[str], path: str) -> None:
        for keyword in schema:
            if keyword not in known and keyword not in _COMMENTS:
                self._fault(path, f"{keyword!r} is not understood here")

    def _bounds(self, schema: dict[str, Any], size: str, path: str) -> tuple[int, int | None]:
        low, high = schema.get(f"min{size}", 0), schema.get(f"max{size}")
        for bound in (low, high):
            if bound is not None and (not _is_count(bound) or bound > MAX_REPEAT):
                self._fault(path, f"min{size} and max{size} are from 0 to {MAX_REPEAT}")
                return 0, None
        if high is not None and high < low:
            self._fault(path, f"max{size} is below min{size}")
        return low, high

    def _basic(self, name: str) -> str:
        self.rules[name] = _RULES[name]
        return name

    def _add(self, body: str, *, repeats: int = 0) -> str:
        if body in self.names:
            return self.names[body]
        self.size += len(body) + 10 * repeats
        if self.size > MAX_GRAMMAR:
            return self._fault("$", _TOO_LARGE)
        name = self.names[body] = f"r{len(self.rules)}"
        self.rules[name] = body
        return name

    def _fault(self, path: str, what: str) -> str:
        self.faults.append(f"{ascii(path)[1:-1][:200]}: {what}")
        return "fault"


def _of_kind(schema: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Reduce a schema of several types to one of them, with the keywords of that type."""
    others = set().union(*_OWN.values()) - _OWN.get(kind if isinstance(kind, str) else "", set())
    return {k: v for k, v in schema.items() if k not in others} | {"type": kind}


def _constants(schema: dict[str, Any]) -> Any:
    return schema["enum"] if "enum" in schema else [schema["const"]]


def _is_count(value: Any, *, signed: bool = False) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and (abs(value) < 10**15 if signed else value >= 0)


def _is_of(value: Any, kinds: Any) -> bool:
    def one(kind: Any) -> bool:
        if isinstance(value, bool):
            return bool(kind == "boolean")
        if isinstance(value, int):
            return kind in ("integer", "number")
        names = {float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
        return bool(names[type(value)] == kind)

    return any(map(one, _each(kinds)))


def _each(kinds: Any) -> Iterator[Any]:
    yield from kinds if isinstance(kinds, list) else [kinds]


def _same(value: Any, constant: Any) -> bool:
    """Return whether two values are the same JSON; in Python, true equals 1."""
    return json.dumps(value, sort_keys=True) == json.dumps(constant, sort_keys=True)

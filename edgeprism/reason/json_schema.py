"""JSON schema → the shape of an answer: a grammar, and a check of the finished text.

The grammar binds what a grammar can bind: types, properties, enums, lengths, bounds, formats,
simple patterns, references (a definition that holds itself ends after a few rounds). It writes all
properties of an object, in the schema's order, with one blank after ":" and ",". The finished text
is checked against the whole schema: what the grammar cannot bind is an error, never a wrong answer.
A schema that cannot be kept is refused, and every fault is named with its path.
"""

from __future__ import annotations

import json
from typing import Any

from edgeprism.errors import UsageError
from edgeprism.reason.schema_check import Validator
from edgeprism.reason.schema_faults import MAX_REPEAT, bulk_faults, schema_faults
from edgeprism.reason.schema_formats import format_pattern
from edgeprism.reason.schema_numbers import integer_gbnf, number_bounds, number_gbnf
from edgeprism.reason.schema_pattern import MAX_COST, UnboundPattern, pattern_to_gbnf
from edgeprism.reason.schema_refs import Placed, References
from edgeprism.reason.schema_views import NothingFits, TooManyViews, View, views
from edgeprism.reason.shape import Shape, literal

MAX_DEPTH = 16
MAX_NODES = 5000  # schemas within the schema; one counts again at each reference to it
MAX_COMPARISONS = 10_000_000  # of the values of enums with one another
MAX_GRAMMAR = 1_000_000  # characters; llama.cpp writes out repeats, so each counts as ten
_MOST_ENTRIES = 50  # of an object with names of the model's choice
_LONGEST_NAME = 60  # characters of such a name

_TOO_LARGE = "the schema is too large or too deep"
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
    if faults := bulk_faults(schema):
        raise _unusable(where, faults)
    try:
        references = References(schema)
        grammar = _Grammar(references)
        faults = schema_faults(references)
        root = "fault" if faults else grammar.root()
    except RecursionError:
        faults, root = [f"$: {_TOO_LARGE}"], "fault"
    faults = list(dict.fromkeys(faults or grammar.faults))
    if faults:
        raise _unusable(where, faults)
    rules = [f"root ::= {root}", *(f"{name} ::= {body}" for name, body in grammar.rules.items())]
    validator = Validator(schema, references)

    def fault(text: str) -> str:
        try:
            return validator.fault(_parse(text))
        except (ValueError, RecursionError):
            return "$: is not JSON"

    return Shape(
        gbnf="\n".join(rules) + "\n",
        accepts=lambda text: not fault(text),
        schema=_as_object(schema),
        unwrap=_unwrapped(schema),
        fault=fault,
    )


def _unusable(where: str, faults: list[str]) -> UsageError:
    return UsageError(
        f"{where} cannot be used:",
        "Most of JSON Schema 2020-12 is kept to; leave out what is named here, or say it in "
        "the question.",
        faults[:20],
    )


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
    """Collects the rules and the faults of a schema without faults in its keywords."""

    def __init__(self, references: References) -> None:
        self.references = references
        self.rules: dict[str, str] = {}
        self.faults: list[str] = []
        self.names: dict[str, str] = {}  # body → rule
        self.patterns: dict[str, str | None] = {}  # → its body
        self.nodes = self.size = self.comparisons = 0

    def root(self) -> str:
        """Return the name of the rule that writes the whole schema."""
        try:
            return self.rule_for((Placed(self.references.whole),), "$", 0, ())
        except NothingFits as nothing:
            return self._fault(nothing.path, nothing.why)

    def rule_for(
        self, places: tuple[Placed, ...], path: str, depth: int, inside: tuple[int, ...]
    ) -> str:
        """Return the name of a rule that writes what fits all of `places`.

        `inside` holds the open references. Raises NothingFits.
        """
        self.nodes += 1
        if self.nodes > MAX_NODES or self.size > MAX_GRAMMAR or depth > MAX_DEPTH:
            return self._fault(path, _TOO_LARGE)
        try:
            found = views(places, self.references, path, inside)
        except TooManyViews:
            return self._fault(path, _TOO_LARGE)
        options: list[str] = []
        reason = NothingFits(path, "nothing fits")
        for view in found:
            kinds = sorted(view.kinds(or_any=depth > 0), key=_simplest_last)
            if view.enum is None and not kinds:
                return self._fault(
                    path, "says nothing of the value: give it a type, an enum or properties"
                )
            for kind in kinds if view.enum is None else ["enum"]:
                try:
                    options.append(self._rule(view, kind, places, path, depth))
                except NothingFits as nothing:
                    reason = nothing
        if not options:
            raise reason
        options = list(dict.fromkeys(options))
        return options[0] if len(options) == 1 else self._add(" | ".join(options))

    def _rule(
        self, view: View, kind: str, places: tuple[Placed, ...], path: str, depth: int
    ) -> str:
        if kind == "enum":
            return self._constants(view, places, path)
        if kind == "object":
            return self._object(view, path, depth)
        if kind == "array":
            return self._array(view, path, depth)
        if kind == "string":
            return self._string(view, path)
        bounds = number_bounds(view.sizes) if kind in ("integer", "number") else {}
        if not bounds:
            return self._basic(kind)
        body = integer_gbnf(bounds) if kind == "integer" else number_gbnf(bounds)
        if not body:
            raise NothingFits(path, "minimum to maximum must span a number that can be written")
        return self._add(body)

    # ---- a rule for each kind of value

    def _object(self, view: View, path: str, depth: int) -> str:
        if missing := [name for name in view.required if name not in view.properties]:
            raise NothingFits(
                f"{path}.required", f"names what is not in properties: {missing[0]!r}"
            )
        parts = []
        most = view.sizes.get("maxProperties", MAX_REPEAT)
        optional = most - len(view.required)
        for name, places in view.properties.items():
            if name not in view.required:
                optional -= 1
                if optional < 0:
                    continue
            try:
                rule = self.rule_for(places, f"{path}.{name}", depth + 1, view.inside)
            except NothingFits:
                if name in view.required:
                    raise
                optional += 1
                continue
            quoted = json.dumps(name, ensure_ascii=False)
            parts.append(f"{literal(f'{quoted}: ')} {rule}")
        least = view.sizes.get("minProperties", 0) - len(parts)
        if least > 0 or (view.additional and not view.properties):
            return self._map(view, parts, (max(0, least), most - len(parts)), path, depth)
        return self._add('"{" ' + ' ", " '.join(parts) + ' "}"')

    def _map(
        self, view: View, parts: list[str], count: tuple[int, int], path: str, depth: int
    ) -> str:
        """Return a rule for `parts`, then properties with names of the model's choice."""
        low, high = count[0], min(count[1], max(count[0], _MOST_ENTRIES))
        try:
            places = view.additional or (Placed(True),)
            value = self.rule_for(places, f"{path}.additionalProperties", depth + 1, view.inside)
            text = Placed({"type": "string", "minLength": 1, "maxLength": _LONGEST_NAME})
            name = self.rule_for((text, *view.names), f"{path}.propertyNames", depth, view.inside)
        except NothingFits:
            if low:
                raise
            high = 0
        if high <= 0:
            return self._add('"{" ' + ' ", " '.join(parts) + ' "}"')
        entry = f'{name} ": " {value}'
        if parts:
            more = f'(", " {entry}){{{low},{high}}}'
            return self._add('"{" ' + ' ", " '.join(parts) + f' {more} "}}"', repeats=high)
        several = f'{entry} (", " {entry}){{{max(low - 1, 0)},{high - 1}}}'
        body = f'"{{" {several} "}}"' if low else f'"{{" ({several})? "}}"'
        return self._add(body, repeats=high)

    def _array(self, view: View, path: str, depth: int) -> str:
        low, high = view.sizes.get("minItems", 0), view.sizes.get("maxItems")
        places = view.items
        if view.contains:
            # Each item is of that kind, so that there are enough of them, but not too many.
            low = max(low, view.sizes.get("minContains", 1))
            most = view.sizes.get("maxContains")
            if most is None or most >= low:
                places = (*places, *view.contains)
                high = most if high is None else high if most is None else min(high, most)
        if not places and not view.first:
            return self._fault(path, "an array needs items")
        first = []
        for i, each in enumerate(view.first[:high]):
            try:
                first.append(self.rule_for(each, f"{path}[{i}]", depth + 1, view.inside))
            except NothingFits:
                if i < low:
                    raise
                high = i
                break
        rest = (max(0, low - len(first)), None if high is None else high - len(first))
        item = ""
        if rest[1] != 0 and (places or rest[0]):
            try:
                item = self.rule_for(places or (Placed(True),), f"{path}[]", depth + 1, view.inside)
            except NothingFits:
                if rest[0]:
                    raise
        return self._list(first, item, *rest)

    def _list(self, first: list[str], item: str, low: int, high: int | None) -> str:
        """Return a rule for the items `first`, then from `low` to `high` times `item`."""
        if not item:
            return self._add(f'"[" {_joined(first)} "]"' if first else '"[]"')
        repeats = low if high is None else high
        upper = "" if high is None else high
        if first:
            more = f'(", " {item}){{{low},{upper}}}'
            return self._add(f'"[" {_joined(first)} {more} "]"', repeats=repeats)
        more = f"{{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
        several = f'{item} (", " {item}){more}'
        body = f'"[" {several} "]"' if low else f'"[" ({several})? "]"'
        return self._add(body, repeats=repeats)

    def _string(self, view: View, path: str) -> str:
        low = view.sizes.get("minLength", 0)
        high = view.sizes.get("maxLength")
        if high is not None:
            if high < low:
                raise NothingFits(path, "maxLength is below minLength")
            high = min(high, MAX_REPEAT)
        for pattern in (*filter(None, map(format_pattern, view.formats)), *view.patterns):
            body = self._pattern(pattern)
            if body is None:
                continue  # checked once the text is there
            return self._add(f'"\\"" {body} "\\""', repeats=min(MAX_COST, 10 * len(body)) // 10)
        char = self._basic("char")
        body = f'"\\"" {char}{{{low},{"" if high is None else high}}} "\\""'
        return self._add(body, repeats=low if high is None else high)

    def _pattern(self, pattern: str) -> str | None:
        """Return a pattern's rule, None if it has none; many schemas may refer to one pattern."""
        if pattern not in self.patterns:
            try:
                self.patterns[pattern] = pattern_to_gbnf(pattern)
            except UnboundPattern:
                self.patterns[pattern] = None
        return self.patterns[pattern]

    def _constants(self, view: View, places: tuple[Placed, ...], path: str) -> str:
        values = view.enum or []
        alone = len(places) == 1 and set(places[0].schema) <= {"enum", "const", "type", "title"}
        if not alone:
            self.comparisons += len(values) ** 2
            if self.comparisons > MAX_COMPARISONS:
                return self._fault(path, _TOO_LARGE)
            validator = Validator(self.references.whole, self.references)
            values = [v for v in values if not any(validator.fault(v, p) for p in places)]
        if not values:
            raise NothingFits(path, "no value of enum is valid: a value is not of the type, …")
        texts = (json.dumps(value, ensure_ascii=False) for value in values)
        return self._add(" | ".join(literal(text) for text in texts))

    # ---- parts

    def _basic(self, name: str) -> str:
        self.rules[name] = _RULES[name]
        return name

    def _add(self, body: str, *, repeats: int = 0) -> str:
        if body in self.names:
            self.size += len(body)  # making it took time again
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


def _joined(parts: list[str]) -> str:
    return ' ", " '.join(parts)


def _simplest_last(kind: str) -> tuple[bool, str]:
    return kind == "null", kind

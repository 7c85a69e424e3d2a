"""Random JSON schemas, with every keyword that people and Pydantic write, and some nonsense."""

from __future__ import annotations

import random
from typing import Any

PATTERNS = ["^[A-Z]{2,4}$", "^a+b*$", "[0-9]+", "^(red|green)-?[0-9]{1,3}$", "^\\d{3}-\\d{2}$",
            "^[^a-z]*$", "x|y", "^(?=a)a", "\\bcat\\b", "^$", "é"]  # fmt: skip
FORMATS = ["date", "date-time", "time", "uuid", "ipv4", "ipv6", "email", "uri", "hostname",
           "duration", "password"]  # fmt: skip
WORDS = ["a", "b", "colour", "né e", 'q"t', "a/b", "m~n", "50%"]
NONSENSE: list[tuple[str, Any]] = [
    ("unevaluatedProperties", False), ("$dynamicRef", "#x"), ("minimum", "3"), ("type", "text"),
    ("enum", []), ("items", [{"type": "null"}]), ("required", "a"), ("pattern", "("),
    ("exclusiveMinimum", True), ("maxLength", -1), ("$ref", "#/$defs/gone"), ("anyOf", []),
]  # fmt: skip


class Maker:
    """Makes schemas from one random generator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.defs: list[str] = []

    def whole(self) -> Any:
        """A schema with definitions, some of which hold themselves."""
        pick = self.random
        self.defs = pick.sample(WORDS, pick.randint(0, 3))
        made = self.schema(0)
        if self.defs and isinstance(made, dict):
            made["$defs"] = {name: self.schema(1) for name in self.defs}
        return made

    def schema(self, depth: int) -> Any:
        pick = self.random
        if depth and pick.random() < 0.03:
            return pick.random() < 0.5
        makers = [self.of_type, self.of_type, self.of_type, self.listed]
        if depth < 3:
            makers += [self.combined, self.array, self.object, self.object]
        if self.defs:
            makers.append(self.reference)
        made = pick.choice(makers)(depth)
        if pick.random() < 0.2:
            made["title"] = "T"
        if pick.random() < 0.015:
            name, value = pick.choice(NONSENSE)
            made[name] = value
        return made

    def of_type(self, depth: int) -> dict[str, Any]:
        pick = self.random
        kinds = ["string", "integer", "number", "boolean", "null"]
        chosen: Any = pick.choice(kinds) if pick.random() < 0.8 else pick.sample(kinds, 2)
        made: dict[str, Any] = {"type": chosen}
        if chosen != "boolean" and pick.random() < 0.7:
            made |= self.bounds() if "integer" in chosen or "number" in chosen else self.text()
        return made

    def bounds(self) -> dict[str, Any]:
        pick = self.random
        low = pick.choice([0, -5, 1, 17, -1000, 0.5, 99_999])
        made: dict[str, Any] = {}
        if pick.random() < 0.7:
            made[pick.choice(["minimum", "exclusiveMinimum"])] = low
        if pick.random() < 0.7:
            high = low + pick.choice([0, 1, 10, 3000, 10**9])
            made[pick.choice(["maximum", "exclusiveMaximum"])] = high
        if pick.random() < 0.15:
            made["multipleOf"] = pick.choice([2, 7, 0.5, 0.01])
        return made

    def text(self) -> dict[str, Any]:
        pick = self.random
        made: dict[str, Any] = {}
        if pick.random() < 0.4:
            made["minLength"] = pick.randint(0, 3)
        if pick.random() < 0.5:
            made["maxLength"] = pick.choice([3, 8, 2000])
        if pick.random() < 0.2:
            made["pattern"] = pick.choice(PATTERNS)
        elif pick.random() < 0.2:
            made["format"] = pick.choice(FORMATS)
        return made

    def listed(self, depth: int) -> dict[str, Any]:
        pick = self.random
        values = [1, 1.0, "a", None, True, [1, 2], {"x": []}, 'né \\ "', -3.5, 0]
        if pick.random() < 0.3:
            return {"const": pick.choice(values)}
        made: dict[str, Any] = {"enum": pick.sample(values, pick.randint(1, 4))}
        if pick.random() < 0.2:
            made["type"] = pick.choice(["string", "integer"])
        return made

    def combined(self, depth: int) -> dict[str, Any]:
        pick = self.random
        word = pick.choice(["anyOf", "anyOf", "oneOf", "allOf", "not", "if"])
        if word == "not":
            return {**self.of_type(depth), "not": self.schema(depth + 1)}
        if word == "if":
            return {**self.object(depth), "if": self.schema(depth + 1),
                    "then": self.schema(depth + 1)}  # fmt: skip
        made = {word: [self.schema(depth + 1) for _ in range(pick.randint(1, 3))]}
        return {**made, **self.of_type(depth)} if pick.random() < 0.2 else made

    def array(self, depth: int) -> dict[str, Any]:
        pick = self.random
        made: dict[str, Any] = {"type": "array", "items": self.schema(depth + 1)}
        if pick.random() < 0.5:
            made["minItems"] = pick.randint(0, 2)
        if pick.random() < 0.8:
            made["maxItems"] = pick.randint(2, 4)
        if pick.random() < 0.2:
            made["prefixItems"] = [self.schema(depth + 1) for _ in range(pick.randint(1, 2))]
        if pick.random() < 0.1:
            made["contains"] = self.schema(depth + 1)
        if pick.random() < 0.1:
            made["uniqueItems"] = True
        return made

    def object(self, depth: int) -> dict[str, Any]:
        pick = self.random
        names = pick.sample(WORDS, pick.randint(0, 3))
        made: dict[str, Any] = {"type": "object"}
        made["properties"] = {name: self.schema(depth + 1) for name in names}
        if names and pick.random() < 0.7:
            made["required"] = pick.sample(names, pick.randint(1, len(names)))
        if pick.random() < 0.4:
            made["additionalProperties"] = pick.choice([True, False, False, self.of_type(depth)])
        for word, value, chance in (
            ("minProperties", 1, 0.1), ("maxProperties", 2, 0.1),
            ("patternProperties", {"^a": self.of_type(depth)}, 0.1),
            ("propertyNames", {"maxLength": 6}, 0.1),
            ("dependentRequired", {"a": ["b"]}, 0.05),
        ):  # fmt: skip
            if pick.random() < chance:
                made[word] = value
        return made

    def reference(self, depth: int) -> dict[str, Any]:
        name = self.random.choice(self.defs)
        part = name.replace("~", "~0").replace("/", "~1").replace("%", "%25").replace(" ", "%20")
        return {"$ref": f"#/$defs/{part}"}

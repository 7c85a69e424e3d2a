"""JSON schemas as Pydantic and people write them, and random ones; `jsonschema` is the oracle."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import EdgePrismError, UsageError
from edgeprism.language.model import LanguageModel
from edgeprism.language.sampler import Sampler
from edgeprism.reason.json_schema import schema_to_shape
from edgeprism.reason.local import Reasoner
from tests.helpers import bundles
from tests.helpers.random_schemas import Maker

jsonschema = pytest.importorskip("jsonschema", reason="the oracle; it comes with the extra dev")

# What `model_json_schema()` of Pydantic 2 gives for models with these fields.
PYDANTIC: dict[str, dict[str, Any]] = {
    "a photograph": {
        "$defs": {
            "Colour": {"enum": ["red", "green"], "title": "Colour", "type": "string"},
            "Size": {
                "properties": {"width": {"exclusiveMinimum": 0, "title": "Width",
                                         "type": "integer"},
                               "height": {"minimum": 1, "type": "integer"}},
                "required": ["width", "height"], "title": "Size", "type": "object",
            },
        },
        "additionalProperties": False,
        "properties": {
            "taken": {"format": "date", "title": "Taken", "type": "string"},
            "at": {"format": "date-time", "title": "At", "type": "string"},
            "code": {"pattern": "^[A-Z]{2}-[0-9]{1,3}$", "title": "Code", "type": "string"},
            "note": {"anyOf": [{"maxLength": 2000, "type": "string"}, {"type": "null"}],
                     "default": None, "title": "Note"},
            "colour": {"allOf": [{"$ref": "#/$defs/Colour"}], "default": "red",
                       "description": "The main colour.", "examples": ["green"]},
            "size": {"$ref": "#/$defs/Size", "description": "In pixels."},
            "share": {"maximum": 1.0, "minimum": 0.0, "title": "Share", "type": "number"},
            "price": {"exclusiveMinimum": 0, "title": "Price", "type": "number"},
            "tags": {"items": {"minLength": 1, "type": "string", "maxLength": 9},
                     "maxItems": 3, "type": "array", "uniqueItems": False},
            "corner": {"maxItems": 2, "minItems": 2, "title": "Corner", "type": "array",
                       "prefixItems": [{"type": "integer"}, {"type": "number"}]},
            "kind": {"const": "photo", "title": "Kind", "type": "string"},
            "id": {"format": "uuid", "type": "string"},
            "mail": {"format": "email", "type": "string"},
            "counts": {"additionalProperties": {"minimum": 0, "type": "integer"},
                       "maxProperties": 2, "title": "Counts", "type": "object"},
        },
        "required": ["taken", "at", "code", "size", "share", "price", "kind", "id"],
        "title": "Photograph",
        "type": "object",
    },
    "a tree": {
        "$defs": {"Node": {
            "properties": {
                "name": {"enum": ["a", "b"], "type": "string"},
                "children": {"default": [], "items": {"$ref": "#/$defs/Node"}, "maxItems": 2,
                             "title": "Children", "type": "array"},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}], "default": None},
            },
            "required": ["name"], "title": "Node", "type": "object",
        }},
        "$ref": "#/$defs/Node",
    },
    "a union": {
        "$defs": {
            "Cat": {"properties": {"kind": {"const": "cat", "type": "string"},
                                   "lives": {"maximum": 9, "minimum": 1, "type": "integer"}},
                    "required": ["kind", "lives"], "type": "object"},
            "Dog": {"properties": {"kind": {"const": "dog", "type": "string"},
                                   "good": {"type": "boolean"}},
                    "required": ["kind", "good"], "type": "object"},
        },
        "discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"},
                          "propertyName": "kind"},
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
    },
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "types with bounds": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "integers without an end": {"type": "integer", "minimum": -3},
    "wide bounds": {"type": "integer", "minimum": -123456, "maximum": 987654321},
    "a strict range": {"type": "number", "exclusiveMinimum": 0.25, "exclusiveMaximum": 0.5},
    "even": {"type": "integer", "multipleOf": 2, "minimum": 1, "maximum": 10**9},
    "all of both": {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 3}]},
    "siblings": {"type": "object", "properties": {"a": {"type": "integer"}},
                 "anyOf": [{"required": ["a"]}], "additionalProperties": False},
    "escaped names": {"$ref": "#/$defs/a~1b%20c~0d",
                      "$defs": {"a/b c~d": {"const": 1}, "a/b%20c~d": {"const": 2}}},
    "a percent": {"$ref": "#/$defs/a%2520b",
                  "$defs": {"a b": {"const": 1}, "a%20b": {"const": 2}}},
    "a resource of its own": {
        "$id": "https://example.org/whole", "type": "object", "required": ["inner"],
        "properties": {"inner": {"$id": "inner", "$ref": "#/$defs/x",
                                 "$defs": {"x": {"type": "boolean"}}}},
        "$defs": {"x": {"type": "null"}}},
    "by address": {
        "type": "array", "items": {"$ref": "other#/$defs/x"}, "minItems": 1, "maxItems": 2,
        "$defs": {"o": {"$id": "other", "$defs": {"x": {"enum": [7]}}}}},
    "by anchor": {"$ref": "#here", "$defs": {"a": {"$anchor": "here", "const": "h"}}},
    "itself": {"type": "object", "required": ["n"],
               "properties": {"n": {"enum": [1, 2]}, "more": {"$ref": "#"}}},
    "a pattern that is not bound": {"type": "string", "pattern": "^(?=.)", "maxLength": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def babblers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Reasoner]]:
    """Reasoners with random weights: all that makes sense of their words is the grammar."""
    folder = tmp_path_factory.mktemp("babblers")
    made = [
        Reasoner.load(bundles.write_lm(folder / f"{seed}.gguf", seed=seed), threads=1)
        for seed in range(3)
    ]
    yield made
    for reasoner in made:
        reasoner.close()


def validate(text: str, schema: Any) -> None:
    """Raise if a text is not valid, to those who check formats and to those who do not."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for options in ({}, {"format_checker": checker}):
        jsonschema.Draft202012Validator(schema, **options).validate(json.loads(text))


@pytest.mark.parametrize("name", [*PYDANTIC, *OTHERS])
def test_answers_validate(babblers: list[Reasoner], name: str) -> None:
    schema = {**PYDANTIC, **OTHERS}[name]
    for reasoner in babblers[:1] if name == "a photograph" else babblers:
        answer = reasoner.answer([], "What?", shape=schema_to_shape(schema), answer_tokens=500)
        if answer.finish_reason == "stop":
            validate(answer.text, schema)
        assert answer.finish_reason == "stop" or name == "a photograph"


def drawn(shape_gbnf: str, lm: LanguageModel, seed: int, most: int = 1500) -> str | None:
    """Return a text that llama.cpp draws at random from a grammar; None if it has no end."""
    context = lm.context(64)
    context.prefill_tokens(0, [1], 0)
    sampler = Sampler(9.0, 1.0, seed, grammar=shape_gbnf, vocabulary=lm.vocabulary)
    data = b""
    for _ in range(most):
        token = sampler.sample(context)  # always the same logits: the grammar alone decides
        if lm.vocabulary.is_end(token):
            break
        data += lm.vocabulary.token_to_bytes(token)
    else:
        data = b""
    sampler.close()
    context.close()
    return data.decode("utf-8", "replace") or None


@pytest.mark.parametrize("name", [*PYDANTIC, *OTHERS])
def test_the_grammar_alone_keeps_to_the_schema(name: str, random_lm: LanguageModel) -> None:
    """What the grammar binds needs no second try."""
    schema = {**PYDANTIC, **OTHERS}[name]
    shape = schema_to_shape(schema)
    texts = [drawn(shape.gbnf, random_lm, seed) for seed in range(5)]
    ended = [text for text in texts if text is not None]
    for text in ended:
        validate(text, schema)
    assert ended or name == "a photograph"


@pytest.mark.parametrize("format_name", ["date", "time", "date-time", "duration", "uuid", "ipv4",
                                         "ipv6", "email", "uri", "hostname"])  # fmt: skip
def test_formats_are_bound(format_name: str, random_lm: LanguageModel) -> None:
    schema = {"type": "string", "format": format_name}
    shape = schema_to_shape(schema)
    for seed in range(4):
        text = drawn(shape.gbnf, random_lm, seed)
        assert text is not None
        assert shape.accepts(text), text
        validate(text, schema)
    wrong = ["", "x y", "2024-02-30", "24:00:61", "1.2.3.256", "a@", "P", "::g", "-a-", "2024-1-1"]
    if format_name == "hostname":
        wrong = ["", "x y", "24:00:61", "a@", "-a-", "a..b", "a" * 64]
    assert [text for text in wrong if shape.accepts(json.dumps(text))] == []


@pytest.mark.parametrize("bounds", [
    {"minimum": 7}, {"maximum": -7}, {"minimum": 95, "maximum": 1234},
    {"minimum": -1050, "maximum": 999}, {"exclusiveMinimum": 0, "exclusiveMaximum": 2},
    {"minimum": 0, "maximum": 10**9, "multipleOf": 1000}, {"minimum": 1999, "maximum": 20_001},
])  # fmt: skip
@pytest.mark.parametrize("kind", ["integer", "number"])
def test_bounds_are_bound(kind: str, bounds: dict[str, Any], random_lm: LanguageModel) -> None:
    schema = {"type": kind, **bounds}
    shape = schema_to_shape(schema)
    for seed in range(6):
        text = drawn(shape.gbnf, random_lm, seed)
        assert text is not None
        validate(text, schema)


def test_every_integer_of_a_range_can_be_written() -> None:
    """The digits of a range are exactly its integers: tried on ranges around each carry."""
    from edgeprism.reason.schema_numbers import _digits

    edges = [0, 1, 9, 10, 11, 99, 100, 101, 109, 110, 989, 1000, 1099, 2345, 9999]
    for low, high in itertools.combinations_with_replacement(edges, 2):
        body = re.sub(r'"(\d+)"', r"\1", _digits(low, high)).replace(" ", "")
        pattern = re.compile(body)
        written = [n for n in range(11_000) if pattern.fullmatch(str(n))]
        assert written == list(range(low, high + 1)), (low, high)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^[A-Z]{2}$", ["AB"], ["A", "ABC", "ab"]),
        ("[0-9]", ["7", "a7b"], ["", "ab"]),
        ("^(a|bc)*$", ["", "abca"], ["b", "c"]),
        ("^\\d{3}-\\w+$", ["123-a_1"], ["12-a"]),
        ("^[^a-z\"\\\\]+$", ["AB1"], ["a", '"', "\\"]),
        ('^"\\\\$', ['"\\'], ['"']),
        ("^(?:x|y){2,3}z?$", ["xy", "xyxz"], ["x", "z"]),
        ("^[a-z]+(-[a-z]+)*$", ["a-slug", "slug"], ["-a", "a-"]),
        ("^([0-9a-f]{2})*$", ["", "0aff"], ["0", "xy"]),
        ("^a$|^b", ["a", "bx"], ["ax", "c"]),
        ("^.{1,3}$", ["é!x"], ["", "abcd"]),
        ("^(?!no)", ["yes"], ["no"]),
    ],
)  # fmt: skip
def test_patterns(pattern: str, good: list[str], bad: list[str], random_lm: LanguageModel) -> None:
    schema = {"type": "string", "pattern": pattern}
    shape = schema_to_shape(schema)
    assert [text for text in good if not shape.accepts(json.dumps(text))] == []
    assert [text for text in bad if shape.accepts(json.dumps(text))] == []
    if not pattern.startswith("^(?!"):
        for seed in range(4):
            text = drawn(shape.gbnf, random_lm, seed, 3000)
            assert text is not None
            validate(text, schema)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a*)*", "(a|a)*$", "(a|ab)*c", "((ab)+)+$",
                                     "(\\w+\\s?)*$", "(?=x)(a+)+$"])  # fmt: skip
def test_patterns_that_may_take_forever_are_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="may take forever"):
        schema_to_shape({"type": "string", "pattern": pattern})


@pytest.mark.parametrize("pattern", ["[0-9]+%", ".*.*.*=.*", "^[a-z]*[a-z]*[a-z]*[a-z]*$"])
def test_a_text_that_would_be_searched_for_minutes_is_not_valid(pattern: str) -> None:
    """Also where the search stands inside "not", which would turn its answer around."""
    text = json.dumps("1" * 300_000 if "0" in pattern else "a" * 5_000)
    assert not schema_to_shape({"type": "string", "pattern": pattern}).accepts(text)
    turned = {"type": "string", "not": {"pattern": pattern}}
    assert not schema_to_shape(turned).accepts(text)


# ---- what a grammar cannot bind


def test_an_answer_that_is_not_valid_is_asked_for_again(scripted_gguf: Path) -> None:
    """The grammar cannot say "not", so the text is checked, and told if it stays as it is."""
    asked: list[list[str]] = []

    class Stubborn(Reasoner):
        answers = iter(('"a"', '"a"', '"b"'))

        def complete(self, messages: Any, *, max_tokens: int, shape: Any = None) -> Any:
            import dataclasses

            asked.append([message.content for message in messages])
            reply = super().complete(messages, max_tokens=1)
            return dataclasses.replace(reply, text=next(self.answers), finish_reason="stop")

    shape = schema_to_shape({"enum": ["a", "b"], "not": {"const": "a"}})
    reasoner = Stubborn(scripted_gguf, "stubborn", threads=1)
    assert reasoner.answer([], "Which?", shape=shape).text == '"b"'
    assert len(asked) == 3
    assert "not valid" in asked[1][-1]
    reasoner.answers = iter(['"a"'] * 3)
    with pytest.raises(EdgePrismError, match=r"not valid .*\$.*\(3 tries\)") as caught:
        reasoner.answer([], "Which?", shape=shape)
    assert caught.value.exit_code == 1
    reasoner.close()


def test_a_pydantic_schema_on_the_command_line(
    scripted_bundle: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(PYDANTIC["a union"]))
    command = ["ask", str(photo), "What is there?", "--captioner", str(scripted_bundle),
               "--reasoner", str(scripted_bundle / "lm.gguf"), "--instruction-mode", "generic",
               "--schema", str(path)]  # fmt: skip
    assert run(command) == 0
    validate(capsys.readouterr().out, PYDANTIC["a union"])


# ---- random schemas


def outcome(schema: Any, reasoner: Reasoner) -> tuple[str, str]:
    """Return ("refused" | "told" | "cut off" | "answered", the words)."""
    try:
        shape = schema_to_shape(schema, "it")
    except UsageError as refused:
        return "refused", refused.message
    try:
        answer = reasoner.answer([], "What?", shape=shape, answer_tokens=200)
    except EdgePrismError as told:
        return "told", told.message
    return "answered" if answer.finish_reason == "stop" else "cut off", answer.text


def test_200_random_schemas(babblers: list[Reasoner]) -> None:
    """What is accepted validates, or is an error that says so; what is refused is named."""
    counts = dict.fromkeys(("refused", "told", "cut off", "answered"), 0)
    for seed in range(200):
        schema = Maker(seed).whole()
        what, words = outcome(schema, babblers[seed % 3])
        counts[what] += 1
        if what == "refused":
            faults = words.splitlines()[1:]
            assert faults, words
            assert all(re.match(r"  \$.*: .", fault) for fault in faults), words
        elif what == "told":
            assert "not valid against the schema" in words
        elif what == "cut off":
            assert words == ""
        else:
            jsonschema.Draft202012Validator.check_schema(schema)
            validate(words, schema)
    assert counts["answered"] > 120, counts
    assert counts["told"] < 20, counts


def test_the_check_is_that_of_an_independent_validator() -> None:
    """Random values against random schemas: both say valid, or both say invalid."""
    draw = random.Random(5)
    values: list[Any] = [
        0,
        1,
        1.0,
        2.5,
        -7,
        17,
        18.0,
        99_999,
        True,
        False,
        None,
        "",
        "a",
        "AB",
        "b",
        "né e",
        "2024-05-06",
        [],
        [1],
        [1, 1.0],
        [True, 1],
        ["a", "b", "c"],
        {},
        {"a": 1},
        {"a": "a", "b": 1},
        {"colour": None, "a/b": [1, 2]},
        {"x": []},
        [1, 2],
        'né \\ "',
        [[]],
        {"a": {}, "m~n": "", "50%": 0},
    ]
    compared = invalid = 0
    for seed in range(600):
        schema = Maker(seed).whole()
        try:
            shape = schema_to_shape(schema)
        except UsageError:
            continue
        checker = jsonschema.FormatChecker(formats=())
        oracle = jsonschema.Draft202012Validator(schema, format_checker=checker)
        has_format = '"format"' in json.dumps(schema)
        for value in draw.sample(values, 12):
            text = json.dumps(value)
            if has_format and not shape.accepts(text):
                continue  # a format is a demand here, for the oracle it is a remark
            assert shape.accepts(text) == oracle.is_valid(value), (schema, value)
            compared += 1
            invalid += not oracle.is_valid(value)
    assert compared > 3000
    assert 500 < invalid < compared - 300


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", "2024-02-29", "2023-02-29"),
        ("date-time", "2024-01-01T00:00:00.5+02:00", "2024-01-01"),
        ("duration", "P1DT2H", "P"),
        ("ipvanyaddress", "::1", "1.2.3"),
        ("ipv4network", "10.0.0.0/8", "10.0.0.0/99"),
        ("json-string", "null", "{"),
        ("name-email", "A B <a@b.org>", "A B"),
        ("json-pointer", "/a/~0", "a"),
        ("uri-reference", "/x?y", "a b"),
        ("base64", "QUJD", "*"),
        ("regex", "a+", "("),
        ("password", "anything", None),
    ],
)
def test_formats_that_are_checked(name: str, good: str, bad: str | None) -> None:
    shape = schema_to_shape({"type": "string", "format": name})
    assert shape.accepts(json.dumps(good))
    assert bad is None or not shape.accepts(json.dumps(bad))


def test_schemas_that_cost_much_are_refused_before_they_are_compiled() -> None:
    """Each of these would take from seconds to minutes, or hold up the sampler."""
    start = time.perf_counter()
    values = [f"v{i}" for i in range(900)]
    references = {f"p{i}": {"$ref": "#/$defs/e"} for i in range(900)}
    for schema, fault in (
        ({"type": "string", "pattern": "a" * 2001}, "at most 2,000"),
        ({"patternProperties": {"(a|b)?" * 9000: {}}}, "at most 2,000|more than 65,536"),
        ({"const": 10**100_000}, "more than 65,536 characters"),
        ({"enum": ["x" * 70] * 1000}, "more than 65,536 characters"),
        ({"$defs": {"e": {"enum": values}}, "type": "object", "properties": references},
         "too large"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=fault):
            schema_to_shape(schema)
    assert time.perf_counter() - start < 10


def test_alternatives_of_a_pattern_share_what_stands_around_them() -> None:
    pattern = "|".join(f"a{i}b" for i in range(100))
    shape = schema_to_shape({"type": "string", "pattern": pattern})
    assert shape.gbnf.count("{0,60}") == 2
    # where llama.cpp would have to follow very many ways at once, the finished text is checked
    optional = schema_to_shape({"type": "string", "pattern": "^" + "(a|b)?" * 300 + "$"})
    assert optional.accepts('"ab"')
    assert not optional.accepts('"c"')
    assert len(optional.gbnf) < 500

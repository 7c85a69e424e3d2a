"""Answers in a given shape: choices, JSON schemas; what is refused before llama.cpp sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import ModelError, UsageError
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling
from edgeprism.language.sampler import Sampler
from edgeprism.reason.json_schema import schema_to_shape, text_to_shape
from edgeprism.reason.local import Reasoner
from edgeprism.reason.shape import choices_to_shape, literal, numbers_to_shape, object_shape
from tests.helpers import bundles
from tests.helpers.children import in_child

SEEDS = range(4)
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"colour": {"enum": ["red", "blue", None, 3, True]},
     "count": {"type": "integer", "minimum": -2, "maximum": 12}}, "required": ["count"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": ["string", "null"], "maxLength": 3, "title": "a note"},
    {"type": "object", "properties": {"a \"b\"\n": {"$ref": "#/$defs/x"},
     "é": {"$ref": "#/$defs/x"}}, "additionalProperties": False,
     "$defs": {"x": {"const": "f\\\"\n"}}},
    {"anyOf": [{"type": "object", "properties": {}}, {"type": "array", "items": {"type": "null"},
     "maxItems": 0}, {"type": "number"}]},
    {"oneOf": [{"type": "integer"}, {"type": "null"}]},
    {"type": "array", "items": {"type": "array", "items": {"enum": [[1, {"x": 2.5}]]},
     "minItems": 1, "maxItems": 2}, "minItems": 1, "maxItems": 1},
]  # fmt: skip


@pytest.fixture(scope="module", params=SEEDS)
def babbler(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Reasoners with random weights, which write no JSON without a grammar."""
    path = tmp_path_factory.mktemp("babbler") / "lm.gguf"
    reasoner = Reasoner.load(bundles.write_lm(path, seed=request.param), threads=1)
    yield reasoner
    reasoner.close()


# ---- choices


def test_one_of_the_choices(babbler: Reasoner) -> None:
    choices = ["red", "dark blue", 'a "quoted" \\ one', "größer", "A"]
    shape = choices_to_shape(choices)
    assert babbler.answer([], "Which?", answer_tokens=3).text not in choices
    answer = babbler.answer([], "Which?", shape=shape)
    assert answer.text in choices
    assert answer.finish_reason == "stop"


def test_a_choice_that_does_not_fit_is_no_answer(babbler: Reasoner) -> None:
    shape = choices_to_shape(["x" * 40, "y" * 40])
    answer = babbler.answer([], "Which?", shape=shape, answer_tokens=6)
    assert (answer.text, answer.finish_reason) == ("", "length")


@pytest.mark.parametrize(
    "choices", [["a"], [], ["a", "a "], ["a", ""], ["a", "b\nc"], ["a", "\x00"], ["a", "b" * 201],
                ["a", "\ud800"], [str(i) for i in range(501)]],
)  # fmt: skip
def test_choices_that_cannot_be_chosen_from(choices: list[str]) -> None:
    with pytest.raises(UsageError):
        choices_to_shape(choices)


def test_the_likeliest_choice_wins(scripted_gguf: Path) -> None:
    """The grammar excludes forbidden tokens and no others."""
    reasoner = Reasoner.load(scripted_gguf, threads=1)
    free = reasoner.answer([], "What?", answer_tokens=2).text
    shape = choices_to_shape(["the dog", f" {free} ".strip(), "Zebra"])
    # SentencePiece words begin with a blank; without it the same words are other tokens.
    assert shape.accepts(reasoner.answer([], "What?", shape=shape).text)
    reasoner.close()


def test_sampling_at_a_temperature_keeps_to_the_grammar(scripted_lm: LanguageModel) -> None:
    context = scripted_lm.context(256)
    drawn = set()
    for seed in range(30):
        sampler = Sampler(
            5.0,
            1.0,
            seed,
            grammar=choices_to_shape(["a", "b"]).gbnf,
            vocabulary=scripted_lm.vocabulary,
        )
        context.clear()
        context.prefill_tokens(0, scripted_lm.vocabulary.tokenize("x"), 0)
        drawn.add(scripted_lm.vocabulary.token_to_bytes(sampler.sample(context)))
        sampler.close()
    assert drawn == {b"a", b"b"}
    context.close()


def test_any_object_is_any_json_object(random_lm: LanguageModel) -> None:
    generator = Generator(random_lm)
    prompt = (random_lm.vocabulary.tokenize("x"),)
    found = []
    for seed in range(40):
        sampling = Sampling(temperature=9.0, seed=seed, max_tokens=120, grammar=object_shape().gbnf)
        (*_, done) = generator.run([Request(prompt, sampling)])
        assert isinstance(done, Finished)
        if done.finish_reason == "stop":
            assert object_shape().accepts(done.text)
            found.append(json.loads(done.text))
    generator.close()
    assert all(isinstance(value, dict) for value in found)
    kinds = {type(inner) for value in found for inner in value.values()}
    assert len(kinds) > 1
    for text in ("", "3", "[]", '{"a": 1', "{" + '"a": {' * 100_000):
        assert not object_shape().accepts(text)


# ---- schemas


@pytest.mark.parametrize("schema", SCHEMAS)
def test_answers_validate(babbler: Reasoner, schema: dict[str, Any]) -> None:
    answer = babbler.answer([], "What?", shape=schema_to_shape(schema), answer_tokens=300)
    assert answer.finish_reason == "stop"
    assert is_valid(json.loads(answer.text), schema, schema)


def is_valid(value: Any, schema: Any, whole: Any) -> bool:
    """A second implementation of JSON Schema's rules for the keywords above."""
    if "$ref" in schema:
        return is_valid(value, whole["$defs"][schema["$ref"].split("/")[-1]], whole)
    ways = schema.get("anyOf") or schema.get("oneOf")
    if ways:
        hits = sum(is_valid(value, way, whole) for way in ways)
        return hits >= 1 if "anyOf" in schema else hits == 1
    if "enum" in schema or "const" in schema:
        constants = schema.get("enum", [schema.get("const")])
        return any(type(value) is type(w) and value == w for w in constants)
    kinds: dict[str, type | tuple[type, ...]] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
        "boolean": bool, "null": type(None),
    }  # fmt: skip
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    name = next((n for n in names if isinstance(value, kinds[n])), None)
    if name is None or (isinstance(value, bool) and name != "boolean"):
        return False
    if name in ("string", "array"):
        size = "Length" if name == "string" else "Items"
        if not schema.get(f"min{size}", 0) <= len(value) <= schema.get(f"max{size}", 10**9):
            return False
    if name == "array":
        return all(is_valid(v, schema["items"], whole) for v in value)
    if name == "object":
        if any(k not in value for k in schema.get("required", [])):
            return False
        return all(is_valid(v, schema["properties"][k], whole) for k, v in value.items())
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        if name == "integer"
        else True
    )


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (SCHEMAS[0], ['{"count": 12}', '{"colour": null, "count": 0}'],
         ['{"count": 13}', '{"count": true}', '{"colour": 1, "count": 0}', "{}", "[]", "x"]),
        (SCHEMAS[2], ['"ab"', '"\U0001f600\U0001f600"'], ['"a"', '"abcdef"', "null", '"ab']),
        (SCHEMAS[6], ["1", "null"], ["1.5", "true", '"x"']),
        ({"type": "object", "properties": {}, "additionalProperties": False}, ["{}"], ['{"a": 1}']),
        ({"type": "number"}, ["-1.5", "2"], ["NaN", "Infinity", "true", "[" * 10_000]),
    ],
)  # fmt: skip
def test_what_fits(schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    shape = schema_to_shape(schema)
    assert [text for text in good if not shape.accepts(text)] == []
    assert [text for text in bad if shape.accepts(text)] == []


BAD_SCHEMAS: list[tuple[Any, str]] = [
    (True, "is not an object"),
    ({}, "says nothing of the value"),
    ({"type": "text"}, "type 'text'"),
    ({"type": {}}, "type {}"),
    ({"type": []}, "must list schemas"),
    ({"type": "string", "pattern": "(a+)+$"}, "$: pattern '(a+)+$' may take forever"),
    ({"type": "string", "pattern": "(a"}, "$: pattern '(a' is no regular expression"),
    ({"type": "object", "properties": {"a": {"type": "string", "format": "dote"}}},
     "$.a: format 'dote' is not known"),
    ({"type": "object", "properties": []}, "$.properties"),
    ({"type": "object", "properties": {"a\ud800": {"type": "null"}}}, "cannot be printed"),
    ({"type": "object", "required": ["a"]}, "$.required"),
    ({"type": "object", "required": [[]]}, "$.required"),
    ({"type": "object", "properties": {"1": {"type": "null"}}, "required": [1]}, "$.required"),
    ({"type": "object", "additionalProperties": 3}, "additionalProperties"),
    ({"type": "array"}, "needs items"),
    ({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2}, "below minItems"),
    ({"type": "array", "items": {"type": "null"}, "maxItems": 10**9}, "from 0 to 1000"),
    ({"type": "string", "minLength": -1}, "from 0 to 1000"),
    ({"type": "string", "maxLength": 2.5}, "from 0 to 1000"),
    ({"type": "integer", "minimum": "3"}, "minimum must be a number"),
    ({"type": "integer", "minimum": 0.2, "maximum": 0.8}, "must span"),
    ({"type": "integer", "minimum": 2, "maximum": 1}, "must span"),
    ({"enum": []}, "enum must list"),
    ({"enum": "abc"}, "enum must list"),
    ({"enum": ["\u202e"]}, "cannot be printed"),
    ({"enum": [1], "type": "string"}, "not of the type"),
    ({"enum": [float("inf")]}, "cannot be printed"),
    ({"enum": [[float("inf"), "a"]]}, "cannot be printed"),
    ({"const": 1, "enum": [1]}, "exclude each other"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "must differ in type"),
    ({"anyOf": []}, "must list schemas"),
    ({"anyOf": [{"type": "null"}], "type": "string"}, "exclude each other"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "holds itself"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"},
     "minItems": 1}}}, "holds itself"),
    ({"$ref": "http://example.org/x"}, "leads nowhere"),
    ({"$ref": "#/$defs/none"}, "leads nowhere"),
    ({"$ref": 3}, "leads nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "why"), BAD_SCHEMAS)
def test_schemas_that_are_refused(schema: Any, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        schema_to_shape(schema, "x.json")
    assert "x.json" in caught.value.message
    assert why in caught.value.message


def test_all_faults_at_once() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "x"}, "b": {"type": "y"}}}
    with pytest.raises(UsageError, match=r"(?s)\$\.a.*\$\.b"):
        schema_to_shape(schema)


def test_hostile_schemas_end_orderly() -> None:
    deep: Any = {"type": "null"}
    for _ in range(40):
        deep = {"type": "array", "items": deep}
    wide: dict[str, Any] = {
        "type": "object", "properties": {f"p{i}": {"enum": [i]} for i in range(1000)}
    }  # fmt: skip
    wide["properties"] |= {"more": {"type": "array", "items": dict(wide)}}
    doubling: dict[str, Any] = {"d0": {"type": "null"}}
    for i in range(13):
        half = {"$ref": f"#/$defs/d{i}"}
        doubling[f"d{i + 1}"] = {"type": "object", "properties": {"a": half, "b": half}}
    bomb = {"$ref": "#/$defs/d13", "$defs": doubling}
    long = {"enum": ["x" * 2_000_000]}
    for schema in (deep, wide, bomb, {"type": "array", "items": long}):
        with pytest.raises(UsageError, match=r"too large or too deep|of up to|holds more than"):
            schema_to_shape(schema)
    with pytest.raises(UsageError, match="not JSON"):
        text_to_shape("[" * 100_000, "x")
    with pytest.raises(UsageError, match="not JSON"):
        text_to_shape('{"enum": [NaN]}', "x")


LIMITS = {
    "long string": {"type": "string", "minLength": 999, "maxLength": 1000},
    "long array": {"type": "array", "items": {"type": "string", "maxLength": 1000},
                   "minItems": 1000, "maxItems": 1000},
    "wide object": {"type": "object",
                    "properties": {f"p{i}": {"type": "null"} for i in range(900)}},
    "many values": {"enum": [f"value {i} é" for i in range(1000)]},
    "many strings": {"type": "object", "properties": {
        f"p{i}": {"type": "string", "maxLength": 900 + i} for i in range(80)}},
    "span": {"type": "integer", "minimum": -500, "maximum": 500},
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_the_largest_schemas_are_read_by_llama(name: str, scripted_lm: LanguageModel) -> None:
    shape = schema_to_shape(LIMITS[name])

    def make() -> None:
        Sampler(grammar=shape.gbnf, vocabulary=scripted_lm.vocabulary).close()

    assert in_child(make).error == ""


def test_a_vocabulary_that_cannot_say_it(tmp_path: Path) -> None:
    """Such a dead end would kill the process: llama.cpp's `accept` throws through ctypes."""
    parts = bundles.lm_parts(0)
    kinds = list(parts.metadata["tokenizer.ggml.token_type"][1])
    for i in range(3, 259):
        kinds[i] = 5  # unused: the vocabulary has no bytes to spell characters with
    parts.metadata["tokenizer.ggml.token_type"] = ("array", kinds)
    path = parts.write(tmp_path / "lm.gguf")

    def ask() -> str:
        reasoner = Reasoner.load(path, threads=1)
        return reasoner.answer([], "a", shape=choices_to_shape(["€", "£"])).text

    outcome = in_child(ask)
    assert outcome.error == "ModelError", outcome
    assert "no token" in outcome.text


def make_sampler(grammar: str, lm: LanguageModel) -> None:
    Sampler(grammar=grammar, vocabulary=lm.vocabulary).close()


def test_a_broken_grammar_is_refused(scripted_lm: LanguageModel) -> None:
    """EdgePrism writes no broken grammar; if it did, the process would survive."""
    for gbnf in ("root ::= (", "root ::= x", 'root ::= root "a" | "b"', " ", "\x00"):
        outcome = in_child(partial(make_sampler, gbnf, scripted_lm))
        assert outcome.error == "ModelError", (gbnf, outcome)


def test_a_number_that_was_cut_off_is_no_answer(babbler: Reasoner) -> None:
    """The beginning of a number is a number too."""
    answer = babbler.answer([], "?", shape=schema_to_shape({"type": "integer"}), answer_tokens=1)
    assert (answer.text, answer.finish_reason) == ("", "length")


class Rambling(Reasoner):
    """Ignores the grammar, as a server may."""

    def complete(self, messages: Any, *, max_tokens: int, shape: Any = None) -> Any:
        return super().complete(messages, max_tokens=max_tokens)


def test_a_reasoner_that_heeds_no_grammar_is_found_out(scripted_gguf: Path) -> None:
    reasoner = Rambling(scripted_gguf, "rambling", threads=1)
    with pytest.raises(ModelError, match=r"rambling.*shape"):
        reasoner.answer([], "Which?", shape=choices_to_shape(["yes", "no"]))
    reasoner.close()


def test_literals() -> None:
    assert literal('a"b\\\n\x01é') == '"a\\"b\\\\\\n\\x01é"'


def test_numbers_in_range(babbler: Reasoner) -> None:
    shape = numbers_to_shape(12)
    text = babbler.answer([], "Which?", shape=shape).text
    assert text == "none" or {int(n) for n in text.split(", ")} <= set(range(1, 13))
    assert [t for t in ("0", "13", "1, 13", "", "one", "1,2") if shape.accepts(t)] == []


# ---- the command line


@pytest.fixture
def ask(scripted_bundle: Path, photo: Path) -> list[str]:
    return ["ask", str(photo), "What is there?", "--captioner", str(scripted_bundle), "--reasoner",
            str(scripted_bundle / "lm.gguf"), "--instruction-mode", "generic"]  # fmt: skip


def test_choices_on_the_command_line(ask: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*ask, "--choices", "yes, no"]) == 0
    assert capfd.readouterr().out in ("yes\n", "no\n")


def test_a_schema_on_the_command_line(
    ask: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "schéma.json"
    path.write_text(json.dumps(SCHEMAS[0]), encoding="utf-8")
    assert run([*ask, "--schema", str(path)]) == 0
    assert is_valid(json.loads(capfd.readouterr().out), SCHEMAS[0], SCHEMAS[0])
    assert run([*ask, "--schema", str(path), "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert is_valid(json.loads(record["answer"]), SCHEMAS[0], SCHEMAS[0])


def test_nothing_half_made_is_printed(
    ask: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(SCHEMAS[0]), encoding="utf-8")
    assert run([*ask, "--schema", str(path), "--answer-tokens", "3"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "--answer-tokens" in err
    assert run([*ask, "--schema", str(path), "--answer-tokens", "3", "--json"]) == 1
    record = json.loads(capfd.readouterr().out)
    assert (record["answer"], record["finish_reason"]) == ("", "length")


@pytest.mark.parametrize(
    "options",
    [["--choices", "a"], ["--choices", "a,b", "--schema", "x"], ["--schema", "gone.json"]],
)
def test_bad_shapes_on_the_command_line(
    ask: list[str], options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*ask, *options]) == 2
    assert capfd.readouterr().out == ""

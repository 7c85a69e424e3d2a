"""The examples that teach a reasoner to read: the runtime's prompts, and nothing of nano's."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import pytest

from edgeprism.models.nano.recipe.world.grammar import WORDINGS
from edgeprism.models.reader.recipe.world.examples import FOCUS_TASK, Example, sample_group
from edgeprism.models.reader.recipe.world.nanos import (
    find_names,
    is_nanos_question,
    is_nanos_sentence,
)
from edgeprism.models.reader.recipe.world.shape import fits_focus
from edgeprism.models.reader.recipe.world.text import UNKNOWN
from edgeprism.models.reader.recipe.world.words import NUMBERS
from edgeprism.reason.evidence import caption_to_sentences
from edgeprism.reason.focus import FOCUS_LINKS, FOCUS_OPENINGS, focus_phrases
from edgeprism.reason.prompt import focus_messages
from edgeprism.reason.question import Question, to_question
from edgeprism.reason.shape import numbers_to_shape, phrases_to_shape

COUNT = 650  # groups of examples


@cache
def examples(count: int = COUNT) -> list[Example]:
    return [example for number in range(count) for example in sample_group(0, number)]


def _questions(example: Example) -> list[str]:
    content = "\n".join(message.content for message in example.messages if message.role == "user")
    if example.task == "focus":
        return [content.removeprefix(FOCUS_TASK).strip()]
    return re.findall(r"^Question: (.*)$", content, re.MULTILINE)


def _descriptions(example: Example) -> list[str]:
    found = []
    for message in example.messages:
        if example.task == "evidence":
            numbered, _, _ = message.content.partition("\n\nQuestion: ")
            found.append(re.sub(r"^\d+\. ", "", numbered, flags=re.MULTILINE))
        elif example.task == "answer" and message.role == "user":
            found += re.findall(r"^Description of .*:\n((?:(?!\n\n).|\n(?!\n))*)", message.content,
                                re.MULTILINE)  # fmt: skip
    return found


def test_examples_are_a_function_of_seed_and_number_and_hold_all_tasks() -> None:
    again = [example for number in range(50) for example in sample_group(0, number)]
    assert again == examples()[: len(again)]
    assert sample_group(1, 0) != sample_group(0, 0)
    tasks = Counter(example.task for example in examples())
    assert min(tasks[task] / len(examples()) for task in ("answer", "focus", "evidence")) > 0.1
    replies = Counter(e.reply for e in examples() if e.task == "answer")
    assert 0.08 < replies[UNKNOWN] / tasks["answer"] < 0.25
    for reply in ("yes", "no", "0", "two", "picture 1"):
        assert replies[reply] >= 3, reply
    assert len(replies) > 200


def test_no_name_of_nanos_is_in_an_example() -> None:
    assert find_names("An apple, two dogs and a red star") == ["apple", "dogs", "star"]
    found = Counter[str]()
    for example in examples():
        for text in [*(m.content for m in example.messages), example.reply]:
            found.update(find_names(text))
    assert not found


def test_no_sentence_of_nanos_is_in_a_description() -> None:
    sentences = {s for e in examples() for text in _descriptions(e)
                 for s in caption_to_sentences(text)}  # fmt: skip
    assert len(sentences) > 2 * COUNT
    found = [s for s in sentences if is_nanos_sentence(s)]
    assert not found, found[:10]


def test_no_wording_of_nanos_is_among_the_questions() -> None:
    questions = {q for example in examples() for q in _questions(example)}
    assert len(questions) > 2 * COUNT
    found = [q for q in questions if is_nanos_question(q)]
    assert not found, found[:10]


@pytest.mark.parametrize(
    "text",
    ["The apple is red.", "There are two small dogs.", "There is no text.", "B is 7.",
     "The red star is above and to the left of the ring.",
     "Two objects on a white background: an apple and a dog."],
)  # fmt: skip
def test_the_forms_of_nanos_sentences_are_recognised(text: str) -> None:
    assert is_nanos_sentence(text)


def test_every_wording_of_nanos_with_a_name_of_others_is_recognised() -> None:
    names = {"a": "kettle", "b": "tall lamp", "p": "kettles", "o": "a kettle", "v": "row B"}
    for wordings in WORDINGS.values():
        for wording in wordings:
            free = re.sub(r"\{\w\}", "", wording).split()
            if len(free) > 2:
                assert is_nanos_question(wording.format(**names)), wording


def test_a_focus_is_asked_as_the_runtime_asks_and_has_the_shape_that_it_sets() -> None:
    focuses = [example for example in examples() if example.task == "focus"]
    assert len({example.reply for example in focuses}) > 150
    for example in focuses:
        (question,) = _questions(example)
        stem = to_question(question).stem
        content = example.messages[0].content
        assert content == f"{FOCUS_TASK}\n\n{stem}"
        assert focus_messages(Question(stem))[0].content.startswith(f"{FOCUS_TASK}\n\n")
        shape = phrases_to_shape(
            focus_phrases(Question(stem)), openings=FOCUS_OPENINGS, links=FOCUS_LINKS, limit=12
        )
        assert shape.accepts(example.reply), example
        assert fits_focus(example.reply, Question(stem))


def test_evidence_is_numbers_of_sentences_that_are_there() -> None:
    evidence = [example for example in examples() if example.task == "evidence"]
    for example in evidence:
        numbers = re.findall(r"^(\d+)\. ", example.messages[0].content.split("\n\nQuestion")[0],
                             re.MULTILINE)  # fmt: skip
        assert numbers_to_shape(len(numbers)).accepts(example.reply), example
    share = sum(example.reply == "none" for example in evidence) / len(evidence)
    assert 0.2 < share < 0.6


def test_every_sentence_that_is_cited_holds_what_the_answer_says() -> None:
    """An answer of one content word stands in one of the sentences cited for it."""
    checked = 0
    for example in examples():
        match = re.search(r"^Answer: ([a-z]+)$", example.messages[-1].content, re.MULTILINE)
        if example.task != "evidence" or example.reply == "none" or not match:
            continue
        if match[1] in ("yes", "no", "none", "one"):
            continue
        lines = example.messages[0].content.splitlines()
        cited = " ".join(lines[int(number) - 1] for number in example.reply.split(", ")).lower()
        wanted = match[1]
        if wanted in NUMBERS:
            continue  # it may be written in digits, or a sum
        checked += 1
        assert wanted in cited or wanted in _INVERSES, example
    assert checked > 50


_INVERSES = {"above", "below", "behind", "underneath", "around", "inside", "beside", "hot"}
_INVERSES |= {"snowy", "foggy", "windy", "sunny"}

"""Question → focus: what the captioner's instruction may hold, and what it never holds."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeprism.errors import UsageError
from edgeprism.language.chat import Message
from edgeprism.language.generator import Finished, Generator
from edgeprism.perceive.captioner import Captioner
from edgeprism.prism import Prism
from edgeprism.reason.base import BaseReasoner, Completion, captions_by_picture
from edgeprism.reason.focus import (
    FOCUS_LINKS,
    FOCUS_OPENINGS,
    checked_focus,
    focus_phrases,
    leaked_option,
)
from edgeprism.reason.local import Reasoner
from edgeprism.reason.prompt import FOCUS_EXAMPLES, focus_messages
from edgeprism.reason.question import Question, to_question
from edgeprism.reason.shape import Shape, phrases_to_shape
from edgeprism.reason.thinking import cut_thinking
from edgeprism.records import Caption, ModelInfo, Timings, TokenCounts

OPTIONS = {"A": "two old boats", "B": "seven birds"}


class ScriptedReasoner(BaseReasoner):
    """Gives prepared replies, and records its prompts."""

    name = "told"
    model = ModelInfo("told", "0" * 64)

    def __init__(self, *replies: str, finish_reason: str = "stop") -> None:
        self.replies, self.finish_reason = list(replies), finish_reason
        self.prompts: list[str] = []

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int, shape: Shape | None = None
    ) -> Completion:
        self.prompts.append("\n".join(m.content for m in messages))
        text = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return Completion(text, self.finish_reason, TokenCounts(0, 1, 1), Timings())

    def cancel(self) -> None: ...

    def close(self) -> None: ...


# ---- separating the options from the stem


@pytest.mark.parametrize(
    ("text", "stem", "options"),
    [
        ("What floats?\nA. two old boats\nB. seven birds", "What floats?", OPTIONS),
        ("What floats? (A) two old boats (B) seven birds", "What floats?", OPTIONS),
        ("What floats?\nOptions: A: two old boats, B: seven birds", "What floats?", OPTIONS),
        ("What floats?\nChoices:\n(A) two old boats\n(B) seven birds\n", "What floats?", OPTIONS),
        ("What floats?\nA) two old boats\nB) seven birds\nAnswer with a letter.", "What floats?",
         OPTIONS),
        ("Is vitamin A. good?", "Is vitamin A. good?", {}),
        ("Who is B. Smith?", "Who is B. Smith?", {}),
        ("What floats?\nAnswer: two old boats", "What floats?", {}),
        ("Was steht da?", "Was steht da?", {}),
    ],
)  # fmt: skip
def test_options_written_into_a_question(text: str, stem: str, options: dict[str, str]) -> None:
    question = to_question(text)
    assert (question.stem, question.options) == (stem, options)


def test_given_options_win() -> None:
    question = to_question("What floats? (A) x (B) y", OPTIONS, " in the sea ")
    assert question == Question("What floats?", OPTIONS, "in the sea")


@pytest.mark.parametrize("text", ["", "  \n", "Answer: C"])
def test_no_question(text: str) -> None:
    with pytest.raises(UsageError):
        to_question(text)


# ---- accepted and refused focuses


QUESTION = Question("How many boats lie at the pier?", {"A": "two", "B": "seven", "C": "a pier"})


@pytest.mark.parametrize(
    ("reply", "focus"),
    [
        ("the number of boats at the pier", "the number of boats at the pier"),
        ("Focus: the boats.\nNothing else", "the boats"),
        ("the boats of the pier of the boats of the pier", "the boats of the pier"),
        ("the boats, the boats", "the boats"),
        ('"the pier"', "the pier"),
    ],
)
def test_a_focus_is_tidied(reply: str, focus: str) -> None:
    assert checked_focus(reply, QUESTION) == (focus, "")


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "named none"),
        (" .\n", "named none"),
        ("boats " + "x" * 200, "too long"),
        ("the seven boats", "option B"),
        ("boats: Two", "option A"),
        ("yes, boats", "answered"),
        ("the colour of the front door", "nothing to do"),
    ],
)
def test_a_focus_is_refused(reply: str, why: str) -> None:
    focus, reason = checked_focus(reply, QUESTION)
    assert focus == ""
    assert why in reason


def test_an_option_that_the_stem_has_may_be_named() -> None:
    assert leaked_option("a pier", QUESTION) is not None
    assert leaked_option("the pier", dataclasses.replace(QUESTION, options={"A": "pier"})) is None


def test_the_examples_hold_no_answer() -> None:
    for question, focus in FOCUS_EXAMPLES:
        assert checked_focus(focus, to_question(question)) == (focus, "")


def test_the_captioner_never_hears_options_nor_answer() -> None:
    """No reply of the reasoner, and no form of the options, lets an option into the focus."""
    rng = random.Random(5)
    vocabulary = ["boats", "pier", "two", "old", "seven", "birds", "the", "of", "sea", "yes"]
    stem = "Which of these are near the pier and the sea?"
    for _ in range(300):
        reply = " ".join(rng.choices(vocabulary, k=rng.randint(1, 8)))
        reasoner = ScriptedReasoner(reply)
        written = f"{stem}\nA. two old boats\nB. seven birds"
        focus = rng.choice(
            [reasoner.draw_focus(written)[0], reasoner.draw_focus(stem, options=OPTIONS)[0]]
        )
        for option in OPTIONS.values():
            assert option not in focus
            assert all(option not in prompt for prompt in reasoner.prompts)


def test_a_noun_is_not_parted_from_the_adjective_before_it() -> None:
    phrases = set(focus_phrases(to_question("Is a small red boat near row A, or the pier?")))
    assert {"small", "small red", "small red boat", "row", "row A", "pier"} <= phrases
    assert not {"red", "boat", "A", "red boat"} & phrases


def test_a_question_without_a_word_that_can_be_written_has_no_focus() -> None:
    """A word with a zero-width space is no phrase, so only function words would be left."""
    reasoner = ScriptedReasoner("the position of the")
    focus, why = reasoner.draw_focus("Where is the c\u200bat?")
    assert (focus, reasoner.prompts) == ("", [])
    assert "names nothing" in why


def test_a_grammar_keeps_a_focus_to_the_question(random_bundle: Path) -> None:
    """A model with random weights writes anything that the grammar allows."""
    reasoner = Reasoner.load(random_bundle / "lm.gguf", threads=1)
    question = to_question("Which boats are near the pier?", OPTIONS)
    shape = phrases_to_shape(
        focus_phrases(question), openings=FOCUS_OPENINGS, links=FOCUS_LINKS, limit=5
    )
    free = reasoner.complete(focus_messages(question), max_tokens=24)
    bound = reasoner.complete(focus_messages(question), max_tokens=200, shape=shape)
    assert not shape.accepts(free.text)
    assert shape.accepts(bound.text)
    known = [*focus_phrases(question), *FOCUS_OPENINGS, *FOCUS_LINKS]
    parts = {word for phrase in known for word in phrase.split()}
    assert {word.strip(",") for word in bound.text.split()} <= parts
    link = "|".join(FOCUS_LINKS)
    assert not re.search(rf"(?:\b(?:{link})\b,? ?){{3}}|\b(?:{link})$", bound.text)
    reasoner.close()


# ---- both stages


def scripted_prism(captioner: Captioner, *replies: str) -> tuple[Prism, ScriptedReasoner]:
    reasoner = ScriptedReasoner(*replies)
    return Prism(captioner, reasoner), reasoner


def test_the_focus_reaches_the_captioner(captioner: Captioner, photo: Path) -> None:
    prism, _ = scripted_prism(captioner, "the number of boats", "two")
    answer = prism.ask(photo, "How many boats are there?")
    assert (answer.text, answer.focus, answer.instruction_mode) == (
        "two", "the number of boats", "question",
    )  # fmt: skip
    [caption] = answer.captions
    assert caption.instruction == "Describe the picture. Attend to: the number of boats."
    assert answer.notes == ()


def test_without_a_usable_focus_the_generic_instruction(captioner: Captioner, photo: Path) -> None:
    prism, _ = scripted_prism(captioner, "", "two")
    answer = prism.ask(photo, "How many boats are there?")
    assert (answer.focus, answer.instruction_mode) == ("", "generic")
    assert answer.captions[0].instruction == "Describe the picture."
    assert "no focus" in answer.notes[0]
    assert answer.to_dict()["notes"] == list(answer.notes)


def test_a_given_focus_and_the_generic_mode_ask_for_none(captioner: Captioner, photo: Path) -> None:
    prism, reasoner = scripted_prism(captioner, "two")
    assert prism.ask(photo, "How many boats?", focus="the sea").focus == "the sea"
    generic = prism.ask(photo, "How many boats?", instruction_mode="generic")
    assert (generic.focus, generic.notes) == ("", ())
    assert len(reasoner.prompts) == 2
    with pytest.raises(UsageError, match="'loud'"):
        prism.ask(photo, "How many boats?", instruction_mode="loud")


def test_options_never_reach_the_captioner(
    captioner: Captioner, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This test inspects every token of the captioner's prompt."""
    shown: list[str] = []
    original = Captioner.request

    def request(self: Captioner, *arguments: Any) -> Any:
        request = original(self, *arguments)
        ids = [i for part in request.parts if isinstance(part, list) for i in part]
        lm = self.engines.lm()
        shown.append(b"".join(lm.vocabulary.token_to_bytes(i) for i in ids).decode())
        return request

    monkeypatch.setattr(Captioner, "request", request)
    for reply in ("two old boats", "seven birds near the pier", "the pier"):
        prism, reasoner = scripted_prism(captioner, reply, "A")
        answer = prism.ask(photo, "Which is near the pier?", options=OPTIONS)
        assert "A. two old boats" in reasoner.prompts[-1]
        assert answer.options == OPTIONS
    assert len(shown) == 3
    assert not [text for text in shown for option in OPTIONS.values() if option in text]
    assert "the pier" in shown[2]


# ---- captions of several captioners, thinking


def caption(text: str, model: ModelInfo) -> Caption:
    return Caption(
        text, "p", "0" * 64, "stop", TokenCounts(0, 0, 0), Timings(), model, "cpu", "", "0"
    )


def test_captions_by_picture() -> None:
    one, two, three = (ModelInfo(n, d) for n, d in (("x", "1"), ("y", "2"), ("x", "3")))
    captions = [caption("a", one), caption("b", one), caption("c", two), caption("d", three),
                caption("e", two)]  # fmt: skip
    assert captions_by_picture(captions) == [
        {"x": "a", "y": "c", "x (2)": "d"},
        {"x": "b", "y": "e"},
    ]


@pytest.mark.parametrize(
    ("reply", "answer", "thinking"),
    [
        ("<think>two or three?</think>\n\nthree", "three", "two or three?"),
        ("two or three?</think>three", "three", "two or three?"),
        ("<think>two or", "", "two or"),
        ("[THINK]hm[/THINK]no", "no", "hm"),
        ("<Thinking>a</Thinking>b<think>c</think>d", "bd", "a\nc"),
        ("x < y and y > z", "x < y and y > z", ""),
    ],
)
def test_thinking_is_cut(reply: str, answer: str, thinking: str) -> None:
    assert cut_thinking(reply) == (answer, thinking)


def test_thinking_is_in_the_record(monkeypatch: pytest.MonkeyPatch, scripted_gguf: Path) -> None:
    original = Generator.run

    def run(self: Generator, requests: Any) -> Any:
        for event in original(self, requests):
            if isinstance(event, Finished):
                event = dataclasses.replace(event, text=f"<think>hm</think>{event.text}")
            yield event

    monkeypatch.setattr(Generator, "run", run)
    reasoner = Reasoner.load(scripted_gguf, threads=1)
    answer = reasoner.answer([], "What?")
    assert (answer.to_dict()["thinking"], answer.text[:5]) == ("hm", "a red")
    reasoner.close()

"""Lettered options of a reasoner that is asked without them and answers with one of their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from edgeprism.language.chat import Message
from edgeprism.language.ranking import Likelihood
from edgeprism.reason.base import BaseReasoner, Completion
from edgeprism.reason.conversation import Conversation
from edgeprism.reason.options import UNSAID, choose_text, texts_to_letters
from edgeprism.reason.shape import Shape, choices_to_shape
from edgeprism.records import Caption, ModelInfo, Timings, TokenCounts

CAPTION = Caption(
    text="Two boats lie by the pier. The left one is red.", image="a.jpg", image_sha256="0" * 64,
    finish_reason="stop", tokens=TokenCounts(1, 2, 3), timings=Timings(),
    model=ModelInfo("tiny", "0" * 64), device="cpu", instruction="Describe.", version="0",
)  # fmt: skip
COLOURS = {"A": "Green", "B": "Red", "C": "It is not said"}


class Scripted(BaseReasoner):
    """Writes the replies it is given, and keeps what it was asked."""

    name = "scripted"
    model = ModelInfo("scripted", "1" * 64)

    def __init__(self, *replies: str, knows_prompts: bool = True, finish: str = "stop") -> None:
        self.replies, self.knows, self.finish = list(replies), knows_prompts, finish
        self.asked: list[str] = []
        self.shapes: list[Shape | None] = []
        self.limits: list[int] = []

    @property
    def knows_prompts(self) -> bool:
        return self.knows

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int, shape: Shape | None = None
    ) -> Completion:
        self.asked.append("\n".join(message.content for message in messages))
        self.shapes.append(shape)
        self.limits.append(max_tokens)
        return Completion(self.replies.pop(0), self.finish, TokenCounts(1, 1, 1), Timings())

    def cancel(self) -> None: ...

    def close(self) -> None: ...


def ask(reasoner: Scripted, options: Mapping[str, str] = COLOURS, tokens: int = 8) -> str:
    question = "What colour is the left boat?"
    return reasoner.answer([CAPTION], question, options=options, answer_tokens=tokens).text


@pytest.mark.parametrize(
    ("reply", "letter"), [("Red", "B"), ("red", "B"), ("green", "A"), (UNSAID, "C")]
)
def test_it_is_asked_openly_and_the_text_tells_the_letter(reply: str, letter: str) -> None:
    reasoner = Scripted(reply)
    assert ask(reasoner) == letter
    (prompt,), (shape,) = reasoner.asked, reasoner.shapes
    assert "Green" not in prompt
    assert "letter" not in prompt
    assert "What colour is the left boat?" in prompt
    assert shape is not None
    assert all(shape.accepts(text) for text in ("Green", "green", "Red", "red", UNSAID))
    assert not any(shape.accepts(text) for text in ("blue", "A", "", "Red."))


def test_options_in_the_question_are_bound_too() -> None:
    reasoner = Scripted("3")
    question = "How many boats are there?\nA. two\nB. three"
    assert reasoner.answer([CAPTION], question).text == "B"
    assert "A. two" not in reasoner.asked[0]


def test_evidence_is_asked_for_the_options_text() -> None:
    reasoner = Scripted("red", "2")
    answer = reasoner.answer([CAPTION], "Which colour?", options=COLOURS, evidence=True)
    assert answer.text == "B"
    assert answer.options == COLOURS
    assert "Red" in reasoner.asked[1]
    assert [e.text for e in answer.evidence or ()] == ["The left one is red."]


def test_no_option_is_cut_off() -> None:
    long = {"A": "on the left of the pier, behind the boats", "B": "on the right"}
    reasoner = Scripted("on the right")
    assert ask(reasoner, long, tokens=2) == "B"
    assert reasoner.limits == [len(long["A"])]


def test_a_reply_that_did_not_end_is_no_letter() -> None:
    assert ask(Scripted("Re", finish="length")) == ""


def test_others_see_the_letters() -> None:
    reasoner = Scripted("B", knows_prompts=False)
    assert ask(reasoner) == "B"
    assert "B. Red" in reasoner.asked[0]
    assert reasoner.shapes == [None]


def test_a_shape_of_the_persons_own_wins() -> None:
    reasoner = Scripted("yes")
    shape = choices_to_shape(["yes", "no"])
    answer = reasoner.answer([CAPTION], "Is it red?", options=COLOURS, shape=shape)
    assert answer.text == "yes"
    assert reasoner.shapes == [shape]


def test_in_a_conversation_the_turn_keeps_the_letter() -> None:
    reasoner = Scripted("red", "two")
    conversation = Conversation(reasoner)
    conversation.tell([CAPTION])
    assert conversation.ask("Which colour?\nA. green\nB. red").text == "B"
    assert conversation.ask("How many boats?").text == "two"
    assert "A. green" not in reasoner.asked[0]
    assert "B. red" in reasoner.asked[1]
    assert "\nB\n" in reasoner.asked[1]


@pytest.mark.parametrize(
    ("options", "letters"),
    [
        ({"A": "two", "B": "3"},
         {"two": "A", "3": "B", "Two": "A", "2": "A", "three": "B"}),
        ({"A": "No", "B": "Yes."}, {"No": "A", "Yes": "B", "no": "A", "yes": "B"}),
        # the forms of one option never stand for another
        ({"A": "2", "B": "two"}, {"2": "A", "two": "B", "Two": "B"}),
        ({"A": "not red", "B": "not said"},
         {"not red": "A", "not said": "B", "Not red": "A", "Not said": "B", UNSAID: "B"}),
        ({"A": "Yes, there is", "B": "No, there is not"},
         {"Yes, there is": "A", "No, there is not": "B", "yes, there is": "A",
          "no, there is not": "B"}),
        ({"A": "Ärmel", "B": "日本"}, {"Ärmel": "A", "日本": "B", "ärmel": "A"}),
    ],
)  # fmt: skip
def test_forms_of_a_text(options: dict[str, str], letters: dict[str, str]) -> None:
    assert texts_to_letters(options) == letters


@pytest.mark.parametrize(
    "options",
    [
        {}, {"A": "red"}, {"A": "red", "B": "Red"}, {"A": "red", "B": " "}, {"A": ".", "B": "red"},
        {"A": "red\nblue", "B": "green"}, {"A": "\x00", "B": "x"}, {"A": "x" * 201, "B": "y"},
        {chr(65 + i): f"text {i}" for i in range(600)},
    ],
)  # fmt: skip
def test_what_a_grammar_cannot_hold_is_asked_with_letters(options: dict[str, str]) -> None:
    assert texts_to_letters(options) == {}
    if options:
        reasoner = Scripted("A")
        assert ask(reasoner, options) == "A"
        assert reasoner.shapes == [None]


@pytest.mark.parametrize(
    ("likelihoods", "chosen"),
    [
        ([(-4.0, -0.8), (-2.0, -1.0), (-9.0, -1.5)], "a red boat"),
        ([(-4.0, -0.8), (-2.0, -1.0), (-3.0, -0.5)], "a red boat"),  # its average is no reason
        ([(-4.0, -0.8), (-2.0, -1.0), (-1.8, -0.3)], UNSAID),
        ([(-9.0, -1.8), (-2.0, -1.0), (-3.0, -0.5)], "red"),
    ],
)
def test_the_likeliest_text_is_taken(likelihoods: list[tuple[float, float]], chosen: str) -> None:
    texts = ["a red boat", "red", UNSAID]
    found = [Likelihood(total, mean) for total, mean in likelihoods]
    assert texts[choose_text(texts, found)] == chosen


@pytest.mark.parametrize(
    "text",
    [
        "unknown", "Unclear", "impossible to say", "nobody knows", "I don't know", "not mentioned",
        "It is not clearly stated", "cannot be told", "no information", "None of the above",
    ],
)  # fmt: skip
def test_what_says_that_nothing_is_known_stands_for_it(text: str) -> None:
    assert texts_to_letters({"A": "red", "B": text})[UNSAID] == "B"


@pytest.mark.parametrize(
    "text", ["It is not red", "No, there is not", "Do not enter", "It cannot fly", "not visible"]
)
def test_what_denies_says_something(text: str) -> None:
    assert UNSAID not in texts_to_letters({"A": "red", "B": text})


def test_where_every_text_says_nothing_the_likeliest_is_taken() -> None:
    texts = ["unknown", UNSAID]
    assert choose_text(texts, [Likelihood(-3, -3), Likelihood(-2, -0.4)]) == 1

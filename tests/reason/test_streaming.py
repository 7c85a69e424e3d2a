"""Answers as they are written: without thoughts, and the same as whole."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from edgeprism.language.chat import Message
from edgeprism.reason.base import BaseReasoner, Completion
from edgeprism.reason.local import Reasoner
from edgeprism.reason.shape import choices_to_shape
from edgeprism.reason.thinking import AnswerText, cut_thinking
from edgeprism.records import ModelInfo, Timings, TokenCounts
from tests.helpers import bundles
from tests.helpers.bundles import IM_END, SAID_TEXT

CHAT = [Message("user", "What is it?")]
WORDS = ["<", "[", "</", "◁", "<thin", "[/THIN", " ", "\n\n", "a red dog", "one", "<b>", "é", "k>"]
TAGS = [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"),
        ("<Thought>", "</thought>")]  # fmt: skip


def streamed(text: str, cut: random.Random, *, thinks: bool = False) -> str:
    """What a text brings that comes in parts of one to nine characters."""
    answer, parts, start = AnswerText(thinks=thinks), [], 0
    while start < len(text):
        end = start + cut.randint(1, 9)
        parts.append(answer.feed(text[start:end]))
        start = end
    return "".join(parts)


def reply_with_thoughts(draw: random.Random) -> str:
    """Words and blocks of thoughts in any order; the last block may have no end."""
    parts = []
    for _ in range(draw.randint(1, 4)):
        words = ["".join(draw.choices(WORDS, k=draw.randint(0, 4))) for _ in range(2)]
        opening, closing = draw.choice(TAGS)
        parts.append(f"{words[0]} {opening}{words[1]} {closing}")
    return "".join(parts) + draw.choice(["", "the end", " <think> and on", " "])


def test_parts_are_the_beginning_of_the_answer() -> None:
    draw = random.Random(7)
    rest = 0
    for _ in range(4000):
        text = reply_with_thoughts(draw)
        answer, _ = cut_thinking(text)
        parts = streamed(text, draw)
        assert answer.startswith(parts), text
        rest = max(rest, len(answer) - len(parts))
    assert rest < len("</reflection>")  # only what may begin a tag comes at the end


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>It is a dog.</think>\n\nA dog.", "A dog."),
        ("  A dog < 3, no <b>cat</b>. [1] and so on ", "A dog < 3, no <b>cat</b>. [1] and so on"),
        ("◁think▷x◁/think▷One [THINK]y[/THINK] two", "One  two"),
        ("<think>a [THINK] b [/THINK] c</think>A dog.", "A dog."),
        ("A dog.<think>never ends", "A dog."),
    ],
)
def test_blocks_of_thoughts_are_dropped(text: str, answer: str) -> None:
    for seed in range(20):
        assert streamed(text, random.Random(seed)) == answer
    assert cut_thinking(text)[0] == answer


def test_a_reply_may_begin_with_thoughts_that_its_prompt_opened() -> None:
    for seed in range(20):
        reply = "It is a dog.</think>\n\nA dog."
        assert streamed(reply, random.Random(seed), thinks=True) == "A dog."
    assert streamed("no end", random.Random(0), thinks=True) == ""


def write_thinker(path: Path, opening: str) -> Path:
    """A model that thinks after `opening`, and then answers."""
    # each token of a script follows from the one before it, so no token may come twice
    closing = [bundles.IDS[f"<0x{ord(letter):02X}>"] for letter in "</think>"]
    script = bundles.piece_ids(*opening, "▁red", *closing, "▁a", "▁small", "▁dog", IM_END)
    return bundles.write_lm(path, script=script)


@pytest.mark.parametrize(("opening", "chat_format"), [("<think>", None), (">", "bailing-think")])
def test_a_model_that_thinks_streams_its_answer(
    tmp_path: Path, opening: str, chat_format: str | None
) -> None:
    """It opens the block itself, or its chat format does (that of Ling's thinking models)."""
    path = write_thinker(tmp_path / "lm.gguf", opening)
    thinker = Reasoner.load(path, chat_format=chat_format)
    parts: list[str] = []
    reply = thinker.stream(CHAT, max_tokens=40, on_text=parts.append)
    thinker.close()
    assert (reply.text, reply.thinking) == ("a small dog", "red")
    assert "".join(parts) == "a small dog"
    assert len(parts) == 3


def test_an_answer_is_told_word_by_word_unless_it_has_a_shape(scripted_gguf: Path) -> None:
    reasoner = Reasoner.load(scripted_gguf)
    parts: list[str] = []
    answer = reasoner.answer((), "What is it?", on_text=parts.append)
    assert (answer.text, "".join(parts)) == (SAID_TEXT, SAID_TEXT)
    assert len(parts) > 4
    shaped: list[str] = []
    choices = choices_to_shape(["red", "blue"])
    assert reasoner.answer((), "What?", shape=choices, on_text=shaped.append).text
    assert shaped == []
    reasoner.close()


def test_a_reasoner_that_cannot_stream_answers_whole() -> None:
    class Whole(BaseReasoner):
        name = "whole"
        model = ModelInfo("whole", "")

        def complete(self, messages: Any, *, max_tokens: int, shape: Any = None) -> Completion:
            return Completion("a dog", "stop", TokenCounts(0, 1, 2), Timings())

        def cancel(self) -> None: ...

        def close(self) -> None: ...

    parts: list[str] = []
    assert Whole().answer((), "What is it?", on_text=parts.append).text == "a dog"
    assert parts == []

"""Chat: captions made once, the conversation remembered, clean ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import PromptTooLongError, UsageError
from edgeprism.language.chat import Message
from edgeprism.language.context import Context
from edgeprism.reason.base import BaseReasoner, Completion
from edgeprism.reason.conversation import Conversation
from edgeprism.reason.local import Reasoner
from edgeprism.reason.shape import Shape
from edgeprism.records import Caption, ModelInfo, Timings, TokenCounts
from edgeprism.vision.onnx import VisionEncoder
from tests.helpers.bundles import SAID_TEXT
from tests.helpers.calls import count_calls


def caption(text: str) -> Caption:
    model = ModelInfo("tiny", "0" * 64)
    return Caption(text, "p", "", "stop", TokenCounts(0, 0, 0), Timings(), model, "cpu", "", "0")


class Counting(BaseReasoner):
    """Numbers its answers, and reads no more than `limit` turns."""

    name = "counting"
    model = ModelInfo("counting", "0" * 64)

    def __init__(self, limit: int = 99) -> None:
        self.limit, self.prompts = limit, list[list[Message]]()

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int, shape: Shape | None = None
    ) -> Completion:
        if len(messages) > self.limit:
            raise PromptTooLongError("too long", "")
        self.prompts.append(list(messages))
        return Completion(f"answer {len(self.prompts)}", "stop", TokenCounts(0, 1, 1), Timings())

    def cancel(self) -> None: ...

    def close(self) -> None: ...


def test_what_was_said_stands_before_the_next_question() -> None:
    reasoner = Counting()
    conversation = Conversation(reasoner)
    conversation.tell([caption("A red boat."), caption("A dog.")])
    conversation.ask("What floats?")
    conversation.tell([caption("The boat is old."), caption("It sleeps.")])
    conversation.ask("How old is it?")
    first, second = reasoner.prompts
    assert second[: len(first)] == first
    assert [m.role for m in second] == ["user", "assistant", "user"]
    assert "picture 2:\nA dog." in second[0].content
    assert second[1].content == "answer 1"
    assert "picture 1:\nThe boat is old." in second[2].content
    assert "red boat" not in second[2].content


def test_the_oldest_questions_are_forgotten_never_the_captions() -> None:
    reasoner = Counting(limit=3)
    conversation = Conversation(reasoner)
    conversation.tell([caption("A red boat.")])
    conversation.ask("One?")
    conversation.tell([caption("An old boat.")])
    conversation.ask("Two?")
    conversation.ask("Three?")
    last = reasoner.prompts[-1]
    text = "\n".join(m.content for m in last)
    assert "One?" not in text
    assert [word in last[0].content for word in ("A red boat.", "An old boat.", "Two?")] == [
        True
    ] * 3
    assert conversation.ask("Four?").text == "answer 4"


def test_a_question_that_fails_changes_nothing() -> None:
    conversation = Conversation(Counting())
    conversation.tell([caption("A red boat.")])
    with pytest.raises(UsageError):
        conversation.ask("Answer: C")
    assert conversation.turns == []
    conversation.ask("What?")
    assert "A red boat." in conversation.reasoner.prompts[0][0].content  # type: ignore[attr-defined]
    with pytest.raises(PromptTooLongError):
        Conversation(Counting(limit=0)).ask("What?")


@pytest.fixture
def prefilled_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens that each prefill of text reads."""
    counts: list[int] = []
    original = Context.prefill_tokens

    def prefill(self: Context, seq: int, tokens: list[int], start: int, **options: bool) -> None:
        counts.append(len(tokens))
        original(self, seq, tokens, start, **options)

    monkeypatch.setattr(Context, "prefill_tokens", prefill)
    return counts


def test_only_what_is_new_is_prefilled(random_bundle: Path, prefilled_tokens: list[int]) -> None:
    warm = Reasoner.load(random_bundle / "lm.gguf", threads=1, warm=True)
    cold = Reasoner.load(random_bundle / "lm.gguf", threads=1)
    prefilled: dict[bool, list[int]] = {}
    for reasoner in (warm, cold):
        conversation = Conversation(reasoner)
        conversation.tell([caption("a red boat on the sea " * 12)])
        prefilled[reasoner.warm] = []
        for question in ("What?", "Where?", "Which tree?"):
            del prefilled_tokens[:]
            conversation.ask(question, answer_tokens=4)
            prefilled[reasoner.warm].append(sum(prefilled_tokens))
        reasoner.close()
    assert prefilled[True][0] == prefilled[False][0]
    assert prefilled[False][0] < prefilled[False][1] < prefilled[False][2]
    # After the captions' turn, the model reads at most the last answer and the next question.
    assert all(new < prefilled[False][0] / 2 for new in prefilled[True][1:])


def test_worked_examples_are_prefilled_once(
    random_bundle: Path, prefilled_tokens: list[int]
) -> None:
    """A reasoner that drew focuses before draws the same focus as a new one."""
    reasoner = Reasoner.load(random_bundle / "lm.gguf", threads=1)
    questions = ("Which boat is red?", "Is a cat near the tree?")
    focuses = []
    for question in questions:
        del prefilled_tokens[:]
        focuses.append(reasoner.draw_focus(question))
        read = sum(prefilled_tokens)
    assert read < 100  # the examples have hundreds of tokens
    reasoner.close()
    for question, focus in zip(questions, focuses, strict=True):
        assert reasoner.draw_focus(question) == focus
        reasoner.close()


# ---- at the command line


def test_a_chat(chat: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, photo: Path) -> None:
    looks = count_calls(monkeypatch, VisionEncoder, "encode")
    assert chat("What is there?\n\n/focus boats\nWhere?\n/focus dogs\n/captions\n/quit\nNo?\n") == 0
    lines = capsys.readouterr().out.split("\n")
    answers = [line for line in lines if line == SAID_TEXT]
    captions = [line for line in lines if line.startswith(f"{photo}: ")]
    assert len(answers) == 2
    assert len(captions) == 2 + 3
    assert len(looks) == 2  # one encoding for the first captions, one for all focuses
    assert chat("What is there?") == 0
    assert len(looks) == 2  # the store has the caption


def test_mistakes_do_not_end_a_chat(chat: Any, capsys: Any) -> None:
    assert chat("/dance\n/focus\nAnswer: C\nWhat is there?\n") == 3
    out, err = capsys.readouterr()
    assert out == f"{SAID_TEXT}\n"
    assert "/dance: not a command" in err
    assert err.count("error:") == 3
    assert chat("", "--no-cache") == 0


def test_standard_input_is_no_picture(capsys: Any) -> None:
    assert run(["chat", "-"]) == 2
    assert "holds the questions" in capsys.readouterr().err


def test_control_characters_are_shown_not_sent(
    chat: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    completion = Completion("\x1b[2Jgone", "stop", TokenCounts(0, 1, 1), Timings())
    monkeypatch.setattr(Reasoner, "complete", lambda *a, **k: completion)
    assert chat("What?\n/\x1b[2J\n") == 3
    out, err = capsys.readouterr()
    assert "\x1b[2J" not in out + err
    assert "\\x1b[2Jgone" in out


def test_ctrl_c_ends_without_a_traceback(
    random_bundle: Path, scripted_gguf: Path, photo: Path
) -> None:
    command = [sys.executable, "-m", "edgeprism", "chat", str(photo), "--captioner",
               str(random_bundle), "--reasoner", str(scripted_gguf)]  # fmt: skip
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ),
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdin.write(b"What \xff is there?\n")  # not UTF-8
    child.stdin.flush()
    assert child.stdout.readline().decode().strip() == SAID_TEXT
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130
    assert b"Traceback" not in child.stderr.read()
    for stream in (child.stdin, child.stdout, child.stderr):
        stream.close()

"""A reasoner's worked examples: read once, and kept for later questions and processes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeprism.errors import ModelError
from edgeprism.language import generator
from edgeprism.language.chat import Message
from edgeprism.language.context import Context
from edgeprism.language.prefix_states import FOLDER
from edgeprism.machine import child
from edgeprism.reason.conversation import Conversation
from edgeprism.reason.local import Reasoner
from edgeprism.reason.prompt import focus_messages
from edgeprism.reason.question import to_question
from edgeprism.reason.shape import choices_to_shape
from edgeprism.records import Caption, ModelInfo, Timings, TokenCounts

QUESTIONS = [
    f"{opening} {thing}?"
    for thing in ("the red boat by the sea", "a cat near the old tree")
    for opening in ("Where is", "How large is", "Which colour has", "Can one see")
]
CAPTION = Caption(
    text="A red boat lies by the sea. A cat sits near a tree.", image="a.jpg",
    image_sha256="0" * 64, finish_reason="stop", tokens=TokenCounts(16, 20, 5), timings=Timings(),
    model=ModelInfo("tiny", "0" * 64), device="cpu", instruction="Describe.", version="0",
)  # fmt: skip


@pytest.fixture
def lm(random_bundle: Path) -> Path:
    return random_bundle / "lm.gguf"


@pytest.fixture
def read_tokens(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many tokens of prompts were computed since the last call."""
    counts: list[int] = []
    original = Context.prefill_tokens

    def prefill(self: Context, seq: int, tokens: list[int], start: int, **options: bool) -> None:
        counts.append(len(tokens))
        original(self, seq, tokens, start, **options)

    def since() -> int:
        total = sum(counts)
        counts.clear()
        return total

    monkeypatch.setattr(Context, "prefill_tokens", prefill)
    return since


def replies(reasoner: Reasoner) -> list[object]:
    """Ask everything of one reasoner, each kind of prompt after the others."""
    made: list[object] = []
    for question in QUESTIONS:
        made.append(reasoner.draw_focus(question))
        made.append(reasoner.answer([CAPTION], question, answer_tokens=6).text)
        made.append(reasoner.find_evidence([CAPTION], question, "red"))
        # without a grammar, so that all of the vocabulary competes
        free = reasoner.complete(focus_messages(to_question(question)), max_tokens=6)
        made.append(free.text)
    return made


def kept_files() -> list[Path]:
    return sorted((Path(os.environ["EDGEPRISM_HOME"]) / FOLDER).glob("*"))


def test_replies_are_the_same_with_kept_examples_and_without(
    lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(generator, "LARGEST", 0)  # nothing may be kept
        without = Reasoner.load(lm, threads=1)
        expected = replies(without)
        without.close()
        assert kept_files() == []
    assert len(set(map(repr, expected))) > len(QUESTIONS)  # they depend on the question
    for _ in ("cold", "warm"):
        reasoner = Reasoner.load(lm, threads=1)
        assert replies(reasoner) == expected
        reasoner.close()
        assert len(kept_files()) == 1


def test_another_process_reads_the_examples(lm: Path, read_tokens: Callable[[], int]) -> None:
    code = (
        "import sys; from edgeprism import Reasoner; r = Reasoner.load(sys.argv[1], threads=1); "
        "print(r.draw_focus('Where is the red boat?')[0]); r.close()"
    )
    done = child.run([sys.executable, "-P", "-c", code, str(lm)])
    assert done.code == 0, done.output
    (path,) = kept_files()
    before = path.read_bytes()
    reasoner = Reasoner.load(lm, threads=1)
    assert reasoner.draw_focus("Where is the red boat?")[0] == done.output.strip()
    assert read_tokens() < 60  # the examples have hundreds of tokens
    reasoner.close()
    assert kept_files() == [path]
    assert path.read_bytes() == before


def test_an_answer_does_not_drive_the_examples_out(
    lm: Path, read_tokens: Callable[[], int]
) -> None:
    reasoner = Reasoner.load(lm, threads=1)
    reasoner.draw_focus(QUESTIONS[0])
    assert read_tokens() > 300
    for question in QUESTIONS[:3]:
        reasoner.answer([CAPTION], question, answer_tokens=4)
        read_tokens()
        reasoner.draw_focus(question)
        assert read_tokens() < 60
    reasoner.close()


def test_a_focus_does_not_drive_a_conversation_out(
    lm: Path, read_tokens: Callable[[], int]
) -> None:
    reasoner = Reasoner.load(lm, threads=1, warm=True)
    conversation = Conversation(reasoner)
    conversation.tell([replace(CAPTION, text=CAPTION.text * 3)])
    conversation.ask("What is it?", answer_tokens=4)
    whole = read_tokens()
    reasoner.draw_focus(QUESTIONS[0])
    assert read_tokens() > 300
    conversation.ask("Where?", answer_tokens=4)
    assert read_tokens() < whole / 2
    reasoner.draw_focus(QUESTIONS[1])
    assert read_tokens() < 60
    reasoner.close()


def test_only_examples_are_kept(lm: Path) -> None:
    reasoner = Reasoner.load(lm, threads=1)
    turns = [Message("user", "Where?"), Message("assistant", "Here."), Message("user", "Who?")]
    reasoner.complete(turns, max_tokens=2)
    mixed = [Message("user", "Where?", True), *turns[1:]]
    reasoner.complete(mixed, max_tokens=2)
    reasoner.answer([CAPTION], "Where is it?", answer_tokens=2)
    reasoner.close()
    assert kept_files() == []


def test_changed_weights_leave_no_state(lm: Path, tmp_path: Path) -> None:
    own = Path(shutil.copy(lm, tmp_path))
    reasoner = Reasoner.load(own, threads=1)
    reasoner.complete([Message("user", "Where?")], max_tokens=1)
    half = own.stat().st_size // 2
    with own.open("r+b") as file:
        file.seek(half)
        file.write(np.random.default_rng(3).bytes(own.stat().st_size - half))
    for shape in (choices_to_shape(["red", "green"]), None):  # numbers that are none end a grammar
        with pytest.raises(ModelError):
            reasoner.complete(focus_messages(to_question("Where?")), max_tokens=2, shape=shape)
    shutil.copy(lm, own)  # as it was
    reasoner.complete([Message("user", "Where?")], max_tokens=1)
    reasoner.close()
    assert kept_files() == []

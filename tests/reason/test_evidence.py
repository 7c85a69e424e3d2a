"""Which sentences of the captions support an answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import PromptTooLongError
from edgeprism.perceive.captioner import Captioner
from edgeprism.reason.evidence import caption_to_sentences, captions_to_sentences, reply_to_evidence
from edgeprism.reason.local import Reasoner
from edgeprism.records import Caption
from tests.helpers import bundles


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A dog. It runs.", ["A dog.", "It runs."]),
        ("Is it? Yes! It is…", ["Is it?", "Yes!", "It is…"]),
        ("Mr. Smith is 1.8 m tall. He smiles.", ["Mr. Smith is 1.8 m tall.", "He smiles."]),
        ("The sign says 4. A cat sits.", ["The sign says 4.", "A cat sits."]),
        ('The word is "STOP." It is red.', ['The word is "STOP."', "It is red."]),
        ("1. A dog\n2. A cat.\n\n- a bird", ["A dog", "A cat.", "a bird"]),
        ("一只狗。它在跑！", ["一只狗。", "它在跑！"]),
        ("See edgeprism.example for more", ["See edgeprism.example for more"]),
        ("no full stop", ["no full stop"]),
        ("...\n \n!!", []),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert caption_to_sentences(text) == sentences


@pytest.fixture
def caption(scripted_captioner: Captioner, photo: Path) -> Caption:
    return scripted_captioner.caption(photo)


def test_numbers_lead_back_to_the_captions(caption: Caption) -> None:
    first, second = replace(caption, text="A. dog. It runs."), replace(caption, text="A cat.")
    other = replace(caption, text="One more.", model=replace(caption.model, name="b", digest="b"))
    sentences = captions_to_sentences([first, second, other])
    places = [(e.picture, e.captioner, e.sentence) for e in sentences]
    name = caption.model.name
    assert places[-2:] == [(2, name, 1), (1, "b", 1)]
    assert reply_to_evidence("3, 2, 3", sentences) == (sentences[2], sentences[1])
    assert reply_to_evidence("none", sentences) == ()


@pytest.mark.parametrize("seed", range(4))
def test_a_number_out_of_range_cannot_occur(tmp_path: Path, caption: Caption, seed: int) -> None:
    reasoner = Reasoner.load(bundles.write_lm(tmp_path / "lm.gguf", seed=seed), threads=1)
    text = "A red star. A blue ring."
    answer = reasoner.answer([replace(caption, text=text)], "Which colour?", evidence=True)
    sentences, notes = reasoner.find_evidence([replace(caption, text=text)], "Which colour?", "red")
    reasoner.close()
    assert notes == ()
    for evidence in (sentences, answer.evidence):
        assert evidence is not None
        assert {e.text for e in evidence} <= {"A red star.", "A blue ring."}
    assert reasoner.answer([], "Which colour?", answer_tokens=2).evidence is None
    reasoner.close()


class Failing(Reasoner):
    """Answers once, and fails at the second prompt."""

    def complete(self, messages: Any, *, max_tokens: int, shape: Any = None) -> Any:
        if shape is not None:
            raise PromptTooLongError("The prompt is too long.")
        return super().complete(messages, max_tokens=max_tokens)


def test_an_answer_outlives_its_evidence(scripted_gguf: Path, caption: Caption) -> None:
    reasoner = Failing(scripted_gguf, "failing", threads=1)
    answer = reasoner.answer([caption], "Which colour?", evidence=True)
    reasoner.close()
    assert answer.text
    assert answer.evidence is None
    assert answer.notes == ("no evidence: The prompt is too long.",)


def test_the_command_line_says_it(
    scripted_bundle: Path, photo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ask = ["ask", str(photo), "What is there?", "--captioner", str(scripted_bundle), "--reasoner",
           str(scripted_bundle / "lm.gguf"), "--choices", "yes,no"]  # fmt: skip
    assert run([*ask, "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    texts = caption_to_sentences(record["captions"][0]["caption"])
    assert record["evidence"] is not None
    assert {e["text"] for e in record["evidence"]} <= set(texts)
    assert run([*ask, "--show-captions"]) == 0
    assert "\nevidence: " in capfd.readouterr().out

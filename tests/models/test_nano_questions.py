"""The script that makes the shipped question set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeprism.evaluation.questions import QuestionFile
from edgeprism.models.nano.recipe.measure.ask import KINDS, sample_questions
from edgeprism.models.nano.recipe.world.draw import Assets
from edgeprism.models.nano.recipe.world.questions import (
    LETTERS,
    main,
    query_to_answer,
    query_to_distractors,
    questions_to_tsv,
)
from edgeprism.models.nano.recipe.world.scene import COLOURS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Assets with flat squares as icons and without fonts, so that Pillow's own is used."""
    place = tmp_path_factory.mktemp("assets")
    np.save(place / "sprites.npy", np.full((2, 5, 96, 96, 4), 255, np.uint8))
    return place


def test_the_file_is_what_was_drawn(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "questions.tsv"
    assert main([str(folder), str(out), "--questions", "36", "--seed", "7"]) == 0
    file = QuestionFile(out)
    assert file.skipped == []
    assert len(file.questions) == 36
    for question, (_, query) in zip(file.questions, sample_questions(7, 36), strict=True):
        assert question.category == query.kind
        assert question.text == query.focuses[-1]  # the wording that training never uses
        answer = dict(question.options).get(question.answer, question.answer)
        assert answer == query_to_answer(query)
    assert {q.category for q in file.questions if not q.options} == {
        "colour", "count", "text", "chart",
    }  # fmt: skip
    assert out.read_text(encoding="utf-8") == questions_to_tsv(Assets(folder), count=36, seed=7)


def test_wrong_options_are_wrong_and_like_the_right_one() -> None:
    import random

    for number, (scene, query) in enumerate(sample_questions(3, 120)):
        wrong = query_to_distractors(query, scene, random.Random(number))
        answer = query_to_answer(query)
        assert answer not in wrong
        assert len(set(wrong)) == len(wrong) == (1 if query.kind == "presence" else 3)
        if query.kind == "colour":
            assert set(wrong) <= set(COLOURS)
        elif query.kind in ("count", "chart"):
            assert all(text.isdigit() for text in [answer, *wrong])
    assert len(LETTERS) == 4
    assert len(KINDS) == 6

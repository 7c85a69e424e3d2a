"""The command that measures evidence: its rule for a fact, and a whole run of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from edgeprism.evaluation.questions import EvalQuestion
from edgeprism.models.nano.recipe.measure.evidence import carries, counts_to_table, main


@pytest.mark.parametrize(
    ("wording", "answer", "category", "sentence", "right"),
    [
        ("Which colour does the star have?", "red", "colour", "A small red star.", True),
        ("Which colour does the star have?", "red", "colour", "The star is red.", True),
        ("Which colour does the star have?", "red", "colour", "A red ring.", False),
        ("Which colour does the star have?", "red", "colour", "A blue star, a red ring.", False),
        ("How many red stars are in the picture?", "2", "count", "Two small red stars.", True),
        ("How many red stars are in the picture?", "2", "count", "Two objects: a red star.", False),
        ("How many glasses are in the picture?", "1", "count", "A pear and a small glass.", True),
        ("How many pairs of socks are in the picture?", "0", "count", "No pairs of socks.", True),
        ("How many stars are in the picture?", "1", "count", "One object: two stars.", False),
        ("What is printed in the picture?", "STOP", "text", 'The word "STOP".', True),
        ("What is printed in the picture?", "STOP", "text", 'It reads "STOPS".', False),
        ("What is printed in the picture?", "no text", "text", "There is no text.", True),
        ("Is a red star in the picture?", "yes", "presence", "A tree and a small red star.", True),
        ("Is a red star in the picture?", "yes", "presence", "There is no red star.", False),
        ("Is a red star in the picture?", "no", "presence", "There is no red star.", True),
        ("Is a red star in the picture?", "no", "presence", "A red star.", False),
        ("What value does bar A have?", "4", "chart", "A is 4 and B is 7.", True),
        ("What value does B have?", "4", "chart", "A is 4 and B is 7.", False),
        ("What value does the lowest bar have?", "4", "chart", "The lowest bar is A with 4.", True),
        (
            "Where does the tree stand, seen from the red star?",
            "below",
            "relation",
            "The tree is below the red star.",
            True,
        ),
        (
            "Where does the tree stand, seen from the red star?",
            "below",
            "relation",
            "The tree is below and to the left of the red star.",
            False,
        ),
        (
            "Where does the tree stand, seen from the red star?",
            "below",
            "relation",
            "The tree is below the ring.",
            False,
        ),
    ],
)
def test_what_carries_a_fact(
    wording: str, answer: str, category: str, sentence: str, right: bool
) -> None:
    question = EvalQuestion(
        "0", wording, "A", (), (("A", answer), ("B", "other")), category=category
    )
    assert carries(sentence, question) is right


def test_a_share_of_nothing_is_none() -> None:
    table = counts_to_table(Counter({"questions": 4, "right": 1}))
    assert "1 of 4      25.0%" in table
    assert "–" in table.splitlines()[-1]


def test_the_command(scripted_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    models = ["--bundle", str(scripted_bundle), "--reasoner", str(scripted_bundle / "lm.gguf")]
    assert main([*models, "--limit", "2"]) == 0
    assert " of 2 " in capfd.readouterr().out

"""Answers in free words → verdicts."""

from __future__ import annotations

import pytest

from edgeprism.evaluation.questions import EvalQuestion
from edgeprism.evaluation.scoring import UNMATCHED, match_option, score, stated_number, to_number

OPTIONS = (("A", "red car"), ("B", "a dog"), ("C", "two boats"), ("D", "dark red"))

ONE_OPTION = {
    # the answer is a letter or begins with one
    "A.": "A", "A": "A", "(B)": "B", "b": "B", "**C**": "C", "D) dark red": "D",
    "C, two boats": "C", "D, a dark red": "D",
    "Answer:\n\nB": "B", "$\\boxed{C}$": "C", " [D] ": "D", "`B`": "B",
    # a stated letter
    "the answer is C because A…": "C", "The answer is C because A is wrong": "C",
    "Answer: (B)": "B", "The correct answer is **B**.": "B", "I choose option D": "D",
    "answer is d": "D", "The answer is A": "A", "The answer is A because it is red.": "A",
    "The answer is (A) red car.": "A", "Option B": "B", "The correct option is: C.": "C",
    # a letter anywhere else
    "I think it is B": "B", "It must be (C), I believe.": "C", "It is not A, so B": "B",
    "Not B but C": "C", "It isn't (A). (D)": "D",
    # an option's text
    "dark red": "D", "The car is dark red.": "D", "a dog": "B", "A dog": "B", "A dog.": "B",
    "The Dog!": "B", "It is a dog": "B", "2 boats": "C", "I see two boats there.": "C",
    "A red car": "A", "the answer is a dog": "B", "The answer is A dog": "B",
    # letter and text disagree: the prompt asks for the letter
    "B. two boats": "B", "A. dog": "A",
}  # fmt: skip

NO_OPTION = [
    "", "   ", "None of them", "A or B", "Both A and C", "A, B and C", "E", "I", "Yes", "red",
    "A. red car\nB. a dog\nC. two boats\nD. dark red", "Option A and option C are wrong",
    "The answer is not B", "The answer is neither A nor B", "a dog and two boats",
    "The description does not say.", "I am not sure.", "Aha", "The answer is A or C",
    "(A), (B)", "A/B", "Options B & C.",
    "The answer is A. No, the answer is B.",
]  # fmt: skip


@pytest.mark.parametrize("answer", ONE_OPTION)
def test_one_option(answer: str) -> None:
    assert match_option(answer, OPTIONS)[0] == ONE_OPTION[answer]


@pytest.mark.parametrize("answer", NO_OPTION)
def test_no_option(answer: str) -> None:
    assert match_option(answer, OPTIONS) == ("", "")


def test_options_that_look_like_letters() -> None:
    swapped = (("A", "B"), ("B", "A"), ("C", "I"))
    assert match_option("B", swapped)[0] == "B"
    assert match_option("I", swapped)[0] == "C"
    numbers = (("A", "1"), ("B", "10"), ("C", "100"))
    assert match_option("10", numbers)[0] == "B"
    assert match_option("There are 100.", numbers)[0] == "C"
    assert match_option("ten", numbers)[0] == "B"
    signs = (("A", "<"), ("B", ">"), ("C", "="))
    assert match_option(">", signs)[0] == "B"
    yes_no = (("A", "yes"), ("B", "no"))
    assert match_option("No, there is none.", yes_no)[0] == "B"
    assert match_option("A. yes", yes_no)[0] == "A"


def test_a_verdict_is_right_for_the_right_option_alone() -> None:
    question = EvalQuestion("1", "?", "B", (), OPTIONS)
    right, wrong = score(question, "(B)"), score(question, "(C)")
    assert (right.choice, right.right) == ("B", True)
    assert (wrong.choice, wrong.right) == ("C", False)
    assert score(question, "who knows") == UNMATCHED
    assert not UNMATCHED.right


OPEN = [
    # expected, answer_type, precision, answer, right; None: no rule matches
    ("14", "integer", None, "The number missing in the sequence is 14.", True),
    ("14", "integer", None, "14.0", True),
    ("14", "integer", None, "fourteen", True),
    ("14", "integer", None, "15", False),
    ("14", "integer", None, "14 or 15", None),
    ("1,234", "integer", None, "It costs $1234.", True),
    ("5", "integer", None, "2 plus 3, so the answer is 5", True),
    ("5", "integer", None, "The answer is unclear", None),
    ("0.6", "float", 1, "The fraction is 0.62", True),
    ("0.6", "float", 1, "0.7", False),
    ("1.45", "float", 2, "Luca needs $1.45 to buy both.", True),
    ("1.45", "float", 2, "1.454", True),
    ("1.45", "float", 2, "1.46", False),
    ("-3", "", None, "-3", True),
    ("-3", "", None, "3", False),
    ("50%", "", None, "50 percent", True),
    ("[2007, 2008]", "list", None, "Between 2007 and 2008.", True),
    ("[2007, 2008]", "list", None, "[2008, 2007]", False),
    ("[0.5, 1]", "list", None, "The list is [0.50, 1.0], in 2 parts.", True),
    ("yes", "", None, "Yes, there is one.", True),
    ("yes", "", None, "No.", False),
    ("No", "", None, "There is no dog.", True),
    ("yes", "", None, "Yes and no.", None),
    ("yes", "", None, "Perhaps.", None),
    ("STOP", "text", None, 'The sign reads "stop".', True),
    ("STOP", "text", None, "STOPS", None),
    ("New York", "text", None, "It is in new york city", True),
    ("42", "text", None, "42", True),
    ("Zürich", "", None, "zürich", True),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "kind", "precision", "answer", "right"), OPEN)
def test_open_questions(
    expected: str, kind: str, precision: int | None, answer: str, right: bool | None
) -> None:
    question = EvalQuestion("1", "?", expected, (), answer_type=kind, precision=precision)
    verdict = score(question, answer)
    assert (
        verdict == UNMATCHED
        if right is None
        else (verdict.right, bool(verdict.by)) == (right, True)
    )


def test_numbers() -> None:
    assert to_number("1,234.5") == 1234.5
    assert to_number("three") == 3
    assert to_number("3 cats") is None
    assert to_number("B12") is None
    assert stated_number("about 3 of 3") == 3
    assert stated_number("in 2008, the value is 1e-3") == 0.001
    assert stated_number("v2") is None

"""Where no rule can tell what an answer says, another reasoner may: it sees no picture either."""

from __future__ import annotations

from edgeprism.evaluation.questions import Question
from edgeprism.evaluation.scoring import UNMATCHED, Verdict
from edgeprism.language.chat import Message
from edgeprism.reason.base import BaseReasoner
from edgeprism.reason.shape import choices_to_shape

NONE = "none"
_MOST_TOKENS = 16
_MOST_CHARS = 2000  # of an answer: a judge with a short context reads its beginning


def judge_answer(judge: BaseReasoner, question: Question, answer: str) -> str:
    """An option's letter, "yes" or "no" for whether an open answer is right, or "none".

    The reply is bound to these words. Of an option question the judge is not told which is right.
    """
    if question.options:
        listed = "\n".join(f"{letter}. {text}" for letter, text in question.options)
        task = "Which option does the answer mean? Say its letter, or none if it means no option."
        words = [*(letter for letter, _ in question.options), NONE]
        asked = f"Question: {question.text}\n{listed}"
    else:
        task = "Does the answer say the same as the right answer? Say yes or no."
        words = ["yes", "no"]
        asked = f"Question: {question.text}\nRight answer: {question.answer}"
    text = f"{asked}\nAnswer: {answer[:_MOST_CHARS]}\n\n{task}"
    shape = choices_to_shape(words)
    said = judge.complete([Message("user", text)], max_tokens=_MOST_TOKENS, shape=shape).text
    return said if said in words else NONE


def said_to_verdict(question: Question, said: str) -> Verdict:
    """What `judge_answer` said, as a verdict."""
    if said == NONE:
        return UNMATCHED
    if question.options:
        return Verdict(said, said == question.answer, "judge")
    return Verdict(question.answer if said == "yes" else "something else", said == "yes", "judge")

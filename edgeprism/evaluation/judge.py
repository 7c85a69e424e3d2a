"""A judge: a reasoner that reads an answer which no rule can match. It sees no picture either."""

from __future__ import annotations

from edgeprism.evaluation.questions import EvalQuestion
from edgeprism.evaluation.scoring import UNMATCHED, Verdict
from edgeprism.language.chat import Message
from edgeprism.reason.base import BaseReasoner, no_answer
from edgeprism.reason.shape import choices_to_shape

NONE = "none"
_MAX_TOKENS = 16
_MAX_CHARS = 2000  # of an answer, so that it fits into a judge's short context


def judge_answer(judge: BaseReasoner, question: EvalQuestion, answer: str) -> str:
    """Return an option's letter or "none"; for an open question, "yes" or "no".

    "yes" and "no" say whether the open answer is right. The reply is bound to these words. The
    judge does not learn which option is right. Raises NoAnswerError for a judge that only thought.
    """
    if question.options:
        options = "\n".join(f"{letter}. {text}" for letter, text in question.options)
        task = "Which option does the answer mean? Say its letter, or none if it means no option."
        words = [*(letter for letter, _ in question.options), NONE]
        context = f"Question: {question.text}\n{options}"
    else:
        task = "Does the answer say the same as the right answer? Say yes or no."
        words = ["yes", "no"]
        context = f"Question: {question.text}\nRight answer: {question.answer}"
    text = f"{context}\nAnswer: {answer[:_MAX_CHARS]}\n\n{task}"
    shape = choices_to_shape(words)
    reply = judge.complete([Message("user", text)], max_tokens=_MAX_TOKENS, shape=shape)
    if not reply.text and reply.thinking:
        raise no_answer(judge.name, reply)
    return reply.text if reply.text in words else NONE


def reply_to_verdict(question: EvalQuestion, reply: str) -> Verdict:
    """Turn the reply of `judge_answer` into a verdict."""
    if reply == NONE:
        return UNMATCHED
    if question.options:
        return Verdict(reply, reply == question.answer, "judge")
    right = reply == "yes"
    return Verdict(question.answer if right else "something else", right, "judge")

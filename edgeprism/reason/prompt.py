"""A reasoner's prompts: descriptions, questions, conversations, worked examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprism.reason.question import Question
from edgeprism.language.chat import Message


def answer_messages(descriptions: Sequence[Mapping[str, str]], question: Question) -> list[Message]:
    """Put a question after the descriptions of each picture, which are given by captioner.

    The prompt lists lettered options. Without descriptions it is the question alone.
    """
    looks = (descriptions,) if descriptions else ()
    source = "Answer from the description, in" if descriptions else "Answer in"
    return [Message("user", _turn_to_text(Turn(looks, question), source))]


@dataclass(frozen=True)
class Turn:
    """One question of a conversation, with the descriptions that precede it."""

    looks: tuple[Sequence[Mapping[str, str]], ...]  # each as `answer_messages` takes it
    question: Question
    answer: str = ""


def conversation_messages(turns: Sequence[Turn]) -> list[Message]:
    """Write a conversation up to its last question; earlier turns keep their exact text."""
    messages = []
    for turn in turns:
        messages.append(Message("user", _turn_to_text(turn, "Answer from the description, in")))
        messages.append(Message("assistant", turn.answer))
    return messages[:-1]


def _turn_to_text(turn: Turn, source: str) -> str:
    question = turn.question
    # No system turn with rules: small models mostly gave the fallback answer that such rules
    # named. `benchmarks/answers/reasoner.py` counts right answers.
    task = f"{source} a few words."
    if question.options:
        task = f"{source} one letter: the right option's."
    lines = [task, f"Hint: {question.hint}"] if question.hint else [task]
    lines.append(f"Question: {question.stem}")
    lines += [f"{letter}. {text}" for letter, text in question.options.items()]
    lines.append("Answer:")
    return "\n\n".join([*map(_descriptions_to_text, turn.looks), "\n".join(lines)])


def merge_messages(descriptions: Mapping[str, str]) -> list[Message]:
    """Ask for one description of a picture in place of those of several captioners."""
    task = (
        "Write one description that holds everything these say of the picture, and nothing else. "
        "Where they contradict each other, give both."
    )
    return [Message("user", f"{_descriptions_to_text([descriptions])}\n\n{task}")]


def _descriptions_to_text(descriptions: Sequence[Mapping[str, str]]) -> str:
    """Number the pictures if there are several; name the captioners if there are several."""
    parts = []
    for i, by_captioner in enumerate(descriptions, 1):
        which = "the picture" if len(descriptions) == 1 else f"picture {i}"
        for name, text in by_captioner.items():
            by = f" by {name}" if len(by_captioner) > 1 else ""
            parts.append(f"Description of {which}{by}:\n{text}")
    return "\n\n".join(parts)


_FOCUS_TASK = "Name what must be looked at to answer; do not answer."


def focus_messages(question: Question, *, examples: bool = True) -> list[Message]:
    """Ask for the focus of a question, after worked examples if there shall be any.

    The prompt leaves out options and hint, because the captioner's focus must not hold an answer.
    """
    shown = FOCUS_EXAMPLES if examples else ()
    texts = [*(text for text, _ in shown), question.stem]
    texts[0] = f"{_FOCUS_TASK}\n\n{texts[0]}"
    turns = []
    for text, (_, focus) in zip(texts, shown, strict=False):
        turns += [Message("user", text, True), Message("assistant", focus, True)]
    return [*turns, Message("user", texts[-1])]


# Each focus has the shape that `BaseReasoner.draw_focus` sets for its question.
FOCUS_EXAMPLES = (
    ("Which season does the park seem to be in?", "the season of the park"),
    ("How many people wait at the bus stop?", "the number of people at the bus stop"),
    ("Which shade did they paint the front door?", "the colour of the front door"),
    ("Can a bicycle be parked by the fence?", "whether there is a bicycle by the fence"),
    ("Does the old man sit nearer to the lamp than the cat?",
     "the position of the old man and the cat relative to the lamp"),
    ("Which name does the ship carry?", "the name written on the ship"),
    ("Is a black dog there?", "whether there is a black dog"),
    ("Is the taxi standing behind the bus?", "the position of the taxi relative to the bus"),
    ("What does the shop window say?", "the text on the shop window"),
    ("Is there an umbrella?", "whether there is an umbrella"),
    ("On which day was the rain heaviest?", "the amount of rain on the day"),
)  # fmt: skip

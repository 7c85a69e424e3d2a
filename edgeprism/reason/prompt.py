"""What a reasoner is shown: descriptions, questions, conversations, worked examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprism.reason.question import Question
from edgeprism.language.chat import Message


def answer_messages(descriptions: Sequence[Mapping[str, str]], question: Question) -> list[Message]:
    """What the reasoner is shown: each picture's descriptions, by captioner, then the question.

    Without any description the question stands alone. Lettered options are listed.
    """
    looks = (descriptions,) if descriptions else ()
    source = "Answer from the description, in" if descriptions else "Answer in"
    return [Message("user", _asked(Turn(looks, question), source))]


@dataclass(frozen=True)
class Turn:
    """One question of a conversation, and what was told of the pictures just before it."""

    looks: tuple[Sequence[Mapping[str, str]], ...]  # each as `answer_messages` takes it
    question: Question
    answer: str = ""


def conversation_messages(turns: Sequence[Turn]) -> list[Message]:
    """A conversation up to its last question. What came before stands as it stood then."""
    messages = []
    for turn in turns:
        messages.append(Message("user", _asked(turn, "Answer from the description, in")))
        messages.append(Message("assistant", turn.answer))
    return messages[:-1]


def _asked(turn: Turn, source: str) -> str:
    """What stands in a question's turn."""
    question = turn.question
    # One plain turn: given a system turn of rules, and an answer to fall back on, small models
    # mostly fall back. `benchmarks/answers/reasoner.py` counts right answers.
    task = f"{source} a few words."
    if question.options:
        task = f"{source} one letter: the right option's."
    asked = [task, f"Hint: {question.hint}"] if question.hint else [task]
    asked.append(f"Question: {question.stem}")
    asked += [f"{letter}. {text}" for letter, text in question.options.items()]
    return "\n\n".join([*map(_described, turn.looks), "\n".join([*asked, "Answer:"])])


def merge_messages(descriptions: Mapping[str, str]) -> list[Message]:
    """Asks for one description of a picture instead of several, given by captioner."""
    task = (
        "Write one description that holds everything these say of the picture, and nothing else. "
        "Where they contradict each other, give both."
    )
    return [Message("user", f"{_described([descriptions])}\n\n{task}")]


def _described(descriptions: Sequence[Mapping[str, str]]) -> str:
    """Numbered where there are several pictures, by name where there are several captioners."""
    parts = []
    for i, by_captioner in enumerate(descriptions, 1):
        which = "the picture" if len(descriptions) == 1 else f"picture {i}"
        for name, text in by_captioner.items():
            by = f" by {name}" if len(by_captioner) > 1 else ""
            parts.append(f"Description of {which}{by}:\n{text}")
    return "\n\n".join(parts)


def focus_messages(question: Question) -> list[Message]:
    """Worked examples that turn a question into what must be looked at, then the question.

    Neither options nor hint are shown: what the captioner is told must not hold an answer.
    """
    asked = [example for example, _ in FOCUS_EXAMPLES] + [question.stem]
    asked[0] = f"Name what must be looked at to answer; do not answer.\n\n{asked[0]}"
    turns = []
    for text, (_, focus) in zip(asked, FOCUS_EXAMPLES, strict=False):
        turns += [Message("user", text), Message("assistant", focus)]
    return [*turns, Message("user", asked[-1])]


# each focus is in the shape that its question's focus is bound to
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

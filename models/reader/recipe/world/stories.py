"""Descriptions in whole paragraphs, from the templates in the folder templates/."""

from __future__ import annotations

import functools
import random
import re
from dataclasses import dataclass
from pathlib import Path

from edgeprism.models.reader.recipe.world.slots import SLOTS
from edgeprism.models.reader.recipe.world.text import UNKNOWN, Ask, Passage, a, capital, mark
from edgeprism.models.reader.recipe.world.words import COLOURS

SLOT = re.compile(r"\{(?:(a|A|N|O) )?([a-z]+)(\d*)(?::([^}]*))?\}")


@dataclass(frozen=True)
class StoryAsk:
    """A question of a template; its texts have slots, too."""

    question: str
    answer: str
    slots: tuple[str, ...]  # that state the answer
    focus: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    """A template and its questions."""

    text: str
    asks: tuple[StoryAsk, ...]


@functools.cache
def read_stories() -> tuple[Story, ...]:
    """Read the templates of all files in the folder."""
    stories = []
    for path in sorted(Path(__file__).with_name("templates").glob("*.txt")):
        for block in path.read_text(encoding="utf-8").split("\n\n"):
            first, *lines = [line for line in block.split("\n") if line and line[0] != "#"] or [""]
            if first:
                stories.append(Story(first, tuple(map(_line_to_ask, lines))))
    return tuple(stories)


def _line_to_ask(line: str) -> StoryAsk:
    """Read "question => answer @slots ~ wrong; wrong | focus"."""
    question, _, rest = line.partition(" => ")
    rest, _, focus = rest.partition(" |")
    rest, _, wrong = rest.partition(" ~ ")
    answer, _, named = rest.partition(" @")
    slots = tuple(named.split(",")) if named else tuple(
        slot + digits for _, slot, digits, _ in SLOT.findall(answer)
    )  # fmt: skip
    return StoryAsk(
        question, answer, slots, focus.strip(), tuple(wrong.split("; ")) if wrong else ()
    )


def sample_story(rng: random.Random) -> Passage:
    """Return one of the stories, told."""
    return tell_story(rng, rng.choice(read_stories()))


def tell_story(rng: random.Random, story: Story) -> Passage:
    """Return a story with its slots filled; no two slots have the same value."""
    passage = Passage()
    values: dict[str, str] = {}
    facts: dict[str, int] = {}

    def fill(match: re.Match[str]) -> str:
        form, kind, digits, fixed = match.groups()
        slot = kind + digits
        if slot not in values:
            values[slot] = (fixed or "").strip() or _new(rng, kind, set(values.values()))
        text = values[slot]
        if form in ("a", "A"):
            text = a(text)
        return capital(text) if form in ("A", "N", "O") else text

    def tell(match: re.Match[str]) -> str:
        slot = match[2] + match[3]
        if slot not in facts:
            facts[slot] = passage.fact()
        return mark(facts[slot], fill(match))

    passage.text = SLOT.sub(tell, story.text)
    for ask in story.asks:
        stated = tuple(facts[slot] for slot in ask.slots if slot in facts)
        stated = stated or _stated_by(passage, ask.answer)
        asked, reply = (SLOT.sub(fill, text) for text in (ask.question, ask.answer))
        reply = UNKNOWN if reply == "?" else reply
        kind = "not said" if reply == UNKNOWN else "colour" if reply in COLOURS else "story"
        wrong = tuple(SLOT.sub(fill, text) for text in ask.wrong) or _others(rng, ask, values)
        wrong = tuple(text for text in dict.fromkeys(wrong) if text != reply)
        passage.asks.append(Ask(asked, reply, SLOT.sub(fill, ask.focus), stated, wrong, kind))
    return passage


def _others(rng: random.Random, ask: StoryAsk, values: dict[str, str]) -> tuple[str, ...]:
    """Return up to three wrong answers of the right one's form where one slot makes the right one.

    The other values of such a slot in the story come first.
    """
    slots = list(SLOT.finditer(ask.answer))
    if len(slots) != 1 or slots[0][4] or slots[0][2] not in SLOTS:
        return ()
    form, kind, digits, _ = slots[0].groups()
    right = values[kind + digits]
    others = [v for slot, v in values.items() if slot.rstrip("0123456789") == kind and v != right]
    others = rng.sample(others, min(3, len(others)))
    drawn = (SLOTS[kind](rng) for _ in range(3))  # a slot may have only two values
    others = [v for v in dict.fromkeys((*others, *drawn)) if v != right][:3]
    shaped = (a(other) if form in ("a", "A") else other for other in others)
    shaped = (capital(other) if form in ("A", "N", "O") else other for other in shaped)
    return tuple(
        f"{ask.answer[: slots[0].start()]}{o}{ask.answer[slots[0].end() :]}" for o in shaped
    )


def _new(rng: random.Random, kind: str, used: set[str]) -> str:
    while True:
        value = SLOTS[kind](rng)
        if not any(value in other or other in value for other in used if len(other) > 2):
            return value


def _stated_by(passage: Passage, answer: str) -> tuple[int, ...]:
    """Mark a fixed answer where the text has its words; () where it has not."""
    place = passage.text.lower().find(answer.lower()) if len(answer) > 4 else -1
    if place < 0:
        return ()
    fact = passage.fact()
    passage.text = passage.text[:place] + mark(fact, passage.text[place:])
    return (fact,)

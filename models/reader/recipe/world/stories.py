"""Descriptions in whole paragraphs, from the templates of stories.txt."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeprism.models.reader.recipe.world.text import (
    UNKNOWN,
    Ask,
    Passage,
    a,
    capital,
    mark,
    plural,
)
from edgeprism.models.reader.recipe.world.words import (
    ACTIONS,
    ANIMALS,
    BRANDS,
    CITIES,
    CLOTHES,
    COLOURS,
    DAYS,
    MATERIALS,
    MONTHS,
    NAMES,
    NUMBERS,
    PEOPLE,
    PRINTED,
    SAYINGS,
    SURNAMES,
    THINGS,
    VEHICLES,
)

_SLOT = re.compile(r"\{(?:(a|A|N|O) )?([a-z]+)(\d*)(?::([^}]*))?\}")
_SLOTS: dict[str, Callable[[random.Random], str]] = {
    "c": lambda r: r.choice(COLOURS), "o": lambda r: r.choice(THINGS),
    "pl": lambda r: plural(r.choice(THINGS)), "n": lambda r: NUMBERS[r.randint(2, 12)],
    "num": lambda r: str(r.randint(2, 99)), "p": lambda r: r.choice(PEOPLE),
    "people": lambda r: plural(r.choice(PEOPLE)), "g": lambda r: r.choice(CLOTHES),
    "m": lambda r: r.choice(MATERIALS), "w": lambda r: r.choice(PRINTED),
    "say": lambda r: r.choice(SAYINGS), "y": lambda r: str(r.randint(1861, 2025)),
    "city": lambda r: r.choice(CITIES), "name": lambda r: r.choice(NAMES),
    "sur": lambda r: r.choice(SURNAMES), "brand": lambda r: r.choice(BRANDS),
    "van": lambda r: r.choice(VEHICLES), "act": lambda r: r.choice(ACTIONS),
    "mon": lambda r: r.choice(MONTHS), "day": lambda r: r.choice(DAYS),
    "an": lambda r: r.choice(ANIMALS), "side": lambda r: r.choice(("left", "right")),
    "dir": lambda r: r.choice(("south", "west", "south-east")),
    "hair": lambda r: r.choice(("grey", "long", "curly", "short", "white", "braided")),
    "adj": lambda r: r.choice(("small", "quiet", "rural", "lavish", "cheerful")),
    "weather": lambda r: r.choice(("sunny", "foggy", "overcast", "windy", "raining")),
    "time": lambda r: r.choice(("dawn", "noon", "dusk", "night")),
    "hour": lambda r: f"{r.randint(1, 12)}:{r.choice(('05', '10', '15', '25', '40', '55'))}",
}  # fmt: skip


@dataclass(frozen=True)
class Story:
    """A template and its questions: (question, answer, slots that state it, focus)."""

    text: str
    asks: tuple[tuple[str, str, tuple[str, ...], str], ...]


@functools.cache
def read_stories() -> tuple[Story, ...]:
    """Read the templates that lie beside this module."""
    stories = []
    text = Path(__file__).with_name("stories.txt").read_text(encoding="utf-8")
    for block in text.split("\n\n"):
        first, *lines = [line for line in block.split("\n") if line and line[0] != "#"] or [""]
        if not first:
            continue
        asks = []
        for line in lines:
            question, _, rest = line.partition(" => ")
            rest, _, focus = rest.partition(" |")
            answer, _, named = rest.partition(" @")
            slots = tuple(named.split(",")) if named else tuple(
                slot + digits for _, slot, digits, _ in _SLOT.findall(answer)
            )  # fmt: skip
            asks.append((question, answer, slots, focus.strip()))
        stories.append(Story(first, tuple(asks)))
    return tuple(stories)


def sample_story(rng: random.Random) -> Passage:
    """Return a story with its slots filled; no two slots have the same value."""
    story, passage = rng.choice(read_stories()), Passage()
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

    passage.text = _SLOT.sub(tell, story.text)
    for question, answer, slots, focus in story.asks:
        stated = tuple(facts[slot] for slot in slots if slot in facts)
        stated = stated or _stated_by(passage, answer)
        asked, reply = (_SLOT.sub(fill, text) for text in (question, answer))
        reply = UNKNOWN if reply == "?" else reply
        kind = "not said" if reply == UNKNOWN else "colour" if reply in COLOURS else "story"
        passage.asks.append(Ask(asked, reply, _SLOT.sub(fill, focus), stated, (), kind))
    return passage


def _new(rng: random.Random, kind: str, used: set[str]) -> str:
    while True:
        value = _SLOTS[kind](rng)
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

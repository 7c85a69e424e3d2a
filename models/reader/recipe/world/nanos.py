"""What nano writes and is asked, which no example for the reader may hold.

So what the reader knows of nano's world is what it reads, and questions about that world measure
reading. The forms are those of ``models/nano/recipe/world/grammar.py``.
"""

from __future__ import annotations

import re
from functools import cache

from edgeprism.models.nano.recipe.world.grammar import WORDINGS
from edgeprism.models.nano.recipe.world.plain_grammar import PLACES, cells_to_relation
from edgeprism.models.nano.recipe.world.scene import COLOURS, SHAPES
from edgeprism.models.nano.recipe.world.things import THINGS, to_plural

# A place for one of nano's names in its sentences and questions: up to four words that are not
# function words, after an article where there is one.
_SMALL = "of|in|on|at|to|from|with|and|or|by|for|the|is|are|it|here|there|now|as|any"
_NAME = rf"(?:(?:a|an|the|no) )?(?:(?!(?:{_SMALL})\b)[\w'-]+)(?: (?!(?:{_SMALL})\b)[\w'-]+){{0,3}}"
_COLOUR = "|".join(COLOURS)
_RELATION = "|".join({cells_to_relation(a, b) for a in range(9) for b in range(9) if a != b})
_NUMBER = r"(?:\d+|no|one|two|three|four|five|six|seven|eight|nine)"
_SENTENCES = (
    rf"{_NUMBER} objects? on an? \w+ background: .*",
    rf"a (?:bar chart|table) with {_NUMBER} (?:bars|rows) on an? \w+ background: .*",
    r"there is nothing here that i know\.",
    rf"the {_NAME} is (?:{_COLOUR})\.",
    rf"the {_NAME} is (?:{_RELATION}) the {_NAME}\.",
    rf"the {_NAME} is (?:{'|'.join(PLACES)})\.",
    rf"there (?:is|are) (?:a |an |no |{_NUMBER} ){_NAME}\.",
    r"the text reads .*",
    r"there is no text\.",
    rf"the (?:tallest|lowest) bar is {_NAME} with \d+\.",
    r"[a-z] is \d+\.",
)


@cache
def _names() -> re.Pattern[str]:
    names = {*THINGS, *SHAPES}
    words = sorted({*names, *map(to_plural, names)}, key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)


@cache
def _sentences() -> re.Pattern[str]:
    return re.compile("|".join(_SENTENCES))


@cache
def _questions() -> re.Pattern[str]:
    forms = []
    for wording in (wording for wordings in WORDINGS.values() for wording in wordings):
        parts = re.split(r"\{\w\}", wording.lower().replace("colour", "color"))
        # "{a}, colour" is a name with a word, "{o}" a name alone: no question has their form
        if any(len(part.split()) > 1 for part in parts):
            forms.append(_NAME.join(map(re.escape, parts)))
    return re.compile("|".join(forms))


def find_names(text: str) -> list[str]:
    """Return the names of nano's things and shapes that `text` holds."""
    return [name.lower() for name in _names().findall(text)]


def is_nanos_sentence(sentence: str) -> bool:
    """Return whether nano could have written `sentence`, with any other name in it."""
    return _sentences().fullmatch(sentence.lower()) is not None


def is_nanos_question(question: str) -> bool:
    """Return whether `question` has a wording of nano's focuses, with any other name in it."""
    return _questions().fullmatch(question.lower().replace("colour", "color")) is not None

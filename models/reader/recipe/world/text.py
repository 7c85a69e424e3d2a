"""Descriptions whose facts are marked, so that what supports an answer is known.

A mark is a private character before the words that state a fact. Sentences are split with the
marks in place by the runtime's own rules, and the marks then removed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgeprism.models.reader.recipe.world.words import IRREGULAR, NUMBERS
from edgeprism.reason.options import UNSAID

UNKNOWN = UNSAID
_FIRST_MARK = 0xE000
_MARKS = 0x1000


@dataclass(frozen=True)
class Ask:
    """A question about a description."""

    question: str
    answer: str
    focus: str = ""  # what must be looked at; "" if nothing is taught
    facts: tuple[int, ...] = ()  # that the answer rests on
    wrong: tuple[str, ...] = ()  # wrong answers of the same kind
    kind: str = ""


@dataclass
class Passage:
    """A description with marked facts, and questions about it."""

    text: str = ""
    asks: list[Ask] = field(default_factory=list)
    facts: int = 0

    def fact(self) -> int:
        """Return the number of a new fact."""
        self.facts += 1
        return self.facts - 1

    def say(self, sentence: str, between: str = " ") -> None:
        """Add a sentence, with a capital at its start; behind a list it gets a line of its own."""
        if "\n" in self.text and self.text[-1] not in ".!?":
            between = "\n"
        self.text += (between if self.text else "") + capital(sentence)


def mark(fact: int, text: str) -> str:
    """Return `text` with the mark of the fact that it states."""
    return chr(_FIRST_MARK + fact) + text


def unmarked(text: str) -> str:
    """Return `text` without marks."""
    return "".join(c for c in text if not _is_mark(c))


def marks(text: str) -> set[int]:
    """Return the facts that `text` states."""
    return {ord(c) - _FIRST_MARK for c in text if _is_mark(c)}


def _is_mark(character: str) -> bool:
    return _FIRST_MARK <= ord(character) < _FIRST_MARK + _MARKS


def capital(text: str) -> str:
    """Return `text` with a capital at its start, behind any marks."""
    for index, character in enumerate(text):
        if not _is_mark(character):
            return text[:index] + character.upper() + text[index + 1 :]
    return text


def plural(name: str) -> str:
    """Return the plural of a name, whose last word is its noun."""
    if name in IRREGULAR:
        return IRREGULAR[name]
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def a(words: str) -> str:
    """Return `words` with an indefinite article."""
    an = unmarked(words)[0].lower() in "aeiou" and not words.startswith(("uku", "uni", "eu", "one"))
    return ("an " if an else "a ") + words


def join(parts: Sequence[str], last: str = "and") -> str:
    """Return "x, y and z"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def number(rng: random.Random, count: int, digits: float = 0.3) -> str:
    """Return a number in words, or in digits if it is large or by chance."""
    return str(count) if count >= len(NUMBERS) or rng.random() < digits else NUMBERS[count]


def pick(rng: random.Random, texts: Sequence[str], **names: str) -> str:
    """Return one of the texts with the names filled in."""
    return rng.choice(texts).format(**names)

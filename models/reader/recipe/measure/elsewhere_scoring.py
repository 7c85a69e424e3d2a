"""Whether a reply to a question about a short text is right: strict rules, and no model asked.

- A reply is compared in words: lower case, without accents and apostrophes, numbers as digits.
- It has at most 20 words, and fewer than the text: a reply that repeats everything is wrong.
- To a question that the text does not answer it says that the text does not say, names no number
  or colour that the question lacks, and does not guess ("probably", "but"). Everywhere else a reply
  that says so is wrong.
- Of lettered options it names one, by its letter or its text.
- "Yes" or "no" comes first, and the other does not follow.
- Everywhere else it holds one of the accepted phrases as whole words and no competing fact: no
  other number where the answer is a number, no other colour where it is a colour, none of the
  question's wrong phrases, no "or", no negation, unless the question or the answer has them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

LONGEST_REPLY = 20  # words
_SHORTEST_LIMIT = 6  # words that a reply about the shortest text may have


def _listed(words: str) -> list[str]:
    return words.split()


_UNITS = _listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = _listed("twenty thirty forty fifty sixty seventy eighty ninety")
_NUMBERS = {word: n for n, word in enumerate(_UNITS)} | {w: 10 * n for n, w in enumerate(_TENS, 2)}
_ROUND = {str(10 * n) for n in range(2, 10)}
_COLOUR_LIST = _listed(
    "amber beige black blue bronze brown crimson cream cyan gold golden gray green grey indigo "
    "magenta maroon navy olive orange pink purple red scarlet silver tan teal turquoise violet "
    "white yellow"
)
COLOURS = frozenset(_COLOUR_LIST)
_NEGATIONS = set(_listed("never neither no none nor not without"))
_HEDGES = _listed(
    "although appears but could however likely looks may maybe might or perhaps possibly "
    "presumably probably seems suggests though yes"
)
_NOT_SAYING = re.compile(
    r"\bnot (?:\w+ )?(?:be )?(?:answer(?:ed)?|clear|contain|described?|determined?|found|given?|"
    r"in the (?:description|text)|included?|indicated?|know|known|mention(?:ed)?|named?|"
    r"possible to (?:know|say|tell)|provided?|said|say|shown?|specif(?:y|ied)|stated?|tell|told)\b"
    r"|\b(?:unknown|unspecified|unstated|unclear|undisclosed)\b"
    r"|\bno (?:answer|information|indication|mention|details?)\b|\bnothing (?:is )?said\b"
)
_LETTER = re.compile(
    r"(?:the )?(?:right |correct )?(?:answer|option)?(?: is)?:? ?"
    r"\(?([a-z])(\)?[.:),]?)(?:$|\s)(.*)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Text:
    """A description that was not written for EdgePrism, word for word but for `changes`."""

    id: str
    form: str  # "museum", "alt text", "caption", "flag", "table", "product" or "book"
    text: str
    title: str
    author: str
    source: str  # an address, followed by the file where that is a repository
    licence: str  # an SPDX identifier, or "public domain"
    changes: str = ""


@dataclass(frozen=True)
class Question:
    """A question about one text; `accepted` holds a letter where there are options.

    In `accepted` and `wrong`, "a + b" asks for both in any order, and "=a" for nothing else.
    """

    id: str
    text: str  # the text's id
    kind: str
    question: str
    accepted: list[str]  # empty: the text does not answer it
    options: dict[str, str] = field(default_factory=dict)
    hint: str = ""
    wrong: list[str] = field(default_factory=list)  # phrases that a right reply does not hold
    evidence: list[str] = field(default_factory=list)  # passages of the text that answer it
    terms: list[float] = field(default_factory=list)  # numbers that add up to the answer
    unanswerable: bool = False
    lacks: list[str] = field(default_factory=list)  # words of an answer, which the text lacks


def plain_words(text: str) -> list[str]:
    """Return the words that are compared; a number word becomes digits, "1,450" is "1450"."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    folded = "".join(c for c in folded if not unicodedata.combining(c))
    folded = re.sub(r"\bcan(?:not|[’']t)\b", "can not", folded)
    folded = re.sub(r"n[’']t\b", " not", folded)
    folded = re.sub(r"(?<=[0-9]),(?=[0-9]{3})", "", re.sub(r"[’']", "", folded))
    words: list[str] = []
    for word in re.findall(r"[0-9]+(?:\.[0-9]+)?|[^\W\d_]+", folded):
        number = _NUMBERS.get(word)
        if number and number < 10 and words and words[-1] in _ROUND:
            words[-1] = str(int(words[-1]) + number)
        elif number is not None:
            words.append(str(number))
        elif word[0].isdigit():
            whole, _, fraction = word.partition(".")
            fraction = fraction.rstrip("0")
            words.append((whole.lstrip("0") or "0") + (f".{fraction}" if fraction else ""))
        else:
            words.append(word)
    return words


def holds(words: Sequence[str], phrase: str) -> bool:
    """Whether `words` hold a phrase: in one piece, each part of "a + b", or nothing but "=a"."""
    if phrase.startswith("="):
        return list(words) == plain_words(phrase)
    line = f" {' '.join(words)} "
    return all(f" {' '.join(plain_words(part))} " in line for part in phrase.split("+"))


def says_nothing_is_said(words: Sequence[str]) -> bool:
    """Whether a reply says that the description does not answer."""
    return _NOT_SAYING.search(" ".join(words)) is not None


def _numbers(words: Sequence[str]) -> set[str]:
    return {word for word in words if word[0].isdigit()}


def chosen_option(reply: str, options: dict[str, str]) -> str:
    """Return the one letter that a reply names, by itself or by its option's text; else ""."""
    match = _LETTER.fullmatch(reply.strip())
    letter = match[1].upper() if match and match[1].upper() in options else ""
    if match and letter and not plain_words(match[3]):
        return letter
    words = plain_words(reply)
    abstains = says_nothing_is_said(words) and not set(_HEDGES) & set(words)
    named = [
        letter
        for letter, option in options.items()
        if holds(words, option) or (abstains and says_nothing_is_said(plain_words(option)))
    ]
    if len(named) != 1 or _NEGATIONS & set(words) - set(plain_words(options[named[0]])):
        return ""
    # "A. a lamp" contradicts itself where B is the lamp; the A of "A lamp" is no letter
    contradicts = match is not None and letter not in ("", named[0]) and match[2] != ""
    return "" if contradicts else named[0]


def longest_reply(text: Text) -> int:
    """Return how many words a reply may have: 20, but fewer than the text has."""
    return max(_SHORTEST_LIMIT, min(LONGEST_REPLY, len(plain_words(text.text)) - 1))


def is_right(question: Question, text: Text, reply: str) -> bool:
    """Return whether a reply is right, by the rules at the top of this file."""
    words = plain_words(reply)
    if not words or len(words) > longest_reply(text):
        return False
    if question.options:
        return chosen_option(reply, question.options) in question.accepted
    asked = set(plain_words(question.question))
    if question.unanswerable:
        stated = (_numbers(words) | COLOURS & set(words)) - asked
        return says_nothing_is_said(words) and not stated and not set(_HEDGES) & set(words)
    if says_nothing_is_said(words) and question.accepted != ["no"]:
        return False
    if question.accepted in (["yes"], ["no"]):
        other = {"yes": _NEGATIONS | {"or"}, "no": {"yes", "or"}}[question.accepted[0]]
        return words[0] == question.accepted[0] and not other & set(words)
    matched = any(holds(words, phrase) for phrase in question.accepted)
    return matched and not _competing(question, words, asked)


def _competing(question: Question, words: Sequence[str], asked: set[str]) -> bool:
    """Whether a reply also holds another fact of the answer's kind, or takes its answer back."""
    accepted = {word for phrase in question.accepted for word in plain_words(phrase)}
    stated = set(words) - accepted - asked
    return bool(
        any(holds(words, phrase) for phrase in question.wrong)
        or (_numbers(list(accepted)) and _numbers(list(stated)))
        or (COLOURS & accepted and COLOURS & stated)
        or (_NEGATIONS | {"or"}) & stated
    )

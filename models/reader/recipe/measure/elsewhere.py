"""Questions about others' descriptions: ``python -m edgeprism.models.reader.recipe.measure.elsewhere``.

A reasoner answers questions written by hand over short texts of other origin: descriptions of
museum objects, alternative texts, captions, flags, products, tables and passages of old books.
`elsewhere_texts.jsonl` holds them with source and licence, `questions_elsewhere.jsonl` the
questions. Nothing in either file is trained on. The scoring asks no model:

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

import argparse
import hashlib
import json
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgeprism import Caption, ModelInfo, NoAnswerError, Reasoner, Timings, TokenCounts, UsageError
from edgeprism.errors import EdgePrismError
from edgeprism.files.atomic import write_atomically
from edgeprism.files.strict_json import record_from_json
from edgeprism.models import reader

TEXTS = Path(reader.__file__).with_name("elsewhere_texts.jsonl")
QUESTIONS = Path(reader.__file__).with_name("questions_elsewhere.jsonl")
NOT_SAID = "not said"
LONGEST_REPLY = 20  # words
LONG_TEXT = 150  # words
_SHORTEST_LIMIT = 6  # words that a reply about the shortest text may have
_ANSWER_TOKENS = 40  # enough for a reply that is too long to show itself

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBERS = {word: number for number, word in enumerate(_UNITS)}
_NUMBERS |= {word: 10 * number for number, word in enumerate(_TENS, 2)}
_ROUND = frozenset(str(10 * number) for number in range(2, 10))
COLOURS = frozenset(
    "amber beige black blue bronze brown crimson cream cyan gold golden gray green grey indigo "
    "magenta maroon navy olive orange pink purple red scarlet silver tan teal turquoise violet "
    "white yellow".split()
)
_NEGATIONS = frozenset("never neither no none nor not without".split())
_TAKEN_BACK = frozenset(  # what follows a "does not say" that is none
    "although appears but could however likely looks may maybe might or perhaps possibly "
    "presumably probably seems suggests though yes".split()
)
_NOT_SAYING = re.compile(
    r"\bnot (?:\w+ )?(?:be )?(?:answer(?:ed)?|clear|contain|describe[d]?|determined?|found|give|given|"
    r"in the (?:description|text)|include[d]?|indicate[d]?|know|known|mention(?:ed)?|named?|"
    r"possible to (?:know|say|tell)|provided?|said|say|shown?|specif(?:y|ied)|stated?|tell|told)\b"
    r"|\b(?:unknown|unspecified|unstated|unclear|undisclosed)\b"
    r"|\bno (?:answer|information|indication|mention|details?)\b|\bnothing (?:is )?said\b"
)
_LETTER = re.compile(
    r"(?:the )?(?:right |correct )?(?:answer|option)?(?: is)?:? ?\(?([a-z])(\)?[.:),]?)(?:$|\s)(.*)",
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


@dataclass(frozen=True)
class Replies:
    """The replies of one reasoner, by the question's id; a run that was stopped goes on here."""

    questions: str  # the digest of texts and questions
    reasoner: str
    digest: str  # of the reasoner's file
    replies: dict[str, str]


def read_set() -> tuple[dict[str, Text], list[Question]]:
    """Return the texts by id, and the questions in their order."""
    texts = [record_from_json(Text, line, f"{TEXTS}:{n}") for n, line in _lines(TEXTS)]
    questions = [record_from_json(Question, q, f"{QUESTIONS}:{n}") for n, q in _lines(QUESTIONS)]
    return {text.id: text for text in texts}, questions


def _lines(path: Path) -> list[tuple[int, str]]:
    return list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))


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
    named = [letter for letter, option in options.items() if holds(words, option)]
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
        return says_nothing_is_said(words) and not stated and not _TAKEN_BACK & set(words)
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


def wilson(right: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's interval of a share, by default for 95 %; (0, 1) of nothing."""
    if not of:
        return 0.0, 1.0
    share, middle = right / of, right / of + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, (middle - half) / (1 + z * z / of)), min(1.0, (middle + half) / (1 + z * z / of))


def text_to_caption(text: Text) -> Caption:
    """Return the caption that a reasoner is given: the text, as if a captioner had written it."""
    return Caption(
        text=text.text,
        image=text.id,
        image_sha256="",
        finish_reason="stop",
        tokens=TokenCounts(0, 0, 0),
        timings=Timings(),
        model=ModelInfo("elsewhere", ""),
        device="",
        instruction="",
        version="",
    )


def ask_all(
    reasoner: Reasoner,
    texts: dict[str, Text],
    questions: Sequence[Question],
    replies: dict[str, str],
    keep: Callable[[], None],
) -> None:
    """Ask what `replies` lacks and call `keep` after each; a reasoner without an answer said ""."""
    for question in questions:
        if question.id in replies:
            continue
        try:
            answer = reasoner.answer(
                [text_to_caption(texts[question.text])],
                question.question,
                options=question.options or None,
                hint=question.hint or None,
                answer_tokens=_ANSWER_TOKENS,
            )
            replies[question.id] = answer.text
        except NoAnswerError:
            replies[question.id] = ""
        keep()


@dataclass(frozen=True)
class Row:
    """A line of the table: how many questions, how many right, and the interval of the share."""

    name: str
    right: int
    of: int
    low: float
    high: float


def replies_to_rows(
    texts: dict[str, Text], questions: Sequence[Question], replies: dict[str, str]
) -> list[Row]:
    """Score the questions that have a reply: by kind, by what comes with them, by form of text."""
    rights: dict[str, list[bool]] = {"all": []}
    for question in questions:
        if question.id not in replies:
            continue
        text = texts[question.text]
        right = is_right(question, text, replies[question.id])
        names = ["all", question.kind]
        names += ["with options"] if question.options else []
        names += ["with a hint"] if question.hint else []
        names += ["of long texts"] if len(text.text.split()) >= LONG_TEXT else []
        for name in [*names, f"of form: {text.form}"]:
            rights.setdefault(name, []).append(right)
    order = sorted(rights, key=lambda name: (name.startswith("of "), name.startswith("with ")))
    order.remove("all")
    return [
        Row(name, sum(rights[name]), len(rights[name]), *wilson(sum(rights[name]), len(rights[name])))
        for name in ["all", *order]
    ]


def rows_to_table(rows: Sequence[Row]) -> str:
    """Return the table that is printed; the interval is Wilson's, for 95 %."""
    lines = [f"{'questions':<20}{'right':>7}{'of':>5}{'share':>9}   95 %"]
    for row in rows:
        share = f"{row.right / row.of:.1%}" if row.of else "–"
        interval = f"{row.low:.0%} to {row.high:.0%}"
        lines.append(f"{row.name:<20}{row.right:>7}{row.of:>5}{share:>9}   {interval}")
    return "\n".join(lines)


def set_digest() -> str:
    """Return the digest of texts and questions, to which replies belong."""
    return hashlib.sha256(TEXTS.read_bytes() + QUESTIONS.read_bytes()).hexdigest()


def read_replies(path: Path | None, reasoner: Reasoner) -> Replies:
    """Return the replies kept in `path`, or none; those of another reasoner or set are refused."""
    fresh = Replies(set_digest(), reasoner.model.name, reasoner.model.digest, {})
    if path is None or not path.exists():
        return fresh
    kept = record_from_json(Replies, path.read_bytes(), str(path))
    if (kept.questions, kept.digest) != (fresh.questions, fresh.digest):
        raise UsageError(
            f"{path}: the replies are {kept.reasoner}'s to another file or other questions.",
            "Name another file with --replies, or delete this one.",
        )
    return kept


def measure(reasoner: Reasoner, path: Path | None, limit: int | None) -> tuple[Replies, list[Row]]:
    """Ask the set, or what is left of it, and score every reply that there is."""
    texts, questions = read_set()
    kept = read_replies(path, reasoner)

    def keep() -> None:
        if path is not None:
            data = json.dumps(asdict(kept), ensure_ascii=False, indent=1) + "\n"
            write_atomically(path, data.encode(), durable=False)

    left = [question for question in questions if question.id not in kept.replies]
    ask_all(reasoner, texts, left[:limit], kept.replies, keep)
    return kept, replies_to_rows(texts, questions, kept.replies)


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reasoner", default="smollm2-135m", help="name or GGUF file")
    parser.add_argument("--replies", type=Path, help="keep the replies here, and go on from them")
    parser.add_argument("--limit", type=int, help="ask at most so many more questions")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit < 0:
        parser.error("--limit: at least 0")
    try:
        reasoner = Reasoner.load(options.reasoner)
        try:
            kept, rows = measure(reasoner, options.replies, options.limit)
        finally:
            reasoner.close()
        print(f"{kept.reasoner}: {len(kept.replies)} of {len(read_set()[1])} questions asked")
        print(rows_to_table(rows))
        if options.json is not None:
            figures = {**asdict(kept), "rows": [asdict(row) for row in rows]}
            data = json.dumps(figures, ensure_ascii=False, indent=2) + "\n"
            write_atomically(options.json, data.encode())
    except EdgePrismError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Scores an answer in free words by rules.

Lettered options (`match_option`): the first rule that names exactly one option decides; a rule
that names several leaves the answer unmatched:
1. the answer is an option's whole text;
2. it states a letter: "the answer is C because …", "Answer: (B)", "I choose option D";
3. it is a letter or begins with one: "A.", "(B)", "**C**", "D) a dog";
4. it has a letter anywhere else: in brackets, or as a single capital;
5. it contains exactly one option's text.
Letters after "not", "isn't", "except" and the like do not count, nor does the "A" of "A dog" or
the "I" of "I think". Comparisons ignore case, punctuation and articles, and treat number words as
digits.

Open questions (`match_open`): numbers are compared as MathVista does it (integer; float at its
`precision`; lists element by element). A yes/no answer must contain exactly one of the two words.
Any other expected text must occur in the answer as whole words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeprism.evaluation.questions import EvalQuestion
from edgeprism.reason.options import NUMBER_WORDS

_DIGITS = {word: str(value) for value, word in enumerate(NUMBER_WORDS)}
_TOKEN = re.compile(r"-?\d+(?:[.,]\d+)*|[^\W_]+(?:['’][^\W_]+)*|[<>=+*/^%$€£°²³-]")
_ARTICLES = {"a", "an", "the"}

_WRAP = r"[\s\"'“”*_`(\[{<$]*"  # characters that may surround a letter
_UNWRAP = r"[\s\"'“”*_`)\]}>$]*"
_STATED = re.compile(
    r"(?:answer|option|choice|choose|pick|select|correct(?: one)?)"
    r"(?:\s+(?:is|are|was|would\s+be|must\s+be|should\s+be))?\s*[:=]?\s*"
    r"(?:(?:the\s+)?(?:option|choice|letter|answer)\s*[:=]?\s*)?"
    rf"{_WRAP}(?P<letter>[A-Z])(?![\w'’])",
    re.IGNORECASE,
)
_LEADING = re.compile(rf"^{_WRAP}(?P<letter>[A-Za-z])(?P<mark>\s*[.:,)\]}}*]|\s*$)", re.MULTILINE)
_BRACKETED = re.compile(r"[(\[{](?P<letter>[A-Za-z])[)\]}]|\*\*(?P<bold>[A-Z])\*\*")
_CAPITAL = re.compile(r"(?<![\w'’.-])(?P<letter>[A-Z])(?![\w'’-])")
_AND_MORE = re.compile(
    rf"{_UNWRAP}(?:,|/|&|\+|\band\b|\bor\b)\s*(?:and\b|or\b)?{_WRAP}(?P<letter>[A-Z])(?![\w'’])"
)
_NOT = re.compile(
    r"(?:\bnot|n['’]t|\bcannot|\bnever|\bexcept|\bneither|\bnor|\bunlike|\brather than"
    r"|\binstead of|\brule out|\brules out|\bruled out|\bexclude[sd]?|\beliminate[sd]?)"
    r"(?:\s+(?:be|the|is|an?|option|choice|answer|letter))*\s*$",
    re.IGNORECASE,
)
# Words after which "A" is the letter, as in "A because"; in "A dog" it is the article.
_AFTER_LETTER_A = {
    "and", "as", "because", "but", "considering", "due", "for", "given", "is", "or", "since",
    "which", "with",
}  # fmt: skip
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE]-?\d+)?(?![\w])")
_RESULT = re.compile(
    r"(?:answer|result|value|total)\s*(?:is|are|:|=)\s*(?P<rest>.*)", re.IGNORECASE
)


@dataclass(frozen=True)
class Verdict:
    """The score of one answer.

    `choice` is the option's letter, or the value read from an open answer; "" means unmatched.
    `by` names the rule: text, stated, leading, letter, mention, number, list, yes-no, words;
    "judge" if a judge decided; "" if no rule applied.
    """

    choice: str
    right: bool
    by: str


UNMATCHED = Verdict("", False, "")


def score(question: EvalQuestion, answer: str) -> Verdict:
    """Score `answer` by the rules."""
    if question.options:
        letter, rule = match_option(answer, question.options)
        return Verdict(letter, letter == question.answer, rule) if letter else UNMATCHED
    return match_open(question, answer)


# ---- lettered options


def match_option(answer: str, options: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the letter that an answer names and the matching rule, or ("", "")."""
    text = answer.strip()
    letters = {letter for letter, _ in options}
    rules: tuple[tuple[str, Callable[[], set[str]]], ...] = (
        ("text", lambda: _whole(text, options)),
        ("stated", lambda: _named_letters(_STATED, text, letters, articles=True)),
        ("leading", lambda: _leading(text, letters)),
        ("letter", lambda: _loose(text, letters)),
        ("mention", lambda: _mentioned(text, options)),
    )
    for name, rule in rules:
        named = rule()
        if len(named) == 1:
            return named.pop(), name
        if named:
            return "", ""
    return "", ""


def _whole(text: str, options: Sequence[tuple[str, str]]) -> set[str]:
    """Return options whose text is the whole answer; not for "A. dog", where A is a letter."""
    if _LEADING.match(text):
        return set()
    return {letter for letter, option in options if normalised(option) == normalised(text)}


def _named_letters(
    pattern: re.Pattern[str], text: str, letters: set[str], *, articles: bool = False
) -> set[str]:
    """Return the letters that `pattern` matches, without negated ones."""
    named = set()
    for match in pattern.finditer(text):
        group = "letter" if match["letter"] else "bold"
        letter, position = match[group], match.start(group)
        if articles and not _is_letter(letter, text, position):
            continue
        if letter.upper() in letters and not _NOT.search(text[: match.start()].rstrip("([{*\"' ")):
            named |= {letter.upper(), *_further(text, position + 1, letters)}
    return named


def _further(text: str, end: int, letters: set[str]) -> set[str]:
    """Return the letters that continue a list: B and C of "A, B and C"."""
    further = set()
    while (match := _AND_MORE.match(text, end)) and match["letter"] in letters:
        if _is_letter(match["letter"], text, match.start("letter")):
            further.add(match["letter"])
        end = match.end()
    return further


def _is_letter(letter: str, text: str, position: int) -> bool:
    """Return whether the single character is an option's letter, not an article or a pronoun."""
    after = text[position + 1 :]
    word = re.match(r"\s+([^\W\d_]+)", after)
    if letter in "aA":
        return word is None or word[1].lower() in _AFTER_LETTER_A
    if letter in "iI":
        return word is None
    # A small letter counts only at the end of a text, as in "the answer is b".
    return letter.isupper() or not after.strip(" .)*\"'")


def _leading(text: str, letters: set[str]) -> set[str]:
    """Return the leading letter; if every line begins with one, return all of them."""
    leading = {match["letter"].upper() for match in _LEADING.finditer(text)} & letters
    first = _LEADING.match(text)
    if first is None or first["letter"].upper() not in letters:
        return set()
    return leading | _further(text, first.start("letter") + 1, letters)


def _loose(text: str, letters: set[str]) -> set[str]:
    bracketed = _named_letters(_BRACKETED, text, letters)
    return bracketed or _named_letters(_CAPITAL, text, letters, articles=True)


def _mentioned(text: str, options: Sequence[tuple[str, str]]) -> set[str]:
    """Return options whose text occurs, unless only inside a longer option's text."""
    words = tokens(text)
    spans: list[tuple[int, int, str]] = []
    for letter, option in options:
        phrase = tokens(option)
        spans += [
            (start, start + len(phrase), letter)
            for start in range(len(words) - len(phrase) + 1)
            if phrase and words[start : start + len(phrase)] == phrase
        ]
    return {
        letter
        for start, end, letter in spans
        if not any(s <= start and end <= e and e - s > end - start for s, e, _ in spans)
    }


def tokens(text: str) -> list[str]:
    """Return words and numbers in lower case without articles; number words become digits."""
    lower = [token.lower().replace("’", "'") for token in _TOKEN.findall(text)]
    return [_DIGITS.get(token, token) for token in lower if token not in _ARTICLES]


def normalised(text: str) -> str:
    """Text as comparisons take it: without case, punctuation and articles."""
    return " ".join(tokens(text)) or text.strip().lower()


# ---- open questions


def match_open(question: EvalQuestion, answer: str) -> Verdict:
    """Score an open answer as a number, list, yes/no or words, by the expected answer's form."""
    expected, kind = question.answer, question.answer_type
    if kind == "list":
        numbers = _stated_list(answer)
        right = numbers == _stated_list(expected)
        return Verdict(numbers, right, "list") if numbers else UNMATCHED
    number = to_number(expected)
    if kind in ("integer", "float") or (kind == "" and number is not None):
        value = stated_number(answer)
        if value is None or number is None:
            return UNMATCHED
        return Verdict(f"{value:g}", _same_number(value, number, question), "number")
    if normalised(expected) in ("yes", "no"):
        both = {"yes", "no"} & set(tokens(answer))
        if len(both) != 1:
            return UNMATCHED
        word = both.pop()
        return Verdict(word, word == normalised(expected), "yes-no")
    phrase, words = tokens(expected) or [normalised(expected)], tokens(answer)
    inside = any(words[i : i + len(phrase)] == phrase for i in range(len(words)))
    # An answer in other words may still be right, which only a judge can tell.
    return Verdict(expected, True, "words") if inside else UNMATCHED


def _same_number(value: float, expected: float, question: EvalQuestion) -> bool:
    """Compare as MathVista's evaluation code: truncate an integer, round a float to `precision`."""
    if question.answer_type == "integer":
        return int(value) == int(expected)
    if question.precision is not None:
        return round(value, question.precision) == round(expected, question.precision)
    return abs(value - expected) <= 1e-9 * max(1.0, abs(expected))


def to_number(text: str) -> float | None:
    """Parse "1,234.5" or "three"; None if the text is more than a number and a unit sign."""
    cleaned = text.strip().strip("$€£").rstrip("%.").strip()
    cleaned = _DIGITS.get(cleaned.lower(), cleaned)
    match = _NUMBER.fullmatch(cleaned)
    return float(match[0].replace(",", "")) if match else None


def stated_number(answer: str) -> float | None:
    """Return the number after "the answer is", else the only number in the answer."""
    digits = " ".join(_DIGITS.get(w.lower().strip(".,;:!"), w) for w in answer.split())
    stated = list(_RESULT.finditer(digits))
    for text in ([stated[-1]["rest"]] if stated else []) + [digits]:
        numbers = [float(match[0].replace(",", "")) for match in _NUMBER.finditer(text)]
        if stated and text is not digits and numbers:
            return numbers[0]
        if len(set(numbers)) == 1:
            return numbers[0]
    return None


def _stated_list(answer: str) -> str:
    """Return the numbers of the last bracketed list, or else all numbers, in order."""
    lists = re.findall(r"\[([^\[\]]*)\]", answer)
    numbers = _NUMBER.findall(lists[-1] if lists else answer)
    return ", ".join(f"{float(number.replace(',', '')):g}" for number in numbers)

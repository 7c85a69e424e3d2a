"""An answer in free words → right or wrong, by rule.

Lettered options (`match_option`); the first rule that names exactly one option decides, a rule
that names several ends the matter without a match:
1. the answer is an option's whole text;
2. a letter is stated: "the answer is C because …", "Answer: (B)", "I choose option D";
3. a letter stands alone or leads: "A.", "(B)", "**C**", "D) a dog";
4. a letter stands anywhere else: in brackets, or as a capital of its own;
5. exactly one option's text occurs in the answer.
Letters behind "not", "isn't", "except" and the like do not count, nor does the "A" of "A dog" or
the "I" of "I think". In comparisons case, punctuation and articles do not matter, and number
words equal digits.

Open questions (`match_open`): numbers are compared as MathVista does it (integer; float at its
`precision`; lists element by element), yes/no by the only one of the two that is said, any other
text by being said as whole words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeprism.evaluation.questions import Question

_WORDS_FOR_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip
_DIGITS = {word: str(value) for value, word in enumerate(_WORDS_FOR_NUMBERS)}
_TOKEN = re.compile(r"-?\d+(?:[.,]\d+)*|[^\W_]+(?:['’][^\W_]+)*|[<>=+*/^%$€£°²³-]")
_ARTICLES = {"a", "an", "the"}

_WRAP = r"[\s\"'“”*_`(\[{<$]*"  # what may stand around a letter
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
# "A because": the letter; "A dog": the article
_AFTER_LETTER_A = {
    "and", "as", "because", "but", "considering", "due", "for", "given", "is", "or", "since",
    "which", "with",
}  # fmt: skip
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE]-?\d+)?(?![\w])")
_SAID = re.compile(r"(?:answer|result|value|total)\s*(?:is|are|:|=)\s*(?P<rest>.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """`choice` is the option's letter, or what an open answer was taken to say; "" is unmatched.

    `by` names the rule: text, stated, leading, letter, mention, number, list, yes-no, words;
    "judge" if a judge had to; "" when no rule applied.
    """

    choice: str
    right: bool
    by: str


UNMATCHED = Verdict("", False, "")


def score(question: Question, answer: str) -> Verdict:
    """What `answer` says, and whether that is right."""
    if question.options:
        letter, rule = match_option(answer, question.options)
        return Verdict(letter, letter == question.answer, rule) if letter else UNMATCHED
    return match_open(question, answer)


# ---- lettered options


def match_option(answer: str, options: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The option that an answer names and the rule that found it; ("", "") without."""
    text = answer.strip()
    letters = {letter for letter, _ in options}
    rules: tuple[tuple[str, Callable[[], set[str]]], ...] = (
        ("text", lambda: _whole(text, options)),
        ("stated", lambda: _found(_STATED, text, letters, articles=True)),
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
    """Options whose text is all of the answer; "A. dog" begins with a letter, not an article."""
    if _LEADING.match(text):
        return set()
    return {letter for letter, option in options if normalised(option) == normalised(text)}


def _found(
    pattern: re.Pattern[str], text: str, letters: set[str], *, articles: bool = False
) -> set[str]:
    """Letters that `pattern` finds and nothing takes back."""
    found = set()
    for match in pattern.finditer(text):
        group = "letter" if match["letter"] else "bold"
        letter, at = match[group], match.start(group)
        if articles and not _is_letter(letter, text, at):
            continue
        if letter.upper() in letters and not _NOT.search(text[: match.start()].rstrip("([{*\"' ")):
            found |= {letter.upper(), *_further(text, at + 1, letters)}
    return found


def _further(text: str, end: int, letters: set[str]) -> set[str]:
    """The letters that go on a list: B and C of "A, B and C"."""
    found = set()
    while (match := _AND_MORE.match(text, end)) and match["letter"] in letters:
        if _is_letter(match["letter"], text, match.start("letter")):
            found.add(match["letter"])
        end = match.end()
    return found


def _is_letter(letter: str, text: str, at: int) -> bool:
    """Whether the single character is an option's letter, not an article or a pronoun."""
    after = text[at + 1 :]
    word = re.match(r"\s+([^\W\d_]+)", after)
    if letter in "aA":
        return word is None or word[1].lower() in _AFTER_LETTER_A
    if letter in "iI":
        return word is None
    # a small letter in running text is no option, but for "the answer is b"
    return letter.isupper() or not after.strip(" .)*\"'")


def _leading(text: str, letters: set[str]) -> set[str]:
    """The letter in front; a list of all options, one a line, names all of them."""
    found = {match["letter"].upper() for match in _LEADING.finditer(text)} & letters
    first = _LEADING.match(text)
    if first is None or first["letter"].upper() not in letters:
        return set()
    return found | _further(text, first.start("letter") + 1, letters)


def _loose(text: str, letters: set[str]) -> set[str]:
    bracketed = _found(_BRACKETED, text, letters)
    return bracketed or _found(_CAPITAL, text, letters, articles=True)


def _mentioned(text: str, options: Sequence[tuple[str, str]]) -> set[str]:
    """Options whose text occurs; one that only occurs inside a longer one's text does not."""
    words = tokens(text)
    spans: list[tuple[int, int, str]] = []
    for letter, option in options:
        wanted = tokens(option)
        spans += [
            (at, at + len(wanted), letter)
            for at in range(len(words) - len(wanted) + 1)
            if wanted and words[at : at + len(wanted)] == wanted
        ]
    return {
        letter
        for start, end, letter in spans
        if not any(s <= start and end <= e and e - s > end - start for s, e, _ in spans)
    }


def tokens(text: str) -> list[str]:
    """Words and numbers, small, without articles; number words as digits."""
    found = [token.lower().replace("’", "'") for token in _TOKEN.findall(text)]
    return [_DIGITS.get(token, token) for token in found if token not in _ARTICLES]


def normalised(text: str) -> str:
    """Text as comparisons take it: without case, punctuation and articles."""
    return " ".join(tokens(text)) or text.strip().lower()


# ---- open questions


def match_open(question: Question, answer: str) -> Verdict:
    """Number, list, yes or no, else words: as the expected answer is."""
    expected, kind = question.answer, question.answer_type
    if kind == "list":
        said = _list_said(answer)
        return Verdict(said, said == _list_said(expected), "list") if said else UNMATCHED
    number = to_number(expected)
    if kind in ("integer", "float") or (kind == "" and number is not None):
        value = number_said(answer)
        if value is None or number is None:
            return UNMATCHED
        return Verdict(f"{value:g}", _same_number(value, number, question), "number")
    if normalised(expected) in ("yes", "no"):
        both = {"yes", "no"} & set(tokens(answer))
        if len(both) != 1:
            return UNMATCHED
        word = both.pop()
        return Verdict(word, word == normalised(expected), "yes-no")
    wanted, words = tokens(expected) or [normalised(expected)], tokens(answer)
    inside = any(words[at : at + len(wanted)] == wanted for at in range(len(words)))
    # what else it may have said, no rule can tell: a judge may
    return Verdict(expected, True, "words") if inside else UNMATCHED


def _same_number(value: float, expected: float, question: Question) -> bool:
    """MathVista: an integer is cut, a float rounded to `precision` (its evaluation code)."""
    if question.answer_type == "integer":
        return int(value) == int(expected)
    if question.precision is not None:
        return round(value, question.precision) == round(expected, question.precision)
    return abs(value - expected) <= 1e-9 * max(1.0, abs(expected))


def to_number(text: str) -> float | None:
    """ "1,234.5" or "three"; None for what is no number alone (a unit may follow)."""
    cleaned = text.strip().strip("$€£").rstrip("%.").strip()
    cleaned = _DIGITS.get(cleaned.lower(), cleaned)
    match = _NUMBER.fullmatch(cleaned)
    return float(match[0].replace(",", "")) if match else None


def number_said(answer: str) -> float | None:
    """The number that an answer comes to: behind "the answer is", else the only one in it."""
    digits = " ".join(_DIGITS.get(w.lower().strip(".,;:!"), w) for w in answer.split())
    stated = list(_SAID.finditer(digits))
    for text in ([stated[-1]["rest"]] if stated else []) + [digits]:
        found = [float(match[0].replace(",", "")) for match in _NUMBER.finditer(text)]
        if stated and text is not digits and found:
            return found[0]
        if len(set(found)) == 1:
            return found[0]
    return None


def _list_said(answer: str) -> str:
    """Numbers of the last bracketed list, else all of them, in order."""
    listed = re.findall(r"\[([^\[\]]*)\]", answer)
    found = _NUMBER.findall(listed[-1] if listed else answer)
    return ", ".join(f"{float(number.replace(',', '')):g}" for number in found)

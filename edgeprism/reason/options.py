"""Lettered options for a reasoner that is asked without them, and answers with one of their texts.

Which text it takes tells the letter. So an adapter need not be taught letters, which a small model
mixes up even where it knows the answer, and every reply is one of the options. A model in this
process takes the text that it holds likeliest (`language.ranking`): bound by a grammar, it would
choose by the first token, before it has seen what follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edgeprism.language.ranking import Likelihood
from edgeprism.reason.shape import MAX_CHOICE, MAX_CHOICES

# how the adapters that know EdgePrism's prompts say that a description does not say something
UNSAID = "the description does not say"
# An option that denies ("it is not red") says something. A text says nothing where it speaks of
# what is said or known, or of the other options.
_SAYS_NOTHING = re.compile(
    r"\b(?:unknown|unclear|undetermined|unspecified|no (?:information|way to (?:know|tell)))\b"
    r"|\bnot (?:\w+ly )?(?:said|known|told|stated|given|mentioned|specified|described|indicated"
    r"|determined|clear|sure|certain|enough|sufficient|possible|in the (?:description|text))\b"
    r"|\b(?:cannot|can't|can not|could not|couldn't|impossible to)"
    r" (?:say|tell|know|determine|answer|be (?:said|told|known|determined|answered|seen))\b"
    r"|\b(?:doesn't|does not|don't|do not|didn't|did not) (?:say|know|tell|mention|state|specify)\b"
    r"|\bnothing is (?:said|known|told|stated|mentioned)\b|\b(?:nobody|no one|no-one) knows\b"
    r"|\bnone of (?:these|those|them|the above|the (?:other )?options|the others)\b",
    re.IGNORECASE,
)
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip


def texts_to_letters(options: Mapping[str, str]) -> dict[str, str]:
    """Return {a text that a reply may be: the letter of its option}.

    An option's text may begin with a small or a large letter, and a number be a word or digits.
    Where one option alone says that nothing is known, `UNSAID` stands for it too. {} where a
    grammar cannot hold the texts: they are too long or too many, or two are the same.
    """
    texts = {letter: text.strip().rstrip(".") for letter, text in options.items()}
    fit = all(text.isprintable() and 0 < len(text) <= MAX_CHOICE for text in texts.values())
    if len(texts) < 2 or not fit or len({text.lower() for text in texts.values()}) < len(texts):
        return {}
    letters = {text: letter for letter, text in texts.items()}
    for letter, text in texts.items():
        for form in _other_forms(text):
            letters.setdefault(form, letter)
    unsaid = [letter for letter, text in texts.items() if _SAYS_NOTHING.search(text)]
    if len(unsaid) == 1:
        letters.setdefault(UNSAID, unsaid[0])
    return letters if len(letters) <= MAX_CHOICES else {}


def choose_text(texts: Sequence[str], likelihoods: Sequence[Likelihood]) -> int:
    """Return the index of the text that a model takes.

    One that says that nothing is known is taken where it is the likeliest of all as a whole. Else
    it is the text whose tokens are the likeliest on average, so that a long one may win. Of words
    that say nothing each makes the next one certain, so the average would prefer them too often.
    """
    whole = max(range(len(texts)), key=lambda i: likelihoods[i].total)
    if _SAYS_NOTHING.search(texts[whole]):
        return whole
    says_something = [i for i, text in enumerate(texts) if not _SAYS_NOTHING.search(text)]
    return max(says_something, key=lambda i: likelihoods[i].mean)


def _other_forms(text: str) -> list[str]:
    forms = [text[0].lower() + text[1:], text[0].upper() + text[1:]]
    if text.lower() in NUMBER_WORDS:
        forms.append(str(NUMBER_WORDS.index(text.lower())))
    if text.isascii() and text.isdigit() and int(text) < len(NUMBER_WORDS):
        forms.append(NUMBER_WORDS[int(text)])
    return forms

"""What a captioner should attend to, drawn from a question's own words."""

from __future__ import annotations

import re

from edgeprism.reason.question import Question, words

MAX_FOCUS = 160  # characters; a longer one is an essay, not a list of things to look at


_FUNCTION = frozenset(words("a an the of on in at by with and or to from between near"))


FOCUS_LINKS = (*sorted(_FUNCTION), "relative to", "next to", "written on")


_COMMON = _FUNCTION | frozenset(
    words(
        "next each every all any both am are as be can could did do does for has have how is it "
        "its many much no not that their them there these they this was were what when "
        "where whether which who whose why will would yes you your me "
        "image picture photo photograph shown see seen"
    )
)


# what can be looked at in any picture, so a focus may begin with it; none of it is an answer
FOCUS_OPENINGS = (
    "whether there is", "whether there are", "where",
    *words(
        "colour colours number amount shape shapes size sizes position positions text word words "
        "letters digits name names value values label labels title scale clothing expression pose "
        "activity surroundings order distance height length width material pattern kind brand"
    ),
)  # fmt: skip


_LONGEST_PHRASE = 5  # words


def focus_phrases(question: Question) -> list[str]:
    """The beginnings of each run of words in the stem that name something: "red boat", "red".

    A focus is made of them (and of FOCUS_OPENINGS, FOCUS_LINKS), so a small reasoner can neither
    answer in it, nor name what it only imagines, nor part a noun from the adjective before it.
    """
    runs: list[list[str]] = [[]]
    for at, word in enumerate(question.stem.split()):
        bare = word.strip("?!.,;:\"'()[]")
        lettered = at > 0 and len(bare) == 1 and bare.isupper()  # "row A": no article
        if bare.isprintable() and (lettered or not set(words(bare)) <= _COMMON):
            runs[-1].append(bare)
            if word.endswith(bare):
                continue
        runs.append([])
    return [" ".join(run[:n]) for run in runs for n in range(1, min(len(run), _LONGEST_PHRASE) + 1)]


def topics(question: Question) -> set[str]:
    """The words of the stem that name something."""
    return set(words(question.stem)) - _COMMON


def checked_focus(said: str, question: Question) -> tuple[str, str]:
    """A focus drawn by a reasoner → (focus, ""), or ("", why it cannot be used)."""
    text = said.strip().split("\n")[0]
    text = re.sub(r"^(?:focus|observe|attend to)\s*:\s*", "", text, flags=re.IGNORECASE)
    text = _once(text.strip().strip("\"'").rstrip(".?!;:,").strip(), question)
    if not words(text):
        return "", "the reasoner named none"
    if len(text) > MAX_FOCUS:
        return "", "the reasoner's was too long"
    if leaked := leaked_option(text, question):
        return "", f"the reasoner's named option {leaked}"
    if words(text)[0] in ("yes", "no"):
        return "", "the reasoner answered instead"
    asked = topics(question)
    # a question that hardly names a thing ("What does it say?") may be about an aspect alone
    if len(asked) > 1 and not asked & set(words(text)):
        return "", "the reasoner's had nothing to do with the question"
    return text, ""


def _once(text: str, question: Question) -> str:
    """Up to where `text` begins to repeat itself, as small models do, less a dangling "of the"."""
    asked, kept = words(question.stem), text.split()
    said: list[str] = []
    for at, word in enumerate(text.split()):
        found = [w for w in words(word) if w not in _COMMON]
        said += found
        if any(said.count(w) > max(1, asked.count(w)) for w in found):
            kept = kept[:at]
            while kept and kept[-1].strip(",") in _FUNCTION:
                kept.pop()
            break
    return " ".join(kept).rstrip(",")


def leaked_option(focus: str, question: Question) -> str | None:
    """The letter of an option whose text stands in `focus` but not in the question's stem."""
    said, stem = _spaced(focus), _spaced(question.stem)
    for letter, option in question.options.items():
        wanted = _spaced(option)
        if wanted.strip() and wanted in said and wanted not in stem:
            return letter
    return None


def _spaced(text: str) -> str:
    return f" {' '.join(words(text))} "

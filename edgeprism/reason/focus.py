"""The focus: what a captioner should observe, in words of the question."""

from __future__ import annotations

import re

from edgeprism.reason.question import Question, words

MAX_FOCUS = 160  # characters; a longer text is an essay, not a list of things to observe


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


# Aspects of any picture, with which a focus may begin; none of them answers a question.
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
    """List the beginnings of each run of content words in the stem: "red", "red boat".

    A focus consists of these, FOCUS_OPENINGS and FOCUS_LINKS. So a small reasoner cannot answer in
    it, cannot name things that the question does not name, and cannot drop a noun's adjective.
    """
    runs: list[list[str]] = [[]]
    for index, word in enumerate(question.stem.split()):
        bare = word.strip("?!.,;:\"'()[]")
        lettered = index > 0 and len(bare) == 1 and bare.isupper()  # "row A": not the article
        if bare.isprintable() and (lettered or not set(words(bare)) <= _COMMON):
            runs[-1].append(bare)
            if word.endswith(bare):
                continue
        runs.append([])
    return [" ".join(run[:n]) for run in runs for n in range(1, min(len(run), _LONGEST_PHRASE) + 1)]


def topics(question: Question) -> set[str]:
    """Return the content words of the stem."""
    return set(words(question.stem)) - _COMMON


def checked_focus(reply: str, question: Question) -> tuple[str, str]:
    """Return (focus, "") for a reasoner's reply, or ("", why it cannot be used)."""
    text = reply.strip().split("\n")[0]
    text = re.sub(r"^(?:focus|observe|attend to)\s*:\s*", "", text, flags=re.IGNORECASE)
    text = _until_repeated(text.strip().strip("\"'").rstrip(".?!;:,").strip(), question)
    if not words(text):
        return "", "the reasoner named none"
    if len(text) > MAX_FOCUS:
        return "", "the reasoner's was too long"
    if leaked := leaked_option(text, question):
        return "", f"the reasoner's named option {leaked}"
    if words(text)[0] in ("yes", "no"):
        return "", "the reasoner answered instead"
    named = topics(question)
    # The focus of a question with few content words ("What does it say?") may be an opening alone.
    if len(named) > 1 and not named & set(words(text)):
        return "", "the reasoner's had nothing to do with the question"
    return text, ""


def _until_repeated(text: str, question: Question) -> str:
    """Cut `text` where it begins to repeat itself, as small models do, and a dangling "of the"."""
    stem_words, head = words(question.stem), text.split()
    used: list[str] = []
    for index, word in enumerate(text.split()):
        content = [w for w in words(word) if w not in _COMMON]
        used += content
        if any(used.count(w) > max(1, stem_words.count(w)) for w in content):
            head = head[:index]
            while head and head[-1].strip(",") in _FUNCTION:
                head.pop()
            break
    return " ".join(head).rstrip(",")


def leaked_option(focus: str, question: Question) -> str | None:
    """Return the letter of an option whose text is in `focus` but not in the question's stem."""
    spaced_focus, stem = _spaced(focus), _spaced(question.stem)
    for letter, text in question.options.items():
        option = _spaced(text)
        if option.strip() and option in spaced_focus and option not in stem:
            return letter
    return None


def _spaced(text: str) -> str:
    return f" {' '.join(words(text))} "

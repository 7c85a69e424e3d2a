"""Whether a focus is one that the runtime's grammar lets a reasoner write."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgeprism.reason.focus import FOCUS_LINKS, FOCUS_OPENINGS, checked_focus, focus_phrases
from edgeprism.reason.question import Question


def _any(texts: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, sorted(texts, key=len, reverse=True)))})"


def fits_focus(focus: str, question: Question) -> bool:
    """Return whether a focus has the grammar's order of openings, links and phrases.

    It must also pass the check that follows the grammar, unchanged.
    """
    phrases = focus_phrases(question)
    if not phrases:
        return False
    phrase, link = _any(phrases), _any(FOCUS_LINKS) + " "
    first = f"(?:{_any(FOCUS_OPENINGS)}|{phrase})"
    line = f"(?:{link})?{first}(?:,? (?:{link}){{0,2}}{phrase})*"
    return re.fullmatch(line, focus) is not None and checked_focus(focus, question)[0] == focus

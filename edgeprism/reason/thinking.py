"""Separates a reasoning model's thoughts from its answer."""

from __future__ import annotations

import re
from bisect import bisect_left

_NAMES = "think|thinking|thought|reasoning|reflection|seed:think"
# <think>, [THINK] and ◁think▷ open a block of thoughts; a slash before the name closes it.
_TAG = re.compile(rf"(?:<(/?)({_NAMES})>|\[(/?)(THINK)\]|◁(/?)(think)▷)", re.IGNORECASE)

_LONGEST_TAG = len("</reflection>")
_ANY = "any"  # block: the prompt opened it


def cut_thinking(text: str) -> tuple[str, str]:
    """Split a reply into (answer, thinking); thinking is what blocks such as <think> hold.

    A chat template may hold the opening tag, and a length limit may cut off the closing one: text
    before a lone closing tag, and text after a lone opening one, are thoughts too. The time grows
    in proportion to the text, whatever it holds.
    """
    text, thoughts = _without_blocks(text)
    if end := next((tag for tag in _TAG.finditer(text) if _closes(tag)), None):
        thoughts.append(text[: end.start()].strip())
        text = text[end.end() :]
    if start := next((tag for tag in _TAG.finditer(text) if not _closes(tag)), None):
        thoughts.append(text[start.end() :].strip())
        text = text[: start.start()]
    return text.strip(), "\n".join(filter(None, thoughts))


def opens_thinking(text: str) -> bool:
    """Return whether a prompt ends inside of a block of thoughts: the reply then begins there."""
    tags = list(_TAG.finditer(text))
    return bool(tags) and not _closes(tags[-1])


class AnswerText:
    """Takes a reply piece by piece, and returns what belongs to its answer as soon as that is sure.

    Thoughts are dropped. A tag may come in several pieces, so what may be the beginning of one is
    held back; so are blanks, because an answer ends without them. What it returns is the beginning
    of what `cut_thinking` makes of the whole reply, unless a tag closes a block that none opened
    after text was returned; then it returns nothing more.
    """

    def __init__(self, *, thinks: bool) -> None:
        """`thinks`: the reply begins inside of a block of thoughts."""
        self._block = _ANY if thinks else ""  # the tag that opened it; "": the answer
        self._held = ""
        self._blanks = ""  # between what was returned and what comes next
        self._began = False
        self._lost = False  # thoughts were returned as the answer: nothing may follow them

    def feed(self, piece: str) -> str:
        """Take a piece; return new text of the answer."""
        self._held += piece
        parts: list[str] = []
        while tag := self._next_tag():
            if self._block:
                self._block = ""
            elif _closes(tag):  # all before it were thoughts, and some may be out already
                parts, self._lost = [], self._began
            else:
                parts.append(self._held[: tag.start()])
                self._block = _kind(tag)
            self._held = self._held[tag.end() :]
        keep = _start_of_tag(self._held)
        if not self._block:
            parts.append(self._held[:keep])
        self._held = self._held[keep:]
        return "" if self._lost else self._without_ends("".join(parts))

    def _next_tag(self) -> re.Match[str] | None:
        """Return the next tag that means something here: in a block, the one that closes it."""
        for tag in _TAG.finditer(self._held):
            ends = _closes(tag) and self._block in (_ANY, _kind(tag))
            if ends or not self._block:
                return tag
        return None

    def _without_ends(self, text: str) -> str:
        text = self._blanks + text
        text = text if self._began else text.lstrip()
        solid = text.rstrip()
        self._blanks = text[len(solid) :]
        self._began = self._began or bool(solid)
        return solid


def _start_of_tag(text: str) -> int:
    """Return where the beginning of a tag may stand at the end of a text; else its length."""
    last = max(map(text.rfind, "<[◁"))
    return last if last >= 0 and len(text) - last < _LONGEST_TAG else len(text)


def _without_blocks(text: str) -> tuple[str, list[str]]:
    """Cut every block, from an opening tag to the next closing one of the same kind."""
    tags = list(_TAG.finditer(text))
    closing: dict[str, list[re.Match[str]]] = {}
    for tag in tags:
        if _closes(tag):
            closing.setdefault(_kind(tag), []).append(tag)
    kept: list[str] = []
    thoughts: list[str] = []
    done = 0  # the text before this index has been kept or cut
    for tag in tags:
        if _closes(tag) or tag.start() < done:
            continue
        ends = closing.get(_kind(tag), [])
        index = bisect_left(ends, tag.end(), key=lambda end: end.start())
        if index < len(ends):
            kept.append(text[done : tag.start()])
            thoughts.append(text[tag.end() : ends[index].start()].strip())
            done = ends[index].end()
    return "".join([*kept, text[done:]]), thoughts


def _closes(tag: re.Match[str]) -> bool:
    return bool(tag[1] or tag[3] or tag[5])


def _kind(tag: re.Match[str]) -> str:
    """Return a tag without its slash, in lower case."""
    return tag[0].replace("/", "", 1).lower()

"""Separates a reasoning model's thoughts from its answer."""

from __future__ import annotations

import re
from bisect import bisect_left

_NAMES = "think|thinking|thought|reasoning|reflection|seed:think"
# <think>, [THINK] and ◁think▷ open a block of thoughts; a slash before the name closes it.
_TAG = re.compile(rf"(?:<(/?)({_NAMES})>|\[(/?)(THINK)\]|◁(/?)(think)▷)", re.IGNORECASE)


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

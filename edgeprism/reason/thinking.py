"""Separates a reasoning model's thoughts from its answer."""

from __future__ import annotations

import re

_TAGS = "think|thinking|thought|reasoning|reflection"


_BLOCK = re.compile(rf"<({_TAGS})>(.*?)</\1>|\[THINK\](.*?)\[/THINK\]", re.DOTALL | re.IGNORECASE)


# A chat template may hold the opening tag, and a length limit may cut off the closing one.
_ONLY_END = re.compile(rf"\A(.*?)(?:</(?:{_TAGS})>|\[/THINK\])", re.DOTALL | re.IGNORECASE)


_ONLY_START = re.compile(rf"(?:<(?:{_TAGS})>|\[THINK\])(.*)\Z", re.DOTALL | re.IGNORECASE)


def cut_thinking(text: str) -> tuple[str, str]:
    """Split a reply into (answer, thinking); thinking is what blocks such as <think> hold."""
    thoughts: list[str] = []

    def cut(match: re.Match[str]) -> str:
        thoughts.append(next((g for g in reversed(match.groups()) if g is not None), "").strip())
        return ""

    for pattern in (_BLOCK, _ONLY_END, _ONLY_START):
        text = pattern.sub(cut, text)
    return text.strip(), "\n".join(filter(None, thoughts))

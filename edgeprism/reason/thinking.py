"""What a reasoning model writes before its answer, cut from it."""

from __future__ import annotations

import re

_TAGS = "think|thinking|thought|reasoning|reflection"


_BLOCK = re.compile(rf"<({_TAGS})>(.*?)</\1>|\[THINK\](.*?)\[/THINK\]", re.DOTALL | re.IGNORECASE)


# templates may have opened the block already, and a length limit may leave it open
_ONLY_END = re.compile(rf"\A(.*?)(?:</(?:{_TAGS})>|\[/THINK\])", re.DOTALL | re.IGNORECASE)


_ONLY_START = re.compile(rf"(?:<(?:{_TAGS})>|\[THINK\])(.*)\Z", re.DOTALL | re.IGNORECASE)


def cut_thinking(text: str) -> tuple[str, str]:
    """(answer, thinking): blocks such as <think>…</think> are no part of an answer."""
    thoughts: list[str] = []

    def cut(match: re.Match[str]) -> str:
        thoughts.append(next((g for g in reversed(match.groups()) if g is not None), "").strip())
        return ""

    for pattern in (_BLOCK, _ONLY_END, _ONLY_START):
        text = pattern.sub(cut, text)
    return text.strip(), "\n".join(filter(None, thoughts))

"""Text from files, models and servers, made safe to print: without a terminal's control codes."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all except tab and line feed


def printable(text: str) -> str:
    r"""Return `text` with control characters escaped, as in `\x1b`; line breaks stay."""
    lines = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", lines)


def printable_line(text: str) -> str:
    """Return `text` as one line; U+FFFD replaces every character that is not printable."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def short_line(text: str, limit: int) -> str:
    """Return `text` as one line of words, cut after `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line[:limit] + ("…" if len(line) > limit else "")

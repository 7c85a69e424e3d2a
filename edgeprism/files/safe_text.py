"""Text from files, models and servers, made safe to print: it must not command a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed


def printable(text: str) -> str:
    r"""`text` with control characters escaped as `\x1b`; its lines stay lines."""
    lines = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", lines)


def printable_line(text: str) -> str:
    """`text` as one line, every character that does not print replaced by U+FFFD."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def short_line(text: str, most: int) -> str:
    """`text` as one line of words, cut after `most` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line[:most] + ("…" if len(line) > most else "")

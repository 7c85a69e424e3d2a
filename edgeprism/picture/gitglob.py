"""One pattern of `.gitignore` → a regular expression that takes linear time in the path.

A file in a stranger's folder may hold the pattern, so nothing in it may try all ways to spread
stars over a long name. What stands between two stars has a fixed length, so its first place is as
good as any later one: an atomic group `(?>…)` keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_STAR, _FOLDERS = "*", "**/"  # symbols; all others are regular expressions of one character
_STARS = re.compile(r"\*\*+(?P<end>/|$)")


def pattern_to_regex(pattern: str) -> str | None:
    """Translate a pattern; None if a bracket is not closed or the last backslash escapes nothing.

    `**` means any number of folders only as a whole part of the path; elsewhere it is `*`.
    """
    parts: list[list[str]] = [[]]  # between one _FOLDERS and the next
    for symbol in _symbols(pattern):
        if symbol is None:
            return None
        if symbol == _FOLDERS:
            parts.append([])
        else:
            parts[-1].append(symbol)
    first, *others = map(_part_to_regex, parts)
    if not others:
        return first
    between = "".join(f"(?>(?:[^/]*/)*?{part})" for part in others[:-1])
    return f"{first}{between}(?:.*/)?{others[-1]}"


def _symbols(pattern: str) -> Iterator[str | None]:
    """Yield the symbols; None where the pattern makes no sense."""
    at = 0
    while at < len(pattern):
        stars = _STARS.match(pattern, at) if at == 0 or pattern[at - 1] == "/" else None
        if stars is not None and stars["end"]:
            yield _FOLDERS
            at = stars.end()
        elif stars is not None and at > 0:  # everything in the folder before it
            yield ".+"
            at = stars.end()
        elif pattern[at] == "*":
            yield _STAR
            at += 1
        elif pattern[at] == "?":
            yield "[^/]"
            at += 1
        elif pattern[at] == "[":
            end = _bracket_end(pattern, at)
            yield None if end is None else _bracket_to_regex(pattern[at + 1 : end])
            at = len(pattern) if end is None else end + 1
        else:
            at += pattern[at] == "\\"
            yield re.escape(pattern[at]) if at < len(pattern) else None
            at += 1


def _part_to_regex(symbols: list[str]) -> str:
    """Translate what has no `**`: in each name, the place of all stars but the last is kept."""
    regex = ""
    pieces: list[str] = [""]  # of one name, between its stars
    for symbol in [*symbols, "/"]:
        if symbol == _STAR:
            pieces.append("")
        elif symbol == "/":
            first, *others = pieces
            regex += first + "".join(f"(?>[^/]*?{piece})" for piece in others[:-1])
            regex += f"[^/]*{others[-1]}/" if others else "/"
            pieces = [""]
        else:
            pieces[-1] += symbol
    return regex[:-1]  # without the last "/", which the pattern does not have


def _bracket_end(pattern: str, start: int) -> int | None:
    """Return where the bracket that begins at `start` is closed; a `]` at once is a character."""
    at = start + 1
    if pattern[at : at + 1] in ("!", "^"):
        at += 1
    first = True
    while at < len(pattern):
        if pattern[at] == "]" and not first:
            return at
        named = re.match(r"\[:\w*:\]", pattern[at:])
        at += named.end() if named else 2 if pattern[at] == "\\" else 1
        first = False
    return None


_CLASSES = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "blank": " \\t", "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": " -~", "space": " \\t-\\r",
    "punct": "!-/:-@\\[-`{-~", "upper": "A-Z", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
_ITEM = re.compile(r"\[:(?P<name>\w*):\]|(?P<first>\\.|[^\\])(?:-(?P<last>\\.|[^\\]))?", re.DOTALL)


def _bracket_to_regex(content: str) -> str:
    """Translate what stands between brackets; of a range that runs backwards its first counts."""
    negated = content[:1] in ("!", "^")
    items = ""
    for item in _ITEM.finditer(content[negated:]):
        if item["name"] is not None:
            items += _CLASSES.get(item["name"], "")
            continue
        first = item["first"][-1]
        last = item["last"][-1] if item["last"] else first
        items += re.escape(first)
        if first < last:
            items += f"-{re.escape(last)}"
    if negated:
        return f"[^/{items}]"
    return f"(?!/)[{items}]" if items else "(?!)"

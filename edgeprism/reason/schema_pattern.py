"""Regular expressions of JSON schemas → llama.cpp's grammar, inside a JSON string.

Groups, alternatives, classes and repeats become rules. Other syntax (lookaround, back references)
is only checked once the text is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

Ranges = tuple[tuple[int, int], ...]

MAX_COST = 20_000  # characters of a grammar once llama.cpp has written out its repeats
_COST_OF_SKIPS = 20  # times the square of a sequence's parts that may be left out
_MOST_REPEATS = 1000
_MOST_STEPS = 10**8  # of a search, a few seconds
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")
_ENDLESS = re.compile(r"[*+]|\{\d*,\}")
# The characters that a string in an answer may hold as they are: no quote, backslash or control.
PLAIN: Ranges = (
    (0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0xA0, 0xD7FF), (0xE000, 0xFFFD),
    (0x10000, 0x10FFFF),
)  # fmt: skip
_ESCAPED = {ord('"'): r'"\\\""', ord("\\"): r'"\\\\"'}  # GBNF of what JSON writes with a backslash
_EVERY: Ranges = ((0, 0x10FFFF),)
_DIGITS: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_BLANKS: Ranges = ((0x09, 0x0D), (0x20, 0x20))
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _BLANKS}
_CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B}


class UnboundPattern(Exception):
    """A pattern is valid, but the grammar cannot write it."""


@dataclass(frozen=True)
class _Class:
    ranges: Ranges


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Either:
    options: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    part: _Node
    low: int
    high: int | None


_Node = _Class | _Sequence | _Either | _Repeat


def pattern_to_gbnf(pattern: str) -> str:
    """Return a grammar's body that writes texts in which `pattern` is found.

    Raises UnboundPattern for syntax that has no grammar, and for one that would be too large.
    """
    # The alternatives with the same anchors share what may stand around them: else llama.cpp
    # would follow that once for each of them.
    bodies: dict[tuple[bool, bool], list[str]] = {}
    parser, cost = _Parser(pattern), 0
    while True:
        begins, node, ends = parser.anchored()
        cost += _cost(node)
        if cost > MAX_COST:
            raise UnboundPattern("too large")
        bodies.setdefault((begins, ends), []).append(_gbnf(node))
        if not parser.take("|"):
            break
    if parser.rest:
        raise UnboundPattern(parser.rest)
    around = f"{_class_gbnf(PLAIN)}{{0,60}}"
    options = []
    for (begins, ends), own in bodies.items():
        inner = own[0] if len(own) == 1 else _choice(own)
        parts = ["" if begins else around, inner, "" if ends else around]
        options.append(" ".join(filter(None, parts)))
    return _choice(options)


def may_take_forever(pattern: str) -> bool:
    """Return whether checking `pattern` may take time that grows exponentially with a text.

    That needs a repeat without end around something ambiguous: another such repeat that is not
    set off by a character of its own, or alternatives that begin alike. Where the pattern's syntax
    is unknown, any repeated group counts.
    """
    parser = _Parser(pattern)
    try:
        nodes = [parser.anchored()[1]]
        while parser.take("|"):
            nodes.append(parser.anchored()[1])
        if parser.rest:
            raise UnboundPattern(parser.rest)
    except UnboundPattern:
        return re.search(r"\)[*+{]", pattern) is not None
    return any(map(_ambiguous, nodes))


def longest_searched(pattern: str) -> int:
    """Return up to which length a text is searched for `pattern`.

    The time of a search may grow with a power of the length: one for each repeat without end, and
    one for the places where it may begin.
    """
    bare = _CLASS.sub("x", re.sub(r"\\.", "x", pattern))
    degree = len(_ENDLESS.findall(bare)) + (not bare.startswith("^"))
    return int(_MOST_STEPS ** (1 / max(1, degree)))


class _Parser:
    """Reads a pattern from left to right; raises UnboundPattern at what it does not know."""

    def __init__(self, pattern: str) -> None:
        self.rest = pattern

    def take(self, text: str) -> bool:
        if not self.rest.startswith(text):
            return False
        self.rest = self.rest[len(text) :]
        return True

    def anchored(self) -> tuple[bool, _Node, bool]:
        """Read one alternative of the whole; return whether it is bound to begin and end."""
        begins = self.take("^") or self.take("\\A")
        node = self.sequence()
        ends = self.take("$") or self.take("\\Z") or self.take("\\z")
        return begins, node, ends

    def sequence(self) -> _Node:
        parts: list[_Node] = []
        while self.rest and self.rest[0] not in "|)$" and not self.rest.startswith(("\\Z", "\\z")):
            parts.append(self.repeated(self.atom()))
        return _Sequence(tuple(parts))

    def either(self) -> _Node:
        options = [self.sequence()]
        while self.take("|"):
            options.append(self.sequence())
        return options[0] if len(options) == 1 else _Either(tuple(options))

    def atom(self) -> _Node:
        if self.take("("):
            if self.rest.startswith("?"):
                name = re.match(r"\?(?::|P?<\w+>)", self.rest)
                if name is None:
                    raise UnboundPattern(self.rest)
                self.rest = self.rest[name.end() :]
            node = self.either()
            if not self.take(")"):
                raise UnboundPattern(self.rest)
            return node
        if self.take("["):
            return self.character_class()
        if self.take("."):
            return _Class(((0x20, 0x7E), (0xA0, 0x10FFFF)))
        if self.rest[0] in "^*+?{":
            raise UnboundPattern(self.rest)
        return _Class(self.character())

    def repeated(self, node: _Node) -> _Node:
        match = re.match(r"([*+?])|\{(\d{1,6})(?:(,)(\d{1,6})?)?\}", self.rest)
        if match is None:
            return node
        self.rest = self.rest[match.end() :]
        if self.rest[:1] in ("?", "+") and self.rest[:1] != "":
            if self.rest[0] == "+":  # possessive
                raise UnboundPattern(self.rest)
            self.rest = self.rest[1:]
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(match[1] or "", (0, 0))
        if match[1] is None:
            low = int(match[2])
            high = low if match[3] is None else int(match[4]) if match[4] else None
        if max(low, high or 0) > _MOST_REPEATS or (high is not None and high < low):
            raise UnboundPattern("too many repeats")
        return _Repeat(node, low, high)

    def character(self) -> Ranges:
        """Read a character, or an escape that stands for one or for several."""
        if not self.take("\\"):
            code, self.rest = ord(self.rest[0]), self.rest[1:]
            return ((code, code),)
        name, self.rest = self.rest[:1], self.rest[1:]
        if name in _CLASSES:
            return _CLASSES[name]
        if name.lower() in _CLASSES and name:
            return _without(_EVERY, _CLASSES[name.lower()])
        if name in _CONTROLS:
            return ((_CONTROLS[name], _CONTROLS[name]),)
        if name in ("x", "u") and (
            digits := re.match("[0-9A-Fa-f]" * (2 if name == "x" else 4), self.rest)
        ):
            self.rest = self.rest[digits.end() :]
            return ((int(digits[0], 16), int(digits[0], 16)),)
        if not name or name.isalnum():
            raise UnboundPattern(f"\\{name}")
        return ((ord(name), ord(name)),)

    def character_class(self) -> _Node:
        negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while first or not self.rest.startswith("]"):
            if not self.rest or self.rest.startswith(("[", "&&", "--", "||", "~~")):
                raise UnboundPattern(self.rest)
            first = False
            low = self.character()
            if len(self.rest) > 1 and self.rest[0] == "-" and self.rest[1] != "]":
                self.rest = self.rest[1:]
                high = self.character()
                if len(low) != 1 or len(high) != 1 or low[0][0] > high[0][1]:
                    raise UnboundPattern("a range")
                low = ((low[0][0], high[0][1]),)
            ranges += low
        self.take("]")
        return _Class(_without(_EVERY, tuple(ranges)) if negated else tuple(ranges))


# ---- sets of characters


def _without(ranges: Ranges, others: Ranges) -> Ranges:
    for low, high in others:
        left = [(a, min(b, low - 1)) for a, b in ranges if a < low]
        ranges = (*left, *((max(a, high + 1), b) for a, b in ranges if b > high))
    return tuple((a, b) for a, b in ranges if a <= b)


def _common(ranges: Ranges, others: Ranges) -> Ranges:
    pairs = ((max(a, c), min(b, d)) for a, b in ranges for c, d in others)
    return tuple((a, b) for a, b in pairs if a <= b)


def _class_gbnf(ranges: Ranges) -> str:
    parts = []
    if plain := _common(ranges, PLAIN):
        text = "".join(_code(a) if a == b else f"{_code(a)}-{_code(b)}" for a, b in plain)
        parts.append(f"[{text}]")
    parts += [
        escaped for code, escaped in _ESCAPED.items() if any(a <= code <= b for a, b in ranges)
    ]
    if not parts:
        raise UnboundPattern("no character that an answer may hold")
    return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"


def _code(code: int) -> str:
    return f"\\x{code:02X}" if code < 0x80 else f"\\U{code:08X}"


# ---- a pattern's grammar, cost and ambiguity


def _choice(bodies: Iterable[str]) -> str:
    return "(" + " | ".join(body or '""' for body in bodies) + ")"


def _gbnf(node: _Node) -> str:
    match node:
        case _Class(ranges):
            return _class_gbnf(ranges)
        case _Sequence(parts):
            return " ".join(filter(None, map(_gbnf, parts)))
        case _Either(options):
            return _choice(map(_gbnf, options))
        case _Repeat(part, low, high):
            body = _gbnf(part)
            return f"({body}){{{low},{'' if high is None else high}}}" if body else ""


def _cost(node: _Node) -> int:
    match node:
        case _Class(ranges):
            return 10 + 10 * len(ranges)
        case _Sequence(parts):
            # llama.cpp follows all parts that may come next, each with all that may follow it
            skips = sum(not _least(part) for part in parts)
            return 5 + sum(map(_cost, parts)) + _COST_OF_SKIPS * skips**2
        case _Either(options):
            return 5 + sum(map(_cost, options))
        case _Repeat(part, low, high):
            return 10 + _cost(part) * max(1, low + 1 if high is None else high)


def _ambiguous(node: _Node) -> bool:
    match node:
        case _Class():
            return False
        case _Sequence(parts):
            return any(map(_ambiguous, parts))
        case _Either(parts):
            return any(map(_ambiguous, parts))
        case _Repeat(part, _, high):
            long = high is None or high > 8
            return (long and _repeats_unclearly(part)) or _ambiguous(part)


def _repeats_unclearly(part: _Node) -> bool:
    """Return whether the repeats of `part` can share one text in several ways."""
    if isinstance(part, _Class):
        return False
    if isinstance(part, _Either):
        alike = _overlap([_first(option) for option in part.options])
        return alike or any(map(_repeats_unclearly, part.options))
    if isinstance(part, _Repeat):
        return part.low != part.high or _repeats_unclearly(part.part)
    inner = [p for p in part.parts if _repeats_unclearly(p)]
    if not inner:
        return False
    edges = [p for p in (part.parts[0], part.parts[-1]) if isinstance(p, _Class)]
    rest = tuple(r for p in inner for r in _all(p))
    return not any(not _common(edge.ranges, rest) for edge in edges)


def _overlap(sets: list[Ranges]) -> bool:
    """Return whether two of several sets of characters have one in common."""
    ranges = sorted((a, b, i) for i, own in enumerate(sets) for a, b in own)
    last, owner = -1, -1
    for low, high, i in ranges:
        if low <= last and owner != i:
            return True
        if high > last:
            last, owner = high, i
    return False


def _first(node: _Node) -> Ranges:
    match node:
        case _Class(ranges):
            return ranges
        case _Sequence(parts):
            # What may be empty lets the next part come first, so it counts as any character.
            return _first(parts[0]) if parts and _least(parts[0]) else _EVERY
        case _Either(options):
            return tuple(r for option in options for r in _first(option))
        case _Repeat(part, low, _):
            return _first(part) if low else _EVERY


def _least(node: _Node) -> int:
    """Return how many characters a node has at least."""
    match node:
        case _Class():
            return 1
        case _Sequence(parts):
            return sum(map(_least, parts))
        case _Either(options):
            return min(map(_least, options))
        case _Repeat(part, low, _):
            return low * _least(part)


def _all(node: _Node) -> Ranges:
    match node:
        case _Class(ranges):
            return ranges
        case _Sequence(parts) | _Either(parts):
            return tuple(r for part in parts for r in _all(part))
        case _Repeat(part, _, _):
            return _all(part)

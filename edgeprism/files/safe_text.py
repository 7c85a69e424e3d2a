r"""Text for people: what files, models and servers say, made safe to print; counts.

A file's name, a manifest, a model or a server may hold characters that command a terminal: control
sequences (C0 and C1), marks that reorder the characters around them, and separators that some
programs take for line ends. Everything that is printed goes through this module, which writes such
a character as its escape, `\x1b` or `\u202e`. A byte of a name that is not UTF-8 is a lone
surrogate in Python; it becomes `\udcff`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# All but tab and line feed: C0, DEL and C1, the characters with Unicode's property Bidi_Control,
# line and paragraph separators, interlinear annotations, and lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb"
    "\ud800-\udfff]"
)
_LINE = {"\n": r"\n", "\t": r"\t"}


def printable(text: str) -> str:
    r"""Return `text` with unsafe characters escaped, as in `\x1b`; tabs and line breaks stay."""
    return _UNSAFE.sub(_escape, text.replace("\r\n", "\n"))


def printable_line(text: str) -> str:
    r"""Return `text` on one line: as `printable`, with tabs and line breaks escaped as well."""
    return re.sub("[\n\t]", lambda match: _LINE[match[0]], _UNSAFE.sub(_escape, text))


def short_line(text: str, limit: int) -> str:
    """Return `text` as one line of words, cut after `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line[:limit] + ("…" if len(line) > limit else "")


def json_text(value: object, *, indent: int | None = None) -> str:
    r"""Return `value` as JSON that any terminal can show and any UTF-8 file can hold.

    Unsafe characters stand as `\u…` escapes, which a JSON reader turns back; all others stand as
    they are. A byte of a name that is not UTF-8 thus comes back as the same lone surrogate, which
    `os.fsencode` turns into the byte.
    """
    import json  # not at the top: help writes none

    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def counted(number: int, noun: str) -> str:
    """Return "1 file" or "1,200 files"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last

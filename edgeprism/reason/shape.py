"""Shapes of text: what a model may write, as a llama.cpp grammar (GBNF).

Every grammar is put together here from checked parts, none is taken from a person or a file: one
that llama.cpp cannot read, or in which a text can get stuck, would end the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprism.errors import UsageError

MAX_CHOICES = 500
MAX_CHOICE = 200  # characters


@dataclass(frozen=True)
class Shape:
    """What a text must look like.

    `gbnf` is a grammar whose start is `root`; `accepts` says whether a finished text is in it;
    `schema` is a JSON schema with the same meaning for servers that take no grammar, whose
    answer `unwrap` turns into the text.
    """

    gbnf: str
    accepts: Callable[[str], bool]
    schema: dict[str, Any] | None = None
    unwrap: Callable[[Any], str] | None = None


def literal(text: str) -> str:
    """`text` as a GBNF string."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    parts = [escapes.get(c) or (f"\\x{ord(c):02X}" if c < " " else c) for c in text]
    return f'"{"".join(parts)}"'


def one_of(texts: Iterable[str]) -> str:
    """A GBNF group of alternatives."""
    return f"({' | '.join(literal(text) for text in texts)})"


def choices_to_shape(choices: Sequence[str]) -> Shape:
    """Exactly one of `choices`. Raises UsageError for what cannot be chosen from."""
    wanted = [choice.strip() for choice in choices]
    if len(wanted) < 2 or len(wanted) > MAX_CHOICES:
        raise UsageError(
            f"{len(wanted)} choices; from 2 to {MAX_CHOICES} can be chosen from.",
            "For example yes and no.",
        )
    for choice in wanted:
        if not choice or len(choice) > MAX_CHOICE or not choice.isprintable():
            raise UsageError(
                f"{choice!r} is no choice.",
                f"Each is one printable line of 1 to {MAX_CHOICE} characters.",
            )
    if len(set(wanted)) < len(wanted):
        raise UsageError("A choice is given twice.", "Name each once.")
    return Shape(
        gbnf=f"root ::= {one_of(wanted)}\n",
        accepts=set(wanted).__contains__,
        schema=_object("answer", {"type": "string", "enum": wanted}),
        unwrap=lambda value: str(value["answer"]),
    )


def phrases_to_shape(
    phrases: Iterable[str], *, openings: Iterable[str], links: Iterable[str], most: int
) -> Shape:
    """One line of up to `most` of the given phrases; the first may be one of `openings`.

    Before each phrase up to two of `links` ("of the") and a comma may stand, never behind the
    last. A server takes no such order: there any line of all these is in the shape.
    """
    named, first, between = (
        sorted({phrase for phrase in some if phrase.isprintable() and phrase.strip()})
        for some in (phrases, openings, links)
    )
    known = sorted({*named, *first, *between})
    either = f"(?:{'|'.join(map(re.escape, known))})"
    line = re.compile(rf"{either}(?:,? {either})*")
    rules = [
        f'root ::= link? ({one_of(first)} | phrase) (","? " " link{{0,2}} phrase){{0,{most - 1}}}',
        f"phrase ::= {one_of(named)}",
        f'link ::= {one_of(between)} " "',
    ]
    items = {
        "type": "array",
        "items": {"type": "string", "enum": known},
        "minItems": 1,
        "maxItems": 3 * most,
    }
    return Shape(
        gbnf="\n".join(rules) + "\n",
        accepts=lambda text: line.fullmatch(text) is not None,
        schema=_object("phrases", items),
        unwrap=lambda value: " ".join(value["phrases"]),
    )


def numbers_to_shape(last: int) -> Shape:
    """Up to three of the numbers 1 … `last`, or "none"; no other number can be written."""
    number = one_of(str(n) for n in range(1, last + 1))

    def accepts(text: str) -> bool:
        return text == "none" or all(
            part.isdigit() and 1 <= int(part) <= last for part in text.split(", ")
        )

    item = {"type": "integer", "minimum": 1, "maximum": last}
    return Shape(
        gbnf=f'root ::= "none" | number (", " number){{0,2}}\nnumber ::= {number}\n',
        accepts=accepts,
        schema=_object("sentences", {"type": "array", "items": item, "maxItems": 3}),
        unwrap=lambda value: ", ".join(map(str, value["sentences"])) or "none",
    )


def _object(name: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: content},
        "required": [name],
        "additionalProperties": False,
    }

"""Shapes of text: what a model may write, as a llama.cpp grammar (GBNF).

This package builds every grammar from checked parts and takes none from a person or a file. A
grammar that llama.cpp cannot read, or in which a text can get stuck, would end the process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprism.errors import UsageError

MAX_CHOICES = 500
MAX_CHOICE = 200  # characters


@dataclass(frozen=True)
class Shape:
    """The form that a text must have.

    `gbnf` is a grammar whose start is `root`; `accepts` returns whether a finished text matches
    it. `schema` is a JSON schema with the same meaning, for servers that take no grammar; `unwrap`
    turns JSON in that schema into the text. `gbnf` may allow more than `accepts`; `fault` then says
    what is wrong with a text, "" for one that is accepted.
    """

    gbnf: str
    accepts: Callable[[str], bool]
    schema: dict[str, Any] | None = None
    unwrap: Callable[[Any], str] | None = None
    fault: Callable[[str], str] | None = None


def literal(text: str) -> str:
    """Write `text` as a GBNF string."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    parts = [escapes.get(c) or (f"\\x{ord(c):02X}" if c < " " else c) for c in text]
    return f'"{"".join(parts)}"'


def one_of(texts: Iterable[str]) -> str:
    """Write `texts` as a GBNF group of alternatives."""
    return f"({' | '.join(literal(text) for text in texts)})"


def choices_to_shape(choices: Sequence[str]) -> Shape:
    """Return the shape of exactly one of `choices`.

    Raises UsageError for too few, too many, repeated or unprintable choices.
    """
    texts = [choice.strip() for choice in choices]
    if len(texts) < 2 or len(texts) > MAX_CHOICES:
        raise UsageError(
            f"{len(texts)} choices; from 2 to {MAX_CHOICES} can be chosen from.",
            "Give `choices` such as yes,no.",
        )
    for text in texts:
        if not text or len(text) > MAX_CHOICE or not text.isprintable():
            raise UsageError(
                f"{text!r} is no choice.",
                f"Each is one printable line of 1 to {MAX_CHOICE} characters.",
            )
    if len(set(texts)) < len(texts):
        raise UsageError("A choice is given twice.", "Name each once.")
    return Shape(
        gbnf=f"root ::= {one_of(texts)}\n",
        accepts=set(texts).__contains__,
        schema=_object("answer", {"type": "string", "enum": texts}),
        unwrap=lambda value: str(value["answer"]),
    )


def object_shape() -> Shape:
    """Return the shape of any JSON object, as "JSON mode" of other APIs has it."""
    return Shape(gbnf=_ANY_OBJECT, accepts=_is_object, schema={"type": "object"})


# without free blanks, which a model may write for ever
_ANY_OBJECT = r"""root ::= object
object ::= "{" (pair (", " pair)*)? "}"
pair ::= string ": " value
value ::= object | array | string | number | "true" | "false" | "null"
array ::= "[" (value (", " value)*)? "]"
string ::= "\"" char* "\""
char ::= [\x20-\x21\x23-\x5B\x5D-\x7E\u00A0-\uD7FF\uE000-\uFFFD] | "\\" ["\\/bfnrt]
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?
"""


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def phrases_to_shape(
    phrases: Iterable[str], *, openings: Iterable[str], links: Iterable[str], limit: int
) -> Shape:
    """Return the shape of one line of up to `limit` phrases; the first may be an opening.

    A comma and up to two of `links` ("of the") may precede each phrase, but none ends the line. A
    JSON schema cannot express that order, so `schema` and `accepts` allow phrases, openings and
    links in any order.
    """
    named, first, between = (
        sorted({text for text in texts if text.isprintable() and text.strip()})
        for texts in (phrases, openings, links)
    )
    known = sorted({*named, *first, *between})
    either = f"(?:{'|'.join(map(re.escape, known))})"
    line = re.compile(rf"{either}(?:,? {either})*")
    rules = [
        f'root ::= link? ({one_of(first)} | phrase) (","? " " link{{0,2}} phrase){{0,{limit - 1}}}',
        f"phrase ::= {one_of(named)}",
        f'link ::= {one_of(between)} " "',
    ]
    items = {
        "type": "array",
        "items": {"type": "string", "enum": known},
        "minItems": 1,
        "maxItems": 3 * limit,
    }
    return Shape(
        gbnf="\n".join(rules) + "\n",
        accepts=lambda text: line.fullmatch(text) is not None,
        schema=_object("phrases", items),
        unwrap=lambda value: " ".join(value["phrases"]),
    )


def numbers_to_shape(last: int) -> Shape:
    """Return the shape of up to three of the numbers 1 … `last`, or "none"."""
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

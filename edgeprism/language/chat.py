"""Chat template + messages → text segments in order.

The tokenizer parses special tokens only in the template's own pieces. So text that a person, a
picture or a model wrote never becomes a special token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprism.segments import Segment, Text

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str  # "system", "user" or "assistant"
    content: str
    is_example: bool = False  # of a worked example, which stands before other questions, too


def chat_to_segments(
    render: Callable[[Sequence[Message]], str], messages: Sequence[Message]
) -> list[Segment]:
    """Return a chat as segments, for any template that `render` applies.

    It renders the template with placeholders in place of the contents. This separates the
    template's pieces from the contents, so that they can be tokenised differently.
    """
    import secrets  # not at the top: a bundle's own template needs none

    contents = {f"[{secrets.token_hex(12)}]": message.content for message in messages}
    marks = list(contents)
    text = render([Message(m.role, mark) for m, mark in zip(messages, marks, strict=True)])
    # a template may drop a turn (some have no system turn), move it or repeat it
    pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
    return [
        Text(contents[piece]) if piece in contents else Text(piece, template=True)
        for piece in pieces
        if piece
    ]

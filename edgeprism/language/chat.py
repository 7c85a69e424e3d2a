"""Chat template + instruction → ordered segments of text and image.

What a person, a picture or a model wrote never becomes a special token: only the template's own
pieces are tokenised with special tokens parsed.
"""

from __future__ import annotations

import re
import secrets
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


def chat_to_segments(
    render: Callable[[Sequence[Message]], str], messages: Sequence[Message]
) -> list[Segment]:
    """A chat as segments, whatever template `render` applies.

    The template is rendered around placeholders, so that its pieces and what people wrote can
    be told apart and tokenised differently.
    """
    written = {f"[{secrets.token_hex(12)}]": message.content for message in messages}
    marks = list(written)
    text = render([Message(m.role, mark) for m, mark in zip(messages, marks, strict=True)])
    # a template may drop a turn (some have no system turn), move it or say it twice
    pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
    return [
        Text(written[piece]) if piece in written else Text(piece, template=True)
        for piece in pieces
        if piece
    ]

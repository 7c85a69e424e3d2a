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

from edgeprism.records import Segment, Text

if TYPE_CHECKING:
    from edgeprism.manifest import Prompts


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str  # "system", "user" or "assistant"
    content: str


def caption_to_segments(
    prompts: Prompts, instruction: str, picture: Sequence[Segment]
) -> list[Segment]:
    """The captioner's prompt around `picture` (an EncodedImage's layout).

    The BOS token, if any, is the language model's to add.
    """
    return [
        Text(prompts.before_image, template=True),
        *picture,
        Text(prompts.after_image + instruction),
        Text(prompts.before_caption, template=True),
    ]


def instruction_for(prompts: Prompts, instruction: str | None, focus: str | None) -> str:
    """The generic instruction, or the question-related one: generic + what to observe."""
    text = prompts.default_instruction if instruction is None else instruction
    if focus and focus.strip():
        # replace, not format: an instruction may hold braces of its own
        text += prompts.focus_instruction.replace("{focus}", focus.strip())
    return text


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


def answer_messages(captions: Sequence[str], question: str) -> list[Message]:
    """What the reasoner is shown: the descriptions, numbered where there are several."""
    if len(captions) == 1:
        described = f"Description of the picture:\n{captions[0]}"
    else:
        described = "\n\n".join(
            f"Description of picture {i}:\n{caption}" for i, caption in enumerate(captions, 1)
        )
    # One plain turn: given a system turn of rules, and an answer to fall back on, small models
    # mostly fall back. `benchmarks/reasoner.py` counts right answers.
    task = "Answer from the description, in a few words."
    return [Message("user", f"{described}\n\n{task}\nQuestion: {question}\nAnswer:")]

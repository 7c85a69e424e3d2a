"""The captioner's prompt: its instruction, and segments of text and image rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgeprism.segments import ImageRows, Segment, Text

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import Prompts, Several


def caption_to_segments(
    prompts: Prompts, instruction: str, picture: Sequence[Segment]
) -> list[Segment]:
    """The captioner's prompt around `picture` (an EncodedImage's layout).

    The BOS token, if any, is the language model's to add.
    """
    return [
        Text(prompts.before_image, template=True),
        *picture,
        Text(prompts.after_image + instruction + prompts.after_instruction),
        Text(prompts.before_caption, template=True),
    ]


def pictures_to_segments(several: Several, pictures: Sequence[Sequence[Segment]]) -> list[Segment]:
    """The segments of several pictures as of one, over rows that stand one behind the other."""
    together: list[Segment] = []
    at = 0
    for number, picture in enumerate(pictures, 1):
        between = several.between if together else ""
        before = between + several.before.replace("{number}", str(number))
        together += [Text(before, template=True)] if before else []
        together += [_moved(segment, at) for segment in picture]
        at += sum(s.stop - s.start for s in picture if isinstance(s, ImageRows))
    return together


def _moved(segment: Segment, by: int) -> Segment:
    if not isinstance(segment, ImageRows):
        return segment
    return replace(segment, start=segment.start + by, stop=segment.stop + by)


def instruction_for(prompts: Prompts, instruction: str | None, focus: str | None) -> str:
    """The generic instruction, or the question-related one: generic + what to observe."""
    text = prompts.default_instruction if instruction is None else instruction
    if focus and focus.strip():
        # replace, not format: an instruction may hold braces of its own
        text += prompts.focus_instruction.replace("{focus}", focus.strip())
    return text

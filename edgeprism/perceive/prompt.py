"""The captioner's prompt: its instruction, and segments of text and image rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgeprism.segments import ImageRows, Segment, Text

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import Prompts, Several, Video


FOCUS_NOTE = "this model takes no focus, so it was left out"


def caption_to_segments(
    prompts: Prompts, instruction: str, picture: Sequence[Segment]
) -> list[Segment]:
    """Put the captioner's prompt around `picture` (an EncodedImage's layout).

    The language model adds the BOS token, if there is one.
    """
    return [
        Text(prompts.before_image, template=True),
        *picture,
        Text(prompts.after_image + instruction + prompts.after_instruction),
        Text(prompts.before_caption, template=True),
    ]


def pictures_to_segments(several: Several, pictures: Sequence[Sequence[Segment]]) -> list[Segment]:
    """Join the segments of several pictures; the rows of picture k follow those of picture k-1."""
    joined: list[Segment] = []
    n_rows = 0
    for number, picture in enumerate(pictures, 1):
        between = several.between if joined else ""
        before = between + several.before.replace("{number}", str(number))
        joined += [Text(before, template=True)] if before else []
        placed = _placed(picture, several.index, number - 1)
        joined += [_shifted(segment, n_rows) for segment in placed]
        n_rows += sum(s.stop - s.start for s in picture if isinstance(s, ImageRows))
    return joined


def _placed(picture: Sequence[Segment], index: str, place: int) -> Sequence[Segment]:
    """Return a picture's segments with its place, from 0, in the text that tells a place."""
    alone = _with_place(index, 0)
    if not index or not isinstance(picture[0], Text) or not picture[0].text.startswith(alone):
        return picture
    text = _with_place(index, place) + picture[0].text.removeprefix(alone)
    return [replace(picture[0], text=text), *picture[1:]]


def _with_place(index: str, place: int) -> str:
    return index.replace("{index}", str(place)).replace("{number}", str(place + 1))


def _shifted(segment: Segment, rows: int) -> Segment:
    if not isinstance(segment, ImageRows):
        return segment
    return replace(segment, start=segment.start + rows, stop=segment.stop + rows)


def instruction_for(prompts: Prompts, instruction: str | None, focus: str | None) -> str:
    """Return the generic instruction; with a focus, add what to observe."""
    return _with_focus(
        prompts, prompts.default_instruction if instruction is None else instruction, focus
    )


def video_instruction_for(
    prompts: Prompts, video: Video | None, instruction: str | None, focus: str | None
) -> str | None:
    """Return the instruction of a video's caption; None where it is that of a picture's."""
    if instruction is not None or video is None or not video.instruction:
        return None
    return _with_focus(prompts, video.instruction, focus)


def focus_notes(prompts: Prompts, focus: str | None) -> tuple[str, ...]:
    """Return a note if a focus is given to a model that takes none."""
    ignored = focus and focus.strip() and not prompts.focus_instruction
    return (FOCUS_NOTE,) if ignored else ()


def _with_focus(prompts: Prompts, text: str, focus: str | None) -> str:
    if focus and focus.strip():
        # str.format would fail on an instruction that holds other braces.
        added = prompts.focus_instruction.replace("{focus}", focus.strip())
        # the blank that parts it from an instruction would stand at a text's beginning
        text = text + added if text else added.lstrip()
    return text

"""Of a file with several pictures, the first that shows something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

from edgeprism.picture.render import Rendered

_BLANK = 12  # of 255; a picture whose colours all lie within it shows nothing
_MOST_LOOKED_AT = 100
_MOST_PIXELS = 100_000_000  # of all frames looked at


@dataclass(frozen=True)
class Frame:
    """One picture of a file. `render` is called before the next frame is taken."""

    index: int
    render: Callable[[], Rendered]
    is_main: bool = False  # the file says that this is its picture


@dataclass(frozen=True)
class Shown:
    """The frame that was chosen, and all notes on it."""

    rendered: Rendered
    notes: tuple[str, ...]


def first_shown(frames: Iterator[Frame], count: int, more: bool = False) -> Shown:
    """Return the first frame that is not blank; the first one if all those looked at are.

    Args:
        frames: At least one.
        count: How many there are.
        more: Whether there are more than `count`.
    """
    total = f"over {count}" if more else str(count)
    first = next(frames)
    chosen, rendered = first, first.render()
    pixels = rendered.rgb.width * rendered.rgb.height
    if count > 1 and not first.is_main and is_blank(rendered.rgb):
        for frame in frames:
            if frame.index >= _MOST_LOOKED_AT or pixels > _MOST_PIXELS:
                break
            try:
                other = frame.render()
            except (OSError, SyntaxError, EOFError, ValueError):
                break  # the rest of the file is damaged
            pixels += other.rgb.width * other.rgb.height  # a frame may be larger than the first
            if not is_blank(other.rgb):
                chosen, rendered = frame, other
                break
    notes = []
    if count > 1 and chosen.index == 0:
        notes.append(f"first of {total} frames")
    elif count > 1:
        why = "the main one" if chosen.is_main else "those before it show nothing"
        notes.append(f"frame {chosen.index + 1} of {total}: {why}")
    return Shown(rendered, (*notes, *rendered.notes))


def is_blank(rgb: Image.Image) -> bool:
    """Return whether an RGB image is of one colour, but for noise."""
    ranges = (channel.getextrema() for channel in rgb.split())
    return all(highest - lowest <= _BLANK for lowest, highest in ranges)  # type: ignore[operator]

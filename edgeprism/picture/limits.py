"""The limits on a picture's size, and the errors that tell of them."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from edgeprism.errors import ImageError
from edgeprism.picture.source import HINT_NOT_A_PICTURE

MAX_PIXELS = 178_956_970  # Pillow's own limit; about 13,400 × 13,400
# Padding reads height × longer edge pixels: a larger picture would take over half a minute
MAX_WIDTH, MAX_HEIGHT = 65_535, 40_000


class UnreadLayout(Exception):
    """A layout of pixels that is not read; the message names it."""


@dataclass(frozen=True)
class Decoded:
    """An upright picture's pixels, and what the reader has to say about them."""

    rgb: Image.Image
    size: tuple[int, int]  # (width, height), upright; `rgb` may be smaller
    notes: tuple[str, ...]


def check_size(size: tuple[int, int], name: str) -> None:
    """Refuse a picture whose width and height are over the limits, before a pixel is decoded."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: has no pixels.", HINT_NOT_A_PICTURE)
    if width * height > MAX_PIXELS:
        raise too_many_pixels(name)
    shorter, longer = sorted(size)
    if longer > MAX_WIDTH or shorter > MAX_HEIGHT:  # however it is turned
        raise _too_long(size, name)


def checked(decoded: Decoded, name: str) -> Decoded:
    """Return the picture. Raises ImageError if it is too wide or high now that it is upright."""
    width, height = decoded.size
    if width > MAX_WIDTH or height > MAX_HEIGHT:
        raise _too_long(decoded.size, name)
    return decoded


def too_many_pixels(name: str) -> ImageError:
    """The error for a picture of too many pixels."""
    return ImageError(
        f"{name}: more than {MAX_PIXELS // 1_000_000} megapixels.", "Export a smaller copy."
    )


def _too_long(size: tuple[int, int], name: str) -> ImageError:
    return ImageError(
        f"{name}: {size[0]} × {size[1]} pixels; at most {MAX_WIDTH} across and {MAX_HEIGHT} down "
        "are read.",
        "Cut it into pieces.",
    )

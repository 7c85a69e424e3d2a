"""A picture of any shape → one tile, as the image policy's mode says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from edgeprism.picture.layout import shrunk_size

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy

STRIP_PIXELS = 32_000_000  # padding works in strips of at most this many pixels

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_WIDEST_FILTER = 3  # Lanczos, in pixels to each side


def picture_to_tile(rgb: Image.Image, policy: ImagePolicy, fill: Sequence[int]) -> Image.Image:
    """The whole picture as one tile, size × size; with "shrink" of its own shape."""
    size, resample = policy.size, RESAMPLING[policy.resample]
    if policy.mode == "shrink":
        shape = shrunk_size(rgb.size, size)
        return rgb if shape == rgb.size else rgb.resize(shape, resample)
    if policy.mode == "pad":
        edge = max(rgb.size)
        return _padded_and_resized(rgb, (edge, edge), (size, size), fill, resample)
    if policy.mode == "letterbox":
        return _letterboxed(rgb, size, fill, resample)
    if policy.mode == "crop":
        return _resized_and_cropped(rgb, size, resample, _half)
    if policy.mode == "center-crop":
        return _resized_and_cropped(rgb, size, resample, _half_to_even)
    return rgb.resize((size, size), resample)


def _half(n: int) -> int:
    return n // 2


def _half_to_even(n: int) -> int:
    """As torchvision's CenterCrop halves what it cuts off: 1 → 0, 3 → 2, 5 → 2, 7 → 4."""
    return round(n / 2)


def _letterboxed(
    rgb: Image.Image, size: int, fill: Sequence[int], resample: Image.Resampling
) -> Image.Image:
    """Equal borders on both sides, then as "center-crop".

    Where the difference of the edges is odd the canvas stays one pixel short of a square; resizing
    its shorter edge then makes the other longer than `size` if the picture is that small.
    """
    edge = max(rgb.size)
    width, height = (n + (edge - n) // 2 * 2 for n in rgb.size)
    shorter = min(width, height)
    resized = (size * width // shorter, size * height // shorter)
    made = _padded_and_resized(rgb, (width, height), resized, fill, resample)
    left, top = (_half_to_even(n - size) for n in resized)
    return made.crop((left, top, left + size, top + size))


def _resized_and_cropped(
    rgb: Image.Image, size: int, resample: Image.Resampling, half: Callable[[int], int]
) -> Image.Image:
    """The shorter edge at `size`, the middle of the longer one, as CLIP's preparation cuts it.

    Of a line of pixels only what is kept is resampled, with a margin for the filter, which sees
    nothing outside its box: the whole of 1 × 20,000 pixels would take gigabytes.
    """
    width, height = rgb.size
    longer = size * max(width, height) // min(width, height)
    start = half(longer - size)
    first, last, box = 0, longer, (0.0, 0.0, float(width), float(height))
    if size * longer > STRIP_PIXELS:
        share = max(width, height) / longer  # pixels of the picture to one of the resized
        margin = math.ceil(_WIDEST_FILTER * max(1, 1 / share)) + 1
        first, last = max(0, start - margin), min(longer, start + size + margin)
        low, high = first * share, last * share
        box = (low, 0, high, height) if width >= height else (0, low, width, high)
    start -= first
    if width >= height:
        resized = rgb.resize((last - first, size), resample, box=box)
        return resized.crop((start, 0, start + size, size))
    return rgb.resize((size, last - first), resample, box=box).crop((0, start, size, start + size))


def _padded_and_resized(
    rgb: Image.Image,
    canvas: tuple[int, int],
    size: tuple[int, int],
    fill: Sequence[int],
    resample: Image.Resampling,
) -> Image.Image:
    """Centred on a `canvas` of `fill`, then resized, without ever holding the whole canvas.

    Pillow resamples rows first and columns second, so doing the rows strip by strip gives the
    very pixels of a resize in one go; a 1 × 20,000 picture then needs no 1.2 GB square.
    """
    colour = tuple(fill)
    (across, down), (width, height) = canvas, rgb.size
    left, top = (across - width) // 2, (down - height) // 2
    rows = max(1, STRIP_PIXELS // across)
    narrow = Image.new("RGB", (size[0], down), colour)  # rows without picture are fill already
    for y in range(top, top + height, rows):
        strip = Image.new("RGB", (across, min(rows, top + height - y)), colour)
        strip.paste(rgb, (left, top - y))
        narrow.paste(strip.resize((size[0], strip.height), resample), (0, y))
    return narrow.resize(size, resample)

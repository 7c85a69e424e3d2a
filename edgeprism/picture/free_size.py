"""The size of a tile whose shape follows the picture's, in whole units of pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import FreeShape

Size = tuple[int, int]  # (width, height)


def free_size(size: Size, free: FreeShape) -> Size:
    """Return the size (width, height) of a tile whose shape follows the picture's.

    These are the rules of Qwen2-VL's processors ("smart-resize"), of MiniCPM-V's ("equal-area") and
    of Fuyu's ("shrink-to-fit"). The first refuse edges that differ by more than 200 times; here
    such a picture gets at least one unit along its shorter edge. The second take any length, which
    is bounded here.
    """
    unit = free.unit
    if free.choose == "shrink-to-fit":
        across, down = shrunk_to_fit(size, (free.canvas[0], free.canvas[1]))
        return -(-across // unit) * unit, -(-down // unit) * unit
    width, height = _equal_area(size, free) if free.choose == "equal-area" else _smart(size, free)
    most = free.most_pixels // unit**2
    if width * height > most:
        shorter = min(width, height, most)
        longer = most // shorter
        width, height = (longer, shorter) if width > height else (shorter, longer)
    return width * unit, height * unit


def _equal_area(size: Size, free: FreeShape) -> Size:
    """Return how many units wide and high a picture is that has `least_pixels`."""
    ratio = size[0] / size[1]
    height = int(math.isqrt(free.least_pixels) / math.sqrt(ratio))
    width = int(height * ratio)
    return max(1, round(width / free.unit)), max(1, round(height / free.unit))


def _smart(size: Size, free: FreeShape) -> Size:
    """Return how many units wide and high a picture of "smart-resize" is."""
    unit, area = free.unit, size[0] * size[1]
    width, height = (max(1, round(edge / unit)) for edge in size)
    if width * height * unit**2 > free.most_pixels:
        share = math.sqrt(area / free.most_pixels)
        width, height = (max(1, math.floor(edge / share / unit)) for edge in size)
    elif width * height * unit**2 < free.least_pixels:
        share = math.sqrt(free.least_pixels / area)
        width, height = (math.ceil(edge * share / unit) for edge in size)
    return width, height


def shrunk_to_fit(size: Size, canvas: Size) -> Size:
    """Return `size` reduced to fit into `canvas`, without fractions of a pixel: Fuyu's rule.

    The rule fails where an edge would have no pixel; here it has one.
    """
    if size[0] <= canvas[0] and size[1] <= canvas[1]:
        return size
    share = min(canvas[1] / size[1], canvas[0] / size[0])
    return max(1, int(size[0] * share)), max(1, int(size[1] * share))

"""An upright picture → the tiles of uint8 pixels that the vision engine takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgeprism.picture.layout import edge_size, fitted_size, shrunk_size

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy
    from edgeprism.picture.read import Picture

STRIP_PIXELS = 32_000_000  # padding works in strips of at most this many pixels

RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_WIDEST_FILTER = 3  # Lanczos, in pixels to each side


def picture_to_tiles(
    picture: Picture, policy: ImagePolicy, grid: tuple[int, int] | None
) -> np.ndarray:
    """Pixels as the vision engine takes them: uint8 [n_tiles, size, size, 3].

    `grid` is [down, across] as `choose_grid` says for the picture's size; None cuts nothing.

    With the mode "shrink" one tile of the picture's own shape, [1, height, width, 3]. With a
    second fill six channels: the picture on the first colour and on the second.
    """
    size, tiling = policy.size, policy.tiling
    if tiling is None or grid is None:
        views = [np.asarray(picture_to_tile(picture.rgb, policy, fill)) for fill in policy.fills]
        return np.concatenate(views, axis=-1)[None]  # [1, size, size, 3 · n_views]
    canvas = _canvas(picture, policy, grid)
    # what "longest-edge" models see as a whole is the canvas, already stretched
    by_edge = tiling.choose == "longest-edge"
    whole = canvas if by_edge else picture.rgb
    overview = np.asarray(picture_to_tile(whole, policy, policy.fill), dtype=np.uint8)[None]
    cut = np.asarray(canvas, dtype=np.uint8).reshape(grid[0], size, grid[1], size, 3)
    cut = cut.swapaxes(1, 2).reshape(-1, size, size, 3)  # row of tiles by row of tiles
    return np.concatenate((overview, cut) if tiling.overview == "first" else (cut, overview))


def _canvas(picture: Picture, policy: ImagePolicy, grid: tuple[int, int]) -> Image.Image:
    """The picture at the size of `grid` tiles [down, across], as the policy fits it in."""
    resample, tiling = RESAMPLING[policy.resample], policy.tiling
    size = (grid[1] * policy.size, grid[0] * policy.size)
    if tiling is not None and tiling.choose == "longest-edge":
        # two steps, as upstream: the first keeps the ratio, the second stretches to whole tiles
        rgb = picture.rgb.resize(edge_size(picture.size, tiling.longest_edge), resample)
        return rgb.resize(size, resample)
    if tiling is not None and tiling.choose == "closest-ratio":
        return picture.rgb.resize(size, resample)
    width, height = fitted_size(picture.size, size)
    canvas = Image.new("RGB", size, tuple(policy.fill))
    fitted = picture.rgb.resize((width, height), resample)
    canvas.paste(fitted, ((size[0] - width) // 2, (size[1] - height) // 2))
    return canvas


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

"""An upright picture → the tiles of uint8 pixels that the vision engine takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgeprism.picture.fractions import bicubic, with_fractions
from edgeprism.picture.free_size import shrunk_to_fit
from edgeprism.picture.layout import (
    across_size,
    cut_size,
    edge_size,
    fitted_size,
    shrunk_size,
    tile_size,
)

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
_WIDEST_FILTER = 3  # pixels to each side that Lanczos, the widest filter, reads


def picture_to_tiles(
    picture: Picture, policy: ImagePolicy, grid: tuple[int, int] | None
) -> np.ndarray:
    """Return the tiles of a picture for the vision engine: uint8 [n_tiles, size, size, 3].

    `grid` is [down, across] from `choose_grid` for the picture's size; None cuts nothing.

    The mode "shrink" gives one tile [1, height, width, 3] of the picture's own aspect ratio, and
    "free" one of about that ratio. With a second fill there are six channels: the picture on the
    first colour and on the second. If a picture is cut in the mode "free", its overview has another
    shape than its tiles: then all pixels stand in one flat array, see `tiles_by_shape`. Where
    pixels have fractions, there are six channels, too (`fractions`).
    """
    tiling = policy.tiling
    if tiling is None or grid is None:
        if policy.free is not None:
            return _free_tile(picture, policy)[None]  # [1, height, width, 3]
        views = [np.asarray(picture_to_tile(picture.rgb, policy, fill)) for fill in policy.fills]
        return np.concatenate(views, axis=-1)[None]  # [1, size, size, 3 · n_views]
    canvas = _canvas(picture, policy, grid)
    # the overview of "longest-edge" models is made from the stretched canvas
    by_edge = tiling.choose == "longest-edge"
    whole = canvas if by_edge else picture.rgb
    if policy.has_fractions:
        overview = bicubic(np.asarray(canvas), policy.size)[None]
    elif policy.free is None:
        overview = np.asarray(picture_to_tile(whole, policy, policy.fill), dtype=np.uint8)[None]
    else:
        overview = _free_tile(picture, policy).ravel()
    width, height = cut_size(picture.size, policy, grid)
    cut = np.asarray(canvas, dtype=np.uint8).reshape(grid[0], height, grid[1], width, 3)
    cut = cut.swapaxes(1, 2).reshape(-1, height, width, 3)  # one row of tiles after another
    cut = cut if policy.free is None else cut.ravel()
    if policy.has_fractions:
        overview, cut = with_fractions(overview), with_fractions(cut)
    return np.concatenate((overview, cut) if tiling.overview == "first" else (cut, overview))


def _free_tile(picture: Picture, policy: ImagePolicy) -> np.ndarray:
    """Return the whole picture [height, width, 3] in the shape of the mode "free"."""
    # of the picture's own size: a decoder may have reduced its pixels
    size = tile_size(picture.size, policy)
    resample, free = RESAMPLING[policy.resample], policy.free
    if free is None or free.choose != "shrink-to-fit":
        return np.asarray(picture.rgb.resize(size, resample))
    tile = Image.new("RGB", size, tuple(policy.fill))
    shrunk = shrunk_to_fit(picture.size, (free.canvas[0], free.canvas[1]))
    tile.paste(picture.rgb if shrunk == picture.rgb.size else picture.rgb.resize(shrunk, resample))
    return np.asarray(tile)


def _canvas(picture: Picture, policy: ImagePolicy, grid: tuple[int, int]) -> Image.Image:
    """Return the picture at the size of `grid` tiles [down, across], fitted as the policy says."""
    resample, tiling = RESAMPLING[policy.resample], policy.tiling
    tile = cut_size(picture.size, policy, grid)
    size = (grid[1] * tile[0], grid[0] * tile[1])
    if tiling is not None and tiling.choose == "longest-edge":
        # upstream resizes twice: first it keeps the ratio, then it stretches to whole tiles
        rgb = picture.rgb.resize(edge_size(picture.size, tiling.longest_edge), resample)
        return rgb.resize(size, resample)
    if tiling is not None and tiling.choose in ("closest-ratio", "by-pixels"):
        return picture.rgb.resize(size, resample)
    if tiling is not None and tiling.choose == "most-across":
        resized = across_size(picture.size, policy.size, tiling.grids)
        return _centred(_resized_along(picture.rgb, resized, resample), size, policy.fill)
    width, height = fitted_size(picture.size, size)
    return _centred(picture.rgb.resize((width, height), resample), size, policy.fill)


def _centred(rgb: Image.Image, size: tuple[int, int], fill: Sequence[int]) -> Image.Image:
    """Return a picture in the middle of a canvas of `size` (width, height)."""
    canvas = Image.new("RGB", size, tuple(fill))
    canvas.paste(rgb, ((size[0] - rgb.width) // 2, (size[1] - rgb.height) // 2))
    return canvas


def _resized_along(
    rgb: Image.Image, size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """Resize the longer edge first: Pillow rounds between the edges, and upstream turns a tall one.

    `size` says which edge is the longer one.
    """
    if size[0] >= size[1]:
        return rgb.resize(size, resample)
    turned = rgb.transpose(Image.Transpose.TRANSPOSE).resize(size[::-1], resample)
    return turned.transpose(Image.Transpose.TRANSPOSE)


def picture_to_tile(rgb: Image.Image, policy: ImagePolicy, fill: Sequence[int]) -> Image.Image:
    """Return the whole picture as one tile: size × size, or its own shape with "shrink"."""
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
    """Halve like torchvision's CenterCrop, rounding to even: 1 → 0, 3 → 2, 5 → 2, 7 → 4."""
    return round(n / 2)


def _letterboxed(
    rgb: Image.Image, size: int, fill: Sequence[int], resample: Image.Resampling
) -> Image.Image:
    """Add equal borders on both sides, then resize and crop as "center-crop" does.

    If the edges differ by an odd number, the canvas stays one pixel short of a square. Resizing
    its shorter edge to `size` may then make the longer edge longer than `size`, if the picture is
    small.
    """
    edge = max(rgb.size)
    width, height = (n + (edge - n) // 2 * 2 for n in rgb.size)
    shorter = min(width, height)
    resized = (size * width // shorter, size * height // shorter)
    padded = _padded_and_resized(rgb, (width, height), resized, fill, resample)
    left, top = (_half_to_even(n - size) for n in resized)
    return padded.crop((left, top, left + size, top + size))


def _resized_and_cropped(
    rgb: Image.Image, size: int, resample: Image.Resampling, half: Callable[[int], int]
) -> Image.Image:
    """Resize the shorter edge to `size` and cut out the middle, like CLIP's preprocessing.

    Resizing a very long picture, such as 1 × 20,000 pixels, as a whole would take gigabytes. For
    such a picture it resamples only the part that stays, with a margin, because the filter sees
    nothing outside its box.
    """
    width, height = rgb.size
    longer = size * max(width, height) // min(width, height)
    start = half(longer - size)
    first, last, box = 0, longer, (0.0, 0.0, float(width), float(height))
    if size * longer > STRIP_PIXELS:
        share = max(width, height) / longer  # pixels of the picture per resized pixel
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
    """Centre the picture on a `canvas` of `fill` and resize, without holding the whole canvas.

    Pillow resamples rows first and columns second, so resampling the rows in strips gives the same
    pixels as one resize. A picture of 1 × 20,000 pixels then needs no square of 1.2 GB.
    """
    colour = tuple(fill)
    (across, down), (width, height) = canvas, rgb.size
    left, top = (across - width) // 2, (down - height) // 2
    rows = max(1, STRIP_PIXELS // across)
    narrow = Image.new("RGB", (size[0], down), colour)  # rows outside the picture stay fill
    for y in range(top, top + height, rows):
        strip = Image.new("RGB", (across, min(rows, top + height - y)), colour)
        strip.paste(rgb, (left, top - y))
        narrow.paste(strip.resize((size[0], strip.height), resample), (0, y))
    return narrow.resize(size, resample)

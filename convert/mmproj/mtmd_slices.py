"""A picture's pixels as libmtmd resizes, pads and cuts them, where no image policy says it.

libmtmd computes sizes in single precision and rounds halves up; both matter for some pictures.
Source: llama.cpp's `tools/mtmd/mtmd-image.cpp`, of the version in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

Size = tuple[int, int]  # (width, height)
_BLACK = (0, 0, 0)


def fitted(
    rgb: Image.Image, size: Size, resample: Image.Resampling, fill: tuple[int, int, int]
) -> Image.Image:
    """Scale into a tile of `size` with the same ratio, centred on `fill`."""
    if rgb.size == size:
        return rgb
    scale = min(np.float32(tile) / np.float32(n) for tile, n in zip(size, rgb.size, strict=True))
    width, height = (
        min(math.ceil(np.float32(n) * scale), tile) for tile, n in zip(size, rgb.size, strict=True)
    )
    canvas = Image.new("RGB", size, fill)
    place = ((size[0] - width) // 2, (size[1] - height) // 2)
    canvas.paste(rgb.resize((width, height), resample), place)
    return canvas


def slices_by_mtmd(
    rgb: Image.Image, edges: tuple[int, int], grid: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """Return the overview and the slices of a picture for MiniCPM-V, and their shapes.

    A picture that is not cut becomes a square; slices keep the picture's ratio and are padded.

    Parameters:
        edges: of a square tile and of a patch, in pixels.
        grid: slices [down, across]; None: the picture is not cut.

    Returns uint8 pixels as `tiles_by_shape` takes them, and (height, width) of each tile.
    """
    edge, patch = edges
    bicubic = Image.Resampling.BICUBIC
    if grid is None:
        return np.asarray(rgb.resize((edge, edge), bicubic))[None], ((edge, edge),)
    down, across = grid
    overview = rgb.resize(_size_of_area(rgb.size, edge, patch, enlarge=False), bicubic)
    part = (_multiple(rgb.width, across) // across, _multiple(rgb.height, down) // down)
    width, height = _size_of_area(part, edge, patch, enlarge=True)
    canvas = np.asarray(fitted(rgb, (width * across, height * down), bicubic, _BLACK))
    cut = canvas.reshape(down, height, across, width, 3).swapaxes(1, 2)
    shapes = ((overview.height, overview.width), *[(height, width)] * (down * across))
    return np.concatenate([np.asarray(overview).ravel(), cut.ravel()]), shapes


def _size_of_area(size: Size, edge: int, patch: int, *, enlarge: bool) -> Size:
    """Return a size of about edge × edge pixels in whole patches, with about the ratio of `size`.

    Without `enlarge` a smaller one only becomes whole patches.
    """
    width, height = size
    if enlarge or width * height > edge**2:
        ratio = np.float32(width) / np.float32(height)
        height = int(np.float32(edge) / np.sqrt(ratio))
        width = int(np.float32(height) * ratio)
    return _multiple(width, patch), _multiple(height, patch)


def _multiple(length: int, unit: int) -> int:
    """Return the nearest multiple of `unit`, the larger one of two, and at least one."""
    return max(unit, math.floor(np.float32(length) / np.float32(unit) + np.float32(0.5)) * unit)

"""The tiles that vision graphs are measured on: squares, or what a bundle cuts pictures into."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeprism.bundle.manifest import Manifest
from edgeprism.convert.gate.data import N_PICTURES, gate_picture, gate_pictures
from edgeprism.convert.gate.judge import Pixels
from edgeprism.picture.layout import picture_to_layout

# (width, height) of pictures, in edges of a square tile: square, as photographs are, and long
_PICTURES = ((1, 1), (2, 1.5), (0.5, 1.75), (4, 1), (0.25, 3))


def gate_tiles(manifest: Manifest) -> Pixels:
    """Return N_PICTURES tiles, in one array if all are squares, else in one for each shape.

    Those of free shapes are overviews and slices of pictures of several shapes; two are one batch.
    """
    image = manifest.image
    if image.free is None:
        return gate_pictures(image.size, image.channels // 3)
    shapes: list[tuple[int, int]] = []
    for wide, high in _PICTURES:
        size = (max(1, round(wide * image.size)), max(1, round(high * image.size)))
        shapes += picture_to_layout(size, manifest).shapes
    shapes = list(dict.fromkeys(shapes))[: N_PICTURES - 1]
    tiles = [_tile(i, shape)[None] for i, shape in enumerate(shapes)]
    others = [_tile(i, shapes[-1])[None] for i in range(len(shapes), N_PICTURES)]
    return [*tiles[:-1], np.concatenate([tiles[-1], *others])]


def reference_tokens(reference: Callable[[np.ndarray], np.ndarray], pixels: Pixels) -> np.ndarray:
    """Return the visual tokens of `gate_tiles`, [n, n_tokens, n_embd] or [1, all, n_embd]."""
    if isinstance(pixels, np.ndarray):
        return reference(pixels)
    rows = [reference(tiles) for tiles in pixels]
    return np.concatenate([r.reshape(1, -1, r.shape[-1]) for r in rows], axis=1)


def _tile(i: int, shape: tuple[int, int]) -> np.ndarray:
    """Return a part [height, width, 3] of a picture of the gate."""
    height, width = shape
    return gate_picture(max(shape), i)[:height, :width]

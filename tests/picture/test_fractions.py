"""Pixels with fractions, against torch's bicubic filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgeprism.picture.fractions import bicubic, with_fractions


def colours(pixels: np.ndarray) -> np.ndarray:
    """Return what six bytes of each pixel mean, by the manifest's rule."""
    coarse, fine = pixels[..., :3].astype(np.float64), pixels[..., 3:].astype(np.float64)
    result: np.ndarray = (256 * coarse + fine) / 128 - 128
    return result


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(56, 112, 56), (168, 56, 56), (56, 56, 56), (1400, 56, 56), (70, 33, 21), (5, 9, 14)],
)
def test_the_filter_is_torchs(height: int, width: int, size: int) -> None:
    rng = np.random.default_rng(height)
    pixels = rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * np.uint8(255)  # all edges
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = functional.interpolate(planes, size=(size, size), mode="bicubic")[0]
    made = bicubic(pixels, size)
    np.testing.assert_allclose(made, expected.permute(1, 2, 0).numpy(), atol=2e-3)
    np.testing.assert_allclose(colours(with_fractions(made)), made, atol=1 / 256 + 1e-6)


def test_whole_colours_stay_whole() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    np.testing.assert_array_equal(colours(with_fractions(every)), every)


def test_a_filter_of_smaller_reach_would_show() -> None:
    """Pillow's bicubic filter smooths what it reduces, and lies within 0 and 255."""
    pixels = np.random.default_rng(1).integers(0, 2, (112, 112, 3), dtype=np.uint8) * np.uint8(255)
    made = bicubic(pixels, 45)
    assert made.std() > 90
    assert (made.min() < -20, made.max() > 275) == (True, True)

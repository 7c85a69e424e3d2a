"""Pixels with fractions: an overview that upstream makes in floating point, in bytes for a graph.

A graph takes bytes. A colour of more than eight bits becomes two of them, by which it may also lie
somewhat below 0 or above 255, as a bicubic filter leaves it at edges.
"""

from __future__ import annotations

import numpy as np

_A = -0.75  # of torch's filter; Pillow's has -0.5, and smooths what it reduces
_TAPS = np.arange(-1, 3)
# a colour is code / _STEPS - _BELOW for a code of 16 bits: -128 to 384 in steps of 1/128
_STEPS, _BELOW = 128, 128


def bicubic(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 [height, width, 3] to float32 [size, size, 3].

    It does what torch's `interpolate` does with mode "bicubic", without antialiasing.
    """
    (rows, down), (columns, across) = (_taps(edge, size) for edge in pixels.shape[:2])
    x = np.zeros((size, pixels.shape[1], pixels.shape[2]), np.float32)
    for tap in range(len(_TAPS)):
        x += down[:, tap, None, None] * pixels[rows[:, tap]]
    y = np.zeros((size, size, pixels.shape[2]), np.float32)
    for tap in range(len(_TAPS)):
        y += across[:, tap, None] * x[:, columns[:, tap]]
    return y


def _taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places [n_out, 4] that each pixel is made of, and their float32 weights."""
    source = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    first = np.floor(source)
    x = np.abs(source[:, None] - (first[:, None] + _TAPS))
    near = ((_A + 2) * x - (_A + 3)) * x**2 + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    places = np.clip(first[:, None] + _TAPS, 0, n_in - 1).astype(np.intp)
    return places, np.where(x <= 1, near, far).astype(np.float32)


def with_fractions(pixels: np.ndarray) -> np.ndarray:
    """Return colours [n, height, width, 3] as bytes [n, height, width, 6].

    The manifest's `Vision` says what the bytes mean.
    """
    codes = np.rint((pixels.astype(np.float32) + _BELOW) * _STEPS).clip(0, 65535).astype(np.uint16)
    return np.concatenate([codes >> 8, codes & 255], axis=-1).astype(np.uint8)

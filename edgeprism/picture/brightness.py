"""Numbers of any type → brightness of 8 bits."""

from __future__ import annotations

import functools

import numpy as np


class NoBrightness(ValueError):
    """Numbers that have no agreed brightness."""


def numbers_to_brightness(numbers: np.ndarray, highest: float | None) -> np.ndarray:
    """Return numbers of any type as uint8, for 0…255.

    Args:
        numbers: Of any shape. They are converted in parts, so it takes little memory.
        highest: The number that is full brightness; None: 1 for floats of at most 1, else 255 for
            numbers of at most 255, else 65535.

    Raises:
        NoBrightness: A number is negative, larger than `highest` or 65535, or not finite.
    """
    if numbers.dtype == np.uint8 and highest == 255:
        return numbers
    if numbers.dtype == np.uint16 and highest == 65535:
        return np.asarray(_of_16_bits()[numbers])
    least, most = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    if not (np.isfinite(least) and np.isfinite(most)) or least < 0:
        raise NoBrightness
    if highest is None:
        floating = numbers.dtype.kind == "f"
        highest = 1.0 if floating and most <= 1 else 255.0 if most <= 255 else 65535.0
    if most > highest:
        raise NoBrightness
    out = np.empty(numbers.shape, np.uint8)
    rows = max(1, 4_000_000 // max(1, numbers[:1].size))
    for start in range(0, numbers.shape[0], rows):
        part = numbers[start : start + rows].astype(np.float64)
        part *= 255 / highest
        out[start : start + rows] = np.rint(part, out=part)
    return out


@functools.cache
def _of_16_bits() -> np.ndarray:
    return np.asarray(np.rint(np.arange(65536) * (255 / 65535)).astype(np.uint8))

"""Portable float maps (PFM): grey floats, for which 1 is white, or the largest one beyond it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edgeprism.errors import ImageError


def floats_to_image(image: Image.Image, name: str) -> tuple[Image.Image, str]:
    """Return an image of floats in mode L, and a note where white had to be chosen, else "".

    Raises:
        ImageError: A number is negative or not finite.
    """
    numbers = np.asarray(image)
    least, most = float(numbers.min()), float(numbers.max())
    if not (np.isfinite(least) and np.isfinite(most)) or least < 0:
        raise ImageError(
            f"{name}: PFM with negative, infinite or missing (NaN) numbers is not read.",
            "Export it as PNG.",
        )
    white = max(most, 1.0)
    levels = np.rint(numbers * (255.0 / white)).astype(np.uint8)
    note = f"brightness up to {most:.4g} in the file: that is shown as white" if most > 1 else ""
    return Image.fromarray(levels), note

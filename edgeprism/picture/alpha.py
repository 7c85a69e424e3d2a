"""Transparent images → RGB, on a ground on which what is visible stands out."""

from __future__ import annotations

import numpy as np
from PIL import Image

WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (128, 128, 128)
_NAMES = {BLACK: "black", GREY: "grey"}
_CLOSE = 48  # brightness (of 255) below which a colour does not stand out from the ground
_FEW = 0.1  # share of the visible that white may hide
_OPAQUE = 0.99  # a picture that is so opaque has no ground to speak of
_SAMPLED = 1000  # pixels along each edge that suffice to choose a ground


def over_ground(rgba: Image.Image) -> tuple[Image.Image, str]:
    """Lay an RGBA image over white, or where that hides much of it over black or grey.

    White text on nothing would not be seen on white. Returns RGB and a note for a ground that is
    not white, else "".
    """
    alpha = rgba.getchannel("A")
    counts = np.array(alpha.histogram())
    n_pixels = counts.sum()
    if counts[255] == n_pixels:
        return rgba.convert("RGB"), ""
    is_empty = counts[0] == n_pixels
    opaque = counts @ np.arange(256) / (255 * n_pixels)
    ground = WHITE if is_empty or opaque > _OPAQUE else _ground(rgba, alpha)
    below = Image.new("RGB", rgba.size, ground)
    below.paste(rgba, mask=alpha)
    if is_empty:
        return below, "entirely transparent"
    return below, "" if ground == WHITE else f"transparent: laid over {_NAMES[ground]}"


def _ground(rgba: Image.Image, alpha: Image.Image) -> tuple[int, int, int]:
    """Return white, unless it hides over a tenth of the visible and another ground half of that."""
    seen = rgba.crop(alpha.getbbox())  # what is visible may be a small part of the picture
    if max(seen.size) > _SAMPLED:
        size = (min(seen.width, _SAMPLED), min(seen.height, _SAMPLED))
        seen = seen.resize(size, Image.Resampling.NEAREST)
    brightness = np.asarray(seen.convert("RGB").convert("L")).ravel()
    weights = np.asarray(seen.getchannel("A")).ravel()
    visible = np.bincount(brightness, weights, 256)
    levels = np.arange(256)

    def hidden(ground: tuple[int, int, int]) -> float:
        close = np.abs(levels - ground[0]) < _CLOSE
        return float(visible[close].sum() / max(visible.sum(), 1))

    on_white = hidden(WHITE)
    other = min((BLACK, GREY), key=hidden)
    return other if on_white > _FEW and hidden(other) <= on_white / 2 else WHITE

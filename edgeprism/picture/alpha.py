"""Transparent images → RGB, on a ground on which what is visible stands out."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageStat

WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (128, 128, 128)
_NAMES = {BLACK: "black", GREY: "grey"}
_CLOSE = 48  # brightness (of 255) below which a colour does not stand out from the ground
_FEW = 0.1  # share of the visible that white may hide
_OPAQUE = 0.01  # share of a picture that may be clear without a ground to speak of
_SAMPLED = 2_000_000  # pixels that suffice to choose a ground


def over_ground(rgba: Image.Image) -> tuple[Image.Image, str]:
    """Lay an RGBA image over white, or where that hides much of it over black or grey.

    White text on nothing would not be seen on white. Returns RGB and a note for a ground that is
    not white, else "".
    """
    alpha = rgba.getchannel("A")
    lowest, highest = alpha.getextrema()
    if lowest == 255:
        return rgba.convert("RGB"), ""
    clear = 1 - ImageStat.Stat(alpha).mean[0] / 255
    ground = _ground(rgba) if highest and clear > _OPAQUE else WHITE
    below = Image.new("RGB", rgba.size, ground)
    below.paste(rgba, mask=alpha)
    if not highest:
        return below, "entirely transparent"
    return below, "" if ground == WHITE else f"transparent: laid over {_NAMES[ground]}"


def _ground(rgba: Image.Image) -> tuple[int, int, int]:
    """Return white, unless it hides over a tenth of the visible and another ground half of that."""
    brightness = np.asarray(rgba.convert("RGB").convert("L")).ravel()
    alpha = np.asarray(rgba.getchannel("A")).ravel()
    if brightness.size > _SAMPLED:
        # an odd number of steps, so that the sample does not follow columns of the picture
        step = brightness.size // _SAMPLED | 1
        brightness, alpha = brightness[::step], alpha[::step]
    visible = np.bincount(brightness, alpha, 256)
    levels = np.arange(256)

    def hidden(ground: tuple[int, int, int]) -> float:
        close = np.abs(levels - ground[0]) < _CLOSE
        return float(visible[close].sum() / max(visible.sum(), 1))

    on_white = hidden(WHITE)
    other = min((BLACK, GREY), key=hidden)
    return other if on_white > _FEW and hidden(other) <= on_white / 2 else WHITE

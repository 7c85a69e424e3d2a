"""The colour of a PNG file that is transparent, at all depths.

Pillow compares it with samples of 8 bits: it keeps the key of 2 and 4 bits as it stands in the
file, and of RGB with 16 bits only the upper halves.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, PngImagePlugin

from edgeprism.picture.png import PngFacts
from edgeprism.picture.render import ORIENTATION, orientation_of


def apply_key(image: Image.Image, facts: PngFacts) -> Image.Image | None:
    """Make the transparent colour of a PNG hold for `image`, its current frame, in place.

    Returns:
        The alpha of the image, turned as the image is, where Pillow cannot hold it; else None.
    """
    image.load()
    if facts.key is None or (facts.bits == 16 and len(facts.key) == 1):
        return None
    if facts.bits < 16:
        key = tuple(sample * 255 // ((1 << facts.bits) - 1) for sample in facts.key)
        image.info["transparency"] = key[0] if len(key) == 1 else key
        return None
    image.info.pop("transparency", None)
    if image.tell() > 0 or image.mode != "RGB":
        return None  # frames that are laid over others are no longer those of the file
    return _alpha_of_16_bits(image, facts.data, facts.key)


def _alpha_of_16_bits(image: Image.Image, data: bytes, key: tuple[int, ...]) -> Image.Image | None:
    is_key = np.ones((image.height, image.width), bool)
    for channel, sample in enumerate(key):
        is_key &= np.asarray(image.getchannel(channel)) == sample >> 8
    if not is_key.any():  # then the lower halves, for which the file is decoded again, decide none
        return None
    with PngImagePlugin.PngImageFile(io.BytesIO(data)) as lower:
        # read as little-endian, the lower halves of the samples take the place of the upper ones
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
        for channel, sample in enumerate(key):
            is_key &= np.asarray(lower.getchannel(channel)) == sample & 255
    alpha = Image.fromarray(np.where(is_key, np.uint8(0), np.uint8(255)))
    alpha.getexif()[ORIENTATION] = orientation_of(image)
    return alpha

"""A decoded image of any mode → upright 8-bit sRGB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from edgeprism.picture.alpha import over_ground
from edgeprism.picture.colour import image_to_srgb
from edgeprism.picture.embedded import exif_profile

ORIENTATION = 0x0112


@dataclass(frozen=True)
class Rendered:
    """An upright image in mode RGB, and notes on its colours and transparency."""

    rgb: Image.Image
    notes: tuple[str, ...]


def image_to_srgb_pixels(
    image: Image.Image,
    profile: bytes | None,
    *,
    deep: bool = False,
    alpha: Image.Image | None = None,
    is_narrow: bool = False,
) -> Rendered:
    """Turn an image upright and convert it to sRGB.

    Args:
        image: Of any of Pillow's modes.
        profile: The ICC profile of its colours; None: what its EXIF data says, else sRGB.
        deep: Whether the numbers of a grey image of more than 8 bits are for 0…65535.
        alpha: The alpha of an image whose mode has no place for it, turned as the image is.
        is_narrow: Whether 16 is black and 235 is white, as in video.

    Returns:
        The image in mode RGB; it may be `image` itself.

    Raises:
        ValueError: Numbers of more than 8 bits that have no agreed brightness.
    """
    image.load()
    if profile is None:
        profile = _profile_of_exif(image)
    orientation = orientation_of(image)
    upright = ImageOps.exif_transpose(image) if orientation > 1 else image
    plain = _to_8_bits(upright, deep)
    if is_narrow:
        plain = _widened(plain)
    srgb, about_colours = image_to_srgb(plain, profile)
    if alpha is not None:
        srgb = srgb.copy() if srgb is image else srgb
        srgb.putalpha(ImageOps.exif_transpose(alpha))
    about_ground = ""
    if srgb.mode == "RGBA":
        srgb, about_ground = over_ground(srgb)
    return Rendered(srgb, tuple(note for note in (about_colours, about_ground) if note))


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 if it is missing or damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises anything on damaged EXIF data, which is no part of the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _profile_of_exif(image: Image.Image) -> bytes | None:
    if image.format == "TIFF":
        return None  # its tags were read with its layout
    try:
        return exif_profile(image.getexif())
    except Exception:  # as for the orientation
        return None


def _widened(image: Image.Image) -> Image.Image:
    """Return RGB or RGBA whose colours reach from 0 to 255; alpha always does."""
    colours = image.convert("RGBA" if image.has_transparency_data else "RGB")
    curve = [min(max(round((level - 16) * 255 / 219), 0), 255) for level in range(256)]
    alpha = list(range(256)) if colours.mode == "RGBA" else []
    return colours.point(curve * 3 + alpha)


def _to_8_bits(image: Image.Image, deep: bool) -> Image.Image:
    if image.mode in ("La", "RGBa"):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    # imported here, because few pictures have more than 8 bits
    from edgeprism.picture.brightness import NoBrightness, numbers_to_brightness

    numbers = np.asarray(image)
    highest = 65535.0 if deep or image.mode.startswith("I;16") else None
    try:
        grey = Image.fromarray(numbers_to_brightness(numbers, highest))
    except NoBrightness:
        raise ValueError("grey values outside 0…65535 have no agreed brightness") from None
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(numbers == key, 0, 255).astype(np.uint8)))
    return grey

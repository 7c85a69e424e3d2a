"""An image in the colours of its file → sRGB, by an ICC profile.

Colours that a file describes in numbers, not by a profile, become a profile first
(`colour_tags.py`), so there is one way to convert them.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL import ImageCms

# A profile whose colours are within this distance of sRGB (of 255) is sRGB as others write it.
_SAME = 2
_STEPS = 9  # colours tried on each axis to find that out
_LAB = b"CIE Lab, D50"  # stands for a profile that LittleCMS makes
_BROKEN = "its colour profile is damaged: colours are read as sRGB"
_UNFIT = "its colour profile is for other pixels: colours are read as sRGB"

# The colour space in a profile's header → the modes of the images that it can describe
_MODES = {
    "RGB": ("RGB", "RGBA", "P", "PA", "1", "L", "LA"),
    "GRAY": ("1", "L", "LA"),
    "CMYK": ("CMYK",),
    "Lab": ("LAB",),
}


def image_to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """Convert an 8-bit image to sRGB: mode RGB, or RGBA if it has transparency.

    Args:
        image: Of any 8-bit mode; premultiplied alpha must be divided out.
        profile: The ICC profile of its colours; None: sRGB, and naive CMYK or CIE Lab (D50).

    Returns:
        The converted image (`image` itself if nothing changes), and a note where the profile is
        damaged or does not fit the image's mode, else "".
    """
    if profile is None:
        return _unmanaged(image), ""
    from PIL import ImageCms

    try:
        space = _space(profile)
        if image.mode not in _MODES.get(space, ()):
            return _unmanaged(image), _UNFIT
        return _managed(image, profile, space), ""
    except (OSError, ValueError, ImageCms.PyCMSError):
        return _unmanaged(image), _BROKEN


def _managed(image: Image.Image, profile: bytes, space: str) -> Image.Image:
    if space == "RGB":
        image = _unmanaged(image)
        # the alpha channel passes through
        return _applied(image, profile, image.mode, image.mode)
    if space == "GRAY":
        alpha = _unmanaged(image).getchannel("A") if image.has_transparency_data else None
        rgb = image.convert("L").point(_grey_curve(profile)).convert("RGB")
        if alpha is not None:
            rgb.putalpha(alpha)
        return rgb
    return _applied(image, profile, image.mode, "RGB")


def _applied(image: Image.Image, profile: bytes, mode: str, output: str) -> Image.Image:
    from PIL import ImageCms

    transform = _transform(profile, mode, output)
    if transform is None:
        return image if image.mode == output else image.convert(output)
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise ValueError("no converted image")
    return converted


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str, output: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB, or None if the profile is that of sRGB."""
    from PIL import ImageCms

    lab = profile == _LAB
    source = ImageCms.createProfile("LAB") if lab else ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, output)
    if mode not in ("RGB", "RGBA"):
        return transform
    tried = _colours(mode)
    before = np.asarray(tried.convert(output), np.int16)
    converted = ImageCms.applyTransform(tried, transform)
    after = np.asarray(converted, np.int16)
    return None if np.abs(before - after).max() <= _SAME else transform


def _colours(mode: str) -> Image.Image:
    """An image of colours that are spread evenly over all that `mode` can show."""
    axis = np.linspace(0, 255, _STEPS).astype(np.uint8)
    lattice = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(1, -1, 3)
    return Image.fromarray(lattice).convert(mode)


@functools.lru_cache(maxsize=8)
def _grey_curve(profile: bytes) -> list[int]:
    """Return what each of 256 levels of grey is in sRGB, exactly: LittleCMS would interpolate."""
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), "L", "RGB", flags=ImageCms.Flags.NOOPTIMIZE
    )
    levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    curve = np.asarray(ImageCms.applyTransform(levels, transform))[0, :, 1].astype(np.int16)
    same = np.abs(curve - np.arange(256)).max() <= _SAME
    return list(range(256)) if same else curve.tolist()


@functools.lru_cache(maxsize=32)
def _space(profile: bytes) -> str:
    from PIL import ImageCms

    return str(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space).strip()


def _unmanaged(image: Image.Image) -> Image.Image:
    """Convert to RGB or RGBA without a profile."""
    if image.mode == "LAB":
        return _applied(image, _LAB, "LAB", "RGB")
    if image.has_transparency_data:
        return image if image.mode == "RGBA" else image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")

"""Samples of a TIFF page → an 8-bit image."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from edgeprism.picture import tiff_tags as tags
from edgeprism.picture.brightness import NoBrightness, numbers_to_brightness
from edgeprism.picture.limits import UnreadLayout
from edgeprism.picture.tiff_layout import Layout
from edgeprism.picture.tiff_tags import Page

# ---- bytes → numbers


def bytes_to_numbers(raw: np.ndarray, layout: Layout, in_pixel: int, order: str) -> np.ndarray:
    """Return the numbers [rows, blocks across, block width · in_pixel] of rows of bytes.

    Args:
        raw: The bytes [rows, blocks across, bytes of a block's row].
        layout: Of the page.
        in_pixel: Samples that stand together for a pixel.
        order: The file's byte order, "<" or ">".
    """
    bits = layout.bits
    if layout.fill_order == 2 and layout.compression == 1:  # else libtiff does it
        raw = _reversed_bits()[raw]
    n = layout.block[0] * in_pixel
    if bits not in (8, 16, 32, 64):
        return _unpacked(raw, bits, n)
    if layout.predictor == 3:
        raw, order = _floats_joined(raw, bits // 8, in_pixel), ">"
    kind = {1: "u", 2: "i", 3: "f"}[layout.format]
    numbers = raw.view(f"{order}u{bits // 8}").astype(f"=u{bits // 8}", copy=False)
    if layout.predictor == 2:
        pixels = numbers.reshape(*numbers.shape[:2], layout.block[0], in_pixel)
        numbers = np.cumsum(pixels, axis=2, dtype=numbers.dtype).reshape(numbers.shape)
    return numbers.view(f"=f{bits // 8}" if kind == "f" else f"={kind}{bits // 8}")


def _unpacked(raw: np.ndarray, bits: int, n: int) -> np.ndarray:
    """Return `n` numbers of `bits` bits from each row; the highest bit stands first."""
    out = np.empty((*raw.shape[:2], n), np.uint8 if bits <= 8 else np.uint16)
    weights = (1 << np.arange(bits)[::-1]).astype(out.dtype)
    rows = max(1, 4_000_000 // max(1, raw.shape[1] * n * bits))
    for start in range(0, raw.shape[0], rows):  # single bits take much memory
        single = np.unpackbits(raw[start : start + rows], axis=-1)[..., : n * bits]
        single = single.reshape(*single.shape[:2], n, bits)
        out[start : start + rows] = (single * weights).sum(axis=-1, dtype=out.dtype)
    return out


def _floats_joined(raw: np.ndarray, size: int, in_pixel: int) -> np.ndarray:
    """Undo the predictor of floats: differences of bytes, first bytes first (Adobe note 3)."""
    shape = raw.shape
    steps = raw.reshape(*shape[:2], -1, in_pixel)
    summed = np.cumsum(steps, axis=2, dtype=np.uint8).reshape(*shape[:2], size, -1)
    return np.ascontiguousarray(summed.swapaxes(2, 3)).reshape(shape)


@functools.cache
def _reversed_bits() -> np.ndarray:
    table = np.arange(256, dtype=np.uint8)
    return np.packbits(np.unpackbits(table[:, None], axis=1)[:, ::-1], axis=1)[:, 0]


# ---- numbers → brightness


def samples_to_image(
    page: Page, layout: Layout, samples: np.ndarray
) -> tuple[Image.Image, Image.Image | None]:
    """Return samples [height, width, samples] as an image (L, RGB, CMYK or LAB), and its alpha.

    Raises UnreadLayout for numbers that have no agreed brightness.
    """
    n_colours = layout.samples - len(layout.extra)
    try:
        channels = numbers_to_brightness(samples[..., n_colours:], _full(layout))
        alpha = _alpha(layout, channels)
        if layout.photometric == 3:
            return _palette_image(page, samples), _to_image(alpha)
        if layout.photometric in (8, 9):
            return _lab_image(layout, samples), _to_image(alpha)
        colours = numbers_to_brightness(samples[..., :n_colours], _full(layout))
    except NoBrightness:
        raise UnreadLayout("values outside 0…65535, which have no agreed brightness") from None
    if layout.photometric == 0:
        colours = 255 - colours
    if layout.photometric == 6:
        colours = _ycbcr_to_rgb(page, colours)
    if alpha is not None and layout.extra[0] == 1:
        colours = _undone(colours, alpha)
    if layout.photometric == 5:
        image = Image.frombytes("CMYK", colours.shape[1::-1], colours.tobytes())
    else:
        image = _image(colours)
    return image, _to_image(alpha)


def _alpha(layout: Layout, extra: np.ndarray) -> np.ndarray | None:
    """Return the alpha [height, width] among the extra samples; None without one."""
    if not layout.extra or layout.extra[0] not in (1, 2, 999):
        return None
    alpha = extra[..., 0]
    # an unnamed sample is alpha only in what could be RGBA
    if layout.extra[0] == 999 and not (layout.photometric == 2 and alpha.any()):
        return None
    return alpha


def _to_image(alpha: np.ndarray | None) -> Image.Image | None:
    return None if alpha is None else Image.fromarray(np.ascontiguousarray(alpha))


def _full(layout: Layout) -> float | None:
    """Return the number that is full brightness; None for kinds of number that do not say it."""
    if layout.format == 1 and layout.bits <= 16:
        return float((1 << layout.bits) - 1)
    return None


def _image(channels: np.ndarray) -> Image.Image:
    channels = np.ascontiguousarray(channels)
    return Image.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels)


def _undone(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Divide premultiplied colours by their alpha."""
    scale = 255 / np.maximum(alpha, 1).astype(np.float32)
    divided = np.minimum(np.rint(colours * scale[..., None]), 255)
    return np.asarray(divided.astype(np.uint8))


def _palette_image(page: Page, samples: np.ndarray) -> Image.Image:
    """Look colours up in the page's palette, whose numbers have 16 bits."""
    palette = np.array(page.integers(tags.COLOR_MAP), np.uint16)
    # some programs write 8-bit numbers, as libtiff too takes for granted
    table = (palette >> 8 if palette.max() > 255 else palette).astype(np.uint8)
    return _image(table.reshape(3, -1).T[samples[..., 0]])


def _lab_image(layout: Layout, samples: np.ndarray) -> Image.Image:
    """Return CIE Lab at 8 bits; a and b are signed in Pillow and in CIELab, not in ICCLab."""
    high = samples[..., :3]
    high = (high >> 8 if layout.bits == 16 else high).astype(np.uint8)
    if layout.photometric == 9:
        high = high ^ np.array([0, 128, 128], np.uint8)
    data = np.ascontiguousarray(high).tobytes()
    return Image.frombytes("LAB", high.shape[1::-1], data, "raw", "LAB", 0, 1)


def _ycbcr_to_rgb(page: Page, colours: np.ndarray) -> np.ndarray:
    """Convert YCbCr, by the page's own coefficients and reference values."""
    coefficients = page.values(tags.YCBCR_COEFFICIENTS)
    red, green, blue = coefficients if len(coefficients) == 3 else (0.299, 0.587, 0.114)
    reference = page.values(tags.REFERENCE)
    reference = reference if len(reference) == 6 else (0, 255, 128, 255, 128, 255)
    low, high = np.array(reference[::2]), np.array(reference[1::2])
    if green <= 0 or (high <= low).any():
        raise UnreadLayout("YCbCr with coefficients that make no colours")
    span = np.array([255, 127, 127]) / (high - low)
    y, cb, cr = np.moveaxis((colours - low) * span, -1, 0)
    r, b = y + cr * (2 - 2 * red), y + cb * (2 - 2 * blue)
    g = (y - red * r - blue * b) / green
    rgb = np.stack([r, g, b], axis=-1)
    return np.asarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))

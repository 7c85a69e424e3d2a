"""PNG files: the colour that is transparent, at all depths, and the narrow range of video."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from edgeprism.picture.read import read_picture
from tests.helpers.colours import (
    DISPLAY_P3,
    chart,
    from_srgb_curve,
    png_chunk,
    png_file,
    shown_as_srgb,
)

WHITE = [255, 255, 255]


def packed_png(samples: np.ndarray, bits: int, *chunks: bytes) -> bytes:
    """Return a PNG of samples [H, W, 1 or 3] of any depth."""
    height, width, n = samples.shape
    single = (samples[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(single.reshape(height, -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 3: 2}[n], 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = (png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", pixels))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + png_chunk(b"IEND", b"")


KEYS = [
    (bits, key)
    for bits in (1, 2, 4, 8, 16)
    for key in [(k,) for k in sorted({0, 1, (1 << bits) // 2, (1 << bits) - 1})]
] + [
    (8, (1, 2, 3)),
    (8, (200, 0, 255)),
    (16, (0, 0, 1)),
    (16, (0x1234, 0x5678, 0x9ABC)),
    (16, (0xFFFF, 0xFF00, 0x00FF)),
]


@pytest.mark.parametrize(("bits", "key"), KEYS)
@pytest.mark.parametrize("spare", [0, 1])
def test_the_transparent_colour_and_no_other(bits: int, key: tuple[int, ...], spare: int) -> None:
    """The left third is of that colour, the middle differs in its last bit, the right in all."""
    top = (1 << bits) - 1
    samples = np.empty((12, 24, len(key)), int)
    samples[:, :8] = key
    samples[:, 8:16] = [*key[:-1], key[-1] ^ 1]
    samples[:, 16:] = [top - sample for sample in key]
    # bits above the depth are to be passed over
    stored = [sample | (spare << bits if bits < 16 else 0) for sample in key]
    chunk = png_chunk(b"tRNS", struct.pack(f">{len(key)}H", *stored))
    opaque = np.asarray(read_picture(packed_png(samples, bits)).rgb).astype(int)
    picture = read_picture(packed_png(samples, bits, chunk))
    shown = np.asarray(picture.rgb).astype(int)
    grounds = {(): 255, ("transparent: laid over black",): 0, ("transparent: laid over grey",): 128}
    assert (shown[:, :8] == grounds[picture.notes]).all()
    np.testing.assert_array_equal(shown[:, 8:], opaque[:, 8:])


def test_a_transparent_colour_that_no_pixel_has_costs_no_second_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decodings: list[object] = []
    setup = PngImagePlugin.PngImageFile.load_prepare

    def counted(image: PngImagePlugin.PngImageFile) -> None:
        decodings.append(image)
        setup(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", counted)
    samples = np.random.default_rng(3).integers(0x2000, 0xFFFF, (12, 24, 3))
    key = png_chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    picture = read_picture(packed_png(samples, 16, key))
    assert np.abs(np.asarray(picture.rgb).astype(int) - samples / 257).max() <= 1
    assert len(decodings) == 1


def test_a_transparent_colour_is_turned_with_its_picture() -> None:
    samples = np.full((10, 20, 3), 0x1234)
    samples[:, :15] = 0x1233
    exif = Image.Exif()
    exif[0x0112] = 6
    chunks = (
        png_chunk(b"eXIf", exif.tobytes()[6:]),
        png_chunk(b"tRNS", struct.pack(">3H", *[0x1234] * 3)),
    )
    shown = np.asarray(read_picture(packed_png(samples, 16, *chunks)).rgb)
    assert shown.shape == (20, 10, 3)
    assert (shown[15:] == WHITE).all()
    assert (shown[:15] == 0x12).all()


# ---- narrow range


def narrow(pixels: np.ndarray) -> np.ndarray:
    return np.rint(16 + pixels * (219 / 255)).astype(np.uint8)


def narrow_chunk(primaries: int = 1) -> bytes:
    return png_chunk(b"cICP", bytes([primaries, 13, 0, 0]))


def assert_shows(data: bytes, target: Any, most: float = 1) -> None:
    shown = np.asarray(read_picture(data).rgb).astype(float)
    assert np.abs(shown - target).max() <= most


def test_colours_of_a_narrow_range() -> None:
    pixels = chart()
    assert_shows(png_file(narrow(pixels), narrow_chunk()), pixels)
    stored = np.rint((narrow(pixels).astype(float) - 16) * (255 / 219))  # in 220 levels
    target = shown_as_srgb(stored, DISPLAY_P3, from_srgb_curve)
    assert_shows(png_file(narrow(pixels), narrow_chunk(12)), target, most=3)
    deep = np.rint(4096 + pixels.astype(float) * (219 * 256 / 255)).astype(np.uint16)
    assert_shows(png_file(deep, narrow_chunk()), pixels, most=2)
    assert_shows(png_file(deep[..., :1], narrow_chunk()), pixels[..., :1], most=2)


def test_what_lies_outside_a_narrow_range_is_cut() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[4:] = 250
    assert_shows(png_file(pixels, narrow_chunk()), np.repeat([[[0]], [[255]]], 4, axis=0), most=0)


def test_a_narrow_range_leaves_alpha_and_fewer_bits_alone() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., :3] = narrow(np.full((8, 8, 3), 100))
    pixels[..., 3] = 240
    target = np.full((8, 8, 3), (100 * 240 + 255 * 15) / 255)
    assert_shows(png_file(pixels, narrow_chunk()), target)
    samples = np.arange(4).repeat(4).reshape(1, 16, 1)
    assert_shows(packed_png(samples, 2, narrow_chunk()), samples * 85, most=0)

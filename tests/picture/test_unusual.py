"""Floats, and layouts of bitmaps that are refused by name."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from edgeprism.errors import ImageError
from edgeprism.picture.read import read_picture


def float_map(numbers: np.ndarray, order: str = "<") -> bytes:
    """Return a grey PFM file, whose rows stand from the bottom up."""
    scale = -1.0 if order == "<" else 1.0
    head = b"Pf\n%d %d\n%.1f\n" % (numbers.shape[1], numbers.shape[0], scale)
    return head + numbers[::-1].astype(f"{order}f4").tobytes()


RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("most", [0.25, 1.0, 3.7, 255.0, 65535.0, 1e30])
def test_floats_of_a_pfm(order: str, most: float) -> None:
    """They were read as 0…65535, so that a picture was black without a word."""
    picture = read_picture(float_map(RAMP * most, order))
    target = RAMP * 255 * min(most, 1)
    assert np.abs(np.asarray(picture.rgb)[..., 0] - target).max() <= 0.51
    assert picture.notes == (
        (f"brightness up to {most:.4g} in the file: that is shown as white",) if most > 1 else ()
    )


@pytest.mark.parametrize("wrong", [-0.5, np.nan, np.inf])
def test_floats_without_a_brightness(wrong: float) -> None:
    numbers = RAMP.copy()
    numbers[3, 4] = wrong
    with pytest.raises(ImageError, match=r"PFM with negative, infinite or missing .* is not read"):
        read_picture(float_map(numbers))


def test_floats_in_colour_are_refused_by_name() -> None:
    with pytest.raises(ImageError, match="PFM in colour is not read"):
        read_picture(b"PF\n4 4\n-1.0\n" + bytes(4 * 4 * 12))


def bitmap(bits: int, compression: int, *masks: int, header: int = 40) -> bytes:
    head = struct.pack("<IiiHHIIiiII", header, 4, 4, 1, bits, compression, *[0] * 5)
    head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0")
    start = 14 + len(head)
    rows = bytes(range(4 * 4 * bits // 8))
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + rows


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bitmap(32, 3, 0x3FF00000, 0xFFC00, 0x3FF), "this layout of bit masks"),
        (bitmap(16, 3, 0xF00, 0xF0, 0xF, 0xF000, header=108), "this layout of bit masks"),
        (bitmap(24, 4), r"this compression \(4\)"),
        (bitmap(64, 0, header=124), r"this pixel depth \(64\)"),
    ],
)
def test_bitmaps_that_are_not_read(data: bytes, reason: str) -> None:
    """They are sound, so nobody is told to copy them again."""
    with pytest.raises(ImageError, match=f"BMP with {reason} is not read") as raised:
        read_picture(data)
    assert raised.value.hint == "Export it as PNG."

"""Colours computed by hand, and files that carry descriptions of colours."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

Points = Sequence[tuple[float, float]]  # x, y of white, red, green, blue

D65 = (0.3127, 0.3290)
SRGB: Points = (D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
DISPLAY_P3: Points = (D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB: Points = (D65, (0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
BT2020: Points = (D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
SWAPPED: Points = (D65, (0.15, 0.06), (0.30, 0.60), (0.64, 0.33))  # red is blue


def from_srgb_curve(x: np.ndarray) -> np.ndarray:
    """Stored value → linear light (IEC 61966-2-1)."""
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def to_srgb_curve(x: np.ndarray) -> np.ndarray:
    """Linear light → stored value; what is out of range is cut."""
    x = np.clip(x, 0, 1)
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055)


def rgb_to_xyz(points: Points) -> np.ndarray:
    """Return the matrix [3, 3] from linear RGB to XYZ."""
    white, *ends = [np.array([x / y, 1, (1 - x - y) / y]) for x, y in points]
    columns = np.array(ends).T
    return np.asarray(columns * np.linalg.solve(columns, white))


def shown_as_srgb(
    pixels: np.ndarray, points: Points, curve: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return what 8-bit pixels of other colours look like, as 8-bit sRGB (same white)."""
    matrix = np.linalg.inv(rgb_to_xyz(SRGB)) @ rgb_to_xyz(points)
    return np.asarray(to_srgb_curve(curve(pixels / 255) @ matrix.T) * 255)


def chart() -> np.ndarray:
    """A picture [64, 96, 3] of colours all over the cube."""
    y, x = np.mgrid[0:64, 0:96]
    return np.stack([x * 255 // 95, y * 255 // 63, (x * 5 + y * 3) % 256], axis=-1).astype(np.uint8)


def icc_profile(points: Points, gamma: float) -> bytes:
    """Return an ICC profile, version 2, of primaries with D65 white and an exponent."""

    def s15(values: np.ndarray | Sequence[float]) -> bytes:
        return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)

    # ICC's white is D50: the matrix from D65 to D50 by Bradford's method, as published
    to_d50 = np.array([[1.0478112, 0.0228866, -0.0501270], [0.0295424, 0.9904844, -0.0170491],
                       [-0.0092345, 0.0150436, 0.7521316]])  # fmt: skip
    matrix = to_d50 @ rgb_to_xyz(points)
    curve = struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256))
    tags = [(b"wtpt", b"XYZ \0\0\0\0" + s15((0.9642, 1, 0.8249)))]
    for i, name in enumerate((b"r", b"g", b"b")):
        tags.append((name + b"XYZ", b"XYZ \0\0\0\0" + s15(matrix[:, i])))
        tags.append((name + b"TRC", curve))
    return assembled(tags, b"RGB ")


def grey_icc_profile(gamma: float) -> bytes:
    """Return an ICC profile for grey of an exponent."""
    curve = struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256))
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    return assembled([(b"wtpt", white), (b"kTRC", curve)], b"GRAY")


def assembled(tags: Sequence[tuple[bytes, bytes]], space: bytes) -> bytes:
    """Return a profile of these tags."""
    table, body, offset = b"", b"", 132 + 12 * len(tags)
    for name, data in tags:
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s", offset + len(body), 0x02400000, b"mntr", space,
                       b"XYZ ", b"acsp")  # fmt: skip
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_file(pixels: np.ndarray, *chunks: bytes, after: Sequence[bytes] = ()) -> bytes:
    """Return a PNG of uint8 or uint16 [H, W] or [H, W, 1, 2, 3 or 4], with chunks before the IDAT.

    `after` stands behind the IDAT.
    """
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    big = pixels.astype(">u2") if pixels.dtype == np.uint16 else pixels
    rows = b"".join(b"\0" + row.tobytes() for row in big)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    bits = pixels.dtype.itemsize * 8
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"".join([
        b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header), *chunks,
        png_chunk(b"IDAT", zlib.compress(rows)), *after, png_chunk(b"IEND", b""),
    ])  # fmt: skip


def chrm(points: Points) -> bytes:
    """Return the chunk cHRM."""
    numbers = [round(value * 100_000) for point in points for value in point]
    return png_chunk(b"cHRM", struct.pack(">8I", *numbers))


def gama(exponent: float) -> bytes:
    """Return the chunk gAMA for an exponent from stored values to light."""
    return png_chunk(b"gAMA", struct.pack(">I", round(100_000 / exponent)))

"""Colours that a file describes in numbers → an ICC profile that says the same.

The numbers are chromaticities (CIE 1931 x, y) of white and the three primaries, and the curve
from stored values to linear light. Sources: ICC.1:2022; ITU-T H.273 for the code points (CICP);
PNG, third edition, for the chunks; Exif 2.32 and DCF 2.0 for Adobe RGB.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Point = tuple[float, float]  # chromaticity x, y

_D65, _D50, _C = (0.3127, 0.3290), (0.34567, 0.35850), (0.310, 0.316)
_CURVE_POINTS = 4096  # the most that every reader of profiles takes
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50_XYZ = (0.9642, 1.0, 0.8249)  # as ICC.1 rounds it


@dataclass(frozen=True)
class Primaries:
    """Chromaticities of white, red, green and blue."""

    white: Point
    red: Point
    green: Point
    blue: Point


SRGB = Primaries(_D65, (0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
ADOBE_RGB = Primaries(_D65, (0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
ADOBE_RGB_GAMMA = 563 / 256

# H.273, table 2: colour primaries
_CODED_PRIMARIES = {
    1: SRGB,
    4: Primaries(_C, (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: Primaries(_D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: Primaries(_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: Primaries(_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    8: Primaries(_C, (0.681, 0.319), (0.243, 0.692), (0.145, 0.049)),
    9: Primaries(_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: Primaries((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: Primaries(_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: Primaries(_D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}


def _srgb_curve(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _video_curve(x: np.ndarray) -> np.ndarray:
    """The inverse of the camera's curve of BT.709, BT.601 and BT.2020."""
    return np.where(x < 0.081, x / 4.5, ((x + 0.099) / 1.099) ** (1 / 0.45))


def _smpte_240_curve(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0.0913, x / 4, ((x + 0.1115) / 1.1115) ** (1 / 0.45))


def _pq_curve(x: np.ndarray) -> np.ndarray:
    """ST 2084. White is the reference white of BT.2408, 203 cd/m²; what is brighter is cut."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = x ** (1 / m2)
    light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    return np.minimum(light * 10_000 / 203, 1)


def _hlg_curve(x: np.ndarray) -> np.ndarray:
    """BT.2100 with its display's gamma of 1.2. White is a signal of 75 % (BT.2408)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073

    def scene(v: np.ndarray) -> np.ndarray:
        return np.where(v <= 0.5, v * v / 3, (np.exp((v - c) / a) + b) / 12)

    light = (scene(x) / scene(np.array(0.75))) ** 1.2
    return np.asarray(np.minimum(light, 1))


# H.273, table 3: transfer characteristics
_CODED_CURVES: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: _video_curve,
    4: lambda x: x**2.2,
    5: lambda x: x**2.8,
    6: _video_curve,
    7: _smpte_240_curve,
    8: lambda x: x,
    13: _srgb_curve,
    14: _video_curve,
    15: _video_curve,
    16: _pq_curve,
    17: lambda x: np.minimum(x**2.6 * 52.37 / 48, 1),
    18: _hlg_curve,
}


@functools.lru_cache(maxsize=16)
def coded_profile(primaries: int, transfer: int) -> bytes | None:
    """Return the profile of CICP code points; None for sRGB, and for reserved code points.

    The curve of BT.709 video (1, 6, 14, 15) with the primaries of sRGB counts as sRGB: writers
    put it on pictures that are shown as sRGB, and browsers show them so.
    """
    points = _CODED_PRIMARIES.get(2 if primaries == 2 else primaries, SRGB)
    known = primaries in _CODED_PRIMARIES or primaries == 2
    curve = _CODED_CURVES.get(transfer, _srgb_curve if transfer == 2 else None)
    if not known or curve is None:
        return None
    if curve is _video_curve:
        curve = _srgb_curve
    if points == SRGB and curve is _srgb_curve:
        return None
    values = curve(np.linspace(0, 1, _CURVE_POINTS))
    return _profile(points, [_table(values)])


@functools.lru_cache(maxsize=32)
def numbers_profile(
    primaries: Primaries | None, gamma: float | None, curves: tuple[bytes, ...] = ()
) -> bytes | None:
    """Return the profile of chromaticities and an exponent.

    Args:
        primaries: None: those of sRGB.
        gamma: The exponent that makes stored values (0…1) linear light; None: the curve of sRGB.
        curves: Tables from stored values to linear light, as big-endian uint16, one for all
            channels or one for each; they replace `gamma`.

    Returns:
        The profile, or None if the numbers describe no colours, or are those of sRGB.
    """
    if primaries is None and gamma is None and not curves:
        return None
    if gamma is not None and not 0.05 < gamma < 20:
        return None
    if curves:
        tags = [struct.pack(">4sII", b"curv", 0, len(curve) // 2) + curve for curve in curves]
    elif gamma is not None:
        tags = [struct.pack(">4sIHHi", b"para", 0, 0, 0, round(gamma * 65536))]
    else:
        tags = [_table(_srgb_curve(np.linspace(0, 1, _CURVE_POINTS)))]
    return _profile(primaries or SRGB, tags)


def adobe_rgb_profile() -> bytes | None:
    """Return the profile of Adobe RGB (1998)."""
    return numbers_profile(ADOBE_RGB, ADOBE_RGB_GAMMA)


def _table(values: np.ndarray) -> bytes:
    numbers = np.rint(values * 65535).astype(">u2")
    return struct.pack(">4sII", b"curv", 0, numbers.size) + bytes(numbers.tobytes())


def _profile(primaries: Primaries, curves: list[bytes]) -> bytes | None:
    """Return a display profile of three primaries; None if they span no colours."""
    matrix = _matrix(primaries)
    if matrix is None:
        return None
    curves = curves * 3 if len(curves) == 1 else curves
    tags = [(b"wtpt", _xyz(_D50_XYZ))]
    tags += [(name, _xyz(matrix[:, i])) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
    tags += list(zip((b"rTRC", b"gTRC", b"bTRC"), curves, strict=True))
    head, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags:
        head += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = offset + len(body)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    header = header.ljust(68, b"\0") + _s15(_D50_XYZ)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + head + body


def _matrix(primaries: Primaries) -> np.ndarray | None:
    """Return linear RGB → XYZ, adapted to D50, [3, 3]; None if the points span no colours."""
    points = (primaries.red, primaries.green, primaries.blue)
    if min(y for _, y in (*points, primaries.white)) <= 0:
        return None
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in points]).T
    x, y = primaries.white
    white = np.array([x / y, 1, (1 - x - y) / y])
    if abs(np.linalg.det(columns)) < 1e-4:
        return None
    scale = np.linalg.solve(columns, white)
    cone = _BRADFORD @ white
    if scale.min() <= 0 or cone.min() <= 0:
        return None  # white lies outside the triangle of the primaries
    gain = np.diag((_BRADFORD @ np.array(_D50_XYZ)) / cone)
    adapted: np.ndarray = np.linalg.inv(_BRADFORD) @ gain @ _BRADFORD @ columns * scale
    return adapted


def _xyz(values: np.ndarray | tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + _s15(values)


def _s15(values: np.ndarray | tuple[float, ...]) -> bytes:
    return struct.pack(">3i", *(round(float(v) * 65536) for v in values))

"""Descriptions of colours in files for which Pillow does not give them.

Sources: ISO/IEC 14496-12 (boxes, colr) for AVIF and HEIF; the ICC's extension of GIF; Windows'
BITMAPV4HEADER and BITMAPV5HEADER; Exif 2.32 and DCF 2.0 for Adobe RGB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from edgeprism.picture.colour_tags import Primaries

_MOST_BLOCKS = 100_000  # of a GIF, or boxes of an AVIF, that are looked at
_EXIF, _INTEROPERABILITY = 0x8769, 0xA005
_COLOR_SPACE, _GAMMA, _WHITE, _PRIMARIES = 0xA001, 0xA500, 0x013E, 0x013F
_UNCALIBRATED, _ADOBE_RGB, _SRGB = 65535, 2, 1


def embedded_profile(format: str | None, data: bytes) -> bytes | None:
    """Return the profile of the colours of a file's first picture; None for sRGB.

    Args:
        format: Pillow's name of the file's format.
        data: The file.
    """
    try:
        if format in ("AVIF", "HEIF"):
            return _coded_in_boxes(data)
        if format == "GIF":
            return _gif_profile(data)
        return _bmp_profile(data) if format == "BMP" else None
    except (struct.error, IndexError):  # a damaged file, which its decoder reports
        return None


def exif_profile(exif: Image.Exif) -> bytes | None:
    """Return the profile that EXIF data names or describes; None for sRGB or nothing."""
    if _EXIF not in exif:
        return None
    details = exif.get_ifd(_EXIF)
    space = details.get(_COLOR_SPACE)
    if space == _SRGB:
        return None
    # imported here, as below, because few files describe their colours so
    from edgeprism.picture.colour_tags import adobe_rgb_profile, numbers_profile

    rule = details.get(_INTEROPERABILITY)
    rule = rule.get(1, "") if isinstance(rule, dict) else exif.get_ifd(_INTEROPERABILITY).get(1, "")
    if space == _ADOBE_RGB or str(rule).startswith("R03"):
        return adobe_rgb_profile()
    if space != _UNCALIBRATED:
        return None
    primaries = _exif_primaries(exif)
    gamma = details.get(_GAMMA)
    return numbers_profile(primaries, float(gamma) if gamma else None) if primaries else None


def _exif_primaries(exif: Image.Exif) -> Primaries | None:
    white, points = exif.get(_WHITE, ()), exif.get(_PRIMARIES, ())
    try:
        numbers = [float(value) for value in (*white, *points)]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return _primaries(numbers) if len(numbers) == 8 else None


def _primaries(numbers: list[float]) -> Primaries:
    """Return eight numbers, x and y of white, red, green and blue, as primaries."""
    from edgeprism.picture.colour_tags import Primaries

    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    return Primaries(*points)


def _boxes(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, stop) of the bodies of boxes."""
    for _ in range(_MOST_BLOCKS):
        if start + 8 > stop:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        end = stop if size == 0 else start + size
        if end < body or end > stop:
            return
        yield kind, body, end
        start = end


def _coded_in_boxes(data: bytes) -> bytes | None:
    """Return the profile of the code points in a file's `colr` box of type nclx."""
    start, stop = 0, len(data)
    for name, skip in ((b"meta", 4), (b"iprp", 0), (b"ipco", 0)):
        found = next((b for b in _boxes(data, start, stop) if b[0] == name), None)
        if found is None:
            return None
        start, stop = found[1] + skip, found[2]
    for kind, body, end in _boxes(data, start, stop):
        if kind == b"colr" and data[body : body + 4] == b"nclx" and end - body >= 11:
            from edgeprism.picture.colour_tags import coded_profile

            primaries, transfer = struct.unpack_from(">HH", data, body + 4)
            return coded_profile(primaries, transfer)
    return None


def _gif_profile(data: bytes) -> bytes | None:
    """Return the profile in a GIF's application extension ICCRGBG1012."""
    flags = data[10]
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(_MOST_BLOCKS):
        if data[position] != 0x21:
            return None  # a picture or the end; the extension stands before the first picture
        is_profile = data[position + 1 : position + 14] == b"\xff\x0bICCRGBG1012"
        position += 14 if is_profile else 2
        parts = []
        while length := data[position]:
            if is_profile:
                parts.append(data[position + 1 : position + 1 + length])
            position += 1 + length
        position += 1
        if is_profile:
            return b"".join(parts) or None
    return None


def _bmp_profile(data: bytes) -> bytes | None:
    """Return the profile of a bitmap's header: embedded, or in numbers."""
    (size,) = struct.unpack_from("<I", data, 14)
    if size < 108:
        return None
    kind = data[14 + 56 : 14 + 60]
    if kind == b"DEBM" and size >= 124:  # PROFILE_EMBEDDED, "MBED" as a number
        offset, length = struct.unpack_from("<II", data, 14 + 112)
        return data[14 + offset : 14 + offset + length] or None
    if kind != b"\0\0\0\0":  # sRGB, the system's own, or a file elsewhere
        return None
    from edgeprism.picture.colour_tags import numbers_profile

    # CIE XYZ of red, green and blue in 2.30 fixed point, then three gammas in 16.16
    ends = [value / (1 << 30) for value in struct.unpack_from("<9I", data, 14 + 60)]
    gammas = [value / 65536 for value in struct.unpack_from("<3I", data, 14 + 96)]
    columns = [ends[i : i + 3] for i in (0, 3, 6)]
    if any(sum(column) <= 0 for column in columns) or min(gammas) <= 0:
        return None
    columns.insert(0, [sum(values) for values in zip(*columns, strict=True)])
    numbers = [value / sum(column) for column in columns for value in column[:2]]
    return numbers_profile(_primaries(numbers), sum(gammas) / 3)

"""The parts of a PNG file that Pillow does not give, or on which it gives up.

Pillow refuses a file whose text or profile expands to more than a mebibyte, and it does not know
the chunk cICP. Source: PNG, third edition (W3C, 2025).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from edgeprism.picture.signatures import PNG

_NUMBERS = {b"gAMA", b"cHRM"}
_USED = (b"IHDR", b"PLTE", b"tRNS", b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_MOST_TEXT = 1 << 20  # bytes of one text; Pillow's own limit
_MOST_TEXTS = 8 << 20  # bytes of all texts of a file
_MOST_PROFILE = 16 << 20


@dataclass(frozen=True)
class PngFacts:
    """What a PNG file says about its pixels besides what Pillow reads."""

    data: bytes  # the file, without chunks on which Pillow gives up
    bits: int  # per sample
    profile: bytes | None  # an ICC profile of its colours, made from numbers if need be
    key: tuple[int, ...] | None  # samples of the colour that is transparent, without a palette
    is_narrow: bool  # 16…235 of 8 bits are the full range, as in video
    fault: str  # for which it is refused, where Pillow would not say it; else ""


@dataclass(frozen=True)
class Chunk:
    """One chunk of a file."""

    kind: bytes
    start: int  # of its length field
    stop: int  # after its checksum
    body: memoryview


def png_facts(data: bytes) -> PngFacts:
    """Read the chunks of a PNG file. Never raises: what is damaged is left for Pillow to report."""
    found: dict[bytes, bytes] = {}
    dropped: list[Chunk] = []
    text_left = _MOST_TEXTS
    n_headers = 0
    before_pixels = True
    for chunk in chunks(data):
        before_pixels &= chunk.kind != b"IDAT"
        n_headers += chunk.kind == b"IHDR"
        if chunk.kind in _TEXT_CHUNKS:
            size = _expanded_text(chunk)
            if size > _MOST_TEXT or size > text_left:
                dropped.append(chunk)
            else:
                text_left -= size
        elif chunk.kind == b"iCCP" and _expanded_profile(bytes(chunk.body), _MOST_TEXT) is None:
            dropped.append(chunk)
        if before_pixels and chunk.kind in _USED:
            found.setdefault(chunk.kind, bytes(chunk.body))
    header = found.get(b"IHDR", b"")
    bits, kind = (header[8], header[9]) if len(header) == 13 else (8, 2)
    fault = ""
    if n_headers > 1:  # Pillow would take the last one
        fault = f"it has {'two' if n_headers == 2 else n_headers} headers (chunks IHDR)"
    elif kind == 3 and b"PLTE" not in found:
        fault = "its palette (chunk PLTE) is missing"
    coded = found.get(b"cICP", b"")
    # a palette's colours have 8 bits; fewer bits leave no room for a narrow range
    is_narrow = len(coded) == 4 and coded[2:] == b"\0\0" and (bits >= 8 or kind == 3)
    key = _key(found.get(b"tRNS", b""), kind, bits)
    return PngFacts(_without(data, dropped), bits, _profile(found), key, is_narrow, fault)


def chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a file up to its end, or to the first that is cut off."""
    view, position = memoryview(data), len(PNG)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        stop = position + 12 + length
        if stop > len(data) or kind == b"IEND":
            return
        yield Chunk(kind, position, stop, view[position + 8 : stop - 4])
        position = stop


def _key(body: bytes, kind: int, bits: int) -> tuple[int, ...] | None:
    n_samples = {0: 1, 2: 3}.get(kind, 0)
    if not n_samples or len(body) < 2 * n_samples:
        return None  # a palette's alpha, or damage, of which Pillow tells
    samples = struct.unpack_from(f">{n_samples}H", body)
    return tuple(sample & (1 << bits) - 1 for sample in samples)


def _expanded_text(chunk: Chunk) -> int:
    """Return the bytes of a text; more than the limit where it is compressed and goes on."""
    body = bytes(chunk.body)
    packed = b""
    if chunk.kind == b"zTXt":
        packed = body.partition(b"\0")[2][1:]
    elif chunk.kind == b"iTXt":
        rest = body.partition(b"\0")[2]
        if rest[:1] == b"\1":
            packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    return max(len(body), len(_expanded(packed, _MOST_TEXT + 1) or b""))


def _expanded(packed: bytes, limit: int) -> bytes | None:
    """Decompress at most `limit` bytes; None for damaged data."""
    try:
        return zlib.decompressobj().decompress(packed, limit)
    except zlib.error:
        return None


def _expanded_profile(body: bytes, limit: int) -> bytes | None:
    """Return the profile of an iCCP chunk; None if it is damaged or larger than `limit`."""
    name, _, rest = body.partition(b"\0")
    profile = _expanded(rest[1:], limit + 1) if rest[:1] == b"\0" and name else None
    return None if profile is None or len(profile) > limit else profile


def _without(data: bytes, dropped: list[Chunk]) -> bytes:
    if not dropped:
        return data
    parts, position = [], 0
    for chunk in dropped:
        parts.append(data[position : chunk.start])
        position = chunk.stop
    return b"".join([*parts, data[position:]])


def _profile(chunks: dict[bytes, bytes]) -> bytes | None:
    """Return the profile of the chunk that takes precedence, in the order of the standard.

    A damaged profile is returned as bytes that are none, so that a note tells of it.
    """
    coded, icc = chunks.get(b"cICP", b""), chunks.get(b"iCCP")
    if coded == b"" and icc is None and (b"sRGB" in chunks or not chunks.keys() & _NUMBERS):
        return None
    # imported here, because most files describe no colours
    from edgeprism.picture.colour_tags import Primaries, coded_profile, numbers_profile

    if len(coded) == 4 and coded[2] == 0:
        return coded_profile(coded[0], coded[1])
    if icc is not None:
        return _expanded_profile(icc, _MOST_PROFILE) or b"damaged"
    if b"sRGB" in chunks:
        return None
    gamma, points = chunks.get(b"gAMA", b""), chunks.get(b"cHRM", b"")
    primaries = None
    if len(points) == 32:
        wx, wy, *rest = (value / 100_000 for value in struct.unpack(">8I", points))
        primaries = Primaries((wx, wy), (rest[0], rest[1]), (rest[2], rest[3]), (rest[4], rest[5]))
    stored = struct.unpack(">I", gamma)[0] / 100_000 if len(gamma) == 4 else 0
    return numbers_profile(primaries, 1 / stored if stored else None)

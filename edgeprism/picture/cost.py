"""What decoding a file may cost at most, judged by its header.

A usual picture takes a fraction of a second; its header shows that, and it is decoded at once. A
file whose header does not bound the time and the memory (thousands of scans or frames, very many
pixels, formats that Pillow decodes in Python) is decoded in a process of its own, which is ended
when it takes too long or too much.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from edgeprism.picture import signatures
from edgeprism.picture.png import chunks as png_chunks

# Work that takes about two seconds, or less than a gigabyte
_JPEG_PIXELS = 250_000_000  # in all scans
_PNG_BYTES = 300_000_000  # unpacked, in all frames
_PNG_CHUNKS = 20_000
_RAW_PIXELS = 100_000_000  # of formats that are hardly compressed
_SLOW_PIXELS = 1_000_000  # where Pillow decodes in Python
_WEBP_PIXELS = _AV1_PIXELS = _TIFF_PIXELS = 40_000_000
_ANIMATED_PIXELS = 4_000_000  # of one frame; several may be looked at
_GIF_BYTES = 16_000_000
_GIF_PIECES = 200_000
_SEGMENTS = 2000  # of a JPEG before its first scan
_FILE_BYTES = 200_000_000

_FIXED_S, _S_PER_PIXEL, MOST_S = 10.0, 0.25e-6, 60.0


@dataclass(frozen=True)
class Cost:
    """What a file's header says about the cost of decoding it."""

    is_bounded: bool  # to about two seconds and a gigabyte
    pixels: int  # 0: unknown

    @property
    def time_limit_s(self) -> float:
        """Seconds after which decoding it may be ended: a minute at most."""
        return min(_FIXED_S + self.pixels * _S_PER_PIXEL, MOST_S) if self.pixels else MOST_S


def decoding_cost(data: bytes) -> Cost:
    """Judge a file by its header. Never raises: its decoder reports damage."""
    try:
        pixels, is_bounded = _judged(data)
    except (struct.error, IndexError):
        return Cost(True, 0)  # the file ends within its header, where its decoder gives up too
    except ValueError:
        return Cost(False, 0)  # Pillow skips more of what is wrong than this module
    return Cost(is_bounded and len(data) <= _FILE_BYTES, pixels)


def _judged(data: bytes) -> tuple[int, bool]:
    """Return (pixels, whether the cost is bounded)."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(signatures.PNG):
        return _png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data[:2] == b"BM":
        return _bmp(data)
    if data[:4] in signatures.TIFF:
        return _tiff(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[4:8] == b"ftyp":
        return _boxed(data)
    if data[:1] == b"P":
        return _pnm(data)
    return 0, True  # no format that is read


def _jpeg(data: bytes) -> tuple[int, bool]:
    position = 2
    for _ in range(_SEGMENTS):
        if data[position] != 0xFF:
            raise ValueError("no marker")
        marker = data[position + 1]
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD7:
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            slow = 4 if marker >= 0xC9 else 1  # arithmetic coding
            scans = data.count(b"\xff\xda")  # those of previews are counted too: they do no harm
            return width * height, width * height * scans * slow <= _JPEG_PIXELS
        position += 2 + length
    return 0, False


def _png(data: bytes) -> tuple[int, bool]:
    width, height, bits, kind = struct.unpack_from(">IIBB", data, 16)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 4)
    size, n_frames, n_chunks = width * height * samples * bits // 8, 1, 0
    for chunk in itertools.islice(png_chunks(data), _PNG_CHUNKS):
        n_chunks += 1
        if chunk.kind == b"acTL" and len(chunk.body) == 8:
            (n_frames,) = struct.unpack_from(">I", chunk.body)
    # frames are looked at until one shows something
    few = n_frames == 1 or width * height <= _ANIMATED_PIXELS
    return width * height, n_chunks < _PNG_CHUNKS and few and size <= _PNG_BYTES


def _gif(data: bytes) -> tuple[int, bool]:
    width, height = struct.unpack_from("<HH", data, 6)
    if len(data) > _GIF_BYTES:
        return width * height, False
    for count, frame in enumerate(_gif_pieces(data, 13 + _colour_table(data[10]))):
        if count >= _GIF_PIECES:
            return 0, False
        if frame:  # it may be larger than the screen
            x, y, across, down = frame
            width, height = max(width, x + across), max(height, y + down)
    return width * height, width * height <= _ANIMATED_PIXELS


def _gif_pieces(data: bytes, position: int) -> Iterator[tuple[int, ...]]:
    """Yield, for each piece of data, the place and size of the frame that it starts, else ().

    Blocks are told apart as Pillow does, also in damaged files, so that it finds no other frames.
    """
    while position < len(data) and data[position] != 0x3B:
        kind, block = data[position], data[position : position + 10]
        frame: tuple[int, ...] = ()
        goes_on = False
        if kind == 0x21:
            length = sum(data[position + 2 : position + 3])
            goes_on = length > 0 or block[1:2] != b"\xfe"  # an empty part ends comments alone
            position += 3 + length
        elif kind == 0x2C and len(block) == 10:
            frame, goes_on = struct.unpack_from("<4H", block, 1), True
            position += 11 + _colour_table(block[9])
        else:
            position += 1
        yield frame
        while goes_on and position < len(data):
            goes_on = data[position] > 0
            position += 1 + data[position]
            yield ()


def _colour_table(flags: int) -> int:
    """Return the bytes of the table of colours that follows a GIF's flags."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _bmp(data: bytes) -> tuple[int, bool]:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return width * height, width * height <= _RAW_PIXELS
    width, height = struct.unpack_from("<ii", data, 18)
    (compression,) = struct.unpack_from("<I", data, 30)
    pixels = abs(width * height)
    packed = compression in (1, 2)  # run lengths, which Pillow reads in Python
    return pixels, pixels <= (_SLOW_PIXELS if packed else _RAW_PIXELS)


def _tiff(data: bytes) -> tuple[int, bool]:
    from edgeprism.picture import tiff_tags as tags
    from edgeprism.picture.tiff_layout import OF_BYTES, OF_PIXELS

    try:
        first, *rest = itertools.islice(tags.pages(tags.open_tiff(data)), 100)
        sizes = [page.integer(tags.WIDTH) * page.integer(tags.LENGTH) for page in (first, *rest)]
        compression = first.integer(tags.COMPRESSION, 1)
        samples = first.integer(tags.SAMPLES, 1)
    except tags.TiffError:
        return 0, True  # which the reader of TIFF files will find, too
    known = compression in OF_BYTES or compression in OF_PIXELS
    # JPEGs in tiles have a scan each, of few pixels
    scans = data.count(b"\xff\xda") if compression in (6, 7) else 0
    known = known and (scans < 100 or sizes[0] * scans // 10 <= _JPEG_PIXELS)
    return sizes[0], known and len(rest) < 99 and max(sizes) <= _TIFF_PIXELS and samples <= 8


def _webp(data: bytes) -> tuple[int, bool]:
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        is_animated = bool(data[20] & 2)
        return width * height, width * height <= (_ANIMATED_PIXELS if is_animated else _WEBP_PIXELS)
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
    return width * height, width * height <= _WEBP_PIXELS


def _boxed(data: bytes) -> tuple[int, bool]:
    """AVIF or HEIF: the largest size that a box `ispe` tells; sequences are not bounded."""
    pixels, place = 0, data.find(b"ispe", 0, 1 << 20)
    while place >= 0:
        width, height = struct.unpack_from(">II", data, place + 8)
        pixels = max(pixels, width * height)
        place = data.find(b"ispe", place + 4, 1 << 20)
    is_sequence = any(brand in data[8:64] for brand in (b"avis", b"msf1", b"hevc", b"hevx"))
    return pixels, 0 < pixels <= _AV1_PIXELS and not is_sequence


def _pnm(data: bytes) -> tuple[int, bool]:
    """Netpbm: what is not stored as bytes of 0…255, Pillow reads number by number in Python."""
    words = [word for line in data[:500].split(b"\n") for word in line.split(b"#")[0].split()]
    kind, size = words[0], [int(word) for word in words[1:4] if word.isdigit()]
    if kind not in (b"P4", b"P5", b"P6") or len(size) < (2 if kind == b"P4" else 3):
        return 0, len(data) <= _SLOW_PIXELS
    pixels = size[0] * size[1]
    is_plain = kind == b"P4" or size[2] == 255
    return pixels, pixels <= (_RAW_PIXELS if is_plain else _SLOW_PIXELS)

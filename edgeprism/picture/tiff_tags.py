"""The directories of a TIFF file: its pages, and how the pixels of a page are laid out.

Sources: TIFF 6.0 (Adobe, 1992), its supplements 1 and 2, and BigTIFF (libtiff).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from edgeprism.picture.colour_tags import Primaries, adobe_rgb_profile, numbers_profile

_MOST_VALUES = 1 << 20  # of one tag; a file of 65,535 rows has at most as many strips
MOST_PAGES = 1000
_MOST_ENTRIES = 4096  # of a directory; usual are 10 to 60

# What a tag's type number means: the struct format of one value
_TYPES = {
    1: "B", 2: "c", 3: "H", 4: "I", 5: "2I", 6: "b", 7: "B", 8: "h", 9: "i", 10: "2i", 11: "f",
    12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q",
}  # fmt: skip

SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = (
    254, 256, 257, 258, 259, 262, 266)  # fmt: skip
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = (
    273, 274, 277, 278, 279, 284)  # fmt: skip
TRANSFER, PREDICTOR, WHITE, PRIMARIES, COLOR_MAP = 301, 317, 318, 319, 320
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES, INK_SET = 322, 323, 324, 325, 332
EXTRA_SAMPLES, SAMPLE_FORMAT, YCBCR_COEFFICIENTS, SUBSAMPLING, REFERENCE = (
    338, 339, 529, 530, 532)  # fmt: skip
ICC_PROFILE = 34675
_EXIF, _COLOR_SPACE, _INTEROPERABILITY = 34665, 0xA001, 0xA005
_SRGB, _ADOBE_RGB = 1, 2  # values of _COLOR_SPACE
_REDUCED, _MASK = 1, 4  # bits of SUBFILE


class TiffError(Exception):
    """The bytes are no TIFF directory."""


@dataclass(frozen=True)
class Tiff:
    """A file's byte order and offset size."""

    data: bytes
    order: str  # "<" or ">", as struct has it
    big: bool

    @property
    def known_to_pillow(self) -> bool:
        """Whether Pillow opens such a file: all but big-endian BigTIFF."""
        return not (self.big and self.order == ">")

    def directory(self, offset: int) -> tuple[dict[int, tuple[int, int, int]], int]:
        """Return {tag: (type, count, place of its values)} and the next directory's offset."""
        data, order = self.data, self.order
        count_format, entry_format, size = ("Q", "HHQ", 20) if self.big else ("H", "HHI", 12)
        start = offset + struct.calcsize(order + count_format)
        try:
            (count,) = struct.unpack_from(order + count_format, data, offset)
            if count > _MOST_ENTRIES:
                raise TiffError("a directory has too many entries")
            entries: dict[int, tuple[int, int, int]] = {}
            for position in range(start, start + count * size, size):
                tag, kind, length = struct.unpack_from(order + entry_format, data, position)
                place = position + struct.calcsize(order + entry_format)
                n_bytes = length * struct.calcsize("=" + _TYPES.get(kind, "B"))
                if n_bytes > (8 if self.big else 4):
                    (place,) = struct.unpack_from(order + ("Q" if self.big else "I"), data, place)
                entries.setdefault(tag, (kind, length, place))
            after = start + count * size
            following = struct.unpack_from(order + ("Q" if self.big else "I"), data, after)
        except struct.error as error:
            raise TiffError("a directory lies outside the file") from error
        return entries, following[0]

    def first_offset(self) -> int:
        """Return the place of the first directory."""
        try:
            if self.big:
                return int(struct.unpack_from(self.order + "Q", self.data, 8)[0])
            return int(struct.unpack_from(self.order + "I", self.data, 4)[0])
        except struct.error as error:
            raise TiffError("the header is cut off") from error


@dataclass(frozen=True)
class Page:
    """One directory of a TIFF file."""

    tiff: Tiff
    offset: int
    entries: dict[int, tuple[int, int, int]]

    def values(self, tag: int) -> tuple[float, ...]:
        """Return the numbers of a tag, () without it; a fraction becomes a float.

        Raises TiffError for values outside the file, or over a million of them.
        """
        if tag not in self.entries:
            return ()
        kind, count, place = self.entries[tag]
        unit = _TYPES.get(kind)
        if unit is None or unit == "c" or count > _MOST_VALUES:
            raise TiffError(f"tag {tag} has no readable values")
        try:
            form = self.tiff.order + str(count * int(unit[:-1] or 1)) + unit[-1]
            numbers = struct.unpack_from(form, self.tiff.data, place)
        except struct.error as error:
            raise TiffError(f"tag {tag} lies outside the file") from error
        if len(unit) == 1:
            return numbers
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return tuple(above / below if below else 0.0 for above, below in pairs)

    def integers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the whole numbers of a tag, `default` without it."""
        return tuple(int(value) for value in self.values(tag)) or default

    def integer(self, tag: int, default: int = 0) -> int:
        """Return the first number of a tag, `default` without it."""
        return next(iter(self.integers(tag)), default)

    def bytes_of(self, tag: int) -> bytes:
        """Return a tag's values as they stand in the file; b"" without it."""
        kind, count, place = self.entries.get(tag, (1, 0, 0))
        size = count * struct.calcsize("=" + _TYPES.get(kind, "B"))
        return self.tiff.data[place : place + size]

    @property
    def is_secondary(self) -> bool:
        """Whether it is a preview or a mask of another page."""
        return bool(self.integer(SUBFILE) & (_REDUCED | _MASK))


def open_tiff(data: bytes) -> Tiff:
    """Return a file's byte order and offset size. The caller has seen its signature."""
    return Tiff(data, "<" if data[:2] == b"II" else ">", 43 in data[2:4])


def pages(tiff: Tiff) -> Iterator[Page]:
    """Yield the pages in order, at most `MOST_PAGES` + 1; a chain that is damaged ends there.

    Raises TiffError if the first directory cannot be read.
    """
    seen: set[int] = set()
    offset = tiff.first_offset()
    while offset and offset not in seen and len(seen) <= MOST_PAGES:
        try:
            entries, following = tiff.directory(offset)
        except TiffError:
            if not seen:
                raise
            return
        seen.add(offset)
        yield Page(tiff, offset, entries)
        offset = following


def page_profile(page: Page) -> bytes | None:
    """Return the ICC profile of a page's colours, made from its numbers if need be."""
    profile = page.bytes_of(ICC_PROFILE)
    if profile:
        return profile
    try:
        if _is_adobe_rgb(page):
            return adobe_rgb_profile()
        white, points = page.values(WHITE), page.values(PRIMARIES)
        curves = _curves(page)
    except TiffError:
        return None
    primaries = None
    if len(white) == 2 and len(points) == 6:
        primaries = Primaries(
            (white[0], white[1]), (points[0], points[1]), (points[2], points[3]),
            (points[4], points[5]),
        )  # fmt: skip
    return numbers_profile(primaries, None, curves)


def _is_adobe_rgb(page: Page) -> bool:
    """Whether the page's EXIF directory names Adobe RGB: colour space 2, or the rule R03."""
    offset = page.integer(_EXIF)
    if not offset:
        return False
    exif = Page(page.tiff, offset, page.tiff.directory(offset)[0])
    if exif.integer(_COLOR_SPACE) in (_SRGB, _ADOBE_RGB):
        return exif.integer(_COLOR_SPACE) == _ADOBE_RGB
    offset = exif.integer(_INTEROPERABILITY)
    if not offset:
        return False
    return Page(page.tiff, offset, page.tiff.directory(offset)[0]).bytes_of(1)[:3] == b"R03"


def _curves(page: Page) -> tuple[bytes, ...]:
    """Return the transfer function: a table for all channels, or one for each."""
    values = page.integers(TRANSFER)
    length = 1 << min(page.integer(BITS, 1), 16)
    if len(values) not in (length, 3 * length) or not 2 <= length <= 4096:
        return ()
    tables = [values[i : i + length] for i in range(0, len(values), length)]
    return tuple(struct.pack(f">{length}H", *table) for table in tables)

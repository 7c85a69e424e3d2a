"""Pages of a TIFF file → images.

Pillow decodes the layouts that it reads rightly. For all others this module takes the samples out
of the file by itself, and libtiff, through Pillow, only undoes the compression: to libtiff the
page is then a grey one, whose rows are the rows of bytes.
"""

from __future__ import annotations

import functools
import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edgeprism.picture import tiff_tags as tags
from edgeprism.picture.limits import UnreadLayout
from edgeprism.picture.samples import bytes_to_numbers, samples_to_image
from edgeprism.picture.tiff_layout import (
    OF_PIXELS,
    Layout,
    page_layout,
    refuse_unread,
)
from edgeprism.picture.tiff_tags import Page, TiffError

MOST_BYTES = 2 * 178_956_970  # of a page that is taken apart here; Pillow's limit for one image


def page_to_image(page: Page) -> tuple[Image.Image, Image.Image | None]:
    """Decode a page into an 8-bit image, and its alpha if that is not within the image.

    The images are upright, or have their orientation as EXIF data.

    Raises UnreadLayout, which says what in the layout is not read; TiffError and whatever Pillow
    raises for a damaged file.
    """
    layout = page_layout(page)
    refuse_unread(page, layout)
    if layout.compression in OF_PIXELS or _read_rightly_by_pillow(page, layout):
        quiet_libtiff()
        return _read_by_pillow(page), None
    image, alpha = samples_to_image(page, layout, _samples(page, layout))
    for part in (image, alpha):
        if part is not None:
            part.getexif()[tags.ORIENTATION] = page.integer(tags.ORIENTATION, 1)
    return image, alpha


def _read_rightly_by_pillow(page: Page, layout: Layout) -> bool:
    """Whether it is one of the usual 8-bit layouts, which Pillow decodes fast and rightly."""
    if not page.tiff.known_to_pillow or tags.PHOTOMETRIC not in page.entries:
        return False
    if layout.format != 1 or layout.planar or layout.fill_order != 1 or layout.bits != 8:
        return False
    return (layout.photometric, layout.extra) in {(1, ()), (2, ()), (2, (2,)), (3, ()), (5, ())}


def _read_by_pillow(page: Page) -> Image.Image:
    """Let Pillow decode a page, which becomes the file's first, and turn it upright."""
    tiff, data = page.tiff, page.tiff.data
    if page.offset != tiff.first_offset():
        place, form = (8, "Q") if tiff.big else (4, "I")
        header = data[:place] + struct.pack(tiff.order + form, page.offset)
        data = header + data[len(header) :]
    image = Image.open(io.BytesIO(data), formats=("TIFF",))
    image.load()
    return image


# ---- samples out of the file


def _samples(page: Page, layout: Layout) -> np.ndarray:
    """Return the page's samples [height, width, samples], in the machine's byte order."""
    planes = layout.samples if layout.planar else 1
    in_pixel = 1 if layout.planar else layout.samples
    across, down = (
        -(-size // block)
        for size, block in zip((layout.width, layout.height), layout.block, strict=True)
    )
    row_bytes = -(-layout.block[0] * in_pixel * layout.bits // 8)
    height = down * layout.block[1] if layout.tiled else layout.height
    if planes * height * across * row_bytes > MOST_BYTES:
        raise UnreadLayout(f"over {MOST_BYTES >> 20} MiB of such samples")
    offsets = page.integers(tags.TILE_OFFSETS if layout.tiled else tags.STRIP_OFFSETS)
    lengths = page.integers(tags.TILE_BYTES if layout.tiled else tags.STRIP_BYTES)
    if len(offsets) < planes * across * down or (lengths and len(lengths) < len(offsets)):
        raise TiffError("some of its strips or tiles are missing")
    parts = []
    for plane in range(planes):
        chosen = slice(plane * across * down, (plane + 1) * across * down)
        blocks = _Blocks(
            page, layout, across, down, row_bytes, height, offsets[chosen], lengths[chosen]
        )
        parts.append(_plane_samples(blocks, layout, in_pixel))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _plane_samples(blocks: _Blocks, layout: Layout, in_pixel: int) -> np.ndarray:
    """Return the samples of one plane [height, width, in_pixel]."""
    raw = blocks.rows()  # [rows, blocks across, bytes of a block's row]
    numbers = bytes_to_numbers(raw, layout, in_pixel, blocks.page.tiff.order)
    numbers = numbers.reshape(raw.shape[0], raw.shape[1] * layout.block[0], in_pixel)
    return numbers[: layout.height, : layout.width]


@dataclass(frozen=True)
class _Blocks:
    """The strips or tiles of one plane."""

    page: Page
    layout: Layout
    across: int
    down: int
    row_bytes: int  # of one block
    height: int  # of all blocks
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    def rows(self) -> np.ndarray:
        """Return the bytes of all rows [height, across, row_bytes], uncompressed."""
        if self.layout.compression != 1:
            return self._through_libtiff()
        data = self.page.tiff.data
        rows = np.zeros((self.height, self.across, self.row_bytes), np.uint8)
        for i, offset in enumerate(self.offsets):
            down, across = divmod(i, self.across)
            target = rows[down * self.layout.block[1] :][: self.layout.block[1], across]
            size = target.shape[0] * self.row_bytes
            block = np.frombuffer(data[offset : offset + size], np.uint8)
            if block.size < size:
                raise TiffError("it ends before its pixels do")
            target[:] = block.reshape(-1, self.row_bytes)
        return rows

    def _through_libtiff(self) -> np.ndarray:
        """Undo the compression: to libtiff the blocks are those of a grey page of bytes."""
        quiet_libtiff()
        layout = self.layout
        width = self.across * self.row_bytes
        entries: dict[int, tuple[int, ...]] = {
            tags.WIDTH: (width,), tags.LENGTH: (self.height,), tags.BITS: (8,),
            tags.COMPRESSION: (layout.compression,), tags.PHOTOMETRIC: (1,), tags.SAMPLES: (1,),
            tags.PLANAR: (1,), tags.FILL_ORDER: (layout.fill_order,),
        }  # fmt: skip
        if layout.tiled:
            entries[tags.TILE_WIDTH] = (self.row_bytes,)
            entries[tags.TILE_LENGTH] = (layout.block[1],)
            places, sizes = tags.TILE_OFFSETS, tags.TILE_BYTES
        else:
            entries[tags.ROWS_PER_STRIP] = (layout.block[1],)
            places, sizes = tags.STRIP_OFFSETS, tags.STRIP_BYTES
        if not self.lengths:
            raise TiffError("the lengths of its strips are missing")
        entries[places], entries[sizes] = self.offsets, self.lengths
        file = _with_directory(self.page, entries)
        with Image.open(io.BytesIO(file), formats=("TIFF",)) as image:
            pixels = np.asarray(image)
        return pixels.reshape(self.height, self.across, self.row_bytes)


def _with_directory(page: Page, entries: dict[int, tuple[int, ...]]) -> bytes:
    """Return the file with one directory, of whole numbers, at its end.

    It is a little-endian file of classic offsets, which Pillow reads: rows of bytes have no order.
    """
    data = page.tiff.data
    start = len(data) + len(data) % 2
    after = start + 2 + 12 * len(entries) + 4
    directory, tail = struct.pack("<H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(packed) > 4:
            packed, tail = struct.pack("<I", after + len(tail)), tail + packed
        directory += struct.pack("<HHI", tag, 4, len(values)) + packed
    header = struct.pack("<2sHI", b"II", 42, start)
    return b"".join([header, data[8:], bytes(len(data) % 2), directory, bytes(4), tail])


@functools.cache
def quiet_libtiff() -> None:
    """Keep libtiff from writing about damaged files on standard error; the error tells of them.

    It works where the library's file is known: on Linux.
    """
    import ctypes

    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            files = {line.split(maxsplit=5)[5].strip() for line in maps if "libtiff" in line}
        for file in files:
            library = ctypes.CDLL(file)
            for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)
    except (OSError, AttributeError):
        return

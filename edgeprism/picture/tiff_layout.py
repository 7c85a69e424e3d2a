"""How the pixels of a TIFF page stand in the file, and which layouts are not read."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprism.picture import tiff_tags as tags
from edgeprism.picture.limits import UnreadLayout
from edgeprism.picture.tiff_tags import Page, TiffError

# Compressions of bytes, which know nothing of pixels
OF_BYTES = {1, 5, 8, 32773, 32946, 34925, 50000}
_FAX = {2, 3, 4}
# Compressions of pixels, and the photometric interpretations and bits with which Pillow reads them
OF_PIXELS = {
    2: ({0, 1}, 1),
    3: ({0, 1}, 1),
    4: ({0, 1}, 1),
    6: ({1, 2, 6}, 8),
    7: ({0, 1, 2, 5, 6}, 8),
}
_COMPRESSIONS = {
    32766: "NeXT", 32771: "CCITT with word alignment", 32809: "ThunderScan", 32908: "PixarFilm",
    32909: "PixarLog", 34661: "JBIG", 34676: "SGI LogLuv", 34677: "SGI LogLuv 24",
    34712: "JPEG 2000", 33003: "JPEG 2000", 33005: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG",
    34933: "PNG", 34934: "JPEG XR", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_PHOTOMETRIC = {
    4: "a transparency mask", 10: "ITU Lab", 32803: "a camera's raw data", 32844: "LogL",
    32845: "LogLuv", 34892: "a camera's raw data", 51177: "a depth map",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a page's pixels stand in the file."""

    width: int
    height: int
    bits: int  # per sample
    samples: int  # per pixel
    format: int  # 1 unsigned, 2 signed, 3 float
    photometric: int
    compression: int
    predictor: int
    planar: bool  # a plane for each sample
    fill_order: int
    extra: tuple[int, ...]  # 0 unspecified, 1 premultiplied alpha, 2 alpha
    block: tuple[int, int]  # (width, height) of a strip or tile
    tiled: bool


def page_layout(page: Page) -> Layout:
    """Return a page's layout. Raises UnreadLayout or TiffError."""
    width, height = page.integer(tags.WIDTH), page.integer(tags.LENGTH)
    samples = page.integer(tags.SAMPLES, 1)
    bits = page.integers(tags.BITS, (1,))
    formats = page.integers(tags.SAMPLE_FORMAT, (1,))
    if width < 1 or height < 1 or not 1 <= samples <= 64:
        raise TiffError("it has no pixels")
    if len(set(bits[:samples])) > 1 or len(set(formats[:samples])) > 1:
        raise UnreadLayout("samples of different kinds")
    compression = page.integer(tags.COMPRESSION, 1)
    # without the tag as libtiff has it: by the number of samples, and fax is white on 0
    missing = 6 if compression == 6 else 2 if samples >= 3 else 0 if compression in _FAX else 1
    photometric = page.integer(tags.PHOTOMETRIC, missing)
    tiled = tags.TILE_WIDTH in page.entries
    if tiled:
        block = page.integer(tags.TILE_WIDTH), page.integer(tags.TILE_LENGTH)
    else:
        block = width, min(page.integer(tags.ROWS_PER_STRIP, height) or height, height)
    if min(block) < 1 or block[0] > 65_536 or block[1] > 65_536:
        raise TiffError("its tiles have no size")
    colours = {2: 3, 5: 4, 6: 3, 8: 3, 9: 3}.get(photometric, 1)
    extra = page.integers(tags.EXTRA_SAMPLES) or (999,) * (samples - colours)
    if samples < colours:
        raise UnreadLayout(f"{samples} samples a pixel where {colours} are needed")
    if samples > colours + len(extra):
        raise UnreadLayout(f"{samples} samples a pixel")
    return Layout(
        width=width,
        height=height,
        bits=bits[0],
        samples=samples,
        format=1 if formats[0] == 4 else formats[0],  # 4: undefined
        photometric=photometric,
        compression=compression,
        predictor=page.integer(tags.PREDICTOR, 1),
        planar=page.integer(tags.PLANAR, 1) == 2 and samples > 1,
        fill_order=page.integer(tags.FILL_ORDER, 1),
        extra=tuple(extra[: samples - colours]),
        block=block,
        tiled=tiled,
    )


def refuse_unread(page: Page, layout: Layout) -> None:
    """Raise UnreadLayout, which names what in a layout is not read."""
    compression, photometric = layout.compression, layout.photometric
    if compression in OF_PIXELS:
        known, bits = OF_PIXELS[compression]
        if photometric not in known or layout.bits != bits or layout.format != 1 or layout.planar:
            raise UnreadLayout(
                f"compression {compression} with photometric interpretation {photometric}, "
                f"{layout.bits} bits{' and separate planes' if layout.planar else ''}"
            )
        if not page.tiff.known_to_pillow:
            raise UnreadLayout(f"compression {compression} in a big-endian BigTIFF")
    elif compression not in OF_BYTES:
        name = _COMPRESSIONS.get(compression)
        raise UnreadLayout(f"compression {compression}" + (f" ({name})" if name else ""))
    if photometric not in (0, 1, 2, 3, 5, 6, 8, 9):
        name = _PHOTOMETRIC.get(photometric)
        raise UnreadLayout(
            f"photometric interpretation {photometric}" + (f" ({name})" if name else "")
        )
    if photometric == 5 and page.integer(tags.INK_SET, 1) != 1:
        raise UnreadLayout("inks other than CMYK")
    n_palette = page.entries.get(tags.COLOR_MAP, (3, 0, 0))[1]
    if photometric == 3 and n_palette != 3 << layout.bits:
        raise UnreadLayout(f"a palette of {n_palette} numbers, not {3 << layout.bits}")
    if photometric == 6 and compression in OF_BYTES and _subsampled(page):
        raise UnreadLayout("YCbCr with fewer colour samples, not compressed as JPEG")
    _refuse_numbers(layout)


def _subsampled(page: Page) -> bool:
    return page.integers(tags.SUBSAMPLING, (2, 2)) != (1, 1)


def _refuse_numbers(layout: Layout) -> None:
    bits, photometric = layout.bits, layout.photometric
    whole = layout.format in (1, 2) and (bits <= 16 or bits in (32, 64))
    floating = layout.format == 3 and bits in (16, 32, 64)
    if not (whole or floating):
        kind = {1: "whole", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
        raise UnreadLayout(f"{bits}-bit {kind.get(layout.format, 'unknown')} numbers")
    if layout.format == 2 and bits not in (8, 16, 32, 64):
        raise UnreadLayout(f"{bits}-bit signed numbers")
    if photometric == 3 and (layout.format != 1 or bits > 16):
        raise UnreadLayout("a palette with numbers that are no indices")
    if photometric in (6, 8, 9) and (layout.format == 3 or bits not in (8, 16)):
        raise UnreadLayout(f"YCbCr or Lab of {bits} bits")
    if layout.predictor == 2 and bits not in (8, 16, 32, 64):
        raise UnreadLayout(f"a predictor with {bits} bits")
    if layout.predictor == 3 and layout.format != 3:
        raise UnreadLayout("a floating-point predictor with whole numbers")
    if layout.predictor not in (1, 2, 3):
        raise UnreadLayout(f"predictor {layout.predictor}")

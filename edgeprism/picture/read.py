"""Read a picture from a file, bytes, a stream, PIL or numpy, as upright 8-bit RGB."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgeprism.picture.cost import decoding_cost
from edgeprism.picture.decode import bytes_to_rgb, image_to_rgb
from edgeprism.picture.kinds import RAW, kind_of
from edgeprism.picture.limits import MAX_HEIGHT, MAX_PIXELS, MAX_WIDTH, Decoded
from edgeprism.picture.source import (
    IN_MEMORY,
    MAX_FILE_BYTES,
    ImageSource,
    array_to_image,
    source_to_bytes,
    unreadable,
)

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_HEIGHT",
    "MAX_PIXELS",
    "MAX_WIDTH",
    "READER_VERSION",
    "ImageSource",
    "Picture",
    "enough_for",
    "read_picture",
    "unreadable",
]

READER_VERSION = 2  # a change that gives other pixels for the same file must raise it


@dataclass(frozen=True)
class Picture:
    """An upright RGB picture, with the name and digest of its source."""

    rgb: Image.Image
    name: str
    sha256: str  # of the file's bytes; of the pixels if there is no file
    size: tuple[int, int]  # (width, height), upright; `rgb` may be smaller, see `notes`
    notes: tuple[str, ...]
    decode_ms: float


def read_picture(
    source: ImageSource, *, enough: int | None = None, isolate: bool = True
) -> Picture:
    """Read `source`, turn it upright as its EXIF data says, and convert it to 8-bit sRGB.

    Parameters:
        source: a path, the file's bytes, a binary file object, a PIL image, or an array in RGB
            order (see `array_to_image`).
        enough: a longer edge, in pixels, that suffices. A much larger JPEG file is decoded at a
            half, a quarter or an eighth of its size, and `notes` says so. None: always full size.
        isolate: decode a file whose header does not bound the cost of decoding it in a process
            of its own, within limits of time and memory. A PIL image is always decoded here.

    Raises ImageError, which names the picture.
    """
    start = time.perf_counter()
    if isinstance(source, np.ndarray):
        source = array_to_image(source)
    if isinstance(source, Image.Image):
        name, decoded = IN_MEMORY, image_to_rgb(source, IN_MEMORY)
        rgb = decoded.rgb
        digest = hashlib.sha256(b"%d,%d," % rgb.size + rgb.tobytes()).hexdigest()
    else:
        name, data = source_to_bytes(source)
        digest = hashlib.sha256(data).hexdigest()
        decoded = _decode(data, name, enough, isolate)
        if kind_of(os.path.basename(name))[0] is RAW:
            note = "by its name a RAW file: a picture inside it was read, which may be a thumbnail"
            decoded = replace(decoded, notes=(note, *decoded.notes))
    elapsed_ms = (time.perf_counter() - start) * 1000
    return Picture(decoded.rgb, name, digest, decoded.size, decoded.notes, elapsed_ms)


def _decode(data: bytes, name: str, enough: int | None, isolate: bool) -> Decoded:
    cost = decoding_cost(data)
    if cost.is_bounded or not isolate:
        return bytes_to_rgb(data, name, enough)
    from edgeprism.picture.child_decoder import decode_in_child

    return decode_in_child(data, name, enough, cost)


def enough_for(policy: ImagePolicy) -> int:
    """Return the longer edge, in pixels, beyond which a picture's tiles hardly change.

    It is four times the pixels of the tiles; `benchmarks/speed/draft.py` measures the difference
    that more pixels would make.
    """
    tiling = policy.tiling
    if tiling is None:
        return 4 * max([policy.size, *(policy.free.canvas if policy.free else [])])
    across = max((max(grid) * policy.size for grid in tiling.grids), default=0)
    return 4 * max(across, tiling.longest_edge)

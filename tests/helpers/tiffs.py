"""TIFF files of every layout: written by tifffile, or byte by byte where it cannot."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import tifffile

_SIZES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 7: "B", 8: "h", 16: "Q"}
Tag = tuple[int, int, Sequence[int]]  # number, type, values


def written(samples: np.ndarray, **options: Any) -> bytes:
    """Return samples as a file that tifffile writes."""
    file = io.BytesIO()
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


def samples_of(data: bytes, page: int = 0) -> np.ndarray:
    """Return the samples that tifffile reads, [height, width, samples]."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = file.pages[page]
        assert isinstance(found, tifffile.TiffPage)
        samples = np.asarray(found.asarray())
        if found.planarconfig == 2 and samples.ndim == 3:
            samples = np.moveaxis(samples, 0, -1)
    return samples if samples.ndim == 3 else samples[..., None]


def packed(samples: np.ndarray, bits: int) -> bytes:
    """Pack samples [height, width, n] of `bits` bits, each row padded to whole bytes."""
    shifts = np.arange(bits)[::-1]
    single = (samples.reshape(samples.shape[0], -1, 1).astype(np.uint32) >> shifts) & 1
    return np.packbits(single.reshape(samples.shape[0], -1).astype(np.uint8), axis=1).tobytes()


def by_hand(pages: Sequence[tuple[Sequence[Tag], bytes]], order: str = "<") -> bytes:
    """Return a file of pages, each its tags (without the place of its one strip) and its strip."""
    out = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    link = 4
    for tags, strip in pages:
        place = len(out)
        out += strip + bytes(len(strip) % 2)
        entries = sorted([*tags, (273, 4, [place]), (279, 4, [len(strip)])])
        body, tail = struct.pack(order + "H", len(entries)), b""
        start = len(out)
        after = start + 2 + 12 * len(entries) + 4
        for tag, kind, values in entries:
            form = _SIZES[kind] * (len(values) // len(_SIZES[kind]))
            value = struct.pack(order + form, *values)
            if len(value) > 4:
                where = after + len(tail)
                tail += value + bytes(len(value) % 2)
                value = struct.pack(order + "I", where)
            count = len(values) // len(_SIZES[kind])
            body += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
        struct.pack_into(order + "I", out, link, start)
        link = start + len(body)
        out += body + bytes(4) + tail
    return bytes(out)


def page_tags(
    size: tuple[int, int], bits: int, samples: int, photometric: int, *more: Tag
) -> list[Tag]:
    """Return the tags of a page that is one uncompressed strip; `more` replaces some."""
    width, height = size
    tags: dict[int, Tag] = {
        tag: (tag, kind, values)
        for tag, kind, values in [
            (256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * samples), (259, 3, [1]),
            (262, 3, [photometric]), (277, 3, [samples]), (278, 4, [height]), *more,
        ]
    }  # fmt: skip
    return list(tags.values())

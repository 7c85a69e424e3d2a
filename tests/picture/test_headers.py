"""Files whose parts do not fit their header."""

from __future__ import annotations

import io
import struct
import time
import zlib
from typing import Any

import pytest
from PIL import Image

from edgeprism.errors import ImageError
from edgeprism.picture import cost
from edgeprism.picture.read import read_picture
from tests.helpers.colours import png_chunk


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def growing_gif(edge: int, count: int, between: bytes = b"") -> bytes:
    """A GIF of a small blank screen, and then `count` large blank frames."""
    frame = saved(Image.new("P", (edge, edge)), "GIF")
    frame = frame[frame.index(b",", 13 + 6) : -1]
    screen = saved(Image.new("P", (10, 10)), "GIF")
    return screen[:-1] + between + frame * count + b";"


@pytest.mark.parametrize(
    "between", [b"", b"\x21\xfe\0", b"\x21\x01\0\x05,\0\0\0\0\0", b"\x21\xf9\x04\0\0\0\0\0", b"\0x"]
)
def test_frames_larger_than_the_screen_are_costly(between: bytes) -> None:
    """Every frame counts, behind whatever blocks, also where the file is cut."""
    data = growing_gif(3000, 3, between)
    for file in (data, data[:-1], data[:-200]):
        judged = cost.decoding_cost(file)
        assert not judged.is_bounded
        assert judged.pixels == 9_000_000
    assert cost.decoding_cost(growing_gif(300, 3, between)).is_bounded


def test_few_pixels_of_large_frames_are_looked_at() -> None:
    """Forty frames of 36 megapixels would take minutes."""
    start = time.perf_counter()
    picture = read_picture(growing_gif(6000, 40))
    assert picture.notes == ("first of 41 frames",)
    assert picture.rgb.size == (10, 10)
    assert time.perf_counter() - start < 15


def test_the_size_of_later_frames_is_limited() -> None:
    data = growing_gif(20, 1)
    place = data.index(struct.pack("<4H", 0, 0, 20, 20))
    data = data[:place] + struct.pack("<4H", 65_535, 0, 10, 2_000) + data[place + 8 :]
    with pytest.raises(ImageError, match="at most 65535 across"):
        read_picture(data, isolate=False)


def test_frames_of_an_apng_stay_within_its_header() -> None:
    """A frame beyond the canvas is damage, also where a second header follows the first."""
    blank = Image.new("RGB", (10, 10))
    data = saved(blank, "PNG", save_all=True, append_images=[Image.new("RGB", (10, 10), "white")])
    place = data.rindex(b"fcTL")
    body = data[place + 4 : place + 30]
    large = body[:4] + struct.pack(">II", 13_000, 13_000) + body[12:]
    grown = data[: place - 4] + png_chunk(b"fcTL", large) + data[place + 34 :]
    start = time.perf_counter()
    assert read_picture(grown).rgb.size == (10, 10)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0))
    for file in (data, grown):
        at = file.index(b"acTL") - 4
        with pytest.raises(ImageError, match="damaged picture: it has two headers"):
            read_picture(file[:at] + header + file[at:])
    assert time.perf_counter() - start < 3


def test_frames_of_a_webp_stay_within_its_canvas() -> None:
    blank = Image.new("RGB", (10, 10))
    data = saved(blank, "WEBP", save_all=True, append_images=[Image.new("RGB", (10, 10), "white")])
    place = data.rindex(b"ANMF") + 8 + 6
    grown = data[:place] + (12_999).to_bytes(3, "little") * 2 + data[place + 6 :]
    start = time.perf_counter()
    assert read_picture(grown).rgb.size == (10, 10)
    assert time.perf_counter() - start < 3


def test_a_palette_that_is_missing_is_named() -> None:
    """The error used to give no reason."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(5) * 4))
    data = b"\x89PNG\r\n\x1a\n" + header + pixels + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"damaged picture: its palette \(chunk PLTE\) is missing"):
        read_picture(data)

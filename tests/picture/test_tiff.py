"""TIFF files of every layout, held against tifffile: read rightly, or refused by name."""

from __future__ import annotations

import io
import itertools
import struct
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from edgeprism.errors import ImageError
from edgeprism.picture.read import read_picture
from tests.helpers.tiffs import by_hand, packed, page_tags, samples_of, written

HEIGHT, WIDTH = 45, 37


def values(dtype: str, channels: int, highest: float) -> np.ndarray:
    """Smooth ramps with a sharp edge, over all of 0…highest."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    ramps = [(x * (c + 1) + y * (3 - c % 3)) % 61 / 60 for c in range(channels)]
    pixels = np.stack(ramps, axis=-1) * highest
    pixels[10:20, 5:15] = highest
    pixels[22:30, 5:15] = 0
    kind = np.dtype(dtype)
    return pixels.astype(kind) if kind.kind == "f" else np.rint(pixels).astype(kind)


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(read_picture(data).rgb).astype(np.int16)


def expected(data: bytes, highest: float, photometric: str) -> np.ndarray:
    """What tifffile's samples mean, as 8-bit RGB."""
    samples = samples_of(data).astype(np.float64) * (255 / highest)
    if photometric == "miniswhite":
        samples = 255 - samples
    if photometric == "separated":
        samples = (255 - samples[..., :3]) * (255 - samples[..., 3:4]) / 255
    if samples.shape[2] < 3:
        samples = np.repeat(samples[..., :1], 3, axis=2)
    return samples[..., :3]


NUMBERS = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, "float32": 1.0, "float64": 1.0,
           "uint32": 65535.0, "int16": 30000.0, "int32": 65535.0, "int8": 127.0}  # fmt: skip
COLOURS = {"minisblack": 1, "miniswhite": 1, "rgb": 3, "separated": 4}
PACKINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strips": {"rowsperstrip": 7},
    "lzw": {"compression": "lzw", "rowsperstrip": 7},
    "deflate-predictor": {"compression": "deflate", "predictor": True},
    "packbits": {"compression": "packbits"},
    "tiles": {"tile": (16, 32)},
    "zstd-tiles": {"compression": "zstd", "tile": (16, 16), "predictor": True},
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("photometric", COLOURS)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_every_number_colour_and_packing_is_right(
    dtype: str, photometric: str, packing: str
) -> None:
    channels, options = COLOURS[photometric], PACKINGS[packing]
    pixels = values(dtype, channels, NUMBERS[dtype])
    pixels = pixels[..., 0] if channels == 1 else pixels
    # signed numbers and those of 32 bits have no agreed full brightness: the largest decides
    highest = {"int16": 65535.0, "int8": 255.0}.get(dtype, NUMBERS[dtype])
    for order, big, planar in itertools.product("<>", (False, True), ("contig", "separate")):
        if channels == 1 and planar == "separate":
            continue
        data = written(pixels, photometric=photometric, byteorder=order, bigtiff=big,
                       planarconfig=None if channels == 1 else planar, **options)  # fmt: skip
        tolerance = 2 if photometric == "separated" else 1  # CMYK is rounded twice
        assert np.abs(rgb(data) - expected(data, highest, photometric)).max() <= tolerance


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1, 2, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
def test_every_depth_is_right(bits: int, photometric: int, order: str) -> None:
    highest = (1 << bits) - 1
    channels = 3 if photometric == 2 else 1
    samples = values("uint16", channels, highest)
    more: list[Any] = []
    palette = np.random.default_rng(bits).integers(0, 256, (3, highest + 1)) * 257
    if photometric == 3:
        more = [(320, 3, palette.ravel().tolist())]
    strip = samples.astype(order + "u2").tobytes() if bits == 16 else packed(samples, bits)
    tags = page_tags((WIDTH, HEIGHT), bits, channels, photometric, *more)
    data = by_hand([(tags, strip)], order)
    if photometric == 3:
        target = (palette[:, samples[..., 0]].transpose(1, 2, 0) / 257).astype(float)
    else:
        target = np.repeat(samples, 3 // channels, axis=2) * (255 / highest)
        target = 255 - target if photometric == 0 else target
    assert np.abs(rgb(data) - target).max() <= 1
    if bits not in (6, 10, 14):  # tifffile agrees, where it reads them
        np.testing.assert_array_equal(samples_of(data), samples)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("compression", [1, 5])
def test_bits_in_reversed_order(bits: int, compression: int) -> None:
    samples = values("uint8", 1, (1 << bits) - 1)
    table = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)).reshape(-1, 8)[:, ::-1])
    strip = bytes(table[np.frombuffer(packed(samples, bits), np.uint8)].tobytes())
    if compression == 5:
        import imagecodecs

        # the order of bits concerns the compressed bytes
        encoded = imagecodecs.lzw_encode(packed(samples, bits))
        strip = bytes(table[np.frombuffer(encoded, np.uint8)].tobytes())
    tags = page_tags((WIDTH, HEIGHT), bits, 1, 1, (266, 3, [2]), (259, 3, [compression]))
    target = np.repeat(samples, 3, axis=2) * (255 / ((1 << bits) - 1))
    assert np.abs(rgb(by_hand([(tags, strip)])) - target).max() <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_extra_samples(dtype: str, photometric: str, kind: str, planar: str) -> None:
    channels, highest = COLOURS[photometric], NUMBERS[dtype]
    colour = values("float64", channels, 1)
    alpha = np.linspace(0.2, 1, WIDTH)[None, :, None].repeat(HEIGHT, axis=0)
    stored = colour * alpha if kind == "assocalpha" else colour
    samples = np.concatenate([stored, alpha], axis=2) * highest
    samples = samples.astype(dtype) if dtype == "float32" else np.rint(samples).astype(dtype)
    data = written(samples if planar == "contig" else np.moveaxis(samples, 2, 0),
                   photometric=photometric, extrasamples=[kind], planarconfig=planar)  # fmt: skip
    target = np.repeat(colour, 3 // channels, axis=2) * 255
    if kind != "unspecified":
        target = target * alpha + 255 * (1 - alpha)  # laid over white
    tolerance = 4 if kind == "assocalpha" else 2  # dividing 8-bit numbers by a small alpha
    assert np.abs(rgb(data) - target).max() <= tolerance


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("orientation", [1, 6])
def test_cmyk_with_alpha(kind: int, orientation: int) -> None:
    ink = values("float64", 4, 1)
    alpha = np.linspace(0.3, 1, WIDTH)[None, :, None].repeat(HEIGHT, axis=0)
    stored = np.concatenate([ink * alpha if kind == 1 else ink, alpha], axis=2)
    tags = page_tags((WIDTH, HEIGHT), 16, 5, 5, (338, 3, [kind]), (274, 3, [orientation]))
    data = by_hand([(tags, np.rint(stored * 65535).astype("<u2").tobytes())])
    target = (1 - ink[..., :3]) * (1 - ink[..., 3:]) * alpha + 1 - alpha  # laid over white
    target = np.rot90(target, -1) if orientation == 6 else target
    assert np.abs(rgb(data) - target * 255).max() <= 4


def test_a_page_that_does_not_name_its_colours() -> None:
    """RGB by its number of samples, else 0 is black, as libtiff reads it."""
    for channels in (1, 3):
        samples = values("uint8", channels, 255)
        tags = [t for t in page_tags((WIDTH, HEIGHT), 8, channels, 1) if t[0] != 262]
        data = by_hand([(tags, samples.tobytes())])
        np.testing.assert_array_equal(rgb(data), np.repeat(samples, 3 // channels, axis=2))


def test_jpeg_inside() -> None:
    y, x = np.mgrid[0:64, 0:80]
    smooth = np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8)
    for photometric in ("rgb", "ycbcr"):
        data = written(
            smooth, photometric=photometric, compression="jpeg", compressionargs={"level": 95}
        )
        assert np.abs(rgb(data) - samples_of(data)).max() <= 3


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_fax_inside(compression: str) -> None:
    bits = values("uint8", 1, 255) > 120
    file = io.BytesIO()
    Image.fromarray(bits[..., 0]).save(file, "TIFF", compression=compression)
    np.testing.assert_array_equal(rgb(file.getvalue()), np.repeat(bits, 3, axis=2) * 255)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", [8, 9])
def test_lab(bits: int, photometric: int) -> None:
    """Held against LittleCMS, which is given its own image of the same Lab values."""
    shape = (HEIGHT, WIDTH)
    rng = np.random.default_rng(3)
    lab = np.stack([rng.integers(60, 200, shape), rng.integers(-20, 20, shape),
                    rng.integers(-20, 20, shape)], axis=-1)  # fmt: skip
    stored = lab if photometric == 8 else lab + np.array([0, 128, 128])
    samples = stored.astype(np.int16).astype(np.uint8)
    if bits == 16:
        samples = stored.astype(np.int16).astype(np.uint16) << 8
    tags = page_tags((WIDTH, HEIGHT), bits, 3, photometric)
    data = by_hand([(tags, samples.astype("<u2" if bits == 16 else "u1").tobytes())])
    # Pillow's raw mode takes a and b as they stand in a CIELab TIFF
    image = Image.frombytes(
        "LAB", (WIDTH, HEIGHT), lab.astype(np.int8).astype(np.uint8).tobytes(), "raw", "LAB", 0, 1
    )
    target = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert target is not None
    assert np.abs(rgb(data) - np.asarray(target, np.int16)).max() <= 1


@pytest.mark.parametrize("more", [[], [(529, 5, [2126, 10000, 7152, 10000, 722, 10000])]])
def test_ycbcr_that_is_not_jpeg(more: list[Any]) -> None:
    red, green, blue = (0.2126, 0.7152, 0.0722) if more else (0.299, 0.587, 0.114)
    colours = values("float64", 3, 1) * 200 + 20
    y = colours @ [red, green, blue]
    cb = (colours[..., 2] - y) / (2 - 2 * blue) + 128
    cr = (colours[..., 0] - y) / (2 - 2 * red) + 128
    strip = np.rint(np.stack([y, cb, cr], axis=-1)).astype(np.uint8).tobytes()
    tags = page_tags((WIDTH, HEIGHT), 8, 3, 6, (530, 3, [1, 1]), *more)
    assert np.abs(rgb(by_hand([(tags, strip)])) - colours).max() <= 3


# ---- refused, and the layout named


@pytest.mark.parametrize(
    ("bits", "samples", "photometric", "more", "named"),
    [
        (8, 3, 6, [(530, 3, [2, 2])], "YCbCr with fewer colour samples"),
        (8, 3, 6, [], "YCbCr with fewer colour samples"),
        (8, 3, 10, [], r"photometric interpretation 10 \(ITU Lab\)"),
        (16, 1, 32803, [], r"photometric interpretation 32803 \(a camera's raw data\)"),
        (8, 1, 1, [(259, 3, [34712])], r"compression 34712 \(JPEG 2000\)"),
        (8, 1, 1, [(259, 3, [34887])], r"compression 34887 \(LERC\)"),
        (8, 3, 2, [(259, 3, [50001])], r"compression 50001 \(WebP\)"),
        (8, 1, 1, [(259, 3, [4711])], "compression 4711"),
        (32, 1, 1, [(339, 3, [6])], "32-bit complex numbers"),
        (24, 1, 1, [], "24-bit whole numbers"),
        (8, 4, 5, [(332, 3, [2])], "inks other than CMYK"),
        (8, 3, 2, [(258, 3, [8, 8, 16])], "samples of different kinds"),
        (8, 2, 2, [], "2 samples a pixel where 3 are needed"),
        (8, 1, 1, [(317, 3, [9])], "predictor 9"),
        (8, 1, 3, [(320, 3, [0, 1, 2])], "a palette of 3 numbers"),
    ],
)
def test_what_is_not_read_is_refused_by_name(
    bits: int, samples: int, photometric: int, more: list[Any], named: str
) -> None:
    tags = page_tags((WIDTH, HEIGHT), bits, samples, photometric, *more)
    strip = bytes(WIDTH * HEIGHT * samples * bits // 8)
    with pytest.raises(ImageError, match=f"TIFF with {named}"):
        read_picture(by_hand([(tags, strip)]))


@pytest.mark.parametrize(("dtype", "value"), [("int16", -5), ("float32", np.nan),
                                              ("uint32", 70000), ("float64", -0.1)])  # fmt: skip
def test_numbers_without_an_agreed_brightness(dtype: str, value: float) -> None:
    pixels = values(dtype, 3, 1)
    pixels[0, 0, 0] = value
    with pytest.raises(ImageError, match="no agreed brightness"):
        read_picture(written(pixels, photometric="rgb"))


def test_a_strip_outside_the_file_is_damage() -> None:
    data = written(values("uint16", 3, 65535), photometric="rgb")
    with pytest.raises(ImageError, match="damaged picture"):
        read_picture(data[: len(data) // 2])


# ---- pages


def grey_page(level: int | np.ndarray, *more: Any) -> tuple[list[Any], bytes]:
    pixels = np.broadcast_to(np.asarray(level, np.uint8), (HEIGHT, WIDTH))
    return page_tags((WIDTH, HEIGHT), 8, 1, 1, *more), pixels.tobytes()


def test_a_preview_is_not_the_picture() -> None:
    picture = values("uint8", 1, 255)[..., 0]
    data = by_hand([grey_page(255 - picture, (254, 4, [1])), grey_page(picture)])
    np.testing.assert_array_equal(rgb(data)[..., 0], picture)
    assert read_picture(data).notes == ()


def test_the_first_page_that_shows_something() -> None:
    picture = values("uint8", 1, 255)[..., 0]
    data = by_hand([grey_page(255), grey_page(253), grey_page(picture), grey_page(9)])
    np.testing.assert_array_equal(rgb(data)[..., 0], picture)
    assert read_picture(data).notes == ("frame 3 of 4: those before it show nothing",)


def test_a_chain_of_very_many_pages_takes_no_time() -> None:
    """Their number used to be counted, which took minutes: each page was looked for in a list."""
    tags, strip = grey_page(values("uint8", 1, 255)[..., 0])
    first = by_hand([(tags, strip)])
    entries = sorted([*tags, (273, 4, [8]), (279, 4, [len(strip)])])
    size = 2 + 12 * len(entries) + 4
    start = len(first) + len(first) % 2
    data = bytearray(first.ljust(start, b"\0"))
    n_pages = 200_000
    body = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, numbers[0]) for tag, _, numbers in entries
    )
    for page in range(n_pages):
        link = start + size * (page + 1) if page < n_pages - 1 else 0
        data += body + struct.pack("<I", link)
    struct.pack_into("<I", data, 4, start)
    begin = time.perf_counter()
    picture = read_picture(bytes(data))
    assert time.perf_counter() - begin < 5
    assert picture.notes == ("first of over 1000 frames",)


def test_a_chain_that_runs_in_circles_ends() -> None:
    data = bytearray(by_hand([grey_page(values("uint8", 1, 255)[..., 0])]))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    assert read_picture(bytes(data)).notes == ()


def test_libtiff_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    data = written(values("uint16", 3, 65535), photometric="rgb", compression="lzma")
    whole = rgb(data)
    assert whole.max() == 255
    damaged = bytearray(data)
    middle = len(damaged) // 2
    damaged[middle : middle + 200] = bytes(200)
    with pytest.raises(ImageError):
        read_picture(bytes(damaged))
    assert capfd.readouterr().err == ""

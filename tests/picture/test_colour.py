"""Colours in files of every kind, held against matrices and curves computed by hand."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from edgeprism.picture.read import read_picture
from tests.helpers.colours import (
    ADOBE_RGB,
    BT2020,
    DISPLAY_P3,
    SRGB,
    SWAPPED,
    assembled,
    chart,
    chrm,
    from_srgb_curve,
    gama,
    grey_icc_profile,
    icc_profile,
    png_chunk,
    png_file,
    rgb_to_xyz,
    shown_as_srgb,
)
from tests.helpers.tiffs import by_hand, page_tags

PIXELS = chart()
BROKEN = "its colour profile is damaged: colours are read as sRGB"
UNFIT = "its colour profile is for other pixels: colours are read as sRGB"


def power(exponent: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x**exponent


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def close(data: Any, target: np.ndarray, most: float = 2, mean: float | None = None) -> None:
    picture = read_picture(data)
    assert picture.notes == ()
    difference = np.abs(np.asarray(picture.rgb).astype(float) - target)
    if mean is None:
        assert difference.max() <= most
    else:
        assert difference.mean() <= mean


# ---- ICC profiles, in every format that carries them


@pytest.mark.parametrize(("points", "gamma"), [(DISPLAY_P3, 2.2), (ADOBE_RGB, 563 / 256),
                                               (SWAPPED, 2.2), (BT2020, 2.4)])  # fmt: skip
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_profile_in_lossless_formats(points: Any, gamma: float, kind: str) -> None:
    lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(PIXELS), kind, icc_profile=icc_profile(points, gamma), **lossless)
    close(data, shown_as_srgb(PIXELS, points, power(round(gamma * 256) / 256)))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "HEIF", "WEBP"])
def test_a_profile_in_lossy_formats(kind: str) -> None:
    """Held against the same file without a profile, whose pixels are the same."""
    profile = icc_profile(SWAPPED, 2.2)
    image = Image.fromarray(PIXELS)
    if kind == "HEIF":
        file = pillow_heif.from_pillow(image)
        tagged, plain = io.BytesIO(), io.BytesIO()
        file.save(plain, quality=90)
        image.info["icc_profile"] = profile
        pillow_heif.from_pillow(image).save(tagged, quality=90)
        with_profile, without = tagged.getvalue(), plain.getvalue()
    else:
        with_profile = saved(image, kind, quality=90, icc_profile=profile)
        without = saved(image, kind, quality=90)
    pixels = np.asarray(read_picture(without).rgb)
    close(with_profile, shown_as_srgb(pixels, SWAPPED, power(563 / 256)), mean=2)


def test_a_profile_in_a_gif() -> None:
    image = Image.fromarray(PIXELS).quantize(64)
    data = saved(image, "GIF")
    profile = icc_profile(SWAPPED, 2.2)
    parts = [profile[i : i + 255] for i in range(0, len(profile), 255)]
    blocks = b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    place = 13 + 3 * (2 << (data[10] & 7))
    data = data[:place] + b"\x21\xff\x0bICCRGBG1012" + blocks + data[place:]
    close(data, shown_as_srgb(np.asarray(image.convert("RGB")), SWAPPED, power(563 / 256)))


@pytest.mark.parametrize("embedded", [True, False])
def test_colours_in_the_header_of_a_bitmap(embedded: bool) -> None:
    plain = saved(Image.fromarray(PIXELS), "BMP")
    rows = plain[54:]
    profile = icc_profile(SWAPPED, 2.2) if embedded else b""
    matrix = rgb_to_xyz(SWAPPED)
    ends = [round(float(v) * (1 << 30)) for v in matrix.T.ravel()]  # XYZ of each primary
    header = struct.pack("<IiiHHIIiiII", 124, PIXELS.shape[1], PIXELS.shape[0], 1, 24, 0,
                         len(rows), 2835, 2835, 0, 0)  # fmt: skip
    header += bytes(16) + (b"DEBM" if embedded else bytes(4)) + struct.pack("<9I", *ends)
    header += struct.pack("<3I", *[round(2.2 * 65536)] * 3)
    header += struct.pack("<4I", 4, 124 + len(rows), len(profile), 0)
    file = b"BM" + struct.pack("<IHHI", 14 + 124 + len(rows) + len(profile), 0, 0, 14 + 124)
    gamma = 563 / 256 if embedded else 2.2
    close(file + header + rows + profile, shown_as_srgb(PIXELS, SWAPPED, power(gamma)))


def test_an_image_in_memory_has_its_profile_too() -> None:
    image = Image.fromarray(PIXELS)
    image.info["icc_profile"] = icc_profile(SWAPPED, 2.2)
    before = image.tobytes()
    close(image, shown_as_srgb(PIXELS, SWAPPED, power(563 / 256)))
    assert image.tobytes() == before


def test_a_profile_with_transparency() -> None:
    alpha = np.full((*PIXELS.shape[:2], 1), 255, np.uint8)
    alpha[:, :20] = 0
    rgba = np.concatenate([PIXELS, alpha], axis=2)
    data = saved(Image.fromarray(rgba), "PNG", icc_profile=icc_profile(SWAPPED, 2.2))
    target = shown_as_srgb(PIXELS, SWAPPED, power(563 / 256))
    target[:, :20] = 255
    close(data, target)


def test_a_profile_with_a_palette() -> None:
    image = Image.fromarray(PIXELS).quantize(200)
    data = saved(image, "PNG", icc_profile=icc_profile(SWAPPED, 2.2))
    close(data, shown_as_srgb(np.asarray(image.convert("RGB")), SWAPPED, power(563 / 256)))


@pytest.mark.parametrize("with_alpha", [False, True])
def test_a_profile_for_grey(with_alpha: bool) -> None:
    grey = np.broadcast_to(np.arange(256, dtype=np.uint8), (8, 256))
    pixels = np.stack([grey, np.full_like(grey, 255)], axis=-1) if with_alpha else grey
    if with_alpha:
        pixels[:, :9, 1] = 254  # or the alpha channel would be left out
    image = Image.fromarray(np.ascontiguousarray(pixels))
    data = saved(image, "PNG", icc_profile=grey_icc_profile(1.0))
    target = np.repeat(np.asarray(from_inverse(grey))[..., None], 3, axis=2)
    close(data, target)


def from_inverse(grey: np.ndarray) -> np.ndarray:
    x = grey / 255
    return np.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055) * 255


def test_an_rgb_profile_on_grey_pixels_concerns_its_curve() -> None:
    grey = np.broadcast_to(np.arange(256, dtype=np.uint8), (8, 256))
    data = saved(Image.fromarray(np.ascontiguousarray(grey)), "PNG",
                 icc_profile=icc_profile(ADOBE_RGB, 1.0))  # fmt: skip
    close(data, np.repeat(from_inverse(grey)[..., None], 3, axis=2))


# ---- CMYK


def cmyk_profile() -> bytes:
    """A printer whose inks are not those of the naive formula: it swaps magenta and yellow."""
    levels, grid = 256, 5
    axis = np.linspace(0, 1, grid)
    c, m, y, k = np.meshgrid(axis, axis, axis, axis, indexing="ij")
    linear = from_srgb_curve(
        np.stack([(1 - c) * (1 - k), (1 - y) * (1 - k), (1 - m) * (1 - k)], -1)
    )
    d50 = np.array([[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169],
                    [0.0139322, 0.0971045, 0.7141733]])  # fmt: skip
    xyz = linear @ d50.T / np.array([0.9642, 1.0, 0.8249])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    lab = np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]),
                    200 * (f[..., 1] - f[..., 2])], axis=-1)  # fmt: skip
    stored = np.stack([lab[..., 0] * 65280 / 100, (lab[..., 1] + 128) * 256,
                       (lab[..., 2] + 128) * 256], axis=-1)  # fmt: skip
    clut = np.clip(np.rint(stored), 0, 65535).astype(">u2")
    ramp = np.linspace(0, 65535, levels).astype(">u2").tobytes()
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = struct.pack(">4sIBBBx", b"mft2", 0, 4, 3, grid) + identity
    lut += struct.pack(">HH", levels, levels) + ramp * 4 + clut.tobytes() + ramp * 3
    profile = assembled([(b"A2B0", lut)], b"CMYK")
    return profile[:12] + b"prtr" + profile[16:20] + b"Lab " + profile[24:]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_profile_for_cmyk(kind: str) -> None:
    """Held against LittleCMS by way of Lab: another transform, another output profile."""
    ink = np.concatenate([PIXELS, PIXELS[..., ::-1][..., :1] // 3], axis=2)
    image = Image.fromarray(ink, "CMYK")
    profile = cmyk_profile()
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = saved(image, kind, icc_profile=profile, **options)
    with Image.open(io.BytesIO(data)) as stored:
        stored.load()
        inks = stored.copy()
    to_lab = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("LAB"), "CMYK", "LAB"
    )
    lab = ImageCms.applyTransform(inks, to_lab)
    assert lab is not None
    target = ImageCms.profileToProfile(
        lab, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert target is not None
    close(data, np.asarray(target).astype(float), mean=1.5)
    naive = np.asarray(inks.convert("RGB")).astype(float)
    assert np.abs(np.asarray(read_picture(data).rgb) - naive).mean() > 10


def test_inverted_cmyk_of_adobe_is_right() -> None:
    """Photoshop stores the inks of a JPEG inverted, and says so by its marker."""
    image = Image.fromarray(PIXELS).convert("CMYK")
    data = saved(image, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data[:200]
    close(data, PIXELS.astype(float), mean=2)


# ---- colours in numbers


@pytest.mark.parametrize("exponent", [1.0, 1.8, 2.2, 2.6])
def test_gamma(exponent: float) -> None:
    stored = round(100_000 / exponent) / 100_000
    close(png_file(PIXELS, gama(exponent)), shown_as_srgb(PIXELS, SRGB, power(1 / stored)))


@pytest.mark.parametrize("exponent", [None, 1.8])
def test_chromaticities(exponent: float | None) -> None:
    chunks = [chrm(DISPLAY_P3), *([gama(exponent)] if exponent else [])]
    curve = power(1 / (round(100_000 / exponent) / 100_000)) if exponent else from_srgb_curve
    close(png_file(PIXELS, *chunks), shown_as_srgb(PIXELS, DISPLAY_P3, curve))


def test_the_chunk_that_takes_precedence() -> None:
    """In the standard's order: cICP, iCCP, sRGB, then gAMA and cHRM."""
    rest = [gama(1.0), chrm(BT2020)]
    srgb = png_chunk(b"sRGB", b"\0")
    packed = zlib.compress(icc_profile(SWAPPED, 2.2))
    icc = png_chunk(b"iCCP", b"mine\0\0" + packed)
    coded = png_chunk(b"cICP", bytes([12, 13, 0, 1]))
    close(png_file(PIXELS, srgb, *rest), PIXELS.astype(float), most=0)
    close(png_file(PIXELS, icc, *rest), shown_as_srgb(PIXELS, SWAPPED, power(563 / 256)))
    target = shown_as_srgb(PIXELS, DISPLAY_P3, from_srgb_curve)
    close(png_file(PIXELS, coded, icc, *rest), target)


@pytest.mark.parametrize(
    ("code", "points", "curve"),
    [
        ((12, 13), DISPLAY_P3, from_srgb_curve),
        ((1, 8), SRGB, power(1.0)),
        ((1, 4), SRGB, power(2.2)),
        ((9, 1), BT2020, from_srgb_curve),
        ((9, 14), BT2020, from_srgb_curve),
    ],
)
def test_code_points(code: tuple[int, int], points: Any, curve: Any) -> None:
    chunk = png_chunk(b"cICP", bytes([*code, 0, 1]))
    close(png_file(PIXELS, chunk), shown_as_srgb(PIXELS, points, curve), most=3)


@pytest.mark.parametrize(("transfer", "white"), [(16, 0.5807), (18, 0.75)])
def test_bright_pictures_keep_their_white(transfer: int, white: float) -> None:
    """Paper white of PQ is 58 %, of HLG 75 % (BT.2408): it is white, black is black."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = round(white * 255) + 1
    pixels[6:] = round(white * 255 * 0.6)
    chunk = png_chunk(b"cICP", bytes([9, transfer, 0, 1]))
    shown = np.asarray(read_picture(png_file(pixels, chunk)).rgb)
    assert shown[:4].min() >= 253
    assert shown[4:6].max() == 0
    assert 40 < shown[6:].mean() < 200


@pytest.mark.parametrize("code", [(1, 13, 0), (2, 2, 0), (1, 1, 0), (77, 13, 0), (12, 13, 1)])
def test_code_points_that_change_nothing(code: tuple[int, ...]) -> None:
    chunk = png_chunk(b"cICP", bytes([*code, 1]))
    np.testing.assert_array_equal(np.asarray(read_picture(png_file(PIXELS, chunk)).rgb), PIXELS)


@pytest.mark.parametrize("kind", ["avif", "heif"])
def test_code_points_in_boxes(kind: str) -> None:
    """The primaries of Display P3 are written over those of the file."""
    image = Image.fromarray(PIXELS)
    if kind == "avif":
        plain = saved(image, "AVIF", quality=95, subsampling="4:4:4")
    else:
        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file, quality=95, color_primaries=1,
                                            transfer_characteristics=13)  # fmt: skip
        plain = file.getvalue()
    place = plain.index(b"nclx") + 4
    assert plain[place : place + 4] == struct.pack(">HH", 1, 13)
    tagged = plain[:place] + struct.pack(">HH", 12, 13) + plain[place + 4 :]
    pixels = np.asarray(read_picture(plain).rgb)
    close(tagged, shown_as_srgb(pixels, DISPLAY_P3, from_srgb_curve), mean=1)


def exif_bytes(space: int, rule: str = "") -> bytes:
    """EXIF data with a colour space and the rule of interoperability, byte by byte."""
    entries = struct.pack("<HHIHH", 0xA001, 3, 1, space, 0)
    n = 1
    if rule:
        entries += struct.pack("<HHII", 0xA005, 4, 1, 8 + 18 + 30)
        n = 2
    data = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 26, 0)
    data += (struct.pack("<H", n) + entries + bytes(4)).ljust(30, b"\0")
    if rule:
        data += struct.pack("<HHHI", 1, 1, 2, 4) + rule.encode() + b"\0" + bytes(4)
    return b"Exif\0\0" + data


@pytest.mark.parametrize(("space", "rule", "is_adobe"), [
    (2, "", True), (65535, "R03", True), (65535, "R98", False), (1, "R98", False), (1, "", False),
    (65535, "", False),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_adobe_rgb_as_cameras_say_it(space: int, rule: str, is_adobe: bool, kind: str) -> None:
    image = Image.fromarray(PIXELS)
    options: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}
    lossless = options.get(kind, {})
    plain = np.asarray(read_picture(saved(image, kind, **lossless)).rgb)
    data = saved(image, kind, exif=exif_bytes(space, rule), **lossless)
    target = shown_as_srgb(plain, ADOBE_RGB, power(563 / 256)) if is_adobe else plain.astype(float)
    close(data, target)


def test_colours_in_the_tags_of_a_tiff() -> None:
    numbers = [value for point in SWAPPED for value in point]
    rationals = [part for value in numbers for part in (round(value * 10_000), 10_000)]
    tags = page_tags((PIXELS.shape[1], PIXELS.shape[0]), 8, 3, 2, (318, 5, rationals[:4]),
                     (319, 5, rationals[4:]))  # fmt: skip
    close(by_hand([(tags, PIXELS.tobytes())]), shown_as_srgb(PIXELS, SWAPPED, from_srgb_curve))
    curve = [round((i / 255) ** 1.5 * 65535) for i in range(256)]
    tags = page_tags((PIXELS.shape[1], PIXELS.shape[0]), 8, 3, 2, (301, 3, curve))
    close(by_hand([(tags, PIXELS.tobytes())]), shown_as_srgb(PIXELS, SRGB, power(1.5)))


# ---- profiles that cannot be used, and such as change nothing


def test_a_broken_profile_is_noted_and_passed_over() -> None:
    good = icc_profile(SWAPPED, 2.2)
    for broken in (b"no profile", good[:200], good[:128] + bytes(len(good) - 128)):
        for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
            data = saved(Image.fromarray(PIXELS), kind, icc_profile=broken)
            picture = read_picture(data)
            assert picture.notes == (BROKEN,), kind
            plain = read_picture(saved(Image.fromarray(PIXELS), kind))
            assert picture.rgb.tobytes() == plain.rgb.tobytes()


def test_a_profile_for_other_pixels_is_noted() -> None:
    data = saved(Image.fromarray(PIXELS), "PNG", icc_profile=grey_icc_profile(1.0))
    assert read_picture(data).notes == (UNFIT,)
    np.testing.assert_array_equal(np.asarray(read_picture(data).rgb), PIXELS)


def test_the_profile_of_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(Image.fromarray(PIXELS), "PNG", icc_profile=profile)
    close(data, PIXELS.astype(float), most=0)


def test_a_profile_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = ImageCms.buildTransform

    def counted(*arguments: Any, **options: Any) -> Any:
        built.append(arguments)
        return build(*arguments, **options)

    monkeypatch.setattr(ImageCms, "buildTransform", counted)
    data = saved(Image.fromarray(PIXELS), "PNG", icc_profile=icc_profile(DISPLAY_P3, 1.9))
    for _ in range(5):
        read_picture(data)
    assert len(built) == 1


# ---- large chunks


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP", "many"])
def test_large_chunks_are_passed_over(kind: str, place: str) -> None:
    packed = zlib.compress(b"x" * (3 << 20))
    chunks = {
        "zTXt": [png_chunk(b"zTXt", b"Comment\0\0" + packed)],
        "iTXt": [png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed)],
        "tEXt": [png_chunk(b"tEXt", b"workflow\0" + b"y" * (3 << 20))],
        "iCCP": [png_chunk(b"iCCP", b"big\0\0" + packed)],
        "many": [png_chunk(b"zTXt", b"k%d\0\0" % i + zlib.compress(b"z" * 1_000_000))
                 for i in range(90)],
    }[kind]  # fmt: skip
    start = time.perf_counter()
    data = png_file(PIXELS, *chunks) if place == "before" else png_file(PIXELS, after=chunks)
    picture = read_picture(data)
    np.testing.assert_array_equal(np.asarray(picture.rgb), PIXELS)
    assert picture.notes == ((BROKEN,) if kind == "iCCP" and place == "before" else ())
    assert time.perf_counter() - start < 5


def test_a_large_profile_is_used() -> None:
    tags = icc_profile(SWAPPED, 2.2)
    large = struct.pack(">I", len(tags) + (2 << 20)) + tags[4:] + bytes(2 << 20)
    chunk = png_chunk(b"iCCP", b"large\0\0" + zlib.compress(large))
    close(png_file(PIXELS, chunk), shown_as_srgb(PIXELS, SWAPPED, power(563 / 256)))


def test_a_small_text_still_turns_the_picture() -> None:
    """XMP in a text chunk may hold the orientation; the large chunk beside it goes."""
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<rdf tiff:Orientation="3"/>'
    large = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (3 << 20)))
    data = png_file(PIXELS, png_chunk(b"iTXt", xmp), large)
    np.testing.assert_array_equal(np.asarray(read_picture(data).rgb), PIXELS[::-1, ::-1])

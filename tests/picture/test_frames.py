"""Transparent pictures, files of several frames, and files that end too early."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageDraw

from edgeprism.errors import ImageError
from edgeprism.picture.read import READER_VERSION, read_picture
from tests.helpers.colours import chart, png_chunk, png_file


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_the_store_knows_that_pixels_have_changed() -> None:
    assert READER_VERSION >= 2


# ---- transparency


def text_on_nothing(*colours: tuple[int, int, int]) -> Image.Image:
    """Thick lines in one colour after another on a transparent ground of noise."""
    noise = np.random.default_rng(1).integers(0, 256, (80, 160, 4), dtype=np.uint8)
    noise[..., 3] = 0
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    for i, y in enumerate(range(10, 70, 10)):
        draw.line([(10, y), (150, y)], fill=(*colours[i % len(colours)], 255), width=4)
    return image


def contrast(rgb: np.ndarray, lines: np.ndarray) -> float:
    """The least difference in brightness between a visible pixel and the ground."""
    light = rgb @ [0.299, 0.587, 0.114]
    ground = light[0, 0]
    return float(np.abs(light[lines] - ground).min())


@pytest.mark.parametrize(
    "colours",
    [
        [(255, 255, 255)],
        [(235, 235, 235)],
        [(255, 255, 120)],
        [(0, 0, 0)],
        [(30, 30, 90)],
        [(250, 60, 60)],
        [(255, 255, 255), (0, 0, 0)],
        [(255, 255, 255), (250, 60, 60)],
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "memory", "array"])
def test_what_is_visible_stands_out(colours: list[tuple[int, int, int]], kind: str) -> None:
    image = text_on_nothing(*colours)
    lines = np.asarray(image)[..., 3] == 255
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    sources = {"memory": image, "array": np.asarray(image)}
    source = sources.get(kind) if kind in sources else saved(image, kind, **options)
    picture = read_picture(source)  # type: ignore[arg-type]
    rgb = np.asarray(picture.rgb).astype(float)
    assert contrast(rgb, lines) > 45
    assert len(np.unique(rgb[~lines], axis=0)) == 1  # nothing hidden shows
    on_white = tuple(rgb[0, 0]) == (255, 255, 255)
    assert (picture.notes == ()) == on_white
    # white stays where it does
    darkest_on_white = min(255 - np.dot(c, [0.299, 0.587, 0.114]) for c in colours)
    assert on_white == (darkest_on_white > 48)


def test_white_in_a_palette_with_one_transparent_colour() -> None:
    image = Image.new("P", (60, 40), 0)
    image.putpalette([9, 9, 9, 255, 255, 255])
    ImageDraw.Draw(image).rectangle([10, 10, 50, 20], fill=1)
    for kind in ("PNG", "GIF"):
        picture = read_picture(saved(image, kind, transparency=0))
        assert picture.notes == ("transparent: laid over black",)
        assert picture.rgb.getpixel((0, 0)) == (0, 0, 0)
        assert picture.rgb.getpixel((30, 15)) == (255, 255, 255)


def test_a_photograph_with_a_clear_edge_stays_on_white() -> None:
    photo = np.concatenate([chart(), np.full((64, 96, 1), 255, np.uint8)], axis=2)
    photo[:, :10, 3] = 0
    picture = read_picture(photo)
    assert picture.notes == ()
    assert picture.rgb.getpixel((0, 0)) == (255, 255, 255)


def test_what_is_entirely_transparent_is_said_to_be() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (20, 20, 4), dtype=np.uint8)
    noise[..., 3] = 0
    picture = read_picture(noise)
    assert picture.notes == ("entirely transparent",)
    assert picture.rgb.getextrema() == ((255, 255),) * 3


def test_16_bit_grey_with_a_transparent_level() -> None:
    pixels = np.full((20, 20), 60_000, np.uint16)
    pixels[5:15, 5:15] = 1000
    data = png_file(pixels, png_chunk(b"tRNS", struct.pack(">H", 60_000)))
    rgb = np.asarray(read_picture(data).rgb)
    assert rgb[0, 0].tolist() == [255, 255, 255]
    assert rgb[10, 10].tolist() == [4, 4, 4]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_scaled(channels: int) -> None:
    values = np.linspace(0, 65535, 40 * 30).reshape(30, 40)
    pixels = np.stack([np.roll(values, i, axis=1) for i in range(channels)], axis=-1)
    pixels = pixels.astype(np.uint16)
    if channels in (2, 4):
        pixels[..., -1] = 65535
    target = pixels[..., : channels - (channels in (2, 4))] / 257
    target = np.repeat(target, 3, axis=2) if target.shape[2] == 1 else target
    rgb = np.asarray(read_picture(png_file(pixels)).rgb)
    assert np.abs(rgb - target).max() <= 1


def test_a_dark_16_bit_pgm_stays_dark() -> None:
    values = np.full((20, 30), 200, np.uint16)
    data = b"P5\n30 20\n65535\n" + values.astype(">u2").tobytes()
    assert np.asarray(read_picture(data).rgb).max() == 1


# ---- frames


def blank(level: int = 255) -> Image.Image:
    return Image.new("RGB", (96, 64), (level, level, level))


PICTURE = Image.fromarray(chart())


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_that_shows_something(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = [blank(250), blank(), PICTURE, blank(0)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=90, **options)
    picture = read_picture(data)
    assert picture.notes == ("frame 3 of 4: those before it show nothing",)
    difference = np.abs(np.asarray(picture.rgb).astype(int) - chart())
    assert difference.mean() < 12  # of palettes and lossy frames


def test_transparent_frames_show_nothing() -> None:
    clear = Image.new("RGBA", (96, 64), (200, 30, 30, 0))
    data = saved(clear, "WEBP", save_all=True, append_images=[PICTURE.convert("RGBA")],
                 lossless=True, duration=90)  # fmt: skip
    assert read_picture(data).notes == ("frame 2 of 2: those before it show nothing",)


def test_a_first_frame_with_little_on_it_is_taken() -> None:
    dot = blank()
    dot.putpixel((5, 5), (0, 0, 0))
    data = saved(dot, "PNG", save_all=True, append_images=[PICTURE])
    assert read_picture(data).notes == ("first of 2 frames",)


def test_blank_frames_alone() -> None:
    data = saved(blank(), "PNG", save_all=True, append_images=[blank(10), blank(20)])
    picture = read_picture(data)
    assert picture.notes == ("first of 3 frames",)
    assert picture.rgb.getpixel((0, 0)) == (255, 255, 255)


def test_damage_in_later_frames_does_not_matter() -> None:
    frames = [blank(), blank(0), PICTURE]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=90)
    picture = read_picture(data[:-900])
    assert picture.rgb.size == (96, 64)


def test_of_a_heif_file_the_main_picture_is_taken() -> None:
    file = pillow_heif.HeifFile()  # type: ignore[no-untyped-call]
    file.add_from_pillow(blank(0))
    file.add_from_pillow(PICTURE)
    out = io.BytesIO()
    file.save(out, primary_index=1, quality=90)
    picture = read_picture(out.getvalue())
    assert np.asarray(picture.rgb).std() > 30
    assert picture.notes == ("frame 2 of 2: the main one",)


# ---- files that end too early


def photo() -> Image.Image:
    y, x = np.mgrid[0:300, 0:400]
    waves = [np.sin(x / a) * np.cos(y / b) * 100 + 128 for a, b in ((9, 14), (23, 8), (15, 31))]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9, 0.999])
def test_a_progressive_jpeg_whose_scans_show_it_all(share: float) -> None:
    whole = saved(photo(), "JPEG", progressive=True, quality=92)
    picture = read_picture(whole[: int(len(whole) * share)])
    assert len(picture.notes) == 1
    assert picture.notes[0].startswith("cut short: read from its ")
    difference = np.asarray(picture.rgb).astype(float) - np.asarray(photo())
    assert np.abs(difference).mean() < 8
    bottom = np.abs(difference[-20:]).mean()
    assert bottom < 8  # no grey rest


def test_a_large_progressive_jpeg_is_cut_and_scaled() -> None:
    image = photo().resize((1600, 1200))
    whole = saved(image, "JPEG", progressive=True, quality=92)
    picture = read_picture(whole[: len(whole) * 3 // 4], enough=200)
    assert picture.size == (1600, 1200)
    assert picture.rgb.size == (200, 150)
    assert [note.split(":")[0] for note in picture.notes] == ["read at 200 × 150 pixels",
                                                              "cut short"]  # fmt: skip


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_part_of_its_picture_is_refused(progressive: bool) -> None:
    whole = saved(photo(), "JPEG", progressive=progressive, quality=92)
    for share in (0.02, 0.05, 0.1) if progressive else (0.1, 0.5, 0.9):
        with pytest.raises(ImageError, match="damaged picture"):
            read_picture(whole[: int(len(whole) * share)])


def test_a_jpeg_without_the_mark_at_its_end_is_complete() -> None:
    for progressive in (False, True):
        whole = saved(photo(), "JPEG", progressive=progressive, quality=92)
        for missing in (1, 2):
            picture = read_picture(whole[:-missing])
            assert len(picture.notes) == 1
            assert picture.notes[0].startswith("cut short")
            difference = np.asarray(picture.rgb).astype(int) - np.asarray(read_picture(whole).rgb)
            assert np.abs(difference).max() <= (30 if progressive else 0)


def test_a_frame_that_the_caller_chose_stays() -> None:
    frames = [blank(), PICTURE, blank(0)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    image = Image.open(io.BytesIO(data))
    image.seek(1)
    picture = read_picture(image)
    assert picture.notes == ("frame 2 of 3",)
    np.testing.assert_array_equal(np.asarray(picture.rgb), chart())
    assert image.tell() == 1

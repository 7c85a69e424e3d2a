"""Reading and tiling pictures of every kind, compared with plain numpy and plain Pillow."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.errors import ImageError
from edgeprism.picture.read import MAX_HEIGHT, MAX_PIXELS, read_picture
from tests.helpers.tiles import picture_to_tiles


def random_pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: Any) -> np.ndarray:
    return np.asarray(read_picture(data).rgb)


def over_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.int64)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha)) / 255 + 0.5).astype(np.uint8)


# ---- orientation and colour

# EXIF orientation → the pixels that a file stores for an upright picture, by the standard's table
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(orientation: int, kind: str) -> None:
    upright = random_pixels(5, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    lossless = {"lossless": True} if kind == "WEBP" else {}
    picture = read_picture(as_bytes(stored, kind, exif=exif, **lossless))
    np.testing.assert_array_equal(np.asarray(picture.rgb), upright)
    assert picture.rgb.size == (9, 5)


def test_orientation_of_a_jpeg_turns_what_the_decoder_gives() -> None:
    stored = Image.fromarray(random_pixels(16, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = as_bytes(stored, "JPEG"), as_bytes(stored, "JPEG", exif=exif)
    np.testing.assert_array_equal(read(turned), np.rot90(read(plain), -1))


def test_alpha_is_laid_over_white() -> None:
    rgba = random_pixels(6, 7, 4)
    np.testing.assert_array_equal(read(as_bytes(Image.fromarray(rgba))), over_white(rgba))


def test_grey_with_alpha_is_laid_over_white() -> None:
    la = random_pixels(6, 7, 2)
    expected = over_white(np.concatenate([la[..., :1]] * 3 + [la[..., 1:]], axis=2))
    np.testing.assert_array_equal(read(as_bytes(Image.fromarray(la))), expected)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(transparent: bool) -> None:
    palette = random_pixels(16, 3, 1, seed=1)
    indices = np.random.default_rng(2).integers(0, 16, (6, 7), dtype=np.uint8)
    image = Image.fromarray(indices).convert("L")
    image.putpalette(palette.tobytes(), "RGB")
    assert image.mode == "P"
    expected = palette[indices]
    if transparent:
        expected[indices == 3] = 255
    options: dict[str, Any] = {"transparency": 3} if transparent else {}
    np.testing.assert_array_equal(read(as_bytes(image, **options)), expected)


def test_one_colour_that_stands_for_transparent() -> None:
    pixels = random_pixels(6, 7)
    colour = tuple(int(v) for v in pixels[2, 3])
    expected = np.where((pixels == colour).all(axis=2, keepdims=True), 255, pixels)
    data = as_bytes(Image.fromarray(pixels), transparency=colour)
    np.testing.assert_array_equal(read(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 1, 128, 129, 255, 256], [257, 25700, 32768, 65407, 65408, 65535]])
    grey = np.rint(values * (255 / 65535)).astype(np.uint8)
    data = as_bytes(Image.fromarray(values.astype(np.uint16)), kind)
    np.testing.assert_array_equal(read(data), np.repeat(grey[..., None], 3, axis=2))


def test_dark_16_bit_grey_stays_dark() -> None:
    values = np.full((3, 4), 200, np.uint16)  # 200 of 65535 is nearly black
    assert read(as_bytes(Image.fromarray(values))).max() == 1


def test_16_bit_rgb_keeps_the_high_byte() -> None:
    values = np.random.default_rng(4).integers(0, 65536, (5, 6, 3), dtype=np.uint16)
    # Pillow cannot write 16-bit RGB, so the test builds a minimal PNG itself
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = png(6, 5, bits=16, colour=2, body=zlib.compress(rows))
    np.testing.assert_array_equal(read(data), (values >> 8).astype(np.uint8))


def test_float_grey() -> None:
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    expected = np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    data = as_bytes(Image.fromarray(values), "TIFF")
    np.testing.assert_array_equal(read(data), np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("value", [-1.0, 70000.0, np.nan, np.inf])
def test_grey_without_an_agreed_brightness_is_refused(value: float) -> None:
    data = as_bytes(Image.fromarray(np.full((2, 2), value, np.float32)), "TIFF")
    with pytest.raises(ImageError, match="no agreed brightness"):
        read(data)


def test_cmyk() -> None:
    cmyk = random_pixels(6, 7, 4)
    ink, black = cmyk[..., :3].astype(float), cmyk[..., 3:].astype(float)
    expected = (255 - ink) * (255 - black) / 255
    rgb = read(as_bytes(Image.fromarray(cmyk, "CMYK"), "TIFF")).astype(float)
    assert np.abs(rgb - expected).max() <= 1  # Pillow may round the division either way


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_grey(kind: str) -> None:
    grey = random_pixels(6, 7, 1)
    data = as_bytes(Image.fromarray(grey), kind)
    np.testing.assert_array_equal(read(data), np.repeat(grey[..., None], 3, axis=2))


def test_black_and_white() -> None:
    bits = random_pixels(6, 7, 1) > 127
    expected = np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read(as_bytes(Image.fromarray(bits))), expected)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    pixels = random_pixels(9, 5)
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = as_bytes(Image.fromarray(pixels), kind, **lossless)
    np.testing.assert_array_equal(read(data), pixels)


def test_webp_with_alpha_is_laid_over_white() -> None:
    rgba = random_pixels(6, 7, 4)
    data = as_bytes(Image.fromarray(rgba), "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(read(data), over_white(rgba))


@pytest.mark.parametrize(("kind", "what"), [("GIF", "frames"), ("TIFF", "frames"),
                                            ("WEBP", "frames"), ("PNG", "frames")])  # fmt: skip
def test_first_frame_is_taken_and_said_so(kind: str, what: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = as_bytes(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    picture = read_picture(data)
    assert np.asarray(picture.rgb).reshape(-1, 3).tolist() == [[255, 0, 0]] * 48
    assert picture.notes == (f"first of 3 {what}",)


def test_one_frame_needs_no_note() -> None:
    assert read_picture(as_bytes(Image.new("RGB", (3, 3)), "GIF")).notes == ()


# ---- where a picture comes from


def test_path_bytes_stream_array_and_image_give_the_same(tmp_path: Path) -> None:
    pixels = random_pixels(5, 6)
    data = as_bytes(Image.fromarray(pixels))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with open(path, "rb") as stream:
        for source in (path, str(path), data, bytearray(data), memoryview(data),
                       io.BytesIO(data), stream, pixels, Image.fromarray(pixels)):  # fmt: skip
            np.testing.assert_array_equal(read(source), pixels)
    assert read_picture(path).sha256 == read_picture(data).sha256
    assert read_picture(pixels).sha256 == read_picture(Image.fromarray(pixels)).sha256
    assert read_picture(pixels).sha256 != read_picture(pixels[::-1]).sha256


def test_the_callers_image_is_left_alone() -> None:
    mine = Image.fromarray(random_pixels(5, 6))
    picture = read_picture(mine)
    picture.rgb.paste((0, 0, 0), (0, 0, 6, 5))
    np.testing.assert_array_equal(np.asarray(mine), random_pixels(5, 6))


def test_a_damaged_pillow_image_is_an_image_error() -> None:
    data = as_bytes(Image.fromarray(random_pixels(64, 64)), "PNG")
    with pytest.raises(ImageError, match="image in memory"):
        read_picture(Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize(
    "source",
    [
        3.5,
        None,
        np.zeros((4, 4, 3, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        io.StringIO("text"),
        b"",
    ],
    ids=[
        "number",
        "none",
        "four-axes",
        "two-channels",
        "float",
        "empty",
        "text-stream",
        "no-bytes",
    ],
)
def test_what_is_no_picture_is_refused(source: Any) -> None:
    with pytest.raises(ImageError):
        read_picture(source)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3), (5, 6, 4)])
def test_arrays_of_every_shape(shape: tuple[int, ...], dtype: Any) -> None:
    """An array means what the PIL image of its 8-bit values means."""
    array = np.random.default_rng(6).integers(0, 256, shape, dtype=np.uint8)
    pil = Image.fromarray(array.reshape(5, 6) if array.size == 30 else array)
    given = array.astype(np.uint16) * 257 if dtype == np.uint16 else array
    np.testing.assert_array_equal(read(given), read(pil))
    np.testing.assert_array_equal(read(given[::-1]), read(pil)[::-1])


@pytest.mark.parametrize("name", ["été.png", "写真.png", "صورة.png", "🚤 boat.png", "a\nb.png"])
def test_file_names_of_any_script(tmp_path: Path, name: str) -> None:
    pixels = random_pixels(3, 4)
    Image.fromarray(pixels).save(tmp_path / name)
    picture = read_picture(tmp_path / name)
    np.testing.assert_array_equal(np.asarray(picture.rgb), pixels)
    assert picture.name == str(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Image.fromarray(random_pixels(3, 4)).save(path)
    assert read_picture(path).rgb.size == (4, 3)


# ---- refused, and the file named


def test_truncated_jpeg(tmp_path: Path) -> None:
    whole = as_bytes(Image.fromarray(random_pixels(64, 64)), "JPEG")
    path = tmp_path / "cut.jpg"
    for length in range(1, len(whole) - 2, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"cut\.jpg"):
            read_picture(path)


def unreadable(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.jpg"
    if kind == "text":
        path.write_text("This is not a picture.\n" * 50)
    elif kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "gone")
    return path


@pytest.mark.parametrize(
    "kind", ["text", "empty", "directory", "fifo", "missing", "loop", "dangling"]
)
def test_unreadable_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = unreadable(tmp_path, kind)
    with pytest.raises(ImageError, match=rf"{kind}\.jpg") as caught:
        read_picture(path)
    assert caught.value.exit_code == 1
    assert caught.value.hint


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", ""])
def test_impossible_names(name: str) -> None:
    with pytest.raises(ImageError):
        read_picture(name)


def test_a_file_without_permission(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    path = folder / "mine.png"
    Image.new("RGB", (2, 2)).save(path)
    path.chmod(0)
    was_root = os.geteuid() == 0
    if was_root:  # root may read every file, so the test becomes the user "nobody" for a moment
        folders = [p for p in folder.parents if p.stat().st_uid == 0 and p != Path("/")]
        modes = {p: p.stat().st_mode for p in folders}
        for p in folders:
            p.chmod(modes[p] | 0o111)
        os.seteuid(65534)
    try:
        with pytest.raises(ImageError, match=r"mine\.png: cannot be read: Permission denied"):
            read_picture(path)
    finally:
        if was_root:
            os.seteuid(0)
            for p, mode in modes.items():
                p.chmod(mode)


def png(width: int, height: int, *, bits: int = 8, colour: int = 2, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", body or zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 1), (1, 2**31 - 1),
                                  (MAX_PIXELS + 1, 1), (13_378, 13_378)])  # fmt: skip
def test_a_huge_picture_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(png(*size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"huge\.png: more than 178 megapixels"):
        read_picture(path)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 * 1024  # the decoded picture would take at least 500 MB


def test_an_endless_column_is_refused() -> None:
    with pytest.raises(ImageError, match="at most 65535 across and 40000 down"):
        read_picture(Image.new("RGB", (1, MAX_HEIGHT + 1)))


def test_programs_are_not_run_for_a_picture() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageError, match="not a picture that can be read"):
        read_picture(postscript)


def test_damaged_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(11)
    pixels = Image.fromarray(random_pixels(24, 20))
    frames = [pixels, pixels.rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = [
        as_bytes(pixels, "JPEG", exif=exif),
        as_bytes(pixels, "JPEG", progressive=True),
        as_bytes(pixels.convert("RGBA"), "PNG", exif=exif),
        as_bytes(pixels.convert("P"), "PNG"),
        as_bytes(pixels, "GIF", save_all=True, append_images=frames[1:]),
        as_bytes(pixels, "WEBP", exif=exif),
        as_bytes(pixels, "TIFF", save_all=True, append_images=frames[1:]),
        as_bytes(pixels, "TIFF", compression="tiff_lzw"),
        as_bytes(pixels, "BMP"),
        as_bytes(pixels, "PPM"),
    ]
    read_well = 0
    for trial in range(1500):
        data = bytearray(samples[trial % len(samples)])
        for _ in range(int(rng.integers(1, 6))):
            # half of the damage goes to the header, where it has the most effect
            end = 64 if rng.random() < 0.5 else len(data)
            data[int(rng.integers(0, min(end, len(data))))] = int(rng.integers(0, 256))
        if rng.random() < 0.2:
            del data[int(rng.integers(1, len(data))) :]
        try:
            picture = read_picture(bytes(data))
        except ImageError as error:
            assert "image in memory" in error.message  # noqa: PT017 - either outcome is right
        else:
            assert picture.rgb.mode == "RGB"
            read_well += 1
    assert read_well > 50  # the damage is light enough that some pictures are still readable


# ---- pixels


def policy(**changes: Any) -> ImagePolicy:
    fields = {"mode": "pad", "size": 28, "fill": [127, 64, 200], "resample": "bicubic",
              "max_tiles": 1, **changes}  # fmt: skip
    return ImagePolicy(**fields)


def reference_pad(image: Image.Image, p: ImagePolicy) -> np.ndarray:
    """Return the padded tile made the usual way, from a whole square."""
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge), tuple(p.fill))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    resample = Image.Resampling[p.resample.upper()]
    return np.asarray(square.resize((p.size, p.size), resample))[None]


SIZES = [(1, 1), (28, 28), (29, 28), (100, 37), (37, 100), (640, 427), (3, 500), (2000, 7), (5, 5)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_padding_equals_a_plain_paste_and_resize(
    size: tuple[int, int], resample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # strips of only a few rows, so that even a small picture needs many of them
    monkeypatch.setattr("edgeprism.picture.tile.STRIP_PIXELS", 3 * max(size))
    image = Image.fromarray(random_pixels(size[1], size[0]))
    p = policy(resample=resample)
    tiles = picture_to_tiles(read_picture(image), p)
    assert tiles.dtype == np.uint8
    np.testing.assert_array_equal(tiles, reference_pad(image, p))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000)])
@pytest.mark.parametrize("mode", ["pad", "letterbox"])
def test_a_line_of_pixels_is_padded_without_holding_the_square(
    size: tuple[int, int], mode: str
) -> None:
    """The test runs in a process whose memory limit is below the square's 1.2 GB."""
    code = f"""
import resource, numpy as np
from PIL import Image
from edgeprism.picture.read import read_picture
from tests.helpers.tiles import picture_to_tiles
from edgeprism.bundle.manifest import ImagePolicy
pixels = np.random.default_rng(0).integers(0, 256, ({size[1]}, {size[0]}, 3), dtype=np.uint8)
picture = read_picture(pixels)
resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))
tiles = picture_to_tiles(picture, ImagePolicy("{mode}", 28, [9, 9, 9], "bicubic", 1))
assert tiles.shape == (1, 28, 28, 3)
along = tiles[0].mean(axis={0 if size[0] > 1 else 1})  # the line runs through the middle
assert along.std() < 3 and (tiles == 9).mean() > 0.5
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_tall_line_equals_the_reference() -> None:
    image = Image.fromarray(random_pixels(4001, 1))
    p = policy()
    tiles = picture_to_tiles(read_picture(image), p)
    np.testing.assert_array_equal(tiles, reference_pad(image, p))


def test_stretching_is_a_plain_resize() -> None:
    image = Image.fromarray(random_pixels(31, 57))
    expected = np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC))[None]
    tiles = picture_to_tiles(read_picture(image), policy(mode="stretch"))
    np.testing.assert_array_equal(tiles, expected)


def reference_letterbox(image: Image.Image, p: ImagePolicy) -> np.ndarray:
    """Return the letterboxed tile made from a whole canvas: borders, resize, crop to the middle."""
    across, down = ((max(image.size) - n) // 2 for n in image.size)
    canvas = ImageOps.expand(image, (across, down, across, down), tuple(p.fill))
    shorter = min(canvas.size)
    width, height = (p.size * n // shorter for n in canvas.size)
    resized = canvas.resize((width, height), Image.Resampling[p.resample.upper()])
    left, top = round((width - p.size) / 2), round((height - p.size) / 2)
    return np.asarray(resized.crop((left, top, left + p.size, top + p.size)))[None]


@pytest.mark.parametrize("size", [*SIZES, (1, 2), (2, 1), (1, 8), (8, 5)])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_letterboxing_equals_it_in_one_piece(
    size: tuple[int, int], resample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprism.picture.tile.STRIP_PIXELS", 3 * max(size))
    image = Image.fromarray(random_pixels(size[1], size[0]))
    p = policy(mode="letterbox", resample=resample)
    np.testing.assert_array_equal(
        picture_to_tiles(read_picture(image), p), reference_letterbox(image, p)
    )


def test_odd_remainders_are_cut_as_torchvision_does() -> None:
    """Of 3 surplus pixels 2 are cut off at the top, of 1 none: half is rounded to even."""
    for height, start in ((29, 0), (31, 2), (33, 2), (35, 4)):
        image = Image.fromarray(random_pixels(height, 28))
        expected = np.asarray(image.crop((0, start, 28, start + 28)))[None]
        tiles = picture_to_tiles(read_picture(image), policy(mode="center-crop"))
        np.testing.assert_array_equal(tiles, expected)


def test_a_second_fill_gives_a_second_view() -> None:
    image = Image.fromarray(random_pixels(90, 41))
    first, second = policy(), policy(fill=[1, 2, 3])
    both = policy(second_fill=[1, 2, 3])
    tiles = picture_to_tiles(read_picture(image), both)
    assert tiles.shape == (1, 28, 28, 6)
    for view, alone in ((tiles[..., :3], first), (tiles[..., 3:], second)):
        np.testing.assert_array_equal(view, picture_to_tiles(read_picture(image), alone))

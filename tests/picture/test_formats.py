"""Pictures from phones and cameras: HEIC, and JPEGs far larger than the model's input."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.errors import ImageError
from edgeprism.picture.read import enough_for, read_picture
from tests.helpers.tiles import picture_to_tiles

POLICY = ImagePolicy("pad", 56, [127, 127, 127], "bicubic", 1)


def smooth(width: int, height: int) -> Image.Image:
    """A picture whose colours change slowly, so that lossy formats keep them."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 / width, y * 255 / height, (x + y) * 120 / width], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def heic(tmp_path: Path) -> Path:
    path = tmp_path / "IMG_0001.HEIC"
    pillow_heif.from_pillow(smooth(320, 200)).save(path, quality=95)
    return path


def test_heic_is_read(heic: Path) -> None:
    picture = read_picture(heic)
    assert picture.size == picture.rgb.size == (320, 200)
    difference = np.abs(np.asarray(picture.rgb, np.int16) - np.asarray(smooth(320, 200), np.int16))
    assert difference.mean() < 3


def test_heic_without_the_plug_in_says_what_to_install(
    heic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"IMG_0001\.HEIC: HEIC needs a plug-in") as caught:
        read_picture(heic)
    assert 'pip install "edgeprism[heic]"' in caught.value.hint


def test_a_damaged_heic_is_an_error_of_ours(heic: Path) -> None:
    data = heic.read_bytes()
    heic.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"IMG_0001\.HEIC"):
        read_picture(heic)


def jpeg(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif or Image.Exif())
    return file.getvalue()


def test_a_large_jpeg_is_decoded_smaller_and_hardly_differs() -> None:
    data = jpeg(smooth(2400, 1600))
    whole = read_picture(data)
    less = read_picture(data, enough=enough_for(POLICY))
    assert whole.size == less.size == (2400, 1600)
    assert whole.notes == ()
    assert less.rgb.size == (300, 200)
    assert less.notes == ("read at 300 × 200 pixels",)
    tiles = [picture_to_tiles(p, POLICY).astype(np.int16) for p in (whole, less)]
    assert np.abs(tiles[0] - tiles[1]).max() <= 4
    assert whole.sha256 == less.sha256


def test_what_is_enough_is_never_undercut() -> None:
    for width in (223, 224, 225, 447, 449, 895, 897, 5000):
        picture = read_picture(jpeg(smooth(width, width // 3 + 1)), enough=224)
        assert max(picture.rgb.size) >= min(width, 224)


def test_other_formats_are_read_whole() -> None:
    file = io.BytesIO()
    smooth(2400, 1600).save(file, "PNG")
    assert read_picture(file.getvalue(), enough=100).rgb.size == (2400, 1600)


def test_a_turned_large_jpeg_tells_its_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_picture(jpeg(smooth(2400, 1600), exif=exif), enough=224)
    assert picture.size == (1600, 2400)
    assert picture.rgb.size == (200, 300)

"""Seconds of processor time for reading pictures of usual kinds, from their bytes to RGB.

    python -m benchmarks.speed.reading [--size 4000x3000] [--runs 5]

It needs no model. Pictures with a profile of other colours show what converting them adds; those
without one, or with the profile of sRGB, must not pay for it. To compare two versions, run it in
both, in turn: the best of several runs is steadier than the mean on a busy machine.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

from edgeprism.picture.read import read_picture


def main() -> None:
    """Print a line for each kind of picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="4000x3000", help="width and height in pixels")
    parser.add_argument("--runs", type=int, default=5, help="the best of so many runs counts")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    for kind, make in kinds(photograph(width, height)).items():
        data = make()
        seconds = min(processor_seconds(data, None) for _ in range(arguments.runs))
        reduced = min(processor_seconds(data, 896) for _ in range(arguments.runs))
        print(f"{kind:24} {seconds:8.3f} s   for a model of 224 pixels {reduced:8.3f} s")


def photograph(width: int, height: int) -> Image.Image:
    """A picture with edges, slopes and noise, as photographs have them."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(x / a) * np.cos(y / b) * 90 + 128 for a, b in ((91, 140), (230, 83), (55, 31))]
    noise = np.random.default_rng(0).normal(0, 6, (height, width))
    pixels = np.stack([np.clip(wave + noise, 0, 255) for wave in waves], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def kinds(image: Image.Image) -> dict[str, Callable[[], bytes]]:
    """Return functions that make the file of each kind."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xyz = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    clear = image.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    return {
        "JPEG": lambda: saved(image, "JPEG", quality=90),
        "JPEG, progressive": lambda: saved(image, "JPEG", quality=90, progressive=True),
        "JPEG, profile of sRGB": lambda: saved(image, "JPEG", quality=90, icc_profile=srgb),
        "JPEG, unfit profile": lambda: saved(image, "JPEG", quality=90, icc_profile=xyz),
        "PNG": lambda: saved(image, "PNG", compress_level=1),
        "PNG, transparent": lambda: saved(clear, "PNG", compress_level=1),
        "WebP": lambda: saved(image, "WEBP", quality=90, method=0),
        "TIFF": lambda: saved(image, "TIFF"),
        "BMP": lambda: saved(image, "BMP"),
    }


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def processor_seconds(data: bytes, enough: int | None) -> float:
    """Return the processor time of reading a picture once."""
    start = time.process_time()
    read_picture(data, enough=enough)
    return time.process_time() - start


if __name__ == "__main__":
    main()

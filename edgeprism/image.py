"""A picture as it comes → upright RGB within limits → tiles of uint8 pixels."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeprism.errors import ImageError

if TYPE_CHECKING:
    from edgeprism.manifest import ImagePolicy

ImageSource = Any  # str | os.PathLike | bytes | binary file object | PIL.Image | uint8 [H, W, 3]

READER_VERSION = 1  # raised when the same file may give other pixels than before
MAX_FILE_BYTES = 1 << 30
MAX_PIXELS = 178_956_970  # where Pillow itself refuses; about 13,400 × 13,400
STRIP_PIXELS = 32_000_000  # padding works in strips of at most this many pixels

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_HINT_NOT_A_PICTURE = "Give a JPEG, PNG, WebP, GIF, BMP or TIFF file."


@dataclass(frozen=True)
class Picture:
    """An upright RGB picture and where it came from."""

    rgb: Image.Image
    name: str
    sha256: str  # of the file's bytes; of the pixels where there is no file
    notes: tuple[str, ...]
    decode_ms: float


def read_picture(source: ImageSource) -> Picture:
    """Read `source`, apply its EXIF orientation, bring it to 8-bit RGB (transparency over white).

    `source` is a path, the file's bytes, a binary file object, a PIL image, or a uint8 array
    [H, W, 3] in RGB. Raises ImageError, which names the picture.
    """
    start = time.perf_counter()
    if isinstance(source, np.ndarray):
        source = _array_to_image(source)
    if isinstance(source, Image.Image):
        name, image, digest = "image in memory", source, ""
        rgb, notes = _upright_rgb(image, name)
    else:
        name, data = _read_bytes(source)
        digest = hashlib.sha256(data).hexdigest()
        rgb, notes = _decode(data, name)
    if not digest:
        digest = hashlib.sha256(b"%d,%d," % rgb.size + rgb.tobytes()).hexdigest()
    return Picture(rgb, name, digest, notes, (time.perf_counter() - start) * 1000)


def picture_to_tiles(picture: Picture, policy: ImagePolicy) -> np.ndarray:
    """Pixels as the vision graph takes them: uint8 [n_tiles, size, size, 3]."""
    rgb, size = picture.rgb, policy.size
    resample = _RESAMPLING[policy.resample]
    if policy.mode == "pad":
        tile = _padded_and_resized(rgb, size, tuple(policy.fill), resample)
    else:
        tile = rgb.resize((size, size), resample)
    return np.asarray(tile, dtype=np.uint8)[None]  # [1, size, size, 3]


def _padded_and_resized(
    rgb: Image.Image, size: int, fill: tuple[int, ...], resample: Image.Resampling
) -> Image.Image:
    """Centred on a square of `fill`, then resized, without ever holding the whole square.

    Pillow resamples rows first and columns second, so doing the rows strip by strip gives the
    very pixels of a resize in one go; a 1 × 20,000 picture then needs no 1.2 GB square.
    """
    width, height = rgb.size
    edge = max(width, height)
    left, top = (edge - width) // 2, (edge - height) // 2
    rows = max(1, STRIP_PIXELS // edge)
    narrow = Image.new("RGB", (size, edge), fill)
    for y in range(0, edge, rows):
        strip = Image.new("RGB", (edge, min(rows, edge - y)), fill)
        strip.paste(rgb, (left, top - y))
        narrow.paste(strip.resize((size, strip.height), resample), (0, y))
    return narrow.resize((size, size), resample)


def _read_bytes(source: ImageSource) -> tuple[str, bytes]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "image in memory", bytes(source)
    if hasattr(source, "read"):
        return _read_stream(source)
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise ImageError(
            f"A picture cannot be read from {kind}.",
            "Give a path, bytes, a binary file object, a PIL image or a uint8 array [H, W, 3].",
        )
    name = os.fspath(source)
    try:
        return name, _read_file(Path(name), name)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file.", "Check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{name}: cannot be read: {reason}.", "Check its permissions.") from error


def _read_stream(stream: IO[bytes]) -> tuple[str, bytes]:
    name = str(getattr(stream, "name", "image in memory"))
    data = stream.read(MAX_FILE_BYTES + 1)
    if not isinstance(data, bytes):
        raise ImageError(f"{name}: opened as text.", 'Open it in binary mode ("rb").')
    if len(data) > MAX_FILE_BYTES:
        raise _too_large_file(name)
    return name, data


def _read_file(path: Path, name: str) -> bytes:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name}: is a directory, not a picture.", "Name the pictures in it.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name}: is not a regular file.", _HINT_NOT_A_PICTURE)
    if status.st_size > MAX_FILE_BYTES:
        raise _too_large_file(name)
    return path.read_bytes()


def _too_large_file(name: str) -> ImageError:
    return ImageError(f"{name}: larger than {MAX_FILE_BYTES >> 20} MiB.", "Export a smaller copy.")


def _decode(data: bytes, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    if not data:
        raise ImageError(f"{name}: the file is empty.", "Copy it again from where it came.")
    try:
        with warnings.catch_warnings():
            # our own limit below is the judge; Pillow's warning would reach the user twice
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return _upright_rgb(image, name)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture that can be read.", _HINT_NOT_A_PICTURE) from error
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(name) from error
    except Exception as error:  # decoders raise anything on damaged bytes (struct.error, …)
        raise ImageError(
            f"{name}: damaged picture: {error}.", "Copy it again from where it came."
        ) from error


def _too_many_pixels(name: str) -> ImageError:
    return ImageError(
        f"{name}: more than {MAX_PIXELS // 1_000_000} megapixels.", "Export a smaller copy."
    )


def _upright_rgb(image: Image.Image, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """Header first: a picture over the limit is refused before a pixel is decoded."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: has no pixels.", _HINT_NOT_A_PICTURE)
    if width * height > MAX_PIXELS:
        raise _too_many_pixels(name)
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's MPO holds previews of the same shot
        notes.append(f"first of {frames} frames")
    if frames > 1:
        image.seek(0)  # counting frames may have moved on
    image.load()
    upright = ImageOps.exif_transpose(image)
    return _to_rgb(upright, name), tuple(notes)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image, name)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """16-bit, 32-bit and float grey; Pillow's own conversion would clip instead of scaling."""
    values = np.asarray(image).astype(np.float64)  # [H, W]
    highest = float(values.max())
    if not np.isfinite(values).all() or values.min() < 0 or highest > 65535:
        raise ImageError(
            f"{name}: grey values outside 0…65535 have no agreed brightness.",
            "Export it with 8 or 16 bits a channel.",
        )
    if image.mode.startswith("I;16"):
        scale = 255 / 65535
    elif image.mode == "F" and highest <= 1:
        scale = 255.0
    else:
        scale = 1.0 if highest <= 255 else 255 / 65535
    grey = np.rint(values * scale).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _array_to_image(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ImageError(
            f"An array {list(array.shape)} of {array.dtype} is not a picture.",
            "Give uint8 [height, width, 3] in RGB order.",
        )
    return Image.fromarray(np.ascontiguousarray(array))

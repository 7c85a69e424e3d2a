"""Read a picture from a file, bytes, a stream, PIL or numpy, as upright 8-bit RGB."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import stat
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeprism.errors import ImageError

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy

# a path, the file's bytes, a binary file object, a PIL image, or uint8 [height, width, 3] in RGB
ImageSource = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Image.Image
    | npt.NDArray[np.uint8]
)

READER_VERSION = 1  # a change that gives other pixels for the same file must raise it
MAX_FILE_BYTES = 1 << 30
MAX_PIXELS = 178_956_970  # Pillow's own limit; about 13,400 × 13,400
# Padding reads height × longer edge pixels: a larger picture would take over half a minute
MAX_WIDTH, MAX_HEIGHT = 65_535, 40_000

# The formats that EdgePrism reads. Pillow's other readers run programs (PostScript), follow files
# into other formats, or are seldom tested with damaged bytes.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF")
_OPTIONAL_FORMATS = ("WEBP", "AVIF")  # not in every build of Pillow
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_HINT_NOT_A_PICTURE = "Give a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF file."


@dataclass(frozen=True)
class Picture:
    """An upright RGB picture, with the name and digest of its source."""

    rgb: Image.Image
    name: str
    sha256: str  # of the file's bytes; of the pixels if there is no file
    size: tuple[int, int]  # (width, height), upright; `rgb` may be smaller, see `notes`
    notes: tuple[str, ...]
    decode_ms: float


def read_picture(source: ImageSource, *, enough: int | None = None) -> Picture:
    """Read `source`, apply its EXIF orientation, convert it to 8-bit RGB (transparency over white).

    Parameters:
        source: a path, the file's bytes, a binary file object, a PIL image, or a uint8 array
            [H, W, 3] in RGB.
        enough: a longer edge, in pixels, that suffices. A much larger JPEG file is decoded at a
            half, a quarter or an eighth of its size, and `notes` says so. None: always full size.

    Raises ImageError, which names the picture.
    """
    start = time.perf_counter()
    if isinstance(source, np.ndarray):
        source = _array_to_image(source)
    if isinstance(source, Image.Image):
        name, digest = "image in memory", ""
        read = _guarded(lambda: _upright_rgb(source, name, None), name)
    else:
        name, data = _read_bytes(source)
        digest = hashlib.sha256(data).hexdigest()
        read = _decode(data, name, enough)
    if not digest:
        digest = hashlib.sha256(b"%d,%d," % read.rgb.size + read.rgb.tobytes()).hexdigest()
    elapsed_ms = (time.perf_counter() - start) * 1000
    return Picture(read.rgb, name, digest, read.size, read.notes, elapsed_ms)


def enough_for(policy: ImagePolicy) -> int:
    """Return the longer edge, in pixels, beyond which a picture's tiles hardly change.

    It is four times the pixels of the tiles; `benchmarks/speed/draft.py` measures the difference
    that more pixels would make.
    """
    tiling = policy.tiling
    if tiling is None:
        return 4 * policy.size
    across = max((max(grid) * policy.size for grid in tiling.grids), default=0)
    return 4 * max(across, tiling.longest_edge)


@dataclass(frozen=True)
class _Read:
    rgb: Image.Image
    size: tuple[int, int]
    notes: tuple[str, ...]


def unreadable(source: object) -> ImageError:
    """The error for a value that is no picture source."""
    return ImageError(
        f"A picture cannot be read from {type(source).__name__}.",
        "Give a path, bytes, a binary file object, a PIL image or a uint8 array [H, W, 3].",
    )


def _read_bytes(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes],
) -> tuple[str, bytes]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "image in memory", bytes(source)
    if not isinstance(source, (str, os.PathLike)):
        if hasattr(source, "read"):
            return _read_stream(source)
        raise unreadable(source)
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
    try:
        data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read: {error}.", "Open it again.") from error
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


def _decode(data: bytes, name: str, enough: int | None) -> _Read:
    if not data:
        raise ImageError(f"{name}: the file is empty.", "Copy it again from where it came.")
    formats = _formats()
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[8:64]:
        formats = _with_heif(name)

    def decode() -> _Read:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            return _upright_rgb(image, name, enough)

    return _guarded(decode, name)


def _with_heif(name: str) -> tuple[str, ...]:
    """Return the known formats and HEIF, for which Pillow needs a plug-in; phones write it."""
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            f"{name}: HEIC needs a plug-in.", 'Install it: pip install "edgeprism[heic]"'
        ) from error
    pillow_heif.register_heif_opener(thumbnails=False)
    return (*_formats(), "HEIF")


@functools.cache
def _formats() -> tuple[str, ...]:
    optional = (name for name in _OPTIONAL_FORMATS if find_spec(f"PIL._{name.lower()}"))
    return (*_FORMATS, *optional)


def _guarded(decode: Callable[[], _Read], name: str) -> _Read:
    """Call `decode`; turn whatever it raises into an ImageError that names the picture."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large or damaged pictures; the limits and errors here suffice
            warnings.simplefilter("ignore")
            return decode()
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


def _upright_rgb(image: Image.Image, name: str, enough: int | None) -> _Read:
    """Decode an opened picture; refuses one over the limits before it decodes a pixel."""
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
        image.seek(0)  # counting the frames may have moved to another one
    if enough is not None and image.format == "JPEG" and max(width, height) > enough:
        share = enough / max(width, height)
        image.draft(None, (max(1, int(width * share)), max(1, int(height * share))))
    if image.size != (width, height):
        notes.append(f"read at {image.width} × {image.height} pixels")
    image.load()
    upright = ImageOps.exif_transpose(image)  # always a copy
    if upright.width > MAX_WIDTH or upright.height > MAX_HEIGHT:
        raise ImageError(
            f"{name}: {upright.width} × {upright.height} pixels; at most {MAX_WIDTH} across and "
            f"{MAX_HEIGHT} down are read.",
            "Cut it into pieces.",
        )
    turned = (upright.width > upright.height) != (image.width > image.height)
    size = (height, width) if turned else (width, height)
    return _Read(_to_rgb(upright, name), size, tuple(notes))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image, name)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert 16-bit, 32-bit or float grey; Pillow's own conversion would clip, not scale."""
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

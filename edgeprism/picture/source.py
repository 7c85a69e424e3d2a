"""Any source of a picture → the bytes of its file, or an image in memory."""

from __future__ import annotations

import os
import stat
from typing import IO, Any

import numpy as np
from PIL import Image

from edgeprism.errors import ImageError
from edgeprism.machine.shortage import shortage_hint
from edgeprism.picture.address import address_error
from edgeprism.picture.kinds import SOUND, VIDEO, kind_of

# a path, the file's bytes, a binary file object, a PIL image, or an array (`array_to_image`)
ImageSource = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Image.Image
    | np.ndarray[Any, np.dtype[np.uint8]]
    | np.ndarray[Any, np.dtype[np.uint16]]
)

MAX_FILE_BYTES = 1 << 30
HINT_NOT_A_PICTURE = "Give a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF file."

IN_MEMORY = "image in memory"
_READ_BYTES = 1 << 24


def not_a_picture(name: str) -> ImageError:
    """Return the error for a file in no format that is read; RAW files and videos are named so."""
    kind, _ = kind_of(os.path.basename(name))
    if kind is SOUND:
        return ImageError(
            f"{name}: by its name a sound file, which has no picture.", HINT_NOT_A_PICTURE
        )
    if not kind.cure:
        return ImageError(f"{name}: not a picture that can be read.", HINT_NOT_A_PICTURE)
    article = "an" if kind.one[0] in "aeiou" else "a"
    return ImageError(
        f"{name}: by its name {article} {kind.one}, which cannot be read.", _sentence(kind.cure)
    )


def _sentence(cure: str) -> str:
    return f"{cure[0].upper()}{cure[1:]}"


def video_error(name: str) -> ImageError:
    """Return the error for a video where a picture is expected."""
    return ImageError(f"{name}: a video, where a picture is expected.", _sentence(VIDEO.cure))


def unreadable(source: object) -> ImageError:
    """The error for a value that is no picture source."""
    return ImageError(
        f"A picture cannot be read from {type(source).__name__}.",
        "Give a path, bytes, a binary file object, a PIL image or an array of uint8 in RGB order.",
    )


def check_source(source: object, most_bytes: int = MAX_FILE_BYTES) -> None:
    """Raise ImageError for a path that leads to no readable file; nothing is opened.

    Other sources are left to `read_picture`. A file may have `most_bytes`.
    """
    if not isinstance(source, (str, os.PathLike)):
        return
    name = os.fspath(source)
    try:
        _check_kind(os.stat(name), name, most_bytes)
        if not os.access(name, os.R_OK):
            raise ImageError(f"{name}: cannot be read.", "Check its permissions.")
    except (OSError, ValueError) as error:
        raise _source_error(name, error) from error


def source_to_bytes(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes],
) -> tuple[str, bytes]:
    """Return a name for error messages and the file's bytes.

    Raises ImageError if the source cannot be read, is no regular file or is over a gibibyte.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return IN_MEMORY, bytes(source)
    if not isinstance(source, (str, os.PathLike)):
        if hasattr(source, "read"):
            return _read_stream(source)
        raise unreadable(source)
    name = os.fspath(source)
    try:
        return name, _read_file(name)
    except BlockingIOError as error:  # such as /proc/kmsg, which calls itself a regular file
        raise ImageError(f"{name}: is not a regular file.", HINT_NOT_A_PICTURE) from error
    except (OSError, ValueError) as error:
        raise _source_error(name, error) from error


def array_to_image(array: np.ndarray) -> Image.Image:
    """Return an array as an image.

    Args:
        array: uint8, or uint16 for brightness 0…65535: grey [H, W] or [H, W, 1], RGB [H, W, 3],
            or RGB and alpha [H, W, 4]. (OpenCV's arrays are BGR: give `array[..., ::-1]`.)

    Raises:
        ImageError: For any other shape or number type, which it names.
    """
    channels = array.shape[2] if array.ndim == 3 else 1
    known = array.ndim in (2, 3) and channels in (1, 3, 4) and array.size > 0
    if not known or array.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"An array {list(array.shape)} of {array.dtype} is not a picture.",
            "Give uint8 (or uint16 for 0…65535) [height, width], or [height, width, 3 or 4] in "
            "RGB or RGBA order.",
        )
    if array.dtype == np.uint16:
        array = np.rint(array * np.float32(255 / 65535)).astype(np.uint8)
    if channels == 1:
        array = array.reshape(array.shape[:2])
    return Image.fromarray(np.ascontiguousarray(array))


def _source_error(name: str, error: OSError | ValueError) -> ImageError:
    """Return the ImageError for a system error at a path, which may be an address instead."""
    if not isinstance(error, PermissionError) and (address := address_error(name)):
        return address
    if isinstance(error, FileNotFoundError):
        return ImageError(f"{name}: no such file.", "Check the path.")
    reason = getattr(error, "strerror", None) or str(error)
    return ImageError(
        f"{name}: cannot be read: {reason}.", shortage_hint(error) or "Check its permissions."
    )


def _read_stream(stream: IO[bytes]) -> tuple[str, bytes]:
    name = str(getattr(stream, "name", IN_MEMORY))
    try:
        data: object = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read: {error}.", "Open it again.") from error
    if not isinstance(data, bytes):
        raise ImageError(f"{name}: opened as text.", 'Open it in binary mode ("rb").')
    if len(data) > MAX_FILE_BYTES:
        raise _too_large(name)
    return name, data


def _read_file(name: str) -> bytes:
    """Read a regular file, whatever happens to it in between: it may grow or become a pipe."""
    _check_kind(os.stat(name), name)  # opening a device may do something
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    # does not wait for the other end of a pipe; means nothing for regular files
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(name, flags)
    try:
        status = os.fstat(descriptor)
        _check_kind(status, name)
        parts, left = [], MAX_FILE_BYTES + 1
        size = min(status.st_size + 1, left)  # a byte more, to see the end at once
        while left and (part := os.read(descriptor, max(min(size, left), 1))):
            parts.append(part)
            left -= len(part)
            size = max(size - len(part), _READ_BYTES)
    finally:
        os.close(descriptor)
    if not left:
        raise _too_large(name)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_kind(status: os.stat_result, name: str, most_bytes: int = MAX_FILE_BYTES) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name}: is a directory, not a picture.", "Name the pictures in it.")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name}: is not a regular file.", HINT_NOT_A_PICTURE)
    if status.st_size > most_bytes:
        raise _too_large(name)


def _too_large(name: str) -> ImageError:
    return ImageError(f"{name}: larger than {MAX_FILE_BYTES >> 20} MiB.", "Export a smaller copy.")

"""Text files that people wrote, in whatever encoding: what is a text, and how it is continued."""

from __future__ import annotations

import codecs
from pathlib import Path

from edgeprism.errors import OutputError

MAX_TXT_BYTES = 1 << 20

BYTE_ORDER_MARKS = (  # longer marks first, because UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def is_blank(data: bytes) -> bool:
    """Return whether a file holds no text: nothing, white space, a byte-order mark."""
    text = _decoded(data)
    return text is not None and not text[0].strip("\ufeff \t\r\n\v\f")


def is_text(data: bytes) -> bool:
    """Return whether a file is a text of at most MAX_TXT_BYTES, in an encoding that is known."""
    return len(data) <= MAX_TXT_BYTES and _decoded(data) is not None


def appended_text(path: Path, data: bytes, caption: str) -> bytes:
    """Return what is to follow `data`, so that `caption` is its last line.

    It keeps the file's encoding and line ends. Raises OutputError if the encoding lacks a
    character of the caption.
    """
    decoded = _decoded(data)
    if decoded is None:
        raise OutputError(f"{path}: exists and is not a caption.", "Move it away first.")
    text, codec = decoded
    end = "\r\n" if "\r\n" in text else "\n"
    lines = caption.replace("\r\n", "\n").replace("\n", end)
    if (end + text).endswith(f"{end}{lines}{end}"):
        return b""  # it ends with the caption already
    lead = "" if text.endswith("\n") else end
    try:
        return f"{lead}{lines}{end}".encode(codec)
    except UnicodeEncodeError as error:
        raise OutputError(
            f"{path}: its encoding ({codec}) lacks {error.object[error.start]!r} of the caption.",
            "Save it as UTF-8, or give `overwrite`.",
        ) from error


def _decoded(data: bytes) -> tuple[str, str] | None:
    """Return the text and its codec; None if the bytes are no text."""
    mark, codec = next(((m, c) for m, c in BYTE_ORDER_MARKS if data.startswith(m)), (b"", ""))
    if mark:
        try:
            text = data[len(mark) :].decode(codec)
        except UnicodeDecodeError:
            return None
        return None if "\0" in text else (text, codec)
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"

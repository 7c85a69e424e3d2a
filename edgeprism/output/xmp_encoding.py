"""The encodings of XMP sidecars: bytes to UTF-8 and back, so that every other byte stays.

A file is read by its byte-order mark, else by the encoding that its XML declaration names, else as
UTF-8. What contradicts itself is refused, because a guess could spoil other people's texts.

Rules: Extensible Markup Language 1.0, section 4.3.3 and appendix F.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from edgeprism.output.txt import BYTE_ORDER_MARKS
from edgeprism.output.xmp_tree import XmpError

MAX_XMP_BYTES = 4 << 20  # sidecars with masks and long histories reach about one MiB

_DECLARED = re.compile(rb"<\?xml\s[^>?]{0,200}?\bencoding\s*=\s*[\"']([A-Za-z][A-Za-z0-9._:-]*)")
# In each of these every ASCII byte means itself, so the declaration can be read before the rest.
_ASCII_LIKE = re.compile(r"utf-8|ascii|iso8859-\d+|cp125\d|koi8-[rtu]|mac-roman")


@dataclass(frozen=True)
class Encoding:
    """How a file's characters are written."""

    mark: bytes = b""  # its byte-order mark
    codec: str = "utf-8"


def decode_xmp(data: bytes) -> tuple[bytes, Encoding]:
    """Return `data` as UTF-8 without a byte-order mark, and how it was written. Raises XmpError."""
    if len(data) > MAX_XMP_BYTES:
        raise XmpError(f"it is larger than {MAX_XMP_BYTES >> 20} MiB")
    mark, codec = next(((m, name) for m, name in BYTE_ORDER_MARKS if data.startswith(m)), (b"", ""))
    if not mark and b"\0" in data:
        raise XmpError("it holds NUL bytes, as UTF-16 without a byte-order mark does")
    body = data[len(mark) :]
    try:
        if mark:
            source = body.decode(codec).encode()
            _check_declaration(source, codec)
        else:
            codec = _declared_codec(data)
            source = data.decode(codec).encode()
            if codec != "utf-8" and source.decode().encode(codec) != data:
                raise XmpError(f"its text does not survive a change of encoding ({codec})")
    except UnicodeError as error:
        raise XmpError(f"it is not {codec.upper()} text") from error
    return source, Encoding(mark, codec)


def encode_xmp(source: bytes, encoding: Encoding) -> bytes:
    """Return `source` as it is written in `encoding`; what that lacks becomes `&#…;`."""
    if encoding.codec == "utf-8":
        return encoding.mark + source
    return encoding.mark + source.decode().encode(encoding.codec, "xmlcharrefreplace")


def _declared(source: bytes) -> str:
    match = _DECLARED.match(source)
    return match[1].decode() if match else ""


def _declared_codec(data: bytes) -> str:
    declared = _declared(data)
    if not declared:
        return "utf-8"
    try:
        codec = codecs.lookup(declared).name
    except LookupError:
        codec = ""
    if not _ASCII_LIKE.fullmatch(codec):
        raise XmpError(f"it says that its encoding is {declared}, which EdgePrism cannot keep")
    return codec


def _check_declaration(source: bytes, codec: str) -> None:
    declared = _declared(source).lower()
    if declared and declared not in (codec, codec[:6], codec[:5]):
        raise XmpError(f"its byte-order mark says {codec.upper()}, its first line {declared}")

"""The first bytes of file formats that modules of this package read themselves."""

from __future__ import annotations

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

"""The first bytes of file formats that modules of this package tell apart themselves."""

from __future__ import annotations

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

HEAD_BYTES = 200  # as many first bytes as `is_video` looks at
_PICTURES = (b"\xff\xd8\xff", PNG, b"GIF8", b"BM", *TIFF)
# `ftyp` brands of ISO files that hold still pictures, developed or raw, or sound alone
_STILL_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"mif2", b"msf1",
                 b"miaf", b"avif", b"avis", b"jp2 ", b"jpm ", b"jpx ", b"jxl ", b"crx ", b"M4A ",
                 b"M4B ")  # fmt: skip
_OLD_QUICKTIME = (b"moov", b"mdat", b"free", b"wide", b"skip", b"pnot")
_VIDEOS = (
    b"\x1aE\xdf\xa3",  # Matroska and WebM
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\0\0\x01\xba",  # MPEG, with sound
    b"\0\0\x01\xb3",  # MPEG, pictures alone
    b"\x06\x0e\x2b\x34",  # MXF
    b"DKIF",  # IVF
    b".RMF",
)
_TS_SYNC = 0x47


def is_picture(head: bytes) -> bool:
    """Return whether a file's first bytes are those of a picture in a common format."""
    if head[4:8] == b"ftyp":
        return head[8:12] in _STILL_BRANDS
    return head.startswith(_PICTURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def is_video(head: bytes) -> bool:
    """Return whether a file's first HEAD_BYTES are those of a container of video."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in _STILL_BRANDS
    if head[4:8] in _OLD_QUICKTIME or head.startswith(_VIDEOS):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    # MPEG transport streams, whose packets may have 4 bytes of time before them
    return any(
        len(head) > second and head[first] == head[second] == _TS_SYNC
        for first, second in ((0, 188), (4, 196))
    )

"""What a file is by its name: a picture that can be read, or one of the kinds that are passed over.

Nothing here opens a file. `PICTURE_SUFFIXES` are those of every format that `read.py` reads, so
that a folder gives the same pictures as naming its files one by one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
PICTURE_SUFFIXES = HEIF_SUFFIXES | frozenset(
    {".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".insp", ".jfi", ".jfif", ".jif", ".jpe",
     ".jpeg", ".jpg", ".jps", ".mpo", ".pbm", ".pfm", ".pgm", ".pjp", ".pjpeg", ".png", ".pnm",
     ".ppm", ".tif", ".tiff", ".webp"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file that is passed over."""

    one: str  # its name in "1 video"
    many: str  # its name in "2 videos"
    cure: str = ""  # how its contents can be captioned all the same

    def count(self, number: int) -> str:
        """Return "1 video" or "1,200 videos"."""
        return f"{number:,} {self.one if number == 1 else self.many}"


RAW = Kind(
    "RAW file", "RAW files",
    "EdgePrism does not develop RAW; export JPEGs, e.g. darktable-cli photo.nef photo.jpg",
)  # fmt: skip
JPEG_XL = Kind("JPEG XL file", "JPEG XL files", "convert them first, e.g. djxl photo.jxl photo.jpg")
JPEG_2000 = Kind(
    "JPEG 2000 file", "JPEG 2000 files", "convert them first, e.g. magick photo.jp2 photo.png"
)
OTHER_FORMAT = Kind(
    "file in a picture format that is not read", "files in picture formats that are not read",
    "export them as JPEG or PNG first",
)  # fmt: skip
VIDEO = Kind(
    "video", "videos",
    "name it with a model made for video (docs/how-to/video.md), or take stills first, "
    "e.g. ffmpeg -i clip.mp4 -vf fps=1/10 still-%03d.jpg",
)  # fmt: skip
DOCUMENT = Kind(
    "document", "documents", "turn pages into pictures first, e.g. pdftoppm -jpeg paper.pdf page"
)
TEXT = Kind("text", "texts")
SOUND = Kind("sound file", "sound files")
ARCHIVE = Kind("archive", "archives", "unpack them first")
SIDECAR = Kind("sidecar", "sidecars")
SYSTEM = Kind("system file", "system files")
HIDDEN = Kind("hidden file", "hidden files")
EXCLUDED = Kind("excluded file", "excluded files")
OTHER = Kind("other file", "other files")

_SUFFIXES = {
    RAW: "3fr ari arq arw bay braw cap cr2 cr3 crw cs1 dc2 dcr dcs dng drf eip erf fff gpr iiq k25 "
    "kdc mdc mef mos mrw nef nrw obm orf ori pef ptx pxn qtk raf raw rdc rw2 rwl rwz sr2 srf srw "
    "sti x3f",
    JPEG_XL: "jxl",
    JPEG_2000: "j2c j2k jp2 jpc jpf jph jpm jpx",
    OTHER_FORMAT: "afdesign afphoto ai avci bpg clip cur cdr dcm dds djv djvu dwg dxf emf eps exr "
    "fits flif fts hdp hdr icns ico indd jls jng jxr kra mng odg ora pcd pct pcx pdd pict pdn ps "
    "psb psd psp pspimage qoi ras sgi svg svgz tga vsd wbmp wdp wmf xbm xcf xpm",
    VIDEO: "264 265 3g2 3gp asf avi divx dv f4v flv h264 hevc insv lrv m1v m2p m2t m2ts m2v m4v "
    "mjpeg mjpg mkv mod modd mov mp4 mpe mpeg mpg mts mxf ogm ogv qt r3d rm rmvb tod ts vob webm "
    "wmv",
    DOCUMENT: "doc docm docx epub key mobi numbers odp ods odt pages pdf pps ppsx ppt pptx rtf xls "
    "xlsm xlsx xps",
    TEXT: "css csv htm html ini json log md tex tsv txt url xml yaml yml",
    SOUND: "aac ac3 aif aiff amr ape caf flac m4a mid midi mka mp2 mp3 oga ogg opus wav wma",
    ARCHIVE: "7z ace bz2 cab cbr cbz dmg gz iso lz4 lzh rar tar tbz tgz txz xz zip zst",
    # beside the texts and data that carry a picture's name, see `is_sidecar`
    SIDECAR: "aae acr arp cos cot dop exv lrf nks nksc on1 onphoto ori_xmp pp3 pos rws sidecar spd "
    "thm vrd xmp",
}
_KIND_OF = {f".{suffix}": kind for kind, text in _SUFFIXES.items() for suffix in text.split()}
_NAMED_AFTER = frozenset(
    {".caption", ".csv", ".htm", ".html", ".ini", ".json", ".md", ".md5", ".sha256", ".tags",
     ".txt", ".xml", ".yaml", ".yml"}
)  # fmt: skip
_VISUAL = frozenset({RAW, JPEG_XL, JPEG_2000, OTHER_FORMAT, VIDEO})

_SYSTEM_FILES = frozenset(
    {".apdisk", ".directory", ".ds_store", ".localized", ".picasa.ini", ".volumeicon.icns",
     "albumart.pamp", "desktop.ini", "digikam4.db", "dumpstack.log", "ehthumbs.db",
     "ehthumbs_vista.db", "icon\r", "picasa.ini", "pspbrwse.jbf", "recognition.db", "thumbs.db",
     "thumbnails-digikam.db", "zbthumbnail.info"}
)  # fmt: skip
_SYSTEM_ENDS = ("@synoeastream", "@synoresource")
_SYSTEM_FOLDERS = frozenset(
    {"#recycle", "#snapshot", "$extend", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle",
     "@sharesnap", "@tmp", "__macosx", "files_trashbin", "files_versions", "lost+found",
     "network trash folder", "recycled", "recycler", "system volume information",
     "temporary items", "thevolumesettingsfolder", "thmbnl", "~snapshot"}
)  # fmt: skip
# Lightroom's previews and catalogues, Capture One's catalogue, Nextcloud's previews, fsck's finds
_SYSTEM_FOLDER = re.compile(
    r".*\.(lrdata|lrcat-data|cocatalogdb)$|appdata_oc\w+$|found\.\d{3}$", re.I
)
# Apple's photo libraries: beside the pictures, derivatives and thumbnails of each
_LIBRARY = re.compile(r".*\.(photoslibrary|photolibrary|aplibrary|migratedphotolibrary)$", re.I)
_ORIGINALS = frozenset({"masters", "originals"})


def has_picture_suffix(name: str) -> bool:
    """Return whether a file's name ends with a picture's suffix."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def kind_of(name: str) -> tuple[Kind, str]:
    """Return the kind of a file that is no picture, and the word for it in lists: "NEF"."""
    system = system_file(name)
    if system:
        return SYSTEM, system
    if name.startswith("."):
        return HIDDEN, ""
    suffix = os.path.splitext(name)[1].lower()
    kind = _KIND_OF.get(suffix, OTHER)
    return kind, "" if kind is OTHER else suffix[1:].upper()


def system_file(name: str) -> str:
    """Return what to call a file that a system or a program keeps for itself; "" for others."""
    if name.startswith("._"):
        return "AppleDouble"
    if name.lower() in _SYSTEM_FILES or name.lower().endswith(_SYSTEM_ENDS):
        return name.strip()
    return ""


def is_system_folder(folder: str, name: str) -> bool:
    """Return whether a system, a NAS or a program keeps `name` in `folder` for itself.

    Hidden folders (.Trash-1000, .thumbnails, .stfolder) are passed over anyway.
    """
    lower = name.lower()
    if lower in _SYSTEM_FOLDERS or _SYSTEM_FOLDER.match(name):
        return True
    return lower not in _ORIGINALS and _LIBRARY.match(os.path.basename(folder)) is not None


def stems_of(names: Iterable[str]) -> set[str]:
    """Return the names after which sidecars may be called: of pictures, RAW files and videos."""
    stems = set()
    for name in names:
        stem, suffix = os.path.splitext(name.casefold())
        if suffix in PICTURE_SUFFIXES or _KIND_OF.get(suffix) in _VISUAL:
            stems |= {stem, stem + suffix}
    return stems


def is_sidecar(name: str, stems: set[str]) -> bool:
    """Return whether a text or data file is called after one of `stems`.

    So are photo.txt, photo.jpg.txt, and photo.jpg.supplemental-metadata.json of Google Takeout.
    """
    folded = name.casefold()
    if os.path.splitext(folded)[1] not in _NAMED_AFTER:
        return False
    return any(folded[:at] in stems for at, letter in enumerate(folded) if letter == ".")


def lacks_plugin(name: str) -> bool:
    """Return whether a file's suffix is HEIC's, and the plug-in that reads it is missing."""
    return os.path.splitext(name)[1].lower() in HEIF_SUFFIXES and find_spec("pillow_heif") is None


NEEDS_PLUGIN = "HEIC needs a plug-in"  # the reason for which such a picture fails


def heic_cure() -> str:
    """Return the hint for pictures that need the plug-in for HEIC, in this very Python."""
    return f'Install it: {sys.executable} -m pip install "edgeprism[heic]"'

"""A folder as people have them: pictures of all formats among all that gathers around them.

    python -m tests.helpers.mixed_folder FOLDER [FILES]

makes one by hand. The same number of files gives the same folder.
"""

from __future__ import annotations

import io
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

DATE = 1_500_000_000  # of every file: a date that changes is seen
_SUFFIXES = {"JPEG": ".jpg .JPG .jpeg .jpe .jfif", "PNG": ".png .PNG", "WEBP": ".webp",
             "GIF": ".gif", "TIFF": ".tif .tiff", "BMP": ".bmp",
             "HEIF": ".heic .HEIC .hif"}  # fmt: skip
# names of bytes that are no UTF-8; only some file systems allow them
_NO_TEXT = ("caf\udce9", "\udcff\udcfe") if sys.platform == "linux" else ()
_ODD_NAMES = ("two words", " leading space", "-q", "--model", "it's", 'say "cheese"', "100%",
              "a$b`c`", "back\\slash", "new\nline", "tab\tbed", "\x1b[31mred", "[2024]", "what?",
              "star*", "#hash", "!bang", "semi;colon", "été", "e\u0301te\u0301", "写真", "🚤",
              "\u202etxet", "dots...", "n" * 200, *_NO_TEXT)  # fmt: skip
# Shares of all files, in thousandths; what is left over are pictures
_SHARES = {
    "duplicate": 40, "linked": 5, "dangling": 3, "empty": 8, "truncated": 8, "no picture": 20,
    "RAW file": 100, "video": 40, "JPEG XL file": 5, "JPEG 2000 file": 5, "document": 5, "text": 5,
    "sound file": 3, "archive": 2, "sidecar": 60, "system file": 20, "hidden file": 5,
    "other file": 10, "closed": 60,
}  # fmt: skip
_NAMES = {
    "RAW file": "{}.NEF {}.cr2 {}.CR3 {}.arw {}.dng {}.RAF {}.rw2 {}.orf {}.pef {}.srw",
    "video": "{}.MOV {}.mp4 {}.avi {}.mts {}.webm {}.3gp",
    "JPEG XL file": "{}.jxl",
    "JPEG 2000 file": "{}.jp2 {}.j2k",
    "document": "{}.pdf {}.docx",
    "text": "notes-{}.txt notes-{}.html notes-{}.json",
    "sound file": "{}.mp3 {}.wav",
    "archive": "{}.zip {}.tar",
    "system file": "._{}.jpg ._{}.NEF",
    "hidden file": ".{}.jpg .{}",
    "other file": "{}.lrcat {}.dat {}",
}
_CLOSED = ("@eaDir/{0}.jpg/SYNOPHOTO_THUMB_XL.jpg", "#recycle/{0}.jpg", "$RECYCLE.BIN/$R{0}.png",
           "lost+found/{0}.jpg", "System Volume Information/{0}", ".thumbnails/{0}.png",
           ".Trash-1000/files/{0}.jpg", "@Recycle/{0}.jpg", "#snapshot/daily/{0}.jpg",
           "My Previews.lrdata/A/{0}.jpg", ".stfolder/{0}", "__MACOSX/._{0}.jpg")  # fmt: skip
_SIDECARS = ("{}.xmp", "{}.jpg.xmp", "{}.pp3", "{}.aae", "{}.jpg.supplemental-metadata.json")


@dataclass
class Mixed:
    """The folder's files by what a run is to do with them."""

    root: Path
    counts: Counter[str] = field(default_factory=Counter)  # by the keys of _SHARES, and "picture"

    @property
    def files(self) -> int:
        """All files and links to files."""
        return self.counts.total()

    @property
    def failures(self) -> int:
        """Pictures that cannot be captioned."""
        return sum(self.counts[kind] for kind in ("dangling", "empty", "truncated", "no picture"))

    @property
    def duplicates(self) -> int:
        """Pictures whose content another picture has."""
        return self.counts["duplicate"] + self.counts["linked"]

    @property
    def pictures(self) -> int:
        """Everything with a picture's suffix."""
        return self.counts["picture"] + self.duplicates + self.failures


class _Maker:
    def __init__(self, root: Path, seed: int) -> None:
        self.mixed = Mixed(root)
        self.rng = random.Random(seed)
        self.folders = [root, *(root / f"{year}" / f"{month:02}" for year in (2019, 2024)
                                for month in (1, 7, 12)), root / "photos [2024]"]  # fmt: skip
        self.pictures: list[Path] = []

    def write(self, kind: str, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.mixed.counts[kind] += 1

    def picture(self, index: int, stem: str | None = None) -> None:
        """A picture with pixels of its own, in one of the formats."""
        form = self.rng.choice([*_SUFFIXES, "JPEG", "JPEG", "JPEG"])
        suffix = self.rng.choice(_SUFFIXES[form].split())
        path = self.rng.choice(self.folders) / f"{stem or f'IMG_{index:04}'}{suffix}"
        if path.exists():
            path = path.with_name(f"{index}{path.name}")
        self.write("picture", path, _picture(form, index))
        self.pictures.append(path)

    def duplicate(self, index: int) -> None:
        """The bytes of a picture under another name."""
        of = self.rng.choice(self.pictures)
        path = self.rng.choice(self.folders) / f"copy {index}{of.suffix}"
        self.write("duplicate", path, of.read_bytes())

    def linked(self, index: int) -> None:
        """A link to a picture."""
        of = self.rng.choice(self.pictures)
        (self.rng.choice(self.folders) / f"link {index}{of.suffix}").symlink_to(of)
        self.mixed.counts["linked"] += 1

    def dangling(self, index: int) -> None:
        """A link to a picture that is gone."""
        (self.rng.choice(self.folders) / f"gone {index}.jpg").symlink_to("nowhere.jpg")
        self.mixed.counts["dangling"] += 1

    def broken(self, kind: str, index: int) -> None:
        """A file with a picture's name that holds none, or a part of one."""
        data = {
            "empty": b"",
            "truncated": _picture("PNG", index)[:400],
            "no picture": b"<html>404 not found</html>",
        }[kind]
        self.write(kind, self.rng.choice(self.folders) / f"{kind} {index}.jpg", data)

    def other(self, kind: str, index: int) -> None:
        """A file of a kind that is passed over."""
        name = self.rng.choice(_NAMES[kind].split()).format(f"other{index}")
        self.write(kind, self.rng.choice(self.folders) / name, self.rng.randbytes(200))

    def sidecar(self, index: int) -> None:
        """What another program wrote about a picture."""
        of = self.rng.choice([path for path in self.pictures if path.name.startswith("IMG_")])
        path = of.with_name(_SIDECARS[index % len(_SIDECARS)].format(of.stem))
        if path.suffix == ".json":
            path = of.with_name(of.name + ".supplemental-metadata.json")
        if path.exists():
            path = path.with_name(f"{of.stem}.{index}.xmp")
        self.write("sidecar", path, b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>\n")

    def closed(self, index: int) -> None:
        """A picture where a NAS, a system or a program keeps things for itself."""
        name = _CLOSED[index % len(_CLOSED)].format(f"c{index}")
        self.write("closed", self.rng.choice(self.folders) / name, _picture("PNG", index))


def make_mixed_folder(root: Path, n_files: int = 3000) -> Mixed:
    """Make the folder; it has `n_files` files and links, and more links to folders."""
    maker = _Maker(root, n_files)
    shares = {kind: max(1, n_files * share // 1000) for kind, share in _SHARES.items()}
    fixed = _fixed(maker)
    n_pictures = n_files - fixed - sum(shares.values())
    for index in range(n_pictures):
        stem = _ODD_NAMES[index] if index < len(_ODD_NAMES) else None
        maker.picture(index, stem)
    makers: dict[str, Callable[[int], None]] = {
        "duplicate": maker.duplicate, "linked": maker.linked, "dangling": maker.dangling,
        "sidecar": maker.sidecar, "closed": maker.closed,
    }  # fmt: skip
    for kind, share in shares.items():
        for index in range(share):
            if kind in makers:
                makers[kind](index)
            elif kind in _NAMES:
                maker.other(kind, index)
            else:
                maker.broken(kind, index)
    (root / "2019" / "loop").symlink_to(root)
    (root / "2024" / "back").symlink_to("../2019/01")
    for path in root.rglob("*"):
        os.utime(path, (DATE, DATE), follow_symlinks=False)
    return maker.mixed


def _fixed(maker: _Maker) -> int:
    """Write the files that are there once; return how many."""
    root = maker.mixed.root
    for name in (".DS_Store", "Thumbs.db", ".picasa.ini", "desktop.ini"):
        maker.write("system file", root / name, b"\0" * 64)
    maker.write("closed", root / "private" / ".nomedia", b"")
    maker.write("closed", root / "private" / "deep" / "face.png", _picture("PNG", 0))
    return maker.mixed.files


def _picture(form: str, index: int) -> bytes:
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 256, (24 + index % 17, 32 + index % 13, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if form == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


if __name__ == "__main__":
    made = make_mixed_folder(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3000)
    print(f"{made.files} files, {made.pictures} pictures:", dict(made.counts))

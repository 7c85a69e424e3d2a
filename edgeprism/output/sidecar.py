"""A file for each picture, beside it or in a mirrored folder: `photo.txt` or `photo.xmp`.

Which name a sidecar gets follows from the folder's own pictures, never from the order of work:
`photo.jpg` → `photo.txt`, but where two pictures would share that name (`photo.jpg`, `photo.png`,
`Photo.JPG`; or `a.jpg`, `a.jpg.png`) each uses its full name, `photo.jpg.txt`. Names count as
equal when they differ only in case or in how accents are composed, as some disks do. Pictures
whose full names are equal in that sense also get a part of their name's hash.

The picture itself is never opened, nor its date changed. What EdgePrism did not write stays.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.errors import OutputError
from edgeprism.files.atomic import (
    MAX_NAME_BYTES,
    clear_leftovers,
    output_error,
    shortened,
    write_atomically,
)
from edgeprism.output.streams import Record, record_to_dict
from edgeprism.output.xmp import MAX_XMP_BYTES, merge_description, read_description, to_xml_text
from edgeprism.output.xmp_tree import XmpError
from edgeprism.picture.find import PictureFile, has_picture_suffix

MAX_TXT_BYTES = 1 << 20
_FOLDERS_KEPT = 16


@dataclass(frozen=True)
class Written:
    """A sidecar that now holds its record."""

    path: Path  # absolute
    sha256: str  # of the file's bytes


class Sidecar:
    """What both kinds share. Not thread-safe.

    `out_dir` mirrors the pictures' folders instead of writing beside them; `overwrite` replaces
    what EdgePrism did not write.
    """

    suffix = ""
    most_bytes = 0

    def __init__(
        self,
        *,
        out_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        self._out_dir = None if out_dir is None else Path(out_dir).absolute()
        self._overwrite = overwrite
        self._folders = _Folders()
        self._cleared: set[Path] = set()

    def target(self, picture: PictureFile) -> Path:
        """The sidecar's absolute path; raises OutputError for the picture on standard input."""
        if picture.is_stdin:
            raise OutputError(
                "A picture on standard input has no place for a sidecar.",
                "Save it to a file, or print its caption.",
            )
        # not resolved: a linked picture's sidecar belongs beside the link
        folder = picture.path.parent.absolute()
        pictures = self._folders.pictures(folder)
        name = _sidecar_name(picture.path.name, pictures, self.suffix)
        if self._out_dir is not None:
            folder = self._out_dir / picture.relative.parent
        return folder / name

    def write(self, record: Record, picture: PictureFile) -> Written:
        """Bring the picture's sidecar up to the record, in one step or not at all.

        Raises OutputError, which names the file or folder; the file is then as it was.
        """
        path = self.target(picture)
        try:
            if self._out_dir is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in self._cleared:
                self._cleared.add(path.parent)
                clear_leftovers(path.parent, _names(path.parent), suffix=self.suffix)
            existing = _read_existing(path, self.most_bytes)
        except (OSError, ValueError) as error:
            raise output_error(path, error) from error
        data = self._content(path, existing, record_to_dict(record))
        if data != existing:
            # a rename lost with the power is written again by the next run: no need to wait
            # for the folder each time
            write_atomically(path, data, durable=False)
        return Written(path, hashlib.sha256(data).hexdigest())

    def _content(self, path: Path, existing: bytes | None, record: dict[str, Any]) -> bytes:
        raise NotImplementedError


class TxtSidecar(Sidecar):
    """`photo.txt`: the caption and a line feed, in UTF-8.

    `written_before(path)` tells the sha256 of what EdgePrism last wrote at an absolute path, if
    anything: a file that still has it may be replaced, any other only with `overwrite`.
    """

    suffix = ".txt"
    most_bytes = MAX_TXT_BYTES

    def __init__(
        self,
        *,
        out_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        written_before: Callable[[Path], str | None] | None = None,
    ) -> None:
        super().__init__(out_dir=out_dir, overwrite=overwrite)
        self._written_before = written_before

    def _content(self, path: Path, existing: bytes | None, record: dict[str, Any]) -> bytes:
        data = (str(record["caption"]) + "\n").encode("utf-8", "replace")
        if existing is None or existing == data:
            return data
        if b"\0" in existing or len(existing) > self.most_bytes:
            # overwriting is meant for texts: this may be a picture, or anything of value
            raise OutputError(f"{path}: exists and is no caption.", "Move it away first.")
        if self._overwrite:
            return data
        before = None if self._written_before is None else self._written_before(path)
        if before != hashlib.sha256(existing).hexdigest():
            raise _not_ours(path, "exists and is not EdgePrism's, or was changed since")
        return data


class XmpSidecar(Sidecar):
    """`photo.xmp`, by Adobe's convention.

    The caption becomes the x-default text of dc:description; all else in an existing sidecar
    stays as it is, byte for byte. A description that is not EdgePrism's own, or was changed
    since, is replaced only with `overwrite`.
    """

    suffix = ".xmp"
    most_bytes = MAX_XMP_BYTES

    def _content(self, path: Path, existing: bytes | None, record: dict[str, Any]) -> bytes:
        text = str(record["caption"])
        try:
            if existing is not None and not self._overwrite:
                there = read_description(existing)
                known = there.is_ours or there.text in ("", to_xml_text(text))
                if not known and there.text.strip():
                    raise _not_ours(path, "holds a description that is not EdgePrism's")
            return merge_description(existing, text, _provenance(record))
        except XmpError as error:
            raise OutputError(f"{path}: {error}.", "Repair it, or move it away.") from error


def _provenance(record: dict[str, Any]) -> dict[str, str]:
    model = record.get("model", {})
    fields = {
        "model": model.get("name"),
        "modelDigest": model.get("digest"),
        "visionQuant": model.get("vision_quant"),
        "lmQuant": model.get("lm_quant"),
        "instruction": record.get("instruction"),
        "version": record.get("version"),
        "imageSha256": record.get("image_sha256"),
    }
    return {name: str(value) for name, value in fields.items() if value}


def _not_ours(path: Path, what: str) -> OutputError:
    return OutputError(f"{path}: {what}; it was left alone.", "Move it away, or give `overwrite`.")


@dataclass(frozen=True)
class _Pictures:
    """A folder's pictures, by names that are equal on a disk that ignores case."""

    names: frozenset[str]
    same_stem: Counter[str]
    same_name: Counter[str]


class _Folders:
    """Listings of the folders that were last asked for; one run sees each folder one way."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, _Pictures | None] = OrderedDict()

    def pictures(self, folder: Path) -> _Pictures | None:
        """None for a folder that cannot be listed."""
        if folder not in self._kept:
            try:
                names = frozenset(filter(has_picture_suffix, os.listdir(folder)))
                stems = Counter(_key(os.path.splitext(name)[0]) for name in names)
                self._kept[folder] = _Pictures(names, stems, Counter(map(_key, names)))
            except OSError:
                self._kept[folder] = None
            if len(self._kept) > _FOLDERS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(folder)
        return self._kept[folder]


def _sidecar_name(name: str, pictures: _Pictures | None, suffix: str) -> str:
    stem = os.path.splitext(name)[0]
    chosen = stem + suffix
    if pictures is None:  # nothing to judge by: the form that collides least
        chosen = name + suffix
    else:
        itself = int(name in pictures.names)
        shared = pictures.same_stem[_key(stem)] > itself or _key(stem) in pictures.same_name
        if shared or _key(chosen) == _key(name):
            chosen = name + suffix
        if pictures.same_name[_key(name)] > itself:
            chosen = f"{name}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{suffix}"
    return shortened(chosen, MAX_NAME_BYTES)


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except PermissionError:
        return []  # one may write in a folder that one may not read


def _read_existing(path: Path, most: int) -> bytes | None:
    """None where nothing is; at most one byte over `most`."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        # never through a link: it may lead to any file of the user's
        raise OutputError(f"{path}: is a link or no regular file.", "Move it away first.")
    with path.open("rb") as file:
        return file.read(most + 1)

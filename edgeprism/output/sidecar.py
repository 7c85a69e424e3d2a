"""Sidecars: a file for each picture, next to it or in a mirrored folder (`photo.txt`, `photo.xmp`).

A sidecar's name depends on the pictures in its folder, never on the order of work: `photo.jpg` →
`photo.txt`, but if two pictures would share that name (`photo.jpg`, `photo.png`, `Photo.JPG`; or
`a.jpg`, `a.jpg.png`) each uses its full name, `photo.jpg.txt`. Two names count as equal if they
differ only in case or in how accents are composed, because some disks treat them as equal.
Pictures whose full names are equal in that sense also get a part of their name's hash.

EdgePrism never opens the picture or changes its date, and never replaces a file that it did not
write, unless the user allows it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
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
from edgeprism.output.places import is_same_file
from edgeprism.output.streams import Record, record_to_dict
from edgeprism.output.xmp import merge_description, read_description, to_xml_text
from edgeprism.output.xmp_encoding import MAX_XMP_BYTES
from edgeprism.output.xmp_tree import XmpError
from edgeprism.picture.find import PictureFile
from edgeprism.picture.kinds import has_picture_suffix

MAX_TXT_BYTES = 1 << 20
_MAX_FOLDERS = 16


@dataclass(frozen=True)
class Written:
    """A sidecar that holds its record."""

    path: Path  # absolute
    sha256: str  # of the file's bytes


class Sidecar:
    """The base class of both kinds. Not thread-safe.

    With `out_dir`, sidecars go into a mirror of the pictures' folders instead of next to the
    pictures. With `overwrite`, they also replace what other programs wrote, but never a file of
    `reserved`: the lists that the caller reads, and its other outputs.
    """

    suffix = ""
    max_bytes = 0

    def __init__(
        self,
        *,
        out_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        reserved: Iterable[Path] = (),
    ) -> None:
        self._reserved = [*reserved]
        self._out_dir = None if out_dir is None else Path(out_dir).absolute()
        self._overwrite = overwrite
        self._folders = _Folders()
        self._cleared: set[Path] = set()

    def target(self, picture: PictureFile) -> Path:
        """Return the sidecar's absolute path; raises OutputError for standard input."""
        if picture.is_stdin:
            raise OutputError(
                "A picture on standard input has no place for a sidecar.",
                "Save it to a file, or print its caption.",
            )
        # The path is not resolved, because a linked picture's sidecar belongs next to the link.
        folder = picture.path.parent.absolute()
        pictures = self._folders.pictures(folder)
        name = _sidecar_name(picture.path.name, pictures, self.suffix)
        if self._out_dir is not None:
            folder = self._out_dir / picture.relative.parent
        return folder / name

    def write(self, record: Record, picture: PictureFile) -> Written:
        """Write the record into the picture's sidecar, atomically.

        Raises OutputError, which names the file or folder and leaves the file unchanged.
        """
        path = self.target(picture)
        if is_same_file(path, self._reserved):
            raise OutputError(
                f"{path}: is a list or another result of this command, so no sidecar replaces it.",
                "Give that file another name.",
            )
        try:
            if self._out_dir is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in self._cleared:
                self._cleared.add(path.parent)
                clear_leftovers(path.parent, _names(path.parent), suffix=self.suffix)
            existing = _read_existing(path, self.max_bytes)
        except (OSError, ValueError) as error:
            raise output_error(path, error) from error
        data = self._content(path, existing, record_to_dict(record))
        if data != existing:
            # No fsync of the folder: if a power cut loses the rename, the next run writes it again.
            write_atomically(path, data, durable=False)
        return Written(path, hashlib.sha256(data).hexdigest())

    def _content(self, path: Path, existing: bytes | None, record: dict[str, Any]) -> bytes:
        raise NotImplementedError


class TxtSidecar(Sidecar):
    """`photo.txt`: the caption and a line feed, in UTF-8.

    `written_before(path)` returns the sha256 of what EdgePrism last wrote to an absolute path, or
    None. A file with that sha256 may be replaced; any other file only with `overwrite`.
    """

    suffix = ".txt"
    max_bytes = MAX_TXT_BYTES

    def __init__(
        self,
        *,
        out_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        reserved: Iterable[Path] = (),
        written_before: Callable[[Path], str | None] | None = None,
    ) -> None:
        super().__init__(out_dir=out_dir, overwrite=overwrite, reserved=reserved)
        self._written_before = written_before

    def _content(self, path: Path, existing: bytes | None, record: dict[str, Any]) -> bytes:
        data = (str(record["caption"]) + "\n").encode("utf-8", "replace")
        if existing is None or existing == data:
            return data
        if b"\0" in existing or len(existing) > self.max_bytes:
            # `overwrite` is meant for texts, and this file may be a picture or an archive.
            raise OutputError(f"{path}: exists and is not a caption.", "Move it away first.")
        if self._overwrite:
            return data
        before = None if self._written_before is None else self._written_before(path)
        if before != hashlib.sha256(existing).hexdigest():
            raise _foreign(path, "exists, and EdgePrism did not write it or it was changed since")
        return data


class XmpSidecar(Sidecar):
    """`photo.xmp`, by Adobe's convention.

    The caption becomes the x-default text of dc:description; everything else in an existing
    sidecar stays the same, byte for byte. A description that another program wrote, or that was
    changed since, is replaced only with `overwrite`.
    """

    suffix = ".xmp"
    max_bytes = MAX_XMP_BYTES

    def _content(self, path: Path, existing: bytes | None, record: dict[str, Any]) -> bytes:
        text = str(record["caption"])
        try:
            if existing is not None and not self._overwrite:
                old = read_description(existing)
                if not (old.by_edgeprism or old.is_empty):
                    if old.is_plain and old.text == to_xml_text(text):
                        return existing  # it says the same already, in somebody's own words
                    raise _foreign(path, "holds a description that EdgePrism did not write")
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


def _foreign(path: Path, fact: str) -> OutputError:
    return OutputError(f"{path}: {fact}; it was left alone.", "Move it away, or give `overwrite`.")


@dataclass(frozen=True)
class _Pictures:
    """A folder's pictures, counted by names that a disk may treat as equal."""

    names: frozenset[str]
    same_stem: Counter[str]
    same_name: Counter[str]


class _Folders:
    """Cached listings of the last folders: pictures added during a run do not rename sidecars."""

    def __init__(self) -> None:
        self._listings: OrderedDict[Path, _Pictures | None] = OrderedDict()

    def pictures(self, folder: Path) -> _Pictures | None:
        """Return a folder's pictures; None if it cannot be listed."""
        if folder not in self._listings:
            try:
                names = frozenset(filter(has_picture_suffix, os.listdir(folder)))
                stems = Counter(_key(os.path.splitext(name)[0]) for name in names)
                self._listings[folder] = _Pictures(names, stems, Counter(map(_key, names)))
            except OSError:
                self._listings[folder] = None
            if len(self._listings) > _MAX_FOLDERS:
                self._listings.popitem(last=False)
        self._listings.move_to_end(folder)
        return self._listings[folder]


def _sidecar_name(name: str, pictures: _Pictures | None, suffix: str) -> str:
    stem = os.path.splitext(name)[0]
    chosen = stem + suffix
    if pictures is None:  # the folder cannot be listed; the full name collides least
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
        return []  # a folder may be writable but not readable


def _read_existing(path: Path, limit: int) -> bytes | None:
    """Read up to `limit` + 1 bytes; return None if there is no file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        # A link may lead to any file of the user, so EdgePrism does not write through it.
        raise OutputError(f"{path}: is a link or not a regular file.", "Move it away first.")
    with path.open("rb") as file:
        return file.read(limit + 1)

"""The names of sidecars: `photo.txt` or `photo.jpg.txt` for `photo.jpg`.

Two forms are in use: the picture's stem (`photo.xmp`, by Adobe's convention) and its full name
(`photo.jpg.xmp`, as darktable and digiKam write it). A sidecar that exists is used, under either
name; if both exist, the full name, which can belong to no other picture. A new one gets the form
that the user chose, by default the stem.

The stem is never used if another picture of the folder could claim it: `IMG.jpg` beside `IMG.png`,
or, for XMP, beside the raw file `IMG.NEF`, whose programs read `IMG.xmp`. Two names count as equal
if they differ only in case or in how accents are composed, because some disks treat them as equal.
Pictures whose full names are equal in that sense also get a part of their name's hash.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeprism.files.atomic import MAX_NAME_BYTES, shortened
from edgeprism.picture.kinds import has_picture_suffix

SidecarName = Literal["stem", "full"]

_MAX_FOLDERS = 16
# Pictures that EdgePrism may not read, but whose programs keep their edits in an XMP sidecar.
_WITH_XMP = frozenset(
    {".3fr", ".arw", ".bay", ".cap", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff",
     ".iiq", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".k25", ".kdc", ".mef", ".mos", ".mrw",
     ".nef", ".nrw", ".orf", ".pef", ".psb", ".psd", ".ptx", ".raf", ".raw", ".rw2", ".rwl",
     ".sr2", ".srf", ".srw", ".x3f"}
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A sidecar's file name, and another of the picture's that exists as well."""

    name: str
    also: str = ""


@dataclass(frozen=True)
class _Listing:
    """A folder's names, by names that a disk may treat as equal."""

    names: frozenset[str]  # of pictures
    same_stem: Counter[str]
    same_name: Counter[str]
    stems_with_xmp: frozenset[str]  # of pictures of other kinds, such as raw files
    sidecars: dict[str, list[str]]  # key → names of .txt and .xmp files


class SidecarNames:
    """Chooses names from cached listings of the last folders.

    So a picture that is added during a run does not rename sidecars.
    """

    def __init__(self, suffix: str, form: SidecarName = "stem") -> None:
        self._suffix, self._form = suffix, form
        self._listings: OrderedDict[Path, _Listing | None] = OrderedDict()

    def place(self, picture: str, pictures: Path, sidecars: Path) -> Place:
        """Return the name for the picture of that name in the folder `pictures`.

        `sidecars` is the folder of the sidecar, which may be another.
        """
        listing = self._listing(pictures)
        new = _new_name(picture, listing, self._suffix, self._form)
        there = self._listing(sidecars)
        if listing is None or there is None:
            return Place(new)
        full = _existing(_full_name(picture, listing, self._suffix), there)
        stem = os.path.splitext(picture)[0] + self._suffix
        alone = _new_name(picture, listing, self._suffix, "stem") == shortened(stem, MAX_NAME_BYTES)
        short = _existing(stem, there) if alone else ""
        return Place(full or short or new, short if full else "")

    def existing(self, picture: str, pictures: Path, sidecars: Path) -> list[str]:
        """Return the names of all sidecars that could be this picture's."""
        listing, there = self._listing(pictures), self._listing(sidecars)
        if there is None:
            return []
        stem = os.path.splitext(picture)[0] + self._suffix
        names = [stem, picture + self._suffix, _full_name(picture, listing, self._suffix)]
        found = (_existing(shortened(name, MAX_NAME_BYTES), there) for name in names)
        return list(dict.fromkeys(name for name in found if name))

    def _listing(self, folder: Path) -> _Listing | None:
        """Return a folder's listing; None if it cannot be listed."""
        if folder not in self._listings:
            try:
                self._listings[folder] = _listing_of(os.listdir(folder), self._suffix)
            except OSError:
                self._listings[folder] = None
            if len(self._listings) > _MAX_FOLDERS:
                self._listings.popitem(last=False)
        self._listings.move_to_end(folder)
        return self._listings[folder]


def _listing_of(names: list[str], suffix: str) -> _Listing:
    pictures = frozenset(filter(has_picture_suffix, names))
    sidecars: dict[str, list[str]] = {}
    others: set[str] = set()
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() == suffix:
            sidecars.setdefault(_key(name), []).append(name)
        elif ending.lower() in _WITH_XMP and name not in pictures:
            others.add(_key(stem))
    stems = Counter(_key(os.path.splitext(name)[0]) for name in pictures)
    with_xmp = frozenset(others if suffix == ".xmp" else ())
    return _Listing(pictures, stems, Counter(map(_key, pictures)), with_xmp, sidecars)


def _new_name(picture: str, listing: _Listing | None, suffix: str, form: SidecarName) -> str:
    stem = os.path.splitext(picture)[0]
    chosen = stem + suffix
    full = _full_name(picture, listing, suffix)
    if listing is None or form == "full":  # without a listing the full name collides least
        return full
    itself = int(picture in listing.names)
    shared = (
        listing.same_stem[_key(stem)] > itself
        or _key(stem) in listing.same_name
        or (_key(stem) in listing.stems_with_xmp and not _is_other(picture))
    )
    if shared or _key(chosen) == _key(picture):
        return full
    if listing.same_name[_key(picture)] > itself:
        return full
    return shortened(chosen, MAX_NAME_BYTES)


def _full_name(picture: str, listing: _Listing | None, suffix: str) -> str:
    name = picture + suffix
    if listing is not None and listing.same_name[_key(picture)] > int(picture in listing.names):
        digest = hashlib.sha256(os.fsencode(picture)).hexdigest()
        name = f"{picture}.{digest[:8]}{suffix}"
    return shortened(name, MAX_NAME_BYTES)


def _existing(name: str, listing: _Listing) -> str:
    """Return the file that has this name, perhaps written in other letters; "" if there is none.

    A program may write `photo.XMP`; on a disk that keeps such names apart there may be several,
    and then only the very name counts.
    """
    names = listing.sidecars.get(_key(name), [])
    if name in names:
        return name
    return names[0] if len(names) == 1 else ""


def _is_other(picture: str) -> bool:
    return os.path.splitext(picture)[1].lower() in _WITH_XMP


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

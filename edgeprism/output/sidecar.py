"""Sidecars: a file for each picture, next to it or in a mirrored folder (`photo.txt`, `photo.xmp`).

EdgePrism never opens the picture or changes its date, and never replaces a text that it did not
write, unless the user allows it; then the former text is kept (`edgeprism.output.undo` brings it
back). `edgeprism.output.sidecar_names` chooses the names.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeprism.errors import OutputError
from edgeprism.files.atomic import clear_leftovers, output_error, write_atomically
from edgeprism.output.authorship import Authorship, Known, Outputs
from edgeprism.output.originals import Original, Originals
from edgeprism.output.places import is_same_file
from edgeprism.output.sidecar_names import SidecarName, SidecarNames
from edgeprism.output.streams import Record, record_to_dict
from edgeprism.output.txt import MAX_TXT_BYTES, appended_text, is_blank, is_text
from edgeprism.output.xmp import (
    append_description,
    merge_description,
    read_description,
    to_xml_text,
)
from edgeprism.output.xmp_description import Described
from edgeprism.output.xmp_encoding import MAX_XMP_BYTES
from edgeprism.output.xmp_tree import XmpError
from edgeprism.picture.find import PictureFile

# What happens where somebody else's text stands: it is left alone, or the caption takes its place,
# or follows it.
OtherTexts = Literal["leave", "overwrite", "append"]


class OwnTextError(OutputError):
    """The picture has a text of its own, which EdgePrism did not write; it was left alone."""


@dataclass(frozen=True)
class Written:
    """A sidecar that holds its record."""

    path: Path  # absolute
    sha256: str  # of the file's bytes


class Sidecar:
    """The base class of both kinds. Not thread-safe.

    With `out_dir`, sidecars go into a mirror of the pictures' folders instead of next to the
    pictures. With `overwrite`, they also replace what other programs wrote, with `append` they
    continue it; but never a file of `reserved`: the lists that the caller reads, and its other
    outputs. `name_form` is the form of new sidecars' names.
    """

    suffix = ""
    max_bytes = 0

    def __init__(
        self,
        *,
        out_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        append: bool = False,
        name_form: SidecarName = "stem",
        reserved: Iterable[Path] = (),
    ) -> None:
        self._reserved = [*reserved]
        self._out_dir = None if out_dir is None else Path(out_dir).absolute()
        self._others: OtherTexts = "overwrite" if overwrite else "append" if append else "leave"
        self._names = SidecarNames(self.suffix, name_form)
        self._cleared: set[Path] = set()

    def target(self, picture: PictureFile) -> Path:
        """Return the sidecar's absolute path; raises OutputError for standard input."""
        folder, sidecars = self._folders(picture)
        return sidecars / self._names.place(picture.path.name, folder, sidecars).name

    def twin(self, picture: PictureFile) -> Path | None:
        """Return another sidecar of the picture, which is not used; None if there is none."""
        folder, sidecars = self._folders(picture)
        also = self._names.place(picture.path.name, folder, sidecars).also
        return sidecars / also if also else None

    def existing(self, picture: PictureFile) -> list[Path]:
        """Return every sidecar of the picture that exists, under any name."""
        folder, sidecars = self._folders(picture)
        names = self._names.existing(picture.path.name, folder, sidecars)
        return [sidecars / name for name in names]

    def check(self, picture: PictureFile) -> None:
        """Raise what `write` would raise whatever the caption is; this needs no caption.

        Raises OwnTextError if somebody else's text is in the sidecar, another OutputError if the
        sidecar cannot be changed.
        """
        path = self.target(picture)
        self._check(path, self._read(path))
        check_changeable(path)

    def write(self, record: Record, picture: PictureFile) -> Written:
        """Write the record into the picture's sidecar, atomically.

        Raises OwnTextError or another OutputError, which names the file or folder and leaves the
        file unchanged.
        """
        path = self.target(picture)
        try:
            if self._out_dir is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in self._cleared:
                self._cleared.add(path.parent)
                clear_leftovers(path.parent, _listed(path.parent), suffix=self.suffix)
        except (OSError, ValueError) as error:
            raise output_error(path, error) from error
        existing = self._read(path)
        data = self._content(path, existing, record_to_dict(record))
        if data != existing:
            check_changeable(path)
            # No fsync of the folder: if a power cut loses the rename, the next run writes it again.
            write_atomically(path, data, durable=False)
        return Written(path, hashlib.sha256(data).hexdigest())

    def _folders(self, picture: PictureFile) -> tuple[Path, Path]:
        """Return the picture's folder and the sidecar's."""
        if picture.is_stdin:
            raise OutputError(
                "A picture on standard input has no place for a sidecar.",
                "Save it to a file, or print its caption.",
            )
        # The path is not resolved, because a linked picture's sidecar belongs next to the link.
        folder = picture.path.parent.absolute()
        if self._out_dir is None:
            return folder, folder
        return folder, self._out_dir / picture.relative.parent

    def _read(self, path: Path) -> bytes | None:
        if is_same_file(path, self._reserved):
            raise OutputError(
                f"{path}: is a list or another result of this command, so no sidecar replaces it.",
                "Give that file another name.",
            )
        try:
            return read_sidecar(path, self.max_bytes)
        except (OSError, ValueError) as error:
            raise output_error(path, error) from error

    def _check(self, path: Path, existing: bytes | None) -> None:
        raise NotImplementedError

    def _content(self, path: Path, existing: bytes | None, record: dict[str, Any]) -> bytes:
        raise NotImplementedError


class TxtSidecar(Sidecar):
    """`photo.txt`: the caption and a line feed, in UTF-8.

    `outputs` knows what EdgePrism wrote. Such a text may be replaced; any other only with
    `overwrite`, which keeps it in `originals`.
    """

    suffix = ".txt"
    max_bytes = MAX_TXT_BYTES

    def __init__(
        self,
        *,
        out_dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        append: bool = False,
        name_form: SidecarName = "stem",
        reserved: Iterable[Path] = (),
        outputs: Outputs | None = None,
        originals: Originals | None = None,
    ) -> None:
        super().__init__(
            out_dir=out_dir,
            overwrite=overwrite,
            append=append,
            name_form=name_form,
            reserved=reserved,
        )
        self._authorship = Authorship(outputs, originals)

    def _check(self, path: Path, existing: bytes | None) -> None:
        if existing is None or is_blank(existing):
            return
        known = self._authorship.find(path, existing)
        if known is None or _is_continued(known):
            self._check_own_text(path, existing)

    def _check_own_text(self, path: Path, existing: bytes) -> None:
        if self._others == "leave":
            raise _own_text(path, "exists, and EdgePrism did not write it or it was changed since")
        if not is_text(existing):
            # `overwrite` is meant for texts, and this file may be a picture or an archive.
            raise OutputError(f"{path}: exists and is not a caption.", "Move it away first.")

    def _content(self, path: Path, existing: bytes | None, record: dict[str, Any]) -> bytes:
        caption = str(record["caption"])
        data = (caption + "\n").encode("utf-8", "replace")
        if existing is None:
            return self._replace(path, None, data)
        known = self._authorship.find(path, existing)
        if known is not None and not _is_continued(known):
            if existing == data and known.place == path:
                return data
            former = None if known.original is None else known.original.content
            return self._replace(path, former, data)
        if known is None and existing == data:
            return existing  # somebody says the same already, and it stays somebody's
        if is_blank(existing):
            return self._replace(path, existing, data)
        self._check_own_text(path, existing)
        if known is not None and known.original is not None:
            # The person may have gone on writing in front of what EdgePrism appended.
            existing = existing.removesuffix(known.original.appended)
        if self._others != "append" or is_blank(existing):
            return self._replace(path, existing, data)
        tail = appended_text(path, existing, caption)
        if tail:
            self._keep(path, existing, tail, existing + tail)
        return existing + tail

    def _replace(self, path: Path, former: bytes | None, data: bytes) -> bytes:
        """Remember that `data` replaces somebody's text, or none; return `data`."""
        if former is not None:
            self._keep(path, former, b"", data)
        else:
            check_changeable(path)
            self._authorship.remember(path, data)
        return data

    def _keep(self, path: Path, content: bytes, appended: bytes, whole: bytes) -> None:
        check_changeable(path)
        digest = hashlib.sha256(whole).hexdigest()
        self._authorship.keep(path, Original(content, appended, digest))


class XmpSidecar(Sidecar):
    """`photo.xmp`, by Adobe's convention.

    The caption becomes the x-default text of dc:description; everything else in an existing
    sidecar stays the same, byte for byte. A description that another program wrote, or that was
    changed since, is replaced only with `overwrite`.
    """

    suffix = ".xmp"
    max_bytes = MAX_XMP_BYTES

    def _check(self, path: Path, existing: bytes | None) -> None:
        try:
            self._check_description(path, read_description(existing or b""))
        except XmpError as error:
            raise xmp_error(path, error) from error

    def _check_description(self, path: Path, old: Described) -> None:
        if old.by_edgeprism or old.is_empty or self._others == "overwrite":
            return
        if self._others == "leave":
            raise _own_text(path, "holds a description that EdgePrism did not write")
        if not old.is_plain:
            raise _own_text(path, "holds a description in a form that no text can follow")

    def _content(self, path: Path, existing: bytes | None, record: dict[str, Any]) -> bytes:
        text = str(record["caption"])
        try:
            old = read_description(existing or b"")
            is_theirs = old.is_plain and not old.by_edgeprism and self._others != "overwrite"
            if existing and is_theirs and old.text == to_xml_text(text):
                return existing  # it says the same already, in somebody's own words
            self._check_description(path, old)
            merge = append_description if self._others == "append" else merge_description
            return merge(existing, text, _provenance(record))
        except XmpError as error:
            raise xmp_error(path, error) from error


def _is_continued(known: Known) -> bool:
    """Return whether the text is somebody's, with EdgePrism's words behind it."""
    return known.original is not None and bool(known.original.appended)


def read_sidecar(path: Path, limit: int) -> bytes | None:
    """Read up to `limit` + 1 bytes; return None if there is no file.

    Raises OutputError for a file that is not to be changed, OSError if it cannot be read.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        # A link may lead to any file of the user, so EdgePrism does not write through it.
        raise OutputError(f"{path}: is a link or not a regular file.", "Move it away first.")
    with path.open("rb") as file:
        return file.read(limit + 1)


def check_changeable(path: Path) -> None:
    """Raise OutputError for a file that must not be replaced by another of its name."""
    try:
        status = os.lstat(path)
    except OSError:
        return  # there is none
    if not status.st_mode & 0o222:
        raise OutputError(
            f"{path}: is write-protected, so it was left alone.",
            "Allow writing to it (chmod u+w), or put sidecars elsewhere with `out_dir`.",
        )
    if status.st_nlink > 1:
        raise OutputError(
            f"{path}: has another name too (a hard link), under which its former text would stay.",
            "Replace it by a copy, or put sidecars elsewhere with `out_dir`.",
        )


def xmp_error(path: Path, error: XmpError) -> OutputError:
    """Return the error that names the sidecar."""
    return OutputError(f"{path}: {error}.", "Repair it, or move it away.")


def _provenance(record: dict[str, Any]) -> dict[str, str]:
    model = record.get("model", {})
    fields = {
        "model": model.get("name"),
        "modelDigest": model.get("digest"),
        "visionQuant": model.get("vision_quant"),
        "lmQuant": model.get("lm_quant"),
        "visualTokens": _kept_tokens(record),
        "instruction": record.get("instruction"),
        "version": record.get("version"),
        "imageSha256": record.get("image_sha256"),
    }
    return {name: str(value) for name, value in fields.items() if value}


def _kept_tokens(record: dict[str, Any]) -> str | None:
    """Return how many visual tokens stayed of how many, where some were left out."""
    reduction, tokens = record.get("reduction"), record.get("tokens", {})
    if not reduction:
        return None
    return f"{tokens.get('visual')} of {reduction['encoded']}, {reduction['method']}"


def _own_text(path: Path, fact: str) -> OwnTextError:
    return OwnTextError(
        f"{path}: {fact}; it was left alone.",
        "Move it away, or give `append` or `overwrite`.",
    )


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except PermissionError:
        return []  # a folder may be writable but not readable

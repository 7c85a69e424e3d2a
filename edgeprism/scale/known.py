"""What an earlier run put out: which pictures it captioned, by content, settings and name."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgeprism.errors import OutputError
from edgeprism.scale.arrow import compute
from edgeprism.scale.columns import SCHEMA, UNREAD, Row, text_of
from edgeprism.scale.names import picture_name, without_name
from edgeprism.scale.storage import Place

_COLUMNS = ["image", "image_sha256", "request", "error_kind", "error"]
_READERS = 16  # Parquet files that are read at a time


@dataclass(frozen=True)
class Known:
    """The rows of an output as it was at one moment, in 44 bytes each.

    It is read once and shared: an actor that starts later must not see what others put out
    meanwhile, because a task that Ray repeats has to come to the same rows.
    """

    place: Place
    parts: tuple[str, ...]
    captions: np.ndarray  # sorted keys of captions, S16
    in_part: np.ndarray  # of each of them: the number of its part; −1: a row without a caption
    named: np.ndarray  # sorted keys of rows with their pictures' names, S16
    failed: np.ndarray  # of each of them: the number of its error; −1: it has a caption
    errors: tuple[str, ...]  # each once
    unread: tuple[str, ...] = ()  # parts with rows of files that nobody could read

    @classmethod
    def read(cls, output: str | os.PathLike[str] | Place) -> Known:
        """Read an output folder of Parquet files; one that does not exist holds nothing.

        Raises OutputError if it cannot be listed, or a file in it is damaged or no caption's.
        """
        place = output if isinstance(output, Place) else Place.of(output)
        parts = tuple(place.parts())
        captions, in_part, named, failed, unread = [], [], [], [], []
        errors: dict[str, int] = {}
        with ThreadPoolExecutor(_READERS) as pool:
            tables = pool.map(lambda part: place.read_part(part, _COLUMNS), parts)
            for number, table in enumerate(tables):
                if UNREAD in table["error_kind"].to_pylist():
                    unread.append(parts[number])
                for row in table.to_pylist():
                    if row["image_sha256"] is None:
                        continue
                    if row["request"] is None or row["image"] is None:
                        raise OutputError(
                            f"{place}/{parts[number]}: a row has no name, or no request.",
                            "Delete it if it is damaged: its pictures are captioned again.",
                        )
                    captions.append(_key(row["image_sha256"], row["request"]))
                    in_part.append(number if row["error_kind"] is None else -1)
                    image = picture_name(row["image"])
                    named.append(_key(row["image_sha256"], row["request"], image))
                    if row["error_kind"] is None:
                        failed.append(-1)
                    else:  # files of earlier versions have the name before an error
                        error = without_name(row["error"] or "", image)
                        failed.append(errors.setdefault(error, len(errors)))
        by_name = np.argsort(np.array(named, "S16"), kind="stable")
        order = np.argsort(np.array(captions, "S16"), kind="stable")
        return cls(
            place,
            parts,
            np.array(captions, "S16")[order],
            np.array(in_part, np.int32)[order],
            np.array(named, "S16")[by_name],
            np.array(failed, np.int32)[by_name],
            tuple(errors),
            tuple(unread),
        )

    def __repr__(self) -> str:
        failed = int((self.failed >= 0).sum())
        return f"<Known {self.place}: {len(self)} rows, {failed} without a caption>"

    def __len__(self) -> int:
        return len(self.named)

    def forget_unread(self) -> None:
        """Take rows of files that nobody could read out of the output: they get another row.

        Raises OutputError.
        """
        for part in self.unread:
            table = self.place.read_part(part, SCHEMA.names)
            left = table.filter(
                compute.fill_null(compute.not_equal(table["error_kind"], UNREAD), True)
            )
            if left.num_rows:
                self.place.write_part(part, left)
            else:
                self.place.delete_part(part)

    def has(self, image: str, image_sha256: str, request: str) -> bool:
        """Return whether there is a row of this picture, under this name, with these settings."""
        return _find(self.named, _key(image_sha256, request, image)) is not None

    def error_of(self, image: str, image_sha256: str, request: str) -> str | None:
        """Return the error of a picture that there is a row of, but no caption; else None."""
        place = _find(self.named, _key(image_sha256, request, image))
        if place is None or self.failed[place] < 0:
            return None
        return self.errors[int(self.failed[place])]

    def has_caption(self, image_sha256: str, request: str) -> bool:
        """Return whether there is a caption of this content, under whatever name."""
        return self._caption_part(image_sha256, request) is not None

    def row_of(self, image: str, image_sha256: str, request: str) -> Row | None:
        """Return the row of the same picture under another name, as one for `image`.

        None if there is none with a caption.
        """
        part = self._caption_part(image_sha256, request)
        return None if part is None else self._copied(part, image, image_sha256, request)

    def _caption_part(self, image_sha256: str, request: str) -> str | None:
        """Return the part with a caption of this content; None if there is none."""
        key = _key(image_sha256, request)
        first = _find(self.captions, key)
        while first is not None and first < len(self.captions) and self.captions[first] == key:
            if self.in_part[first] >= 0:
                return self.parts[int(self.in_part[first])]
            first += 1
        return None

    def _copied(self, part: str, image: str, image_sha256: str, request: str) -> Row | None:
        table = self.place.read_part(part, SCHEMA.names)
        wanted = compute.and_(
            compute.equal(table["image_sha256"], image_sha256),
            compute.and_(
                compute.equal(table["request"], request), compute.is_valid(table["caption"])
            ),
        )
        rows = table.filter(wanted).slice(0, 1).to_pylist()
        return {**rows[0], "image": text_of(image)} if rows else None


def _key(*parts: str) -> bytes:
    """Return 16 bytes without a NUL at their end, which numpy would cut off."""
    digest = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).digest()
    return digest[:15] + b"."


def _find(keys: np.ndarray, key: bytes) -> int | None:
    place = int(np.searchsorted(keys, np.bytes_(key)))
    return place if place < len(keys) and keys[place] == key else None

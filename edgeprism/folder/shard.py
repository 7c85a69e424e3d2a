"""One part of many: which pictures of a folder a run captions that shares them with others.

A picture's shard follows from its content alone. So no run has to know of the others, the same
picture under two names is captioned once, and a folder that grows leaves every picture in its
shard.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprism.arguments import check_integer
from edgeprism.errors import UsageError
from edgeprism.files.digests import sha256_of_file
from edgeprism.files.stamps import status_to_stamp
from edgeprism.picture.source import MAX_FILE_BYTES

if TYPE_CHECKING:
    from edgeprism.picture.find import PictureFile
    from edgeprism.store.caption_store import CaptionStore

_FORM = re.compile(r"([0-9]{1,9})/([0-9]{1,9})", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        check_integer("The number of shards", self.count, least=1)
        check_integer("A shard's number", self.number, least=1)
        if self.number > self.count:
            raise UsageError(
                f"There is no shard {self.number} of {self.count}.",
                f"Shards are counted from 1: {self.count}/{self.count} is the last.",
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "I/N". Raises UsageError."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is no shard.", "Give its number and how many there are: 3/16."
            )
        return cls(int(match[1]), int(match[2]))

    def holds(self, sha256: str) -> bool:
        """Return whether the picture with this content belongs to the shard."""
        return int(sha256[:16], 16) % self.count == self.number - 1


def of_shard(
    pictures: Iterable[PictureFile], shard: Shard | None, store: CaptionStore | None
) -> Iterator[PictureFile]:
    """Yield the pictures of a shard; all of them without one.

    Every file is read once to tell its shard; the store remembers its digest, so that a run that
    is started again reads only what changed.
    """
    for picture in pictures:
        if shard is None or shard.holds(_digest(picture, store)):
            yield picture


def _digest(picture: PictureFile, store: CaptionStore | None) -> str:
    """Return the sha256 of a file; that of its name if it cannot be read, which its run reports."""
    path = picture.path
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
            digest = store.digest_of(path, status) if store is not None else None
            if digest is None:
                digest = sha256_of_file(path)
                if store is not None:
                    store.remember_file(path, status_to_stamp(status), digest)
            return digest
    except (OSError, ValueError):
        pass  # one shard has to report it, and its name tells which
    return hashlib.sha256(os.fsencode(picture.name)).hexdigest()

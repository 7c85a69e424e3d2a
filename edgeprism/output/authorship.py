"""Which `.txt` files hold what EdgePrism wrote, also after they were moved or renamed.

A text is EdgePrism's only if its bytes are known as written by EdgePrism: to this path, or to
another path that does not hold them any more, because the file was moved from there. A copy beside
the file that it was made from counts as somebody's, as does every other text, whatever it says.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from edgeprism.errors import OutputError
from edgeprism.output.originals import Original, Originals


class Outputs(Protocol):
    """What EdgePrism wrote as a whole, over nobody's text."""

    def is_written(self, path: Path, sha256: str) -> bool:
        """Return whether EdgePrism wrote these bytes to `path`."""

    def places(self, sha256: str, name: str) -> list[Path]:
        """Return paths that EdgePrism wrote these bytes to, those of the file name `name` first."""

    def remember(self, path: Path, sha256: str) -> None:
        """Remember that EdgePrism writes these bytes to `path`."""

    def forget(self, path: Path, sha256: str) -> None:
        """Forget that EdgePrism wrote these bytes to `path`."""


@dataclass(frozen=True)
class Known:
    """A text that EdgePrism wrote."""

    place: Path  # where EdgePrism wrote it, which may be another path than today's
    original: Original | None  # None if it stood for nobody's text


class Authorship:
    """Tells EdgePrism's texts from those of others, and remembers them."""

    def __init__(self, outputs: Outputs | None = None, originals: Originals | None = None) -> None:
        """Without `outputs`, only texts that replaced or continued others are known."""
        self._outputs, self._originals = outputs, originals or Originals()

    def find(self, path: Path, data: bytes) -> Known | None:
        """Return what is known of the text `data` of the file `path`; None if it is somebody's.

        Raises OutputError if the file was moved and several former texts may belong to it.
        """
        digest = hashlib.sha256(data).hexdigest()
        here = self._originals.find(path)
        if here is not None and (here.written_sha256 == digest or _goes_on(here, data)):
            return Known(path, here)
        former = self._originals.find_content(digest)
        for place, original in former:
            if _is_same(place, path):
                return Known(place, original)
        if self._outputs is None:
            return _nearest(path, [Known(p, o) for p, o in former if not _holds(p, data)])
        if self._outputs.is_written(path, digest):
            return Known(path, None)
        return self._find_moved(path, data, digest, former)

    def keep(self, path: Path, original: Original) -> None:
        """Remember the original of `path` before the file is written; raises OutputError."""
        self._originals.keep(path, original)

    def remember(self, path: Path, data: bytes) -> None:
        """Remember `data`, which stands for nobody's text, before it is written to `path`."""
        if self._outputs is not None:
            digest = hashlib.sha256(data).hexdigest()
            if not self._outputs.is_written(path, digest):
                self._outputs.remember(path, digest)

    def forget(self, path: Path, data: bytes, known: Known) -> None:
        """Forget the text `data` of `path`, which was taken out."""
        digest = hashlib.sha256(data).hexdigest()
        for place in {path, known.place}:
            if known.original is not None:
                self._originals.forget(place, known.original)
            elif self._outputs is not None:
                self._outputs.forget(place, digest)

    def _find_moved(
        self, path: Path, data: bytes, digest: str, former: list[tuple[Path, Original]]
    ) -> Known | None:
        """Find the text under the paths that it may have been moved from."""
        with_original = {place for place, _ in former}
        moved = [Known(p, o) for p, o in former if not _holds(p, data)]
        for place in self._outputs.places(digest, path.name) if self._outputs is not None else ():
            if place in with_original:
                continue
            if _is_same(place, path):
                return Known(place, None)
            if not _holds(place, data):
                moved.append(Known(place, None))
                if not former:
                    break  # all further ones would say the same
        return _nearest(path, moved)


def _nearest(path: Path, moved: list[Known]) -> Known | None:
    """Return the one whose path ends most like `path`, as a moved folder's files do.

    Raises OutputError if several with different former texts are as near.
    """
    if not moved:
        return None
    lengths = [_common_end(known.place, path) for known in moved]
    nearest = [k for k, length in zip(moved, lengths, strict=True) if length == max(lengths)]
    if len({k.original and (k.original.content, k.original.appended) for k in nearest}) > 1:
        raise OutputError(
            f"{path}: was moved since EdgePrism wrote it, and several former texts may belong to "
            "it, so it was left alone.",
            f"Move it back to where it was, such as {nearest[0].place}, and try again.",
        )
    return nearest[0]


def _common_end(place: Path, path: Path) -> int:
    """Return how many parts two paths share, from the last one on."""
    pairs = zip(reversed(place.parts), reversed(path.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _goes_on(original: Original, data: bytes) -> bool:
    """Return whether a person went on writing in front of what EdgePrism appended."""
    return bool(original.appended) and data.endswith(original.appended)


def _is_same(place: Path, path: Path) -> bool:
    """Return whether both are one file, perhaps by way of a linked folder."""
    try:
        return place == path or os.path.samefile(place, path)
    except (OSError, ValueError):
        return False


def _holds(place: Path, data: bytes) -> bool:
    """Return whether the file `place` holds just `data`."""
    try:
        status = os.lstat(place)
        if not stat.S_ISREG(status.st_mode) or status.st_size != len(data):
            return False
        return place.read_bytes() == data
    except (OSError, ValueError):
        return False

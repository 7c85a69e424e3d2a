"""Which result files are still as EdgePrism wrote them, so that no edit of theirs is lost.

The data folder remembers the sha256 of each result file that was written last. A file that is not
remembered, because another data folder or an older version wrote it, counts as edited.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from edgeprism.files.digests import sha256_of_file
from edgeprism.files.remembered import Remembered

_LIMIT = 1000  # files, so that the memory does not grow for ever

_outputs = Remembered("outputs.json", limit=_LIMIT)


def remember_written(path: Path, digest: str) -> None:
    """Remember the sha256 of a result file that has just been written."""
    _outputs.remember(_key(path), digest)


def is_as_written(path: Path) -> bool:
    """Return whether a file holds what EdgePrism wrote there last. Raises OSError."""
    known = _outputs.read().get(_key(path))
    return known is not None and known == sha256_of_file(path)


def remember_reports(folder: Path, names: Sequence[str]) -> None:
    """Remember that the files `names` of a folder have just been written. Raises OSError."""
    for name in names:
        remember_written(folder / name, sha256_of_file(folder / name))


def set_edited_reports_aside(folder: Path, names: Sequence[str]) -> None:
    """Give a folder's reports other names if one was edited since it was written."""
    for name in names:
        # what is no file, or cannot be read, was refused before the work began
        with contextlib.suppress(OSError):
            if not is_as_written(folder / name):
                set_reports_aside(folder, names)
                return


def set_reports_aside(folder: Path, names: Sequence[str]) -> None:
    """Give a folder's reports the first number that is free, as in `report-1.json`."""
    number = 1
    while any((folder / _numbered(name, number)).exists() for name in names):
        number += 1
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            (folder / name).rename(folder / _numbered(name, number))


def _numbered(name: str, number: int) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{number}{dot}{suffix}"


def _key(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))

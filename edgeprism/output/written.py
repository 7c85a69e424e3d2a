"""Which result files are still as EdgePrism wrote them, so that no edit of theirs is lost.

The data folder remembers the sha256 of each result file that was written last. A file that is not
remembered, because another data folder or an older version wrote it, counts as edited.
"""

from __future__ import annotations

import os
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


def _key(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))

"""Counts of memory that were made before, by the stamps of the files that they follow from.

A header holds the vocabulary: to pass over 300,000 tokens and merges takes 0.05 s, for which each
command that plans would wait.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from edgeprism.errors import ManifestError
from edgeprism.files.remembered import Remembered
from edgeprism.files.stamps import status_to_stamp
from edgeprism.files.strict_json import record_from_data
from edgeprism.memory.parts import Part
from edgeprism.version import __version__

_FILE = "memory.json"
_counts = Remembered(_FILE, limit=20)


def remembered_parts(
    files: Iterable[Path], use: object, count: Callable[[], tuple[Part, ...]]
) -> tuple[Part, ...]:
    """Return what `count` returns; it is called once for files that stay as they are.

    Parameters:
        files: the files that the count follows from.
        use: how they are used; its `repr` tells it from other uses.
    """
    try:
        stamps = [status_to_stamp(path.stat()) for path in files]
    except OSError:
        return count()  # which says what is wrong with the file
    facts = (__version__, use, [stamp.text() for stamp in stamps])
    key = hashlib.sha256(repr(facts).encode()).hexdigest()
    known = _counts.read().get(key)
    if isinstance(known, list):
        with contextlib.suppress(ManifestError):  # it was damaged
            return tuple(record_from_data(Part, item, _FILE) for item in known)
    parts = count()
    if all(stamp.settled for stamp in stamps):  # else a change that follows might not show
        _counts.remember(key, [asdict(part) for part in parts])
    return parts

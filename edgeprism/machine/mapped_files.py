"""Pages of files that an engine has mapped into this process and does not read again.

llama.cpp maps a model's file, and copies of it what the processor multiplies faster in another
layout, or what goes to a GPU. The pages that it copied from stay resident: a model's weights then
stand in memory twice.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_DONT_NEED = 4  # MADV_DONTNEED of Linux
_LEAST = 1 << 24  # bytes of a mapping; the pages of a smaller one are hardly noticed


def large_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files that are large enough for their pages to be given back."""
    return [path for path in paths if path.is_file() and path.stat().st_size >= _LEAST]


def drop_mapped_pages(path: Path) -> None:
    """Give back the resident pages of a large file that is mapped to be read; Linux only.

    Whoever reads such a page again gets it from the system's cache, or from the disk. Nothing
    happens where the system does not list mappings.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, length in _mappings(path):
        # it fails only for a range that is no mapping: then another thread has ended it
        advise(start, length, _DONT_NEED)


def _mappings(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (address, length) of each mapping of the file at `path` that cannot be written to."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        file, name = path.stat(), os.path.realpath(path)
    except OSError:
        return
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    for line in lines:
        span, rights, _, *where = line.split(maxsplit=5)
        # a layered file system may show the device below it, and the name is escaped if it is odd
        same = where[:2] == [device, str(file.st_ino)] or where[2:] == [name]
        if same and "w" not in rights:
            start, end = (int(edge, 16) for edge in span.split("-"))
            if end - start >= _LEAST:
                yield start, end - start

"""File-name patterns with * ? [ and **, expanded in a stable order.

Written by hand because the standard library cannot do it on Python 3.11: `glob` follows links
under `**`, so two links to a parent folder multiply its matches (123 for 4 files); `Path.glob`
walks into hidden folders and misses dangling links; both, and `os.walk`, end a folder nested
1,000 deep with a RecursionError.
"""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

_MAGIC = "*?["


def is_pattern(text: str) -> bool:
    """Whether `text` holds a character that patterns give a meaning."""
    return any(letter in text for letter in _MAGIC)


def fixed_folder(pattern: str) -> str:
    """The folder before the first part that is a pattern."""
    return str(_split(pattern)[0])


def expand_pattern(pattern: str) -> list[str]:
    """Existing paths that `pattern` matches, by case-folded parts.

    `**` stands for any number of folders and follows no links; a hidden entry is matched only
    by a part that itself begins with a dot.
    """
    folder, parts = _split(pattern)
    found = {str(folder)}
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        found = {path for start in found for path in _step(start, part, last)}
    return sorted(found, key=lambda path: ([p.casefold() for p in Path(path).parts], path))


def _split(pattern: str) -> tuple[Path, list[str]]:
    parts = Path(pattern).parts
    first = next((n for n, part in enumerate(parts) if is_pattern(part)), len(parts))
    return Path(*parts[:first]), list(parts[first:])


def _step(start: str, part: str, last: bool) -> list[str]:
    if part == "**":
        # as the last part it stands for what is in there, which walking `start` finds too
        return [start] if last else _folders_below(start)
    if not is_pattern(part):
        path = os.path.join(start, part)
        return [path] if os.path.lexists(path) else []
    dotted = part.startswith(".")
    return [
        os.path.join(start, name)
        for name in _names(start)
        if (dotted or not name.startswith(".")) and fnmatch.fnmatch(name, part)
    ]


def _folders_below(start: str) -> list[str]:
    found, pending = [], [start]
    while pending:
        folder = pending.pop()
        found.append(folder)
        for name in _names(folder):
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isdir(path) and not os.path.islink(path):
                pending.append(path)
    return found


def _names(folder: str) -> list[str]:
    """Entries; none where it cannot be listed, which then shows as a pattern without a match."""
    try:
        return os.listdir(folder)
    except OSError:
        return []

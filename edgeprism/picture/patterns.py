"""File-name patterns with * ? [ and **, expanded in a stable order.

EdgePrism has its own code for this because Python 3.11's standard library does not suffice: `glob`
follows links under `**`, so two links to a parent folder multiply its matches (123 for 4 files);
`Path.glob` walks into hidden folders and misses dangling links; both, and `os.walk`, raise
RecursionError in folders nested 1,000 deep.
"""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path

from edgeprism.picture.address import address_error
from edgeprism.picture.kinds import is_system_folder

_MAGIC = "*?["


def is_pattern(text: str) -> bool:
    """Return whether `text` holds a character with a meaning in patterns, and is no address."""
    return any(letter in text for letter in _MAGIC) and address_error(text) is None


def fixed_folder(pattern: str) -> str:
    """Return the folder before the first part that is a pattern and no name that exists."""
    return str(_split(pattern)[0])


def expand_pattern(pattern: str) -> list[str]:
    """Return the existing paths that `pattern` matches, sorted by case-folded parts.

    A part that exists as it is written means just that: the folder `photos [2024]`. Brackets stand
    for themselves where names have them, as in `photos [2024]*`. `**` matches any number of folders
    and follows no links. Only a part that begins with a dot matches hidden entries, and wildcards
    match no folder that a system or a NAS keeps for itself.
    """
    folder, parts = _split(pattern)
    paths = {str(folder)}
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        paths = {path for start in paths for path in _step(start, part, last)}
    return sorted(paths, key=lambda path: ([p.casefold() for p in Path(path).parts], path))


def _split(pattern: str) -> tuple[Path, list[str]]:
    parts = Path(pattern).parts
    first = 0
    while first < len(parts) and (
        not is_pattern(parts[first]) or os.path.lexists(Path(*parts[: first + 1]))
    ):
        first += 1
    return Path(*parts[:first]), list(parts[first:])


def _step(start: str, part: str, last: bool) -> list[str]:
    if part == "**":
        # as the last part it matches everything in `start`, which the caller walks anyway
        return [start] if last else _folders_below(start)
    path = os.path.join(start, part)
    if not is_pattern(part) or os.path.lexists(path):
        return [path] if os.path.lexists(path) else []
    names = [name for name in _names(start) if part.startswith(".") or _is_shown(start, name)]
    # with brackets that stand for themselves first: `photos [2024]*`
    matches = fnmatch.filter(names, part.replace("[", "[[]")) or fnmatch.filter(names, part)
    return [os.path.join(start, name) for name in matches]


def _folders_below(start: str) -> list[str]:
    folders, pending = [], [start]
    while pending:
        folder = pending.pop()
        folders.append(folder)
        for name in _names(folder):
            path = os.path.join(folder, name)
            if _is_shown(folder, name) and os.path.isdir(path) and not os.path.islink(path):
                pending.append(path)
    return folders


def _is_shown(folder: str, name: str) -> bool:
    """Return whether a wildcard may match an entry."""
    if name.startswith("."):
        return False
    return not (is_system_folder(folder, name) and os.path.isdir(os.path.join(folder, name)))


def _names(folder: str) -> list[str]:
    """Return the entries of a folder; none if it cannot be listed: then nothing matches."""
    try:
        return os.listdir(folder)
    except OSError:
        return []

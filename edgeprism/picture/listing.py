"""One folder's entries, sorted into pictures, folders, and what is passed over."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass, field

from edgeprism.picture.ignore import IGNORE_FILE, Rules, read_ignore_file
from edgeprism.picture.kinds import (
    HIDDEN,
    has_picture_suffix,
    is_system_folder,
    system_file,
)
from edgeprism.picture.passed import PassedOver

NO_MEDIA = ".nomedia"  # Android's mark of a folder whose pictures no gallery shows


@dataclass
class Listing:
    """A folder's entries that a search goes on with, each list in the stable order."""

    rules: Rules  # in force in the folder and below
    pictures: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)  # to folders
    errors: list[OSError] = field(default_factory=list)


def list_folder(folder: str, rules: Rules, passed: PassedOver, *, named: bool) -> Listing:
    """List a folder and count in `passed` what the search passes over.

    A folder that is `named` is searched even if a mark in it says that it is not to be. Entries
    before an error stay in the listing, unless the ignore file is what cannot be read.
    """
    listing = Listing(rules)
    entries: list[os.DirEntry[str]] = []
    try:
        with os.scandir(folder) as scan:
            entries += scan
    except OSError as error:
        listing.errors.append(error)
    names = {entry.name for entry in entries}
    if NO_MEDIA in names and not named:
        passed.close(folder, NO_MEDIA)
        return listing
    if IGNORE_FILE in names:
        try:
            listing.rules = rules.within(folder, read_ignore_file(folder))
        except OSError as error:  # what it keeps out is not known
            listing.errors.append(error)
            return listing
    others = [entry.name for entry in entries if not _sort(entry, folder, listing, passed)]
    passed.add_others(others, names)
    for sorted_names in (listing.pictures, listing.folders, listing.links):
        sorted_names.sort(key=sort_key)
    return listing


class RulesBelow:
    """The rules in force in folders below `start`, for paths that a pattern leads to."""

    def __init__(self, start: str, rules: Rules) -> None:
        self._start = start
        self._known: dict[str, Rules | None] = {start: _with_ignore_file(start, rules)}

    def above(self, path: str) -> Rules | None:
        """Return the rules for an entry of its folder; None if that is passed over as a whole."""
        if path == self._start:
            return self._known[path]
        folder = os.path.dirname(path)
        if folder not in self._known:
            rules = self.above(folder)
            closed = rules is None or rules.excludes(folder, True)
            closed = closed or os.path.lexists(os.path.join(folder, NO_MEDIA))
            self._known[folder] = None if closed or not rules else _with_ignore_file(folder, rules)
        return self._known[folder]


def _with_ignore_file(folder: str, rules: Rules) -> Rules | None:
    """Add the folder's own rules, if it has any; None if they cannot be read."""
    try:
        return rules.within(folder, read_ignore_file(folder))
    except FileNotFoundError:
        return rules
    except OSError:
        return None


def _sort(entry: os.DirEntry[str], folder: str, listing: Listing, passed: PassedOver) -> bool:
    """Put an entry where it belongs; return False for a file that is no picture.

    Everything with a picture's suffix that is no folder counts as a picture. So does a dangling
    link, so that the picture's reader reports it.
    """
    name, is_folder = entry.name, False
    with suppress(OSError):  # raised for a link to itself, which is no folder
        is_folder = entry.is_dir()
    path = os.path.join(folder, name)
    if is_folder and (is_system_folder(folder, name) or is_hidden(entry)):
        if entry.is_symlink():
            passed.closed[name] += 1
        else:
            passed.close(path, name)
    elif listing.rules.excludes(path, is_folder):
        passed.exclude(name, is_folder)
    elif is_folder:
        (listing.links if entry.is_symlink() else listing.folders).append(name)
    elif system_file(name) or is_hidden(entry):
        passed.add(name, None if name.startswith(".") or system_file(name) else HIDDEN)
    elif has_picture_suffix(name):
        listing.pictures.append(name)
    else:
        return False
    return True


def is_hidden(entry: os.DirEntry[str]) -> bool:
    """Return whether the system's file browser hides an entry."""
    if entry.name.startswith("."):
        return True
    if sys.platform == "win32":  # on other systems this would cost a system call per file
        attributes = entry.stat(follow_symlinks=False).st_file_attributes
        return bool(attributes & stat.FILE_ATTRIBUTE_HIDDEN)
    return False


def sort_key(name: str) -> tuple[str, str]:
    """Return the sort key for names in a folder."""
    return name.casefold(), name

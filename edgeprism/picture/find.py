"""Arguments → pictures: files, folders, patterns and lists, in one stable order.

Nothing here opens a picture. Whether a file that is named directly exists and is a picture is
for its reader to say: a missing one is yielded too, so that it is reported and not lost.

The order: arguments as given, then the list's lines. In a folder, files come first and its
sub-folders after them, both by name, case-folded, the raw name breaking ties. Linked folders
come after everything that really lies in their argument, and only if they lead somewhere new:
a picture is found once and under its own path, however many links or loops lead to it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgeprism.errors import UsageError
from edgeprism.picture.patterns import expand_pattern, fixed_folder, is_pattern

PICTURE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff",
     ".webp"}
)  # fmt: skip
STDIN = "-"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture's path and how it was found."""

    path: Path
    root: Path | None  # the folder argument it lies under; None when named directly
    argument: str  # as given; "-" for the picture on standard input
    base: Path | None = None  # absolute folder that all arguments share, for mirrored outputs

    @property
    def is_stdin(self) -> bool:
        """Whether the picture is to be read from standard input."""
        return self.argument == STDIN

    @property
    def relative(self) -> Path:
        """Where its results belong below a mirrored folder.

        The path below what all arguments have in common: for one folder, the path inside it;
        for several, each folder keeps its name. So no two pictures of a search share it.
        """
        if self.base is not None and self.base.is_absolute():
            return Path(_absolute(str(self.path))).relative_to(self.base)
        if self.base is not None:  # nothing in common, as on two drives: the drive is a folder
            whole = Path(_absolute(str(self.path)))
            drive = "".join(letter for letter in whole.drive if letter.isalnum())
            return Path(drive, *whole.parts[1:])
        return Path(self.path.name) if self.root is None else self.path.relative_to(self.root)


@dataclass(frozen=True)
class Unreadable:
    """A folder that could not be listed, wholly or from some entry on."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class _Target:
    argument: str
    path: str
    anchor: str | None  # absolute folder that counts towards the common one
    is_folder: bool = False


class PictureSearch(Iterator[PictureFile]):
    """Iterates over the pictures; the counts are complete when it has ended."""

    def __init__(self, targets: list[_Target], skipped: int, limit: int | None) -> None:
        self.skipped = skipped  # files passed over because they have no picture's suffix
        self.repeated = 0  # paths that came up again and were yielded before
        self.unreadable: list[Unreadable] = []
        self._base = _common_folder(target.anchor for target in targets)
        self._left = limit
        self._seen: set[str] = set()
        self._entered: set[tuple[int, int] | str] = set()
        self._found = self._find(targets)

    def __iter__(self) -> PictureSearch:
        return self

    def __next__(self) -> PictureFile:
        if self._left == 0:
            raise StopIteration
        found = next(self._found)
        if self._left is not None:
            self._left -= 1
        return found

    def _find(self, targets: list[_Target]) -> Iterator[PictureFile]:
        for target in targets:
            if target.is_folder:
                yield from self._walk(target)
                continue
            picture = PictureFile(Path(target.path), None, target.argument, self._base)
            if self._is_new(STDIN if picture.is_stdin else _absolute(target.path)):
                yield picture

    def _walk(self, target: _Target) -> Iterator[PictureFile]:
        """Depth first with a list of our own: a deep tree must not exhaust Python's stack."""
        root = Path(target.path)
        pending, links = [target.path], deque[str]()
        while pending or links:
            folder = pending.pop() if pending else links.popleft()
            if not self._enter(folder):
                continue
            listing = self._list(folder)
            absolute = _absolute(folder)
            for name in listing.pictures:
                if self._is_new(os.path.join(absolute, name)):
                    path = Path(os.path.join(folder, name))
                    yield PictureFile(path, root, target.argument, self._base)
            pending.extend(os.path.join(folder, name) for name in reversed(listing.folders))
            links.extend(os.path.join(folder, name) for name in listing.links)

    def _enter(self, folder: str) -> bool:
        """False for a folder that was walked before, by whatever path."""
        try:
            status = os.stat(folder)
        except OSError as error:
            self._report(folder, error)
            return False
        # some network file systems number nothing: there the resolved path has to tell
        inode = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
        if inode in self._entered:
            return False
        self._entered.add(inode)
        return True

    def _list(self, folder: str) -> _Listing:
        listing = _Listing([], [], [])
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not _is_hidden(entry):
                        self.skipped += listing.add(entry)
        except OSError as error:  # what came before the error is kept
            self._report(folder, error)
        for names in (listing.pictures, listing.folders, listing.links):
            names.sort(key=sort_key)
        return listing

    def _is_new(self, absolute: str) -> bool:
        key = os.path.normcase(absolute)
        if key in self._seen:
            self.repeated += 1
            return False
        self._seen.add(key)
        return True

    def _report(self, folder: str, error: OSError) -> None:
        self.unreadable.append(Unreadable(Path(folder), error.strerror or str(error)))


@dataclass(frozen=True, slots=True)
class _Listing:
    pictures: list[str]
    folders: list[str]
    links: list[str]  # to folders

    def add(self, entry: os.DirEntry[str]) -> bool:
        """True for a file that is passed over.

        Whatever has a picture's suffix and is no folder counts as a picture, a dangling link
        too: its reader will say what is wrong with it.
        """
        is_folder = False
        with suppress(OSError):  # a link to itself is no folder
            is_folder = entry.is_dir()
        if is_folder:
            (self.links if entry.is_symlink() else self.folders).append(entry.name)
        elif has_picture_suffix(entry.name):
            self.pictures.append(entry.name)
        else:
            return True
        return False


def find_pictures(
    arguments: Iterable[str | os.PathLike[str]],
    *,
    files_from: str | os.PathLike[str] | None = None,
    null: bool = False,
    limit: int | None = None,
    stdin: IO[bytes] | None = None,
) -> PictureSearch:
    """The pictures that `arguments` and the list `files_from` name, at most `limit` of them.

    An argument is a file (whatever its suffix), a folder (walked to its end, hidden entries and
    files without a picture's suffix passed over), a pattern with * ? [ or ** that no file has as
    its name, or "-" for one picture on standard input. `files_from` is a file, or "-" for
    standard input, with one path a line in UTF-8 (blank lines ignored), or with NUL after each
    path where `null` is set; its lines are files or folders, never patterns.

    Folders are read as the iteration goes on. Raises UsageError, before anything is yielded, for
    a pattern without a match, an unreadable list, or options that exclude each other.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"A limit of {limit} leaves no picture.", "Give a `limit` of 1 or more.")
    if null and files_from is None:
        raise UsageError(
            "NUL ends the paths of a list, but no list is named.", "Give `files_from` too."
        )
    given = [os.fspath(argument) for argument in arguments]
    listed: list[str] = []
    if files_from is not None:
        if os.fspath(files_from) == STDIN and STDIN in given:
            raise UsageError(
                "Standard input cannot be both a picture and a list.", 'Leave out one "-".'
            )
        listed = _read_list(os.fspath(files_from), null, stdin)
    targets: list[_Target] = []
    skipped = 0
    for argument in given:
        if argument == STDIN:
            targets.append(_Target(STDIN, STDIN, None))
        elif is_pattern(argument) and not os.path.lexists(argument):
            matches, passed_over = _pattern_to_targets(argument)
            targets += matches
            skipped += passed_over
        else:
            targets.append(_path_to_target(argument))
    # a line "-" is a file of that name; "./-" keeps it apart from standard input
    targets += [_path_to_target("./-" if line == STDIN else line) for line in listed]
    return PictureSearch(targets, skipped, limit)


def has_picture_suffix(name: str) -> bool:
    """Whether a file's name ends as a picture's does."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def sort_key(name: str) -> tuple[str, str]:
    """The order of names in a folder."""
    return name.casefold(), name


def _path_to_target(argument: str) -> _Target:
    if not argument:
        raise UsageError("An empty argument names no picture.", 'For this folder give ".".')
    is_folder = os.path.isdir(argument)
    absolute = _absolute(argument)
    return _Target(
        argument, argument, absolute if is_folder else os.path.dirname(absolute), is_folder
    )


def _pattern_to_targets(pattern: str) -> tuple[list[_Target], int]:
    """Matches, and how many of them are passed over.

    A pattern that spells a suffix (`*.dat`) means those files; one that does not (`scans/*`)
    means the pictures and folders among its matches.
    """
    suffix = os.path.splitext(pattern)[1]
    means_all = bool(suffix) and not is_pattern(suffix)
    anchor = _absolute(fixed_folder(pattern))
    targets, skipped = [], 0
    for path in expand_pattern(pattern):
        if os.path.isdir(path):
            targets.append(_Target(pattern, path, anchor, True))
        elif means_all or has_picture_suffix(path):
            targets.append(_Target(pattern, path, anchor))
        else:
            skipped += 1
    if not targets:
        raise UsageError(f"{pattern}: no picture matches.", "Check the pattern and the folder.")
    return targets, skipped


def _read_list(source: str, null: bool, stdin: IO[bytes] | None) -> list[str]:
    name = "The list on standard input" if source == STDIN else source
    try:
        data = Path(source).read_bytes() if source != STDIN else (stdin or sys.stdin.buffer).read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{name}: cannot be read: {reason}.", "Check `files_from`.") from error
    if data.startswith(_UTF16_MARKS):
        raise UsageError(f"{name}: is in UTF-16.", "Save it as UTF-8.")
    if null:
        return [_to_path(item) for item in data.split(b"\0") if item]
    if b"\0" in data:
        raise UsageError(f"{name}: holds NUL characters.", "Give `null` if they end the paths.")
    lines = (line.removesuffix(b"\r") for line in data.removeprefix(_UTF8_MARK).split(b"\n"))
    return [_to_path(line) for line in lines if line.strip()]


def _absolute(path: str) -> str:
    """As os.path.abspath, but `link/..` is the parent of what the link leads to, as it is."""
    if ".." not in path:
        return os.path.abspath(path)
    parts = Path(path).parts
    fixed = max((n for n, part in enumerate(parts, 1) if part == ".."), default=0)
    return os.path.join(os.path.realpath(Path(*parts[:fixed])), *parts[fixed:])


def _to_path(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _is_hidden(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return True
    if sys.platform == "win32":  # elsewhere this would cost a system call for each file
        attributes = entry.stat(follow_symlinks=False).st_file_attributes
        return bool(attributes & stat.FILE_ATTRIBUTE_HIDDEN)
    return False


def _common_folder(anchors: Iterable[str | None]) -> Path | None:
    """None without anchors; the relative `Path()` where they share nothing, not even a drive."""
    known = {anchor for anchor in anchors if anchor is not None}
    if not known:
        return None
    try:
        return Path(os.path.commonpath(known))
    except ValueError:
        return Path()
